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
// Operands of mma.m16n8k32, for lane = 4*g + t, of a chunk of 128 columns of signs. A holds signs; B holds planes of activations: column
// 2j is the low plane of activation column j, 2j+1 the high one, so that both sums of a row and a column end in one lane. A lane loads four
// words of signs: byte columns 4t .. 4t+3 of rows 4g .. 4g+3. Which row of the tile stands in which row of A does not matter, so rows 4g,
// 4g+1 become rows g, g+8 of a first product and rows 4g+2, 4g+3 those of a second. Nor does it matter which columns meet: the four k of a
// register are one bit of the lane's four byte columns, which a shift and a mask give, and planes are stored in that order (quantize.cuh).

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
LBK_KERNEL LBK_BOUNDS(LBK_ONE_THREADS) lbk_quantize(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    const lbk_place place = lbk_find(group);
    const lbk_args & a = group.stage[place.stage];
    const uint32_t t = place.block;
    lbk_begin_next();
    lbk_wait();
    const lbk_column column = lbk_quantize_fitting<LBK_MANY>(a.x + t*a.x_stride, a.pre, a.cols, a.plane,
            a.planes + (size_t) t*2*a.plane, (uint32_t *) shared);
    if (threadIdx.x == 0) {
        a.columns[t] = column;
    }
}

//
// signs
//

// A lane's four words of a chunk, and after lbk_turn its bytes of rows 4g .. 4g+3.
struct lbk_signs {
    uint32_t w[4];
};

// four bytes of four rows each into the bytes of each row
LBK_DEVICE lbk_signs lbk_turn(const lbk_signs & s) {
    const uint32_t a = lbk_bytes_of(s.w[0], s.w[1], 0x5140), b = lbk_bytes_of(s.w[2], s.w[3], 0x5140);
    const uint32_t c = lbk_bytes_of(s.w[0], s.w[1], 0x7362), d = lbk_bytes_of(s.w[2], s.w[3], 0x7362);
    return { { lbk_bytes_of(a, b, 0x5410), lbk_bytes_of(a, b, 0x7632), lbk_bytes_of(c, d, 0x5410), lbk_bytes_of(c, d, 0x7632) } };
}

// bit `i` of every byte, as bytes 0 or 1
LBK_DEVICE uint32_t lbk_bit(uint32_t bytes, int i) { return bytes >> i & 0x01010101u; }

// Both products of bits i and i + 1 of turned signs by b.
LBK_DEVICE void lbk_multiply_bits(int first[4], int second[4], const lbk_signs & s, int i, uint32_t b0, uint32_t b1) {
    lbk_mma(first,  lbk_bit(s.w[0], i), lbk_bit(s.w[1], i), lbk_bit(s.w[0], i + 1), lbk_bit(s.w[1], i + 1), b0, b1);
    lbk_mma(second, lbk_bit(s.w[2], i), lbk_bit(s.w[3], i), lbk_bit(s.w[2], i + 1), lbk_bit(s.w[3], i + 1), b0, b1);
}

