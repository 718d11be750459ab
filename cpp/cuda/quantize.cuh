// Activations to 14-bit integers, by blocks of LBK_ONE_THREADS: the operations of src/kernel/quantize.rs in their order. Integers become two
// planes of bytes, q = 128*high + low (kernels.cuh). A plane has column k at 32*(k/32) + 4*(k%8) + k/8%4: four bytes of one word are
// columns that share a bit of four bytes of signs.

#pragma once

#include "args.h"
#include "device.cuh"

// The step of a column: Step::of. For division there are the powers of two that values and step are multiplied by, beside those of the
// quantization itself, and the inverse of the step.
struct lbk_step {
    float scale, minus, inverse; // minus: the scaled step, negative
    float step, unshift;
    bool  usable;
};

LBK_DEVICE float lbk_power(int e) { return lbk_from_bits((uint32_t) (127 + e) << 23); }

LBK_DEVICE lbk_step lbk_step_of(uint32_t value, uint32_t group) {
    // Magnitudes compare like their bit patterns.
    const uint32_t infinity = 0x7f800000u, tiny = (127u - 90u) << 23;
    lbk_step s = { 1.0f, 1.0f, 1.0f, lbk_from_bits(0x7fc00000u), 1.0f, false };
    if (value >= infinity || group >= infinity) {
        return s;
    }
    const float shift = lbk_power(value < tiny ? 64 : 0);
    s.unshift = lbk_power(value < tiny ? -64 : 0);
    const uint32_t by_value = lbk_bits(lbk_div(lbk_mul(lbk_from_bits(value), shift), 8191.0f));
    const uint32_t by_group = lbk_bits(lbk_div(lbk_mul(lbk_from_bits(group), shift), 16381.0f));
    const uint32_t step = by_value > by_group ? by_value : by_group;
    s.step   = lbk_from_bits(step);
    s.usable = step > 0 && step < infinity;
    if (s.usable) {
        // Remainders of lbk_quotient lie up to 2^48 below the step, and must not be subnormal.
        const float away = lbk_power(step < (127u - 70u) << 23 ? 40 : 0);
        s.scale   = lbk_mul(shift, away);
        const float divisor = lbk_mul(s.step, away);
        s.minus   = lbk_from_bits(lbk_bits(divisor) | 0x80000000u);
        s.inverse = lbk_div(1.0f, divisor);
    }
    return s;
}

