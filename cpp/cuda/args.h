// What host and device agree on.

#pragma once

#include <cstddef>
#include <cstdint>

// Columns of signs that pass through the kernels together; planes of activations are padded to it with zeros.
constexpr uint32_t LBK_CHUNK = 128;

constexpr uint32_t LBK_EXTENT_THREADS = 256;
constexpr uint32_t LBK_ONE_WARPS     = 16; // of the kernels that quantize, or split the columns of signs over all warps
constexpr uint32_t LBK_ONE_THREADS   = LBK_ONE_WARPS*32;
constexpr uint32_t LBK_ONE_SUMS      = LBK_ONE_WARPS*4*32*4; // bytes of the warps' sums of four columns of activations
constexpr uint32_t LBK_LARGE_N       = 32; // columns of activations of a block of lbk_large
constexpr uint32_t LBK_LARGE_BLOCKS  = 4;  // its row blocks
constexpr uint32_t LBK_LARGE_PARTS   = 2;  // warps of each of them, which split the columns of signs
constexpr uint32_t LBK_LARGE_THREADS = LBK_LARGE_BLOCKS*LBK_LARGE_PARTS*32;
constexpr uint32_t LBK_LARGE_DEPTH   = 2;  // times, a chunk for every part each, in shared memory or on their way there
// bytes of shared memory of one time: for every part the planes of all columns of activations, and the signs of its warps
constexpr uint32_t LBK_LARGE_PLANES  = 2*LBK_LARGE_N*LBK_CHUNK;
constexpr uint32_t LBK_LARGE_SIGNS   = LBK_CHUNK/8*32; // of a warp
constexpr uint32_t LBK_LARGE_TIME    = LBK_LARGE_PARTS*(LBK_LARGE_PLANES + LBK_LARGE_BLOCKS*LBK_LARGE_SIGNS);
constexpr uint32_t LBK_LARGE_SUMS    = LBK_LARGE_BLOCKS*32 + 8; // words from one column of sums to the next: no bank conflicts
constexpr uint32_t LBK_LARGE_SHARED  = LBK_LARGE_DEPTH*LBK_LARGE_TIME; // the sums have room in it, too
static_assert(LBK_LARGE_PARTS*LBK_LARGE_N*LBK_LARGE_SUMS*4 <= LBK_LARGE_SHARED, "sums take the place of planes and signs");
// groups of four columns that a thread keeps while it quantizes: of lbk_fused and lbk_split, of lbk_fused_wide, of lbk_quantize
constexpr uint32_t LBK_NARROW = 2, LBK_WIDE = 4, LBK_MANY = 8;
constexpr uint32_t LBK_SCRATCH       = 256; // bytes for reductions over the warps of a block
constexpr uint32_t LBK_EXTENTS       = 32;  // blocks that look for the extent of one wide column

#ifdef __CUDACC__
#define LBK_BOTH __host__ __device__
#else
#define LBK_BOTH
#endif

// Columns of signs of each of `slices` parts of a wide stage, whole chunks.
LBK_BOTH constexpr uint32_t lbk_slice_cols(uint32_t cols, uint32_t slices) {
    return ((cols + LBK_CHUNK - 1)/LBK_CHUNK + slices - 1)/slices*LBK_CHUNK;
}

// One quantized column: s.q of a row of signs with bits b is 2 sum(b q) - sum.
struct lbk_column {
    float   step;    // 0 for a column of zeros, NaN for one that is not finite
    float   unshift;
    int32_t sum;     // of q
    int32_t reserved;
};

// y = add + post * (S (pre * x)) for n columns: a stage. src/cuda/plan.rs has the same struct.
struct lbk_args {
    const float    * x;
    const uint16_t * pre;     // f16, may be null
    const uint8_t  * tile;    // aligned to 4
    const uint16_t * post;    // f16, may be null
    const float    * add;     // may be null, may be y
    float          * y;
    lbk_column     * columns; // n
    uint8_t        * planes;  // n times a low and a high plane
    uint64_t       * split;   // of lbk_split: LBK_EXTENTS extents, then a sum and its number of slices for each row
    uint64_t x_stride, add_stride, y_stride; // floats
    uint32_t rows, cols, n;
    uint32_t plane;           // bytes of a plane
};

// Stages of one launch.
constexpr uint32_t LBK_STAGES = 6;

// What every kernel takes, by value: stages that do not wait for each other, or chains of such stages. Stage i of member m is
// stage[m*chain + i]. The stages of a chain have the same rows and n; one after the other is done by the same threads, so a later
// one may add to what an earlier one wrote (the second path). src/cuda/plan.rs has the same struct.
struct lbk_group {
    uint32_t members, chain;
    uint32_t fold;            // a block takes 1 << fold row blocks, but for lbk_large
    uint32_t reserved;
    uint32_t end[LBK_STAGES]; // blocks in x of the members up to and with this one
    lbk_args stage[LBK_STAGES];
};
