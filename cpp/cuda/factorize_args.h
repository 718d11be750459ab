// What the kernels of factorize.cuh and their host (src/cuda/compute) agree on.

#pragma once

#include <cstddef>
#include <cstdint>

// Threads of a block of every kernel but lbf_cholesky.
constexpr uint32_t LBF_THREADS = 256;
// Columns whose products with magnitudes are summed by one thread of lbf_rows.
constexpr uint32_t LBF_CHUNK = 256;
// Rows of a diagonal block of the Cholesky decomposition; one thread a row.
constexpr uint32_t LBF_DIAGONAL = 64;
// Numbers from a row of that block to the next in shared memory: no bank conflicts.
constexpr uint32_t LBF_STRIDE = LBF_DIAGONAL + 1;
// Sweeps over the signs of a row at most; src/factorize/polish/signs.rs has the same number.
constexpr uint32_t LBF_SWEEPS = 4;

// One struct for all kernels; each says which members it uses. src/cuda/compute/kernels.rs has the same.
struct lbf_args {
    float       * out;
    float       * more;
    const float * x;
    const float * y;
    const float * a;
    const float * b;
    double      * sums;
    uint32_t    * count; // also bits and bfloat16 numbers, two a word
    uint32_t r, n;     // rows and columns of a column-major matrix, or columns and rows of a row-major one
    uint32_t stride;   // numbers from a column (or row) to the next, where they are part of a larger matrix
    float    value;
};
