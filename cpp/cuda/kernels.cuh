// Half a factorized product on the GPU: y = add + post * (S (pre * x)), S a matrix of signs in the tile layout
// byte[row/32][col/8][row%32] (specs/format.md), with the integers of src/kernel/quantize.rs.
//
// A quantized activation q of 14 bits is two bytes, q = 128*high + low with low in 0..127 and high in -64..63, which the
// 8-bit tensor units multiply by sign bits 0 or 1 exactly:
//
//     sum(s q) = 2*(128*sum(b high) + sum(b low)) - sum(q)
//
// All sums stay below 2^31 for at most 2^18 columns (src/kernel/stage.rs); intermediate values may wrap, hence uint32_t.
//
// Operands of mma.m16n8k32, for lane = 4*g + t: A holds signs, rows g and g+8, and the lane's eight k are the eight
// columns of byte column t of 32 columns. The lane loads one word: that byte column of rows 4g .. 4g+3. Which row of the
// tile stands in which row of A does not matter, so rows 4g, 4g+1 become rows g, g+8 of a first product and rows 4g+2,
// 4g+3 those of a second. B holds planes of activations: column 2j is the low plane of activation column j, 2j+1 the high
// one, so that both sums of a row and a column end in one lane.

#pragma once

#include "args.h"
#include "device.cuh"
#include "quantize.cuh"

// Where a block of a group works: the first stage of its member, and which of the member's blocks it is.
struct lbk_place {
    uint32_t stage, block;
};

LBK_DEVICE lbk_place lbk_find(const lbk_group & g) {
    uint32_t member = 0, before = 0;
    while (member + 1 < g.members && blockIdx.x >= g.end[member]) {
        before = g.end[member++];
    }
    return { member*g.chain, blockIdx.x - before };
}

// grid: a block for each column; every stage is a member
LBK_KERNEL LBK_BOUNDS(LBK_QUANTIZE_THREADS) lbk_quantize(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    const lbk_place place = lbk_find(group);
    const lbk_args & a = group.stage[place.stage];
    const uint32_t t = place.block;
    const lbk_column column = lbk_quantize_column(a.x + t*a.x_stride, a.pre, a.cols, a.plane,
            a.planes + (size_t) t*2*a.plane, (uint32_t *) shared);
    if (threadIdx.x == 0) {
        a.columns[t] = column;
    }
}

//
// signs
//

// bits 0..3 of a word as bytes 0 or 1
LBK_DEVICE uint32_t lbk_expand(uint32_t nibble) {
    return (nibble*0x00204081u) & 0x01010101u;
}

// The two A operands of a lane's word: eight columns of four rows.
struct lbk_signs {
    uint32_t a[2][4];
};

LBK_DEVICE lbk_signs lbk_expand_signs(uint32_t word) {
    lbk_signs s;
    LBK_UNROLL
    for (int m = 0; m < 2; ++m) {
        const uint32_t rows = word >> 16*m;
        s.a[m][0] = lbk_expand(rows & 15);       // row g,   k 0..3
        s.a[m][1] = lbk_expand(rows >> 8 & 15);  // row g+8, k 0..3
        s.a[m][2] = lbk_expand(rows >> 4 & 15);  // row g,   k 4..7
        s.a[m][3] = lbk_expand(rows >> 12 & 15); // row g+8, k 4..7
    }
    return s;
}

// s.q from the sum over the set bits
LBK_DEVICE uint32_t lbk_signed_sum(uint32_t bits, uint32_t total) { return 2*bits - total; }

// The order of operations is that of `finish` in src/kernel/scalar.rs.
LBK_DEVICE void lbk_finish(const lbk_args & a, float step, float unshift, uint32_t sum, uint32_t row, uint32_t t) {
    float v = lbk_mul(lbk_mul(lbk_float((int32_t) sum), step), unshift);
    if (a.post) {
        v = lbk_mul(v, lbk_half(a.post[row]));
    }
    if (a.add) {
        v = lbk_add(a.add[t*a.add_stride + row], v);
    }
    a.y[t*a.y_stride + row] = v;
}

