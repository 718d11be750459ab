// How a stage is cut into launches, and the memory it needs. Host code without CUDA; src/cuda/plan.rs is the same in
// Rust, and tests/cuda.rs compares the two.

#pragma once

#include "args.h"

// Columns of signs that one launch can quantize for itself: their two planes stand in shared memory.
constexpr uint32_t LBK_FUSED_COLS = 8192;
// About so many columns of signs has a slice of a wider stage for one column of activations.
constexpr uint32_t LBK_SLICE = 4096;
// Columns of activations up to which a block takes one row block, and splits the signs' columns over its warps.
constexpr uint32_t LBK_SMALL_N = 16;

enum lbk_kernel : uint32_t { LBK_QUANTIZE, LBK_FUSED, LBK_SMALL4, LBK_SMALL8, LBK_LARGE, LBK_EXTENT, LBK_SPLIT, LBK_N_KERNELS };

// Names of the kernels in a module, in the order of lbk_kernel.
constexpr const char * LBK_NAMES[LBK_N_KERNELS] = {
    "lbk_quantize", "lbk_fused", "lbk_small4", "lbk_small8", "lbk_large", "lbk_extent", "lbk_split",
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
        const size_t blocks = ((size_t) rows + 31)/32, slices = (cols + LBK_SLICE - 1)/LBK_SLICE;
        return (4*(2*LBK_EXTENTS + blocks + 32*blocks*slices) + 15)/16*16;
    }
    return n*(sizeof(lbk_column) + 2*lbk_plane_bytes(cols));
}

inline lbk_plan lbk_make_plan(uint32_t rows, uint32_t cols, uint32_t n) {
    const uint32_t blocks = (rows + 31)/32;
    const uint32_t reduce = LBK_SCRATCH;
    lbk_plan plan = {};
    if (n == 1 && cols <= LBK_FUSED_COLS) {
        plan.count = 1;
        plan.launch[0] = { LBK_FUSED, blocks, 1, LBK_SMALL_THREADS,
                           reduce + LBK_SMALL_WARPS*4*32*4 + 2*(uint32_t) lbk_plane_bytes(cols) };
        return plan;
    }
    plan.count = 2;
    if (n == 1) {
        const uint32_t slices = (cols + LBK_SLICE - 1)/LBK_SLICE;
        plan.launch[0] = { LBK_EXTENT, LBK_EXTENTS, 1, LBK_SMALL_THREADS, reduce };
        plan.launch[1] = { LBK_SPLIT, blocks, slices, LBK_SMALL_THREADS,
                           reduce + LBK_SMALL_WARPS*4*32*4 + 2*lbk_slice_cols(cols, slices) };
        return plan;
    }
    plan.launch[0] = { LBK_QUANTIZE, n, 1, LBK_QUANTIZE_THREADS, reduce };
    if (n <= LBK_SMALL_N) {
        const uint32_t width = n <= 4 ? 4 : 8;
        plan.launch[1] = { width == 4 ? (uint32_t) LBK_SMALL4 : (uint32_t) LBK_SMALL8, blocks, (n + width - 1)/width, LBK_SMALL_THREADS,
                           LBK_SMALL_WARPS*width*32*4 };
    } else {
        plan.launch[1] = { LBK_LARGE, (blocks + LBK_LARGE_WARPS - 1)/LBK_LARGE_WARPS, (n + LBK_LARGE_N - 1)/LBK_LARGE_N,
                           LBK_LARGE_WARPS*32, 2*2*LBK_LARGE_N*LBK_LARGE_STRIDE };
    }
    return plan;
}