// scale*v / step, correctly rounded like lbk_div's wherever it is not far below 1/2, for a fraction of the operations. Scaling is exact.
// The inverse is correctly rounded, so the first quotient is off by less than two units in the last place, the second by less than one,
// and the third is the rounded quotient (Markstein, IBM J. Res. Dev. 34, 1990, theorem on correction by an exact remainder).
LBK_DEVICE float lbk_quotient(float v, const lbk_step & s) {
    const float a  = lbk_mul(v, s.scale);
    const float q0 = lbk_mul(a, s.inverse);
    const float q1 = lbk_fma(lbk_fma(q0, s.minus, a), s.inverse, q0);
    return lbk_fma(lbk_fma(q1, s.minus, a), s.inverse, q1);
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

// A thread's share of a column: pre * x of V groups of four columns.
template <int V>
struct lbk_held {
    float v[V][4];
};

// of the groups first, first + LBK_ONE_THREADS, ..., with all loads on their way before the first is used
template <int V>
LBK_DEVICE void lbk_hold(const float * x, const uint16_t * pre, uint32_t cols, uint32_t first, lbk_held<V> & held) {
    if (cols % 4 != 0 || (uintptr_t) x % 16 != 0 || (uintptr_t) pre % 8 != 0) {
        LBK_UNROLL
        for (int j = 0; j < V; ++j) {
            lbk_load4(x, pre, cols, first + j*LBK_ONE_THREADS, held.v[j]);
        }
        return;
    }
    const lbk_f32x4 * from = (const lbk_f32x4 *) x + first;
    lbk_f32x4 f[V];
    LBK_UNROLL
    for (int j = 0; j < V; ++j) {
        f[j] = { 0, 0, 0, 0 };
        if (first + j*LBK_ONE_THREADS < cols/4) {
            f[j] = from[j*LBK_ONE_THREADS];
        }
    }
    if (pre) {
        const lbk_u32x2 * scales = (const lbk_u32x2 *) pre + first;
        lbk_u32x2 h[V];
        LBK_UNROLL
        for (int j = 0; j < V; ++j) {
            h[j] = { 0, 0 };
            if (first + j*LBK_ONE_THREADS < cols/4) {
                h[j] = scales[j*LBK_ONE_THREADS];
            }
        }
        LBK_UNROLL
        for (int j = 0; j < V; ++j) {
            if (first + j*LBK_ONE_THREADS < cols/4) {
                f[j].x = lbk_mul(f[j].x, lbk_half((uint16_t) h[j].x)); f[j].y = lbk_mul(f[j].y, lbk_half((uint16_t) (h[j].x >> 16)));
                f[j].z = lbk_mul(f[j].z, lbk_half((uint16_t) h[j].y)); f[j].w = lbk_mul(f[j].w, lbk_half((uint16_t) (h[j].y >> 16)));
            }
        }
    }
    LBK_UNROLL
    for (int j = 0; j < V; ++j) {
        held.v[j][0] = f[j].x; held.v[j][1] = f[j].y; held.v[j][2] = f[j].z; held.v[j][3] = f[j].w;
    }
}

LBK_DEVICE uint32_t lbk_max(uint32_t a, uint32_t b) { return a > b ? a : b; }

// Extent: bit patterns of magnitudes, which order like the values, infinity and NaN on top.
struct lbk_extent_bits {
    uint32_t value, group;
};

LBK_DEVICE void lbk_widen(lbk_extent_bits & e, const float v[4]) {
    const uint32_t abs = 0x7fffffffu;
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

// of the groups of four `first`, `first + step`, ...
LBK_DEVICE lbk_extent_bits lbk_extent_of(const float * x, const uint16_t * pre, uint32_t cols, uint32_t first, uint32_t step) {
    lbk_extent_bits e = { 0, 0 };
    for (uint32_t i = first; i < (cols + 3)/4; i += step) {
        float v[4];
        lbk_load4(x, pre, cols, i, v);
        lbk_widen(e, v);
    }
    return e;
}

LBK_DEVICE lbk_extent_bits lbk_warp_max(lbk_extent_bits e) {
    return { lbk_warp_largest(e.value), lbk_warp_largest(e.group) };
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
    for (uint32_t w = 0; w < warps; w += 4) { // a multiple of four, at most 16
        const lbk_u32x4 v = *(const lbk_u32x4 *) (scratch + w), u = *(const lbk_u32x4 *) (scratch + 16 + w);
        e.value = lbk_max(lbk_max(e.value, lbk_max(v.x, v.y)), lbk_max(v.z, v.w));
        e.group = lbk_max(lbk_max(e.group, lbk_max(u.x, u.y)), lbk_max(u.z, u.w));
    }
    return e;
}

// The low and high bytes of four columns.
struct lbk_bytes {
    uint32_t low, high;
};

LBK_DEVICE lbk_bytes lbk_quantize4(const float v[4], const lbk_step & s, uint32_t & total) {
    lbk_bytes b = { 0, 0 };
    if (s.usable) {
        // 1.5*2^23 + x ends in the integer next to x, the even one of two.
        const float ending = 12582912.0f;
        uint32_t q[4];
        LBK_UNROLL
        for (int j = 0; j < 4; ++j) {
            q[j] = lbk_bits(lbk_add(lbk_quotient(v[j], s), ending));
        }
        total += q[0] + q[1] + q[2] + q[3] - 4*lbk_bits(ending);
        LBK_UNROLL
        for (int j = 0; j < 4; ++j) {
            q[j] += q[j] & ~127u; // bits 7 and up move to 8 and up
        }
        const uint32_t two = lbk_bytes_of(q[0], q[1], 0x5140), more = lbk_bytes_of(q[2], q[3], 0x5140);
        b.low  = lbk_bytes_of(two, more, 0x5410);
        b.high = lbk_bytes_of(two, more, 0x7632);
    }
    return b;
}

// Four lanes hold the bytes of columns k .. k+3 for k = 0, 8, 16, 24 (each second lane of eight, or each second but one). Gives each of
// them one of the words of a plane: lane number c of the four that of columns c, 8 + c, 16 + c, 24 + c from the first.
LBK_DEVICE uint32_t lbk_across(uint32_t word) {
    const bool second = threadIdx.x & 2, last = threadIdx.x & 4;
    const uint32_t two = lbk_shuffle_xor(word, 4);
    word = last ? lbk_bytes_of(two, word, 0x7632) : lbk_bytes_of(word, two, 0x5410);
    const uint32_t one = lbk_shuffle_xor(word, 2);
    return second ? lbk_bytes_of(one, word, 0x7351) : lbk_bytes_of(word, one, 0x6240);
}

// Writes a thread's share into planes that begin at a chunk of the column and have `groups` groups of four, whole chunks.
template <int V>
LBK_DEVICE void lbk_put(const lbk_held<V> & held, uint32_t first, uint32_t groups, uint8_t * planes, const lbk_step & s, uint32_t & total) {
    LBK_UNROLL
    for (int j = 0; j < V; ++j) {
        const uint32_t i = first + j*LBK_ONE_THREADS;
        if (i < groups) { // of all lanes or of none
            const lbk_bytes b = lbk_quantize4(held.v[j], s, total);
            uint32_t * to = (uint32_t *) planes + i/8*8 + i%2*4 + i/2%4;
            to[0]      = lbk_across(b.low);
            to[groups] = lbk_across(b.high);
        }
    }
}

// The sum over the block, in all threads; a barrier. Uses words 32..47 of scratch.
LBK_DEVICE uint32_t lbk_block_sum(uint32_t total, uint32_t * scratch) {
    total = lbk_warp_sum(total);
    if (threadIdx.x % 32 == 0) {
        scratch[32 + threadIdx.x/32] = total;
    }
    __syncthreads();
    total = 0;
    for (uint32_t w = 0; w < LBK_ONE_WARPS; w += 4) {
        const lbk_u32x4 v = *(const lbk_u32x4 *) (scratch + 32 + w);
        total += v.x + v.y + v.z + v.w;
    }
    return total;
}

// A whole column by one block into two planes of `plane` bytes, zeros beyond the last column. Ends in a barrier. A column of more than
// 4*V columns a thread takes several rounds, of which the last one's values are kept.
template <int V>
LBK_DEVICE lbk_column lbk_quantize_column(const float * x, const uint16_t * pre, uint32_t cols, uint32_t plane,
        uint8_t * planes, uint32_t * scratch) {
    const uint32_t groups = plane/4, each = V*LBK_ONE_THREADS;
    lbk_held<V> held;
    lbk_extent_bits e = { 0, 0 };
    uint32_t at = 0;
    for (;;) {
        lbk_hold<V>(x, pre, cols, at + threadIdx.x, held);
        LBK_UNROLL
        for (int j = 0; j < V; ++j) {
            if (at + threadIdx.x + j*LBK_ONE_THREADS < groups) {
                lbk_widen(e, held.v[j]);
            }
        }
        if (at + each >= groups) {
            break;
        }
        at += each;
    }
    e = lbk_block_max(e, scratch);
    const lbk_step s = lbk_step_of(e.value, e.group);
    uint32_t total = 0;
    for (;;) {
        lbk_put<V>(held, at + threadIdx.x, groups, planes, s, total);
        if (at == 0) {
            break;
        }
        at -= each;
        lbk_hold<V>(x, pre, cols, at + threadIdx.x, held);
    }
    const lbk_column column = { s.step, s.unshift, (int32_t) lbk_block_sum(total, scratch), 0 };
    return column;
}

// The same with no more values a thread than it takes, V groups of four at most.
template <int V>
LBK_DEVICE lbk_column lbk_quantize_fitting(const float * x, const uint16_t * pre, uint32_t cols, uint32_t plane,
        uint8_t * planes, uint32_t * scratch) {
    if constexpr (V > 1) {
        if (plane/4 <= V/2*LBK_ONE_THREADS) {
            return lbk_quantize_fitting<V/2>(x, pre, cols, plane, planes, scratch);
        }
    }
    return lbk_quantize_column<V>(x, pre, cols, plane, planes, scratch);
}