// `bytes` byte columns of one row block times 4*NT columns from `first` of `n`, the byte columns split over the warps.
// planes: of column 0, `plane` bytes each. partial: LBK_SMALL_WARPS * 4*NT * 32 words of shared memory. Returns the sum
// over set bits for row threadIdx.x % 32 and column first + threadIdx.x / 32, if threadIdx.x < 128*NT.
template <int NT>
LBK_DEVICE uint32_t lbk_row_block(const uint32_t * words, uint32_t bytes, const uint8_t * planes, uint32_t plane,
        uint32_t n, uint32_t first, uint32_t * partial) {
    const uint32_t warp = threadIdx.x/32, lane = threadIdx.x%32, g = lane/4, t = lane%4;
    int acc[2][NT][4] = {};
#pragma unroll 4
    for (uint32_t from = 4*warp; from < bytes; from += 4*LBK_SMALL_WARPS) {
        const uint32_t byte = from + t; // padded columns of the planes are zero
        const lbk_signs s = lbk_expand_signs(byte < bytes ? words[(size_t) byte*8 + g] : 0);
        LBK_UNROLL
        for (int i = 0; i < NT; ++i) {
            const uint32_t column = first + 4*i + g/2;
            lbk_u32x2 b = { 0, 0 };
            if (column < n) {
                b = *(const lbk_u32x2 *) (planes + ((size_t) column*2 + g%2)*plane + 8*byte);
            }
            lbk_mma(acc[0][i], s.a[0][0], s.a[0][1], s.a[0][2], s.a[0][3], b.x, b.y);
            lbk_mma(acc[1][i], s.a[1][0], s.a[1][1], s.a[1][2], s.a[1][3], b.x, b.y);
        }
    }
    LBK_UNROLL
    for (int i = 0; i < NT; ++i) {
        lbk_u32x4 four; // rows 4g .. 4g+3 of column 4i + t
        four.x = (uint32_t) acc[0][i][0] + 128*(uint32_t) acc[0][i][1];
        four.y = (uint32_t) acc[0][i][2] + 128*(uint32_t) acc[0][i][3];
        four.z = (uint32_t) acc[1][i][0] + 128*(uint32_t) acc[1][i][1];
        four.w = (uint32_t) acc[1][i][2] + 128*(uint32_t) acc[1][i][3];
        *(lbk_u32x4 *) (partial + ((warp*NT + i)*4 + t)*32 + 4*g) = four;
    }
    __syncthreads();
    uint32_t sum = 0;
    if (threadIdx.x < NT*128) {
        for (uint32_t w = 0; w < LBK_SMALL_WARPS; ++w) {
            sum += partial[w*NT*128 + threadIdx.x];
        }
    }
    return sum;
}

// byte columns of the tile, and its words for a row block
LBK_DEVICE uint32_t lbk_byte_cols(const lbk_args & a) { return (a.cols + 15)/16*2; }

LBK_DEVICE const uint32_t * lbk_words(const lbk_args & a, uint32_t block) {
    return (const uint32_t *) (a.tile + (size_t) block*lbk_byte_cols(a)*32);
}

template <int NT>
LBK_DEVICE void lbk_small(const lbk_group & group, uint8_t * shared) {
    const lbk_place place = lbk_find(group);
    const uint32_t first = blockIdx.y*4*NT;
    for (uint32_t i = 0; i < group.chain; ++i) {
        const lbk_args & a = group.stage[place.stage + i];
        if (i > 0) {
            __syncthreads(); // the sums of the stage before were read
        }
        const uint32_t bits = lbk_row_block<NT>(lbk_words(a, place.block), lbk_byte_cols(a), a.planes, a.plane, a.n, first,
                (uint32_t *) shared);
        const uint32_t t = first + threadIdx.x/32, row = place.block*32 + threadIdx.x%32;
        if (threadIdx.x < NT*128 && t < a.n && row < a.rows) {
            const lbk_column c = a.columns[t];
            lbk_finish(a, c.step, c.unshift, lbk_signed_sum(bits, (uint32_t) c.sum), row, t);
        }
    }
}

// grid: row blocks x groups of 4 or 8 columns
LBK_KERNEL LBK_BOUNDS(LBK_SMALL_THREADS) lbk_small4(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    lbk_small<1>(group, shared);
}

LBK_KERNEL LBK_BOUNDS(LBK_SMALL_THREADS) lbk_small8(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    lbk_small<2>(group, shared);
}

// One column, which every block quantizes for itself: a launch less. grid: row blocks
LBK_KERNEL LBK_BOUNDS(LBK_SMALL_THREADS) lbk_fused(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    uint32_t * partial = (uint32_t *) (shared + LBK_SCRATCH);
    uint8_t  * planes  = shared + LBK_SCRATCH + LBK_SMALL_WARPS*4*32*4;
    const lbk_place place = lbk_find(group);
    const lbk_args * const end = group.stage + place.stage + group.chain;
    for (const lbk_args * a = group.stage + place.stage; a != end; ++a) {
        // Ends in a barrier, after which the planes are complete. Its first barrier comes before they are written, and after the
        // stage before has read its own.
        const lbk_column column = lbk_quantize_column(a->x, a->pre, a->cols, a->plane, planes, (uint32_t *) shared);
        const uint32_t bits = lbk_row_block<1>(lbk_words(*a, place.block), lbk_byte_cols(*a), planes, a->plane, 1, 0, partial);
        const uint32_t row = place.block*32 + threadIdx.x;
        if (threadIdx.x < 32 && row < a->rows) {
            lbk_finish(*a, column.step, column.unshift, lbk_signed_sum(bits, (uint32_t) column.sum), row, 0);
        }
    }
}