// The sums of a lane's rows 4g .. 4g+3 and of column t from the accumulators of both products.
LBK_DEVICE lbk_u32x4 lbk_rows(const int first[4], const int second[4]) {
    lbk_u32x4 four;
    four.x = (uint32_t) first[0] + 128*(uint32_t) first[1];
    four.y = (uint32_t) first[2] + 128*(uint32_t) first[3];
    four.z = (uint32_t) second[0] + 128*(uint32_t) second[1];
    four.w = (uint32_t) second[2] + 128*(uint32_t) second[3];
    return four;
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

// byte columns of the tile, and its words for a row block
LBK_DEVICE uint32_t lbk_byte_cols(const lbk_args & a) { return (a.cols + 15)/16*2; }

LBK_DEVICE const uint32_t * lbk_words(const lbk_args & a, uint32_t block) {
    return (const uint32_t *) (a.tile + (size_t) block*lbk_byte_cols(a)*32);
}

//
// few columns: a block takes some row blocks, and its warps split the columns of signs
//

// The chunks that a warp has loaded before it can use them.
constexpr uint32_t LBK_AHEAD = 2;

struct lbk_ahead {
    lbk_signs chunk[LBK_AHEAD];
};

// What a warp of a block takes of row block `block`, whose words are `words`: every `parts`-th chunk from `part`. `bytes` are the byte
// columns of the product; 0 beyond the last row block.
struct lbk_share {
    const uint32_t * words;
    uint32_t bytes, block, part, parts;
};

// from: the first byte column of the product
LBK_DEVICE lbk_share lbk_share_of(const lbk_args & a, uint32_t block, uint32_t fold, uint32_t from, uint32_t bytes) {
    const uint32_t warp = threadIdx.x/32, parts = LBK_ONE_WARPS >> fold;
    lbk_share s;
    s.parts = parts;
    s.part  = warp & (parts - 1);
    s.block = (block << fold) + (warp >> (4 - fold));
    s.words = lbk_words(a, s.block) + (size_t) from*8;
    s.bytes = s.block < (a.rows + 31)/32 ? bytes : 0;
    return s;
}

// chunks `first`, `first + parts`, ...
LBK_DEVICE lbk_ahead lbk_load_ahead(const lbk_share & s, uint32_t first) {
    const uint32_t lane = threadIdx.x%32;
    lbk_ahead a;
    LBK_UNROLL
    for (uint32_t i = 0; i < LBK_AHEAD; ++i) {
        const uint32_t byte = LBK_CHUNK/8*(first + i*s.parts) + 4*(lane%4);
        const uint32_t * from = s.words + (size_t) byte*8 + lane/4;
        LBK_UNROLL
        for (uint32_t c = 0; c < 4; c += 2) { // byte columns are an even number
            const bool there = byte + c < s.bytes;
            a.chunk[i].w[c]     = there ? from[8*c] : 0;
            a.chunk[i].w[c + 1] = there ? from[8*c + 8] : 0;
        }
    }
    return a;
}

// The product of a warp's share by the planes, `plane` bytes each, of 4*NT columns, of which there are `n`. partial: 4*NT*32 words a
// warp, in which the sums over set bits end, a column's 32 rows after the other's; after a barrier.
template <int NT>
LBK_DEVICE void lbk_multiply(const lbk_share & s, lbk_ahead now, const uint8_t * planes, uint32_t plane, uint32_t n, uint32_t * partial) {
    const uint32_t warp = threadIdx.x/32, lane = threadIdx.x%32, g = lane/4, t = lane%4;
    int acc[2][NT][4] = {};
    for (uint32_t first = s.part; LBK_CHUNK/8*first < s.bytes; first += LBK_AHEAD*s.parts) {
        if (first != s.part) {
            now = lbk_load_ahead(s, first);
        }
        LBK_UNROLL
        for (uint32_t j = 0; j < LBK_AHEAD; ++j) {
            const uint32_t chunk = first + j*s.parts;
            if (LBK_CHUNK/8*chunk < s.bytes) { // padded columns of the planes are zero
                const lbk_signs a = lbk_turn(now.chunk[j]);
                LBK_UNROLL
                for (int i = 0; i < NT; ++i) {
                    const uint8_t * from = planes + (size_t) (8*i + g)*plane + LBK_CHUNK*chunk + 32*t;
                    LBK_UNROLL
                    for (int half = 0; half < 2; ++half) {
                        lbk_u32x4 b = { 0, 0, 0, 0 };
                        if (4*i + g/2 < n) {
                            b = *(const lbk_u32x4 *) (from + 16*half);
                        }
                        lbk_multiply_bits(acc[0][i], acc[1][i], a, 4*half, b.x, b.y);
                        lbk_multiply_bits(acc[0][i], acc[1][i], a, 4*half + 2, b.z, b.w);
                    }
                }
            }
        }
    }
    LBK_UNROLL
    for (int i = 0; i < NT; ++i) {
        if (4*i + t < n) {
            *(lbk_u32x4 *) (partial + ((warp*NT + i)*4 + t)*32 + 4*g) = lbk_rows(acc[0][i], acc[1][i]);
        }
    }
    __syncthreads();
}

// The sum over set bits of row `row` of the block's row block `own`, for column `column` of 4*NT.
template <int NT>
LBK_DEVICE uint32_t lbk_sum_parts(const uint32_t * partial, uint32_t fold, uint32_t own, uint32_t column, uint32_t row) {
    const uint32_t parts = LBK_ONE_WARPS >> fold;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < parts; ++i) {
        sum += partial[((own*parts + i)*4*NT + column)*32 + row];
    }
    return sum;
}

