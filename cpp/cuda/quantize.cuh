// Activations to 14-bit integers, by blocks: the operations of src/kernel/quantize.rs in their order. Integers become two
// planes of bytes, q = 128*high + low (kernels.cuh).

#pragma once

#include "args.h"
#include "device.cuh"

// the step of a column and its powers of two: Step::of
struct lbk_step {
    float shift, step, unshift;
    bool  usable;
};

LBK_DEVICE lbk_step lbk_step_of(uint32_t value, uint32_t group) {
    // Magnitudes compare like their bit patterns.
    const uint32_t infinity = 0x7f800000u, tiny = (127u - 90u) << 23;
    lbk_step s = { 1.0f, lbk_from_bits(0x7fc00000u), 1.0f, false };
    if (value >= infinity || group >= infinity) {
        return s;
    }
    if (value < tiny) {
        s.shift   = lbk_from_bits((127u + 64u) << 23);
        s.unshift = lbk_from_bits((127u - 64u) << 23);
    }
    const uint32_t by_value = lbk_bits(lbk_div(lbk_mul(lbk_from_bits(value), s.shift), 8191.0f));
    const uint32_t by_group = lbk_bits(lbk_div(lbk_mul(lbk_from_bits(group), s.shift), 16381.0f));
    const uint32_t step = by_value > by_group ? by_value : by_group;
    s.step   = lbk_from_bits(step);
    s.usable = step > 0 && step < infinity;
    return s;
}

// pre * x of columns 4i .. 4i+3, zero beyond the end
LBK_DEVICE void lbk_load4(const float * x, const uint16_t * pre, uint32_t cols, uint32_t i, float v[4]) {
    const uint32_t k = 4*i;
    if (k + 4 <= cols && (uintptr_t) x % 16 == 0) {
        const lbk_f32x4 f = *(const lbk_f32x4 *) (x + k);
        v[0] = f.x; v[1] = f.y; v[2] = f.z; v[3] = f.w;
    } else {
        LBK_UNROLL
        for (uint32_t j = 0; j < 4; ++j) {
            v[j] = k + j < cols ? x[k + j] : 0.0f;
        }
    }
    if (pre == nullptr) {
        return;
    }
    if (k + 4 <= cols && (uintptr_t) pre % 8 == 0) {
        const lbk_u32x2 h = *(const lbk_u32x2 *) (pre + k);
        v[0] = lbk_mul(v[0], lbk_half((uint16_t) h.x)); v[1] = lbk_mul(v[1], lbk_half((uint16_t) (h.x >> 16)));
        v[2] = lbk_mul(v[2], lbk_half((uint16_t) h.y)); v[3] = lbk_mul(v[3], lbk_half((uint16_t) (h.y >> 16)));
    } else {
        LBK_UNROLL
        for (uint32_t j = 0; j < 4; ++j) {
            if (k + j < cols) {
                v[j] = lbk_mul(v[j], lbk_half(pre[k + j]));
            }
        }
    }
}

LBK_DEVICE uint32_t lbk_max(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Extent: bit patterns of magnitudes, which order like the values, infinity and NaN on top.
struct lbk_extent_bits {
    uint32_t value, group;
};

// of the groups of four `first`, `first + step`, ...
LBK_DEVICE lbk_extent_bits lbk_extent_of(const float * x, const uint16_t * pre, uint32_t cols, uint32_t first, uint32_t step) {
    const uint32_t abs = 0x7fffffffu;
    lbk_extent_bits e = { 0, 0 };
    for (uint32_t i = first; i < (cols + 3)/4; i += step) {
        float v[4];
        lbk_load4(x, pre, cols, i, v);
        uint32_t b[4];
        LBK_UNROLL
        for (int j = 0; j < 4; ++j) {
            b[j] = lbk_bits(v[j]) & abs;
            e.value = lbk_max(e.value, b[j]);
        }
        const float sum = lbk_add(lbk_add(lbk_from_bits(b[0]), lbk_from_bits(b[1])),
                                  lbk_add(lbk_from_bits(b[2]), lbk_from_bits(b[3])));
        e.group = lbk_max(e.group, lbk_bits(sum) & abs);
    }
    return e;
}

// the largest of a warp, in all its lanes
LBK_DEVICE lbk_extent_bits lbk_warp_max(lbk_extent_bits e) {
    LBK_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) {
        e.value = lbk_max(e.value, lbk_shuffle_xor(e.value, mask));
        e.group = lbk_max(e.group, lbk_shuffle_xor(e.group, mask));
    }
    return e;
}

// The largest of the block, in all threads. Uses words 0..31 of scratch (LBK_SCRATCH bytes of shared memory).
LBK_DEVICE lbk_extent_bits lbk_block_max(lbk_extent_bits e, uint32_t * scratch) {
    const uint32_t warps = blockDim.x/32, warp = threadIdx.x/32;
    e = lbk_warp_max(e);
    if (threadIdx.x % 32 == 0) {
        scratch[warp]      = e.value;
        scratch[16 + warp] = e.group;
    }
    __syncthreads();
    for (uint32_t w = 0; w < warps; ++w) {
        e.value = lbk_max(e.value, scratch[w]);
        e.group = lbk_max(e.group, scratch[16 + w]);
    }
    return e;
}

// Quantizes `plane` columns from `from` (a multiple of 4) with all threads of the block into two planes, zeros beyond the
// last column. Ends in a barrier. Returns the sum of the integers. Uses words 32..47 of scratch.
LBK_DEVICE uint32_t lbk_quantize_part(const float * x, const uint16_t * pre, uint32_t cols, uint32_t from, uint32_t plane,
        uint8_t * planes, lbk_step s, uint32_t * scratch) {
    const uint32_t warps = blockDim.x/32, warp = threadIdx.x/32;
    uint32_t total = 0;
    for (uint32_t i = threadIdx.x; i < plane/4; i += blockDim.x) {
        uint32_t low = 0, high = 0;
        if (s.usable && from + 4*i < cols) {
            float v[4];
            lbk_load4(x, pre, cols, from/4 + i, v);
            LBK_UNROLL
            for (int j = 0; j < 4; ++j) {
                const int q = lbk_round(lbk_div(lbk_mul(v[j], s.shift), s.step));
                total += (uint32_t) q;
                low   |= ((uint32_t) q & 127u) << 8*j;
                high  |= ((uint32_t) (q >> 7) & 255u) << 8*j;
            }
        }
        *(uint32_t *) (planes + 4*i)         = low;
        *(uint32_t *) (planes + plane + 4*i) = high;
    }
    LBK_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) {
        total += lbk_shuffle_xor(total, mask);
    }
    if (threadIdx.x % 32 == 0) {
        scratch[32 + warp] = total;
    }
    __syncthreads();
    total = 0;
    for (uint32_t w = 0; w < warps; ++w) {
        total += scratch[32 + w];
    }
    return total;
}

// a whole column by one block
LBK_DEVICE lbk_column lbk_quantize_column(const float * x, const uint16_t * pre, uint32_t cols, uint32_t plane,
        uint8_t * planes, uint32_t * scratch) {
    const lbk_extent_bits e = lbk_block_max(lbk_extent_of(x, pre, cols, threadIdx.x, blockDim.x), scratch);
    const lbk_step s = lbk_step_of(e.value, e.group);
    const uint32_t total = lbk_quantize_part(x, pre, cols, 0, plane, planes, s, scratch);
    const lbk_column column = { s.step, s.unshift, (int32_t) total, 0 };
    return column;
}