// One column that is too wide for lbk_fused, in two launches: this one finds its extent and clears the counters of the
// next. grid: LBK_EXTENTS blocks
LBK_KERNEL LBK_BOUNDS(LBK_SMALL_THREADS) lbk_extent(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    const lbk_place place = lbk_find(group);
    const lbk_args & a = group.stage[place.stage];
    const uint32_t thread = place.block*blockDim.x + threadIdx.x, threads = LBK_EXTENTS*blockDim.x;
    for (uint32_t i = thread; i < (a.rows + 31)/32; i += threads) {
        a.split[2*LBK_EXTENTS + i] = 0;
    }
    const lbk_extent_bits e = lbk_block_max(lbk_extent_of(a.x, a.pre, a.cols, thread, threads), (uint32_t *) shared);
    if (threadIdx.x == 0) {
        a.split[2*place.block]     = e.value;
        a.split[2*place.block + 1] = e.group;
    }
}

// The second launch: a block takes one row block and one slice of the columns, which it quantizes for itself; the last
// block of a row block adds up the slices. grid: row blocks x slices
LBK_KERNEL LBK_BOUNDS(LBK_SMALL_THREADS) lbk_split(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    const lbk_place place = lbk_find(group);
    const lbk_args & a = group.stage[place.stage];
    uint32_t * scratch = (uint32_t *) shared;
    uint32_t * partial = (uint32_t *) (shared + LBK_SCRATCH);
    uint8_t  * planes  = shared + LBK_SCRATCH + LBK_SMALL_WARPS*4*32*4;
    uint32_t * counter = a.split + 2*LBK_EXTENTS + place.block;
    uint32_t * sums    = a.split + 2*LBK_EXTENTS + (a.rows + 31)/32 + (size_t) place.block*gridDim.y*32;
    const uint32_t plane = lbk_slice_cols(a.cols, gridDim.y), from = blockIdx.y*plane;

    // every warp has one extent a lane
    const uint32_t lane = threadIdx.x%32;
    lbk_extent_bits e = { a.split[2*lane], a.split[2*lane + 1] };
    e = lbk_warp_max(e);
    const lbk_step s = lbk_step_of(e.value, e.group);
    const uint32_t total = lbk_quantize_part(a.x, a.pre, a.cols, from, plane, planes, s, scratch);
    const uint32_t all = lbk_byte_cols(a), byte = from/8;
    const uint32_t bytes = byte >= all ? 0 : (all - byte < plane/8 ? all - byte : plane/8);
    const uint32_t bits = lbk_row_block<1>(lbk_words(a, place.block) + (size_t) byte*8, bytes, planes, plane, 1, 0, partial);
    if (threadIdx.x < 32) {
        sums[blockIdx.y*32 + threadIdx.x] = lbk_signed_sum(bits, total);
        lbk_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        scratch[0] = lbk_ticket(counter);
    }
    __syncthreads();
    if (scratch[0] + 1 != gridDim.y || threadIdx.x >= 32) {
        return;
    }
    lbk_fence();
    uint32_t sum = 0;
    for (uint32_t i = 0; i < gridDim.y; ++i) {
        sum += lbk_load_fresh(sums + i*32 + threadIdx.x);
    }
    const uint32_t row = place.block*32 + threadIdx.x;
    if (row < a.rows) {
        lbk_finish(a, s.step, s.unshift, sum, row, 0);
    }
}

// Planes of LBK_LARGE_N columns, LBK_CHUNK bytes of each, on their way from global to shared memory.
struct lbk_panel {
    lbk_u32x4 part[2*LBK_LARGE_N*LBK_CHUNK/16/(LBK_LARGE_WARPS*32)];
};

constexpr uint32_t LBK_PANEL_PARTS = sizeof(lbk_panel)/sizeof(lbk_u32x4);

LBK_DEVICE lbk_panel lbk_load_panel(const lbk_args & a, uint32_t first, uint32_t chunk) {
    lbk_panel p;
    LBK_UNROLL
    for (uint32_t i = 0; i < LBK_PANEL_PARTS; ++i) {
        const uint32_t at = i*LBK_LARGE_WARPS*32 + threadIdx.x, plane = at/(LBK_CHUNK/16), part = at%(LBK_CHUNK/16);
        p.part[i] = { 0, 0, 0, 0 };
        if (first + plane/2 < a.n) {
            p.part[i] = *(const lbk_u32x4 *) (a.planes + ((size_t) first*2 + plane)*a.plane + chunk*LBK_CHUNK + 16*part);
        }
    }
    return p;
}