// 4*NT columns, quantized before
template <int NT>
LBK_DEVICE void lbk_small(const lbk_group & group, uint8_t * shared) {
    uint32_t * partial = (uint32_t *) shared;
    const lbk_place place = lbk_find(group);
    const uint32_t first = blockIdx.y*4*NT;
    lbk_begin_next();
    for (uint32_t i = 0; i < group.chain; ++i) {
        const lbk_args & a = group.stage[place.stage + i];
        const lbk_share share = lbk_share_of(a, place.block, group.fold, 0, lbk_byte_cols(a));
        const lbk_ahead ahead = lbk_load_ahead(share, share.part); // signs are nobody's result
        if (i == 0) {
            lbk_wait();
        } else {
            __syncthreads(); // the sums of the stage before were read
        }
        const uint32_t n = a.n - first;
        lbk_multiply<NT>(share, ahead, a.planes + (size_t) first*2*a.plane, a.plane, n, partial);
        for (uint32_t at = threadIdx.x; at < 128u*NT << group.fold; at += blockDim.x) {
            const uint32_t own = at/(128*NT), t = at/32%(4*NT), row = ((place.block << group.fold) + own)*32 + at%32;
            if (t < n && row < a.rows) {
                const lbk_column c = a.columns[first + t];
                const uint32_t bits = lbk_sum_parts<NT>(partial, group.fold, own, t, at%32);
                lbk_finish(a, c.step, c.unshift, lbk_signed_sum(bits, (uint32_t) c.sum), row, first + t);
            }
        }
    }
}

// grid: a block for every 1 << fold row blocks x groups of 4 or 8 columns
LBK_KERNEL LBK_BOUNDS(LBK_ONE_THREADS) lbk_small4(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    lbk_small<1>(group, shared);
}

LBK_KERNEL LBK_BOUNDS(LBK_ONE_THREADS) lbk_small8(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    lbk_small<2>(group, shared);
}

//
// one column
//

// One column, which every block quantizes for itself: a launch less.
template <int V>
LBK_DEVICE void lbk_fused_stages(const lbk_group & group, uint8_t * shared) {
    uint32_t * partial = (uint32_t *) (shared + LBK_SCRATCH);
    uint8_t  * planes  = shared + LBK_SCRATCH + LBK_ONE_SUMS;
    const lbk_place place = lbk_find(group);
    lbk_begin_next();
    for (uint32_t i = 0; i < group.chain; ++i) {
        const lbk_args & a = group.stage[place.stage + i];
        const lbk_share share = lbk_share_of(a, place.block, group.fold, 0, lbk_byte_cols(a));
        const lbk_ahead ahead = lbk_load_ahead(share, share.part); // signs are nobody's result
        if (i == 0) {
            lbk_wait();
        }
        // Ends in a barrier, after which the planes are complete. Its first barrier comes before they are written, and after the
        // stage before has read its own.
        const lbk_column column = lbk_quantize_fitting<V>(a.x, a.pre, a.cols, a.plane, planes, (uint32_t *) shared);
        lbk_multiply<1>(share, ahead, planes, a.plane, 1, partial);
        const uint32_t row = (place.block << group.fold)*32 + threadIdx.x;
        if (threadIdx.x < 32u << group.fold && row < a.rows) {
            const uint32_t bits = lbk_sum_parts<1>(partial, group.fold, threadIdx.x/32, 0, threadIdx.x%32);
            lbk_finish(a, column.step, column.unshift, lbk_signed_sum(bits, (uint32_t) column.sum), row, 0);
        }
    }
}

