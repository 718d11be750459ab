// How stages are cut into launches, and the memory they need. Host code without CUDA; src/cuda/plan.rs is the same in
// Rust, and tests/cuda.rs compares the two.

#pragma once

#include "args.h"

// Columns of signs that one launch can quantize for itself: they stand in registers and their two planes in shared memory.
constexpr uint32_t LBK_NARROW_COLS = 4*LBK_NARROW*LBK_ONE_THREADS, LBK_FUSED_COLS = 4*LBK_WIDE*LBK_ONE_THREADS;
// Blocks of few columns that a GPU runs at the same time, about: as many row blocks share a block as make no more. One for each
// multiprocessor, and two of the kernels that need few registers.
constexpr uint32_t LBK_AT_ONCE = 132, LBK_AT_ONCE_TWO = 264;
constexpr uint32_t LBK_MAX_FOLD = 3;
// About so many columns of signs has a slice of a wider stage for one column of activations.
constexpr uint32_t LBK_SLICE = 4096;
// Columns of activations up to which the warps of a block split the signs' columns, for few row blocks and for many.
constexpr uint32_t LBK_SMALL_N = 32, LBK_SMALL_MANY = 16;
// Columns of activations of a stage: a grid has at most 65535 blocks in y.
constexpr uint32_t LBK_MAX_N = 65535*LBK_LARGE_N;

enum lbk_kernel : uint32_t {
    LBK_QUANTIZE, LBK_FUSED, LBK_SMALL4, LBK_SMALL8, LBK_LARGE, LBK_EXTENT, LBK_SPLIT, LBK_FUSED_WIDE, LBK_N_KERNELS
};

// Names of the kernels in a module, in the order of lbk_kernel.
constexpr const char * LBK_NAMES[LBK_N_KERNELS] = {
    "lbk_quantize", "lbk_fused", "lbk_small4", "lbk_small8", "lbk_large", "lbk_extent", "lbk_split",
    "lbk_fused_wide",
};

struct lbk_launch {
    uint32_t kernel;
    uint32_t grid_x, grid_y;
    uint32_t block;
    uint32_t shared; // bytes
};

struct lbk_plan {
    uint32_t   count; // 1 or 2 launches, in this order
    lbk_launch launch[2];
};

// Bytes of one plane of quantized activations.
inline size_t lbk_plane_bytes(uint32_t cols) {
    return ((size_t) cols + LBK_CHUNK - 1)/LBK_CHUNK*LBK_CHUNK;
}

// Bytes of device memory for the launches of a stage, aligned to 16.
inline size_t lbk_work_bytes(uint32_t rows, uint32_t cols, uint32_t n) {
    if (n == 0 || (n == 1 && cols <= LBK_FUSED_COLS)) {
        return 0;
    }
    if (n == 1) {
        return (8*(LBK_EXTENTS + (size_t) rows) + 15)/16*16;
    }
    return n*(sizeof(lbk_column) + 2*lbk_plane_bytes(cols));
}

// The same for several stages; a stage's memory begins where that of the one before ends.
inline size_t lbk_group_work_bytes(const lbk_args * stage, uint32_t count) {
    size_t size = 0;
    for (uint32_t i = 0; i < count; ++i) {
        size += lbk_work_bytes(stage[i].rows, stage[i].cols, stage[i].n);
    }
    return size;
}

// Slices of a stage: of more than one only if it is for one wide column.
inline uint32_t lbk_slices(uint32_t cols, uint32_t n) {
    return n == 1 && cols > LBK_FUSED_COLS ? (cols + LBK_SLICE - 1)/LBK_SLICE : 1;
}

// What stages of one launch agree on, if they are for few columns.
struct lbk_common {
    uint32_t fold; // of lbk_group
    bool     wide; // one of them has more than LBK_NARROW_COLS
};

// of `members` chains of `chain` stages
inline lbk_common lbk_agree(const lbk_args * stage, uint32_t members, uint32_t chain) {
    lbk_common c = {};
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < members*chain; ++i) {
        blocks += i%chain == 0 ? (uint64_t) (stage[i].rows + 31)/32*lbk_slices(stage[i].cols, stage[i].n) : 0;
        c.wide = c.wide || stage[i].cols > LBK_NARROW_COLS;
    }
    const bool two = stage[0].n == 1 && (!c.wide || stage[0].cols > LBK_FUSED_COLS);
    while (c.fold < LBK_MAX_FOLD && blocks >> c.fold > (two ? LBK_AT_ONCE_TWO : LBK_AT_ONCE)) {
        ++c.fold;
    }
    return c;
}