LBK_DEVICE void lbk_store_panel(const lbk_panel & p, uint8_t * to) {
    LBK_UNROLL
    for (uint32_t i = 0; i < LBK_PANEL_PARTS; ++i) {
        const uint32_t at = i*LBK_LARGE_WARPS*32 + threadIdx.x, plane = at/(LBK_CHUNK/16), part = at%(LBK_CHUNK/16);
        *(lbk_u32x4 *) (to + plane*LBK_LARGE_STRIDE + 16*part) = p.part[i];
    }
}

// One stage of lbk_large; shared holds two panels.
LBK_DEVICE void lbk_large_stage(const lbk_args & a, uint32_t group, uint8_t * shared) {
    constexpr uint32_t panel = 2*LBK_LARGE_N*LBK_LARGE_STRIDE;
    constexpr int NT = LBK_LARGE_N/4, STEPS = LBK_CHUNK/32;
    const uint32_t warp = threadIdx.x/32, lane = threadIdx.x%32, g = lane/4, t = lane%4;
    const uint32_t block = group*LBK_LARGE_WARPS + warp, first = blockIdx.y*LBK_LARGE_N;
    const uint32_t bytes = lbk_byte_cols(a);
    // A warp beyond the last row block helps to carry panels and multiplies zeros.
    const uint32_t present = block < (a.rows + 31)/32 ? bytes : 0;
    const uint32_t * words = lbk_words(a, block);
    const uint32_t chunks = a.plane/LBK_CHUNK;

    auto load_word = [&](uint32_t chunk, int step) {
        const uint32_t byte = chunk*(LBK_CHUNK/8) + 4*step + t;
        return byte < present ? words[(size_t) byte*8 + g] : 0u;
    };

    int acc[2][NT][4] = {};
    uint32_t word[STEPS], next[STEPS];
    lbk_store_panel(lbk_load_panel(a, first, 0), shared);
    LBK_UNROLL
    for (int i = 0; i < STEPS; ++i) {
        word[i] = load_word(0, i);
        next[i] = 0;
    }
    __syncthreads();
    for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
        // The other panel was read before the last barrier; it is filled while this one is used.
        const bool more = chunk + 1 < chunks;
        lbk_panel incoming = {};
        if (more) {
            incoming = lbk_load_panel(a, first, chunk + 1);
            LBK_UNROLL
            for (int i = 0; i < STEPS; ++i) {
                next[i] = load_word(chunk + 1, i);
            }
        }
        const uint8_t * from = shared + chunk%2*panel;
        LBK_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            const lbk_signs s = lbk_expand_signs(word[step]);
            LBK_UNROLL
            for (int i = 0; i < NT; ++i) {
                const lbk_u32x2 b = *(const lbk_u32x2 *) (from + (8*i + g)*LBK_LARGE_STRIDE + 32*step + 8*t);
                lbk_mma(acc[0][i], s.a[0][0], s.a[0][1], s.a[0][2], s.a[0][3], b.x, b.y);
                lbk_mma(acc[1][i], s.a[1][0], s.a[1][1], s.a[1][2], s.a[1][3], b.x, b.y);
            }
        }
        if (more) {
            lbk_store_panel(incoming, shared + (chunk + 1)%2*panel);
        }
        LBK_UNROLL
        for (int i = 0; i < STEPS; ++i) {
            word[i] = next[i];
        }
        __syncthreads();
    }

    LBK_UNROLL
    for (int i = 0; i < NT; ++i) {
        const uint32_t column = first + 4*i + t;
        if (column >= a.n) {
            continue;
        }
        const lbk_column c = a.columns[column];
        LBK_UNROLL
        for (int r = 0; r < 4; ++r) {
            const uint32_t row = block*32 + 4*g + r;
            if (row < a.rows) {
                const uint32_t bits = (uint32_t) acc[r/2][i][r%2*2] + 128*(uint32_t) acc[r/2][i][r%2*2 + 1];
                lbk_finish(a, c.step, c.unshift, lbk_signed_sum(bits, (uint32_t) c.sum), row, column);
            }
        }
    }
}

// Many columns: a warp takes a row block and LBK_LARGE_N columns. grid: groups of row blocks x groups of columns
LBK_KERNEL LBK_BOUNDS(LBK_LARGE_WARPS*32) lbk_large(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    const lbk_place place = lbk_find(group);
    for (uint32_t i = 0; i < group.chain; ++i) { // a stage ends in a barrier after its last read of shared memory
        lbk_large_stage(group.stage[place.stage + i], place.block, shared);
    }
}