// grid: a block for every 1 << fold row blocks
LBK_KERNEL LBK_BOUNDS(LBK_ONE_THREADS) lbk_fused(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    lbk_fused_stages<LBK_NARROW>(group, shared);
}

LBK_KERNEL LBK_BOUNDS(LBK_ONE_THREADS) lbk_fused_wide(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    lbk_fused_stages<LBK_WIDE>(group, shared);
}

// One column that is too wide for lbk_fused_wide, in two launches: this one finds its extent and clears the sums of the
// next. grid: LBK_EXTENTS blocks
LBK_KERNEL LBK_BOUNDS(LBK_EXTENT_THREADS) lbk_extent(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    const lbk_place place = lbk_find(group);
    const lbk_args & a = group.stage[place.stage];
    const uint32_t thread = place.block*blockDim.x + threadIdx.x, threads = LBK_EXTENTS*blockDim.x;
    lbk_begin_next();
    lbk_wait();
    for (uint32_t i = thread; i < a.rows; i += threads) {
        a.split[LBK_EXTENTS + i] = 0;
    }
    const lbk_extent_bits e = lbk_block_max(lbk_extent_of(a.x, a.pre, a.cols, thread, threads), (uint32_t *) shared);
    if (threadIdx.x == 0) {
        a.split[place.block] = (uint64_t) e.group << 32 | e.value;
    }
}

// The second launch: a block takes 1 << fold row blocks and one slice of the columns, which it quantizes for itself. A row's sum and the
// number of slices in it are one word of memory, so whoever adds the last slice has the whole sum. grid: a block for every 1 << fold row
// blocks x slices
LBK_KERNEL LBK_BOUNDS2(LBK_ONE_THREADS, 2) lbk_split(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    const lbk_place place = lbk_find(group);
    const lbk_args & a = group.stage[place.stage];
    uint32_t * partial = (uint32_t *) (shared + LBK_SCRATCH);
    uint8_t  * planes  = shared + LBK_SCRATCH + LBK_ONE_SUMS;
    const uint32_t slices = gridDim.y, plane = lbk_slice_cols(a.cols, slices), from = blockIdx.y*plane;
    const uint32_t all = lbk_byte_cols(a), byte = from/8;
    const uint32_t bytes = byte >= all ? 0 : (all - byte < plane/8 ? all - byte : plane/8);

    lbk_begin_next();
    const lbk_share share = lbk_share_of(a, place.block, group.fold, byte, bytes);
    const lbk_ahead ahead = lbk_load_ahead(share, share.part);
    lbk_wait();
    // every warp has one extent a lane
    const uint64_t extent = a.split[threadIdx.x%32];
    lbk_held<LBK_NARROW> held;
    lbk_hold<LBK_NARROW>(a.x, a.pre, a.cols, from/4 + threadIdx.x, held);
    lbk_extent_bits e = { (uint32_t) extent, (uint32_t) (extent >> 32) };
    e = lbk_warp_max(e);
    const lbk_step s = lbk_step_of(e.value, e.group);
    uint32_t total = 0;
    lbk_put<LBK_NARROW>(held, threadIdx.x, plane/4, planes, s, total);
    total = lbk_block_sum(total, (uint32_t *) shared);
    lbk_multiply<1>(share, ahead, planes, plane, 1, partial);
    const uint32_t row = (place.block << group.fold)*32 + threadIdx.x;
    if (threadIdx.x < 32u << group.fold && row < a.rows) {
        const uint32_t sum = lbk_signed_sum(lbk_sum_parts<1>(partial, group.fold, threadIdx.x/32, 0, threadIdx.x%32), total);
        const uint64_t before = lbk_fetch_add(a.split + LBK_EXTENTS + row, (uint64_t) sum << 32 | 1);
        if ((uint32_t) before + 1 == slices) {
            lbk_finish(a, s.step, s.unshift, (uint32_t) (before >> 32) + sum, row, 0);
        }
    }
}