// The launches of a stage for n > 0 columns, in a launch of what agrees on `common`.
inline lbk_plan lbk_make_plan(uint32_t rows, uint32_t cols, uint32_t n, lbk_common common) {
    const uint32_t blocks = (rows + 31)/32;
    const uint32_t reduce = LBK_SCRATCH;
    lbk_plan plan = {};
    const uint32_t folded = (blocks + (1u << common.fold) - 1) >> common.fold;
    if (n == 1 && cols <= LBK_FUSED_COLS) {
        plan.count = 1;
        plan.launch[0] = { common.wide ? (uint32_t) LBK_FUSED_WIDE : (uint32_t) LBK_FUSED, folded, 1, LBK_ONE_THREADS,
                           reduce + LBK_ONE_SUMS + 2*(uint32_t) lbk_plane_bytes(cols) };
        return plan;
    }
    plan.count = 2;
    if (n == 1) {
        const uint32_t slices = lbk_slices(cols, n);
        plan.launch[0] = { LBK_EXTENT, LBK_EXTENTS, 1, LBK_EXTENT_THREADS, reduce };
        plan.launch[1] = { LBK_SPLIT, folded, slices, LBK_ONE_THREADS, reduce + LBK_ONE_SUMS + 2*lbk_slice_cols(cols, slices) };
        return plan;
    }
    plan.launch[0] = { LBK_QUANTIZE, n, 1, LBK_ONE_THREADS, reduce };
    if (n <= (common.fold == 0 ? LBK_SMALL_N : LBK_SMALL_MANY)) {
        const uint32_t width = n <= 4 ? 4 : 8;
        plan.launch[1] = { width == 4 ? (uint32_t) LBK_SMALL4 : (uint32_t) LBK_SMALL8, folded, (n + width - 1)/width, LBK_ONE_THREADS,
                           LBK_ONE_SUMS*width/4 };
    } else {
        plan.launch[1] = { LBK_LARGE, (blocks + LBK_LARGE_BLOCKS - 1)/LBK_LARGE_BLOCKS, (n + LBK_LARGE_N - 1)/LBK_LARGE_N,
                           LBK_LARGE_THREADS, LBK_LARGE_SHARED };
    }
    return plan;
}

// The work memory of a stage, lbk_work_bytes of it.
inline void lbk_place_work(lbk_args & a, void * work) {
    a.split   = (uint64_t *) work;
    a.columns = (lbk_column *) work;
    a.planes  = (uint8_t *) work + a.n*sizeof(lbk_column);
    a.plane   = (uint32_t) lbk_plane_bytes(a.cols);
}

// The launches of `members` chains of `chain` stages, each launch for all of them. That needs stages whose own launches differ in
// blocks in x and shared memory alone; count is 0 where they differ in more, or are too many.
inline lbk_plan lbk_join(const lbk_args * stage, uint32_t members, uint32_t chain) {
    lbk_plan all = {};
    if (members == 0 || chain == 0 || members > LBK_STAGES/chain) {
        return all;
    }
    const lbk_common common = lbk_agree(stage, members, chain);
    for (uint32_t i = 0; i < members*chain; ++i) {
        const lbk_plan plan = lbk_make_plan(stage[i].rows, stage[i].cols, stage[i].n, common);
        if (i == 0) {
            all = plan;
            // The block of the last slice finishes a row, so the next stage of a chain has no block of its own to follow.
            if (chain > 1 && plan.launch[plan.count - 1].kernel == LBK_SPLIT) {
                all.count = 0;
            }
        }
        if (plan.count != all.count) {
            all.count = 0;
            return all;
        }
        for (uint32_t k = 0; k < plan.count; ++k) {
            const lbk_launch & one = plan.launch[k];
            lbk_launch & l = all.launch[k];
            if (one.kernel != l.kernel || one.grid_y != l.grid_y || one.block != l.block) {
                all.count = 0;
                return all;
            }
            l.shared = one.shared > l.shared ? one.shared : l.shared;
            // Chains are followed by the products, which come last.
            if (i > 0 && (k + 1 < plan.count || i%chain == 0)) {
                l.grid_x += one.grid_x;
            }
        }
    }
    return all;
}

// What launch `k` of lbk_join's plan takes.
inline lbk_group lbk_make_group(const lbk_args * stage, uint32_t members, uint32_t chain, uint32_t k) {
    lbk_group group = {};
    const lbk_common common = lbk_agree(stage, members, chain);
    group.fold = common.fold;
    uint32_t end = 0;
    for (uint32_t i = 0; i < members*chain; ++i) {
        group.stage[i] = stage[i];
        const lbk_plan plan = lbk_make_plan(stage[i].rows, stage[i].cols, stage[i].n, common);
        const bool last = k + 1 == plan.count;
        group.chain = last ? chain : 1;
        if (!last || i%chain == 0) {
            end += plan.launch[k].grid_x;
            group.end[group.members++] = end;
        }
    }
    return group;
}