//
// many columns
//

// One stage of lbk_large, for LBK_LARGE_BLOCKS row blocks. At a time every part multiplies a chunk of columns of signs, while those of the
// next times are on their way to shared memory: for every part the planes of LBK_LARGE_N columns of activations, then its warps' words as
// their lanes use them. In planes of odd number pieces of 16 bytes have changed places with their neighbours, so that the lanes of two
// planes meet in no bank.
LBK_DEVICE void lbk_large_stage(const lbk_args & a, uint32_t group, uint8_t * shared) {
    constexpr int NT = LBK_LARGE_N/4;
    constexpr uint32_t bytes = LBK_CHUNK/8; // columns of them
    const uint32_t warp = threadIdx.x/32, lane = threadIdx.x%32, g = lane/4, t = lane%4;
    const uint32_t own = warp%LBK_LARGE_BLOCKS, part = warp/LBK_LARGE_BLOCKS, first = blockIdx.y*LBK_LARGE_N;
    const uint32_t block = group*LBK_LARGE_BLOCKS + own;
    // A warp beyond the last row block helps to carry planes and multiplies zeros.
    const uint32_t present = block < (a.rows + 31)/32 ? lbk_byte_cols(a) : 0;
    const uint32_t * word = lbk_words(a, present ? block : 0) + (size_t) 8*(bytes*part + 4*t) + g;
    const uint32_t chunks = a.plane/LBK_CHUNK, times = (chunks + LBK_LARGE_PARTS - 1)/LBK_LARGE_PARTS;

    // A thread copies two pieces of a plane for every part.
    static_assert(2*LBK_LARGE_N*LBK_CHUNK == 2*16*LBK_LARGE_THREADS && LBK_CHUNK == 128, "two pieces for each thread");
    const uint32_t plane = threadIdx.x/4, piece = threadIdx.x%4;
    const uint32_t filled = first + plane/2 < a.n ? chunks : 0;
    const uint8_t * source = a.planes + ((size_t) first*2 + plane)*a.plane + 16*piece;
    uint8_t * const target = shared + LBK_CHUNK*plane + 16*(piece ^ plane%2);
    auto copy = [&](uint32_t time) {
        const uint32_t slot = time%LBK_LARGE_DEPTH*LBK_LARGE_TIME;
        LBK_UNROLL
        for (uint32_t p = 0; p < LBK_LARGE_PARTS; ++p) {
            const uint32_t chunk = time*LBK_LARGE_PARTS + p;
            const uint8_t * from = source + chunk*LBK_CHUNK;
            lbk_copy16(target + slot + p*LBK_LARGE_PLANES, from, chunk < filled);
            lbk_copy16(target + slot + p*LBK_LARGE_PLANES + 64, from + 64, chunk < filled);
        }
        uint32_t * mine = (uint32_t *) (shared + slot + LBK_LARGE_PARTS*LBK_LARGE_PLANES + warp*LBK_LARGE_SIGNS) + lane;
        const uint32_t before = time*LBK_LARGE_PARTS*bytes, byte = before + bytes*part + 4*t;
        const uint32_t * from = word + 8*before;
        LBK_UNROLL
        for (uint32_t i = 0; i < 4; ++i) {
            lbk_copy4(mine + 32*i, from + 8*i, byte + i/2*2 < present); // byte columns are an even number
        }
        lbk_copies_end();
    };

    int acc[2][NT][4] = {};
    for (uint32_t time = 0; time + 1 < LBK_LARGE_DEPTH; ++time) {
        copy(time);
    }
    for (uint32_t time = 0; time < times; ++time) {
        lbk_copies_left<LBK_LARGE_DEPTH - 2>();
        __syncthreads(); // this time's data are there for all, and all have read those whose place the next copy takes
        copy(time + LBK_LARGE_DEPTH - 1);
        const uint8_t * from = shared + time%LBK_LARGE_DEPTH*LBK_LARGE_TIME;
        const uint8_t * planes = from + part*LBK_LARGE_PLANES + LBK_CHUNK*g + 32*t;
        const uint32_t * mine = (const uint32_t *) (from + LBK_LARGE_PARTS*LBK_LARGE_PLANES + warp*LBK_LARGE_SIGNS) + lane;
        const lbk_signs s = lbk_turn({ { mine[0], mine[32], mine[64], mine[96] } });
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
            LBK_UNROLL
            for (int from = 0; from < NT; from += 4) { // eight products before one adds to the result of another
                lbk_u32x4 b[4];
                LBK_UNROLL
                for (int i = 0; i < 4; ++i) {
                    b[i] = *(const lbk_u32x4 *) (planes + 8*(from + i)*LBK_CHUNK + 16*(half ^ g%2));
                }
                LBK_UNROLL
                for (int i = 0; i < 4; ++i) {
                    lbk_multiply_bits(acc[0][from + i], acc[1][from + i], s, 4*half, b[i].x, b[i].y);
                }
                LBK_UNROLL
                for (int i = 0; i < 4; ++i) {
                    lbk_multiply_bits(acc[0][from + i], acc[1][from + i], s, 4*half + 2, b[i].z, b[i].w);
                }
            }
        }
    }
    lbk_copies_left<0>();
    __syncthreads(); // sums go where planes and signs were read
    uint32_t * sums = (uint32_t *) shared;
    LBK_UNROLL
    for (int i = 0; i < NT; ++i) {
        *(lbk_u32x4 *) (sums + (part*LBK_LARGE_N + 4*i + t)*LBK_LARGE_SUMS + 32*own + 4*g) = lbk_rows(acc[0][i], acc[1][i]);
    }
    __syncthreads();
    const uint32_t at = threadIdx.x%(LBK_LARGE_BLOCKS*32), row = group*LBK_LARGE_BLOCKS*32 + at;
    for (uint32_t t = threadIdx.x/(LBK_LARGE_BLOCKS*32); t < LBK_LARGE_N && first + t < a.n && row < a.rows; t += LBK_LARGE_PARTS) {
        uint32_t bits = 0;
        LBK_UNROLL
        for (uint32_t p = 0; p < LBK_LARGE_PARTS; ++p) {
            bits += sums[(p*LBK_LARGE_N + t)*LBK_LARGE_SUMS + at];
        }
        const lbk_column c = a.columns[first + t];
        lbk_finish(a, c.step, c.unshift, lbk_signed_sum(bits, (uint32_t) c.sum), row, first + t);
    }
    __syncthreads(); // the next stage's copies go where these were read
}

// Many columns. grid: groups of LBK_LARGE_BLOCKS row blocks x groups of LBK_LARGE_N columns
LBK_KERNEL LBK_BOUNDS2(LBK_LARGE_THREADS, 2) lbk_large(LBK_PARAM lbk_group group) {
    LBK_SHARED(shared);
    const lbk_place place = lbk_find(group);
    lbk_begin_next();
    lbk_wait();
    for (uint32_t i = 0; i < group.chain; ++i) {
        lbk_large_stage(group.stage[place.stage + i], place.block, shared);
    }
}
