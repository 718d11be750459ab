// What LB-ADMM, the polish (src/factorize) and the decoder's layers (src/decoder/device) do beside matrix products, on the GPU: signs
// and magnitudes of latent factors, the diagonal blocks of Cholesky decompositions, scales, sums, the descent on the signs of rows,
// weights in few bits as f32.
//
// Results equal the CPU's up to the rounding of sums in another order. Every sum has a fixed order, so that a device gives the
// same bits each time.

#pragma once

#include "device.cuh"
#include "factorize_args.h"

// `magnitude` with the sign of t; zero counts as positive, as when signs are packed
LBK_DEVICE float lbf_signed(float magnitude, float t) { return t >= 0.0f ? magnitude : -magnitude; }

LBK_DEVICE float lbf_abs(float x) { return lbk_from_bits(lbk_bits(x) & 0x7fffffffu); }

// the sum over a warp, in all its lanes
LBK_DEVICE float lbf_warp_sum(float v) {
    LBK_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) {
        v += lbk_from_bits(lbk_shuffle_xor(lbk_bits(v), mask));
    }
    return v;
}

// the sum over a block of LBF_THREADS, in all its threads. scratch: as many doubles of shared memory
LBK_DEVICE double lbf_block_sum(double v, double * scratch) {
    scratch[threadIdx.x] = v;
    for (uint32_t half = LBF_THREADS/2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            scratch[threadIdx.x] += scratch[threadIdx.x + half];
        }
    }
    __syncthreads();
    const double sum = scratch[0];
    __syncthreads();
    return sum;
}

// the sum of the squares of n values over a block, as lbf_block_sum
LBK_DEVICE double lbf_block_squares(const float * x, uint32_t n, double * scratch) {
    double square = 0.0;
    for (uint32_t i = threadIdx.x; i < n; i += LBF_THREADS) {
        square += (double) x[i]*(double) x[i];
    }
    return lbf_block_sum(square, scratch);
}

//
// latent factors, r x n, column-major, with Z = sign(x) a b^T
//
// Kernels on whole matrices: a thread takes one row of columns blockIdx.y, blockIdx.y + gridDim.y, ...
//

// out = sign(x) value*b_j: rows of length 1 if value is 1/||b||, which more[0] holds
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_unit_rows(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    const float inverse = p.more[0];
    for (uint32_t j = blockIdx.y; k < p.r && j < p.n; j += gridDim.y) {
        const size_t at = (size_t) j*p.r + k;
        p.out[at] = lbf_signed(p.b[j]*inverse, p.x[at]);
    }
}

// out += value (Z - D), D = x - Z the dual
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_pull(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    for (uint32_t j = blockIdx.y; k < p.r && j < p.n; j += gridDim.y) {
        const size_t at = (size_t) j*p.r + k;
        const float z = lbf_signed(p.a[k]*p.b[j], p.x[at]);
        p.out[at] += p.value*(z - (p.x[at] - z));
    }
}

// out = y + D, D = x - Z the dual; out may be x
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_advance(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    for (uint32_t j = blockIdx.y; k < p.r && j < p.n; j += gridDim.y) {
        const size_t at = (size_t) j*p.r + k;
        p.out[at] = p.y[at] + (p.x[at] - lbf_signed(p.a[k]*p.b[j], p.x[at]));
    }
}

// out_j = sum_k |x_kj| a_k: a warp a column. grid: groups of LBF_THREADS/32 columns
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_columns(lbf_args p) {
    const uint32_t j = blockIdx.x*(LBF_THREADS/32) + threadIdx.x/32, lane = threadIdx.x%32;
    float sum = 0.0f;
    if (j < p.n) {
        const float * x = p.x + (size_t) j*p.r;
        for (uint32_t k = lane; k < p.r; k += 32) {
            sum += lbf_abs(x[k])*p.a[k];
        }
    }
    sum = lbf_warp_sum(sum);
    if (j < p.n && lane == 0) {
        p.out[j] = sum;
    }
}

// out[chunk][k] = sum of |x_kj| b_j over the columns of a chunk. grid: groups of rows x chunks
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_rows(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x, first = blockIdx.y*LBF_CHUNK;
    if (k >= p.r) {
        return;
    }
    const uint32_t end = p.n - first < LBF_CHUNK ? p.n : first + LBF_CHUNK;
    float sum = 0.0f;
    for (uint32_t j = first; j < end; ++j) {
        sum += lbf_abs(p.x[(size_t) j*p.r + k])*p.b[j];
    }
    p.out[(size_t) blockIdx.y*p.r + k] = sum;
}

// out = the sum of the n chunks in x, divided by its length; stays if that is 0. One block.
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_direction(lbf_args p) {
    LBK_SHARED(shared);
    double square = 0.0;
    for (uint32_t k = threadIdx.x; k < p.r; k += LBF_THREADS) {
        double sum = 0.0;
        for (uint32_t c = 0; c < p.n; ++c) {
            sum += (double) p.x[(size_t) c*p.r + k];
        }
        p.sums[k] = sum;
        square += sum*sum;
    }
    square = lbf_block_sum(square, (double *) shared);
    if (square == 0.0) {
        return;
    }
    const double length = sqrt(square);
    for (uint32_t k = threadIdx.x; k < p.r; k += LBF_THREADS) {
        p.out[k] = (float) (p.sums[k]/length);
    }
}

// out /= its length; of zeros it becomes the direction of ones, as a factor that has collapsed has no other. One block.
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_start(lbf_args p) {
    LBK_SHARED(shared);
    const double square = lbf_block_squares(p.out, p.r, (double *) shared);
    for (uint32_t k = threadIdx.x; k < p.r; k += LBF_THREADS) {
        p.out[k] = square > 0.0 ? (float) ((double) p.out[k]/sqrt(square)) : (float) (1.0/sqrt((double) p.r));
    }
}

// more[0] = 1/||b||, 0 for zeros; b has n values. One block.
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_inverse_length(lbf_args p) {
    LBK_SHARED(shared);
    const double square = lbf_block_squares(p.b, p.n, (double *) shared);
    if (threadIdx.x == 0) {
        p.more[0] = square > 0.0 ? (float) (1.0/sqrt(square)) : 0.0f;
    }
}

//
// positive definite systems
//

// out = x + value I, r x r
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_ridge(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    for (uint32_t j = blockIdx.y; k < p.r && j < p.n; j += gridDim.y) {
        const size_t at = (size_t) j*p.r + k;
        p.out[at] = p.x[at] + (k == j ? p.value : 0.0f);
    }
}

// out_k = x_kk, x r x r
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_diagonal(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    if (k < p.r) {
        p.out[k] = p.x[(size_t) k*p.r + k];
    }
}

// The lower Cholesky factor of the n x n block at out (n <= LBF_DIAGONAL), column-major with `stride`, in its place. If there is
// none, count[0] becomes 1; if it is 1 already, nothing is done. One block of LBF_DIAGONAL threads, thread i has row i.
LBK_KERNEL LBK_BOUNDS(LBF_DIAGONAL) lbf_cholesky(lbf_args p) {
    LBK_SHARED(shared);
    float * l = (float *) shared;                  // rows, LBF_STRIDE apart
    float * diagonal = l + LBF_DIAGONAL*LBF_STRIDE; // of the matrix
    const uint32_t i = threadIdx.x;
    if (p.count[0] != 0) {
        return;
    }
    if (i < p.n) {
        for (uint32_t k = 0; k <= i; ++k) {
            l[i*LBF_STRIDE + k] = p.out[(size_t) k*p.stride + i];
        }
        diagonal[i] = l[i*LBF_STRIDE + i];
    }
    __syncthreads();
    for (uint32_t k = 0; k < p.n; ++k) {
        // Every thread finds the pivot by itself: one barrier a column.
        const float * own = l + i*LBF_STRIDE, * pivots = l + k*LBF_STRIDE;
        float sum[2] = {}, square[2] = {};
        if (i >= k && i < p.n) {
            for (uint32_t j = 0; j + 1 < k; j += 2) {
                sum[0]    += own[j]*pivots[j];
                sum[1]    += own[j + 1]*pivots[j + 1];
                square[0] += pivots[j]*pivots[j];
                square[1] += pivots[j + 1]*pivots[j + 1];
            }
            if (k%2 == 1) {
                sum[0]    += own[k - 1]*pivots[k - 1];
                square[0] += pivots[k - 1]*pivots[k - 1];
            }
            const float pivot = diagonal[k] - (square[0] + square[1]);
            // Not a number is not positive either.
            if (i == k && !(pivot > 0.0f && pivot < 3e38f)) {
                p.count[0] = 1;
            }
            const float root = sqrtf(pivot);
            // Others still read row k up to column k - 1 only.
            l[i*LBF_STRIDE + k] = i == k ? root : (own[k] - (sum[0] + sum[1]))/root;
        }
        __syncthreads();
    }
    if (i < p.n) {
        for (uint32_t k = 0; k <= i; ++k) {
            p.out[(size_t) k*p.stride + i] = l[i*LBF_STRIDE + k];
        }
    }
}

//
// polish; matrices are row-major, n rows of r values
//

// out_ik = x_ik a_i b_k; a and b may be null
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_scaled(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    for (uint32_t i = blockIdx.y; k < p.r && i < p.n; i += gridDim.y) {
        const size_t at = (size_t) i*p.r + k;
        float v = p.x[at];
        if (p.a) {
            v *= p.a[i];
        }
        if (p.b) {
            v *= p.b[k];
        }
        p.out[at] = v;
    }
}

// out *= x, value by value
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_multiply(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    for (uint32_t i = blockIdx.y; k < p.r && i < p.n; i += gridDim.y) {
        const size_t at = (size_t) i*p.r + k;
        p.out[at] *= p.x[at];
    }
}

// sums_i = sum_k x_ik y_ik. grid: a block a row
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_row_dots(lbf_args p) {
    LBK_SHARED(shared);
    const float * x = p.x + (size_t) blockIdx.x*p.r, * y = p.y + (size_t) blockIdx.x*p.r;
    double sum = 0.0;
    for (uint32_t k = threadIdx.x; k < p.r; k += LBF_THREADS) {
        sum += (double) x[k]*(double) y[k];
    }
    sum = lbf_block_sum(sum, (double *) shared);
    if (threadIdx.x == 0) {
        p.sums[blockIdx.x] = sum;
    }
}

// out_k = sum_i x_ik y_ik. grid: groups of columns
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_column_dots(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    if (k >= p.r) {
        return;
    }
    double sum = 0.0;
    for (uint32_t i = 0; i < p.n; ++i) {
        sum += (double) p.x[(size_t) i*p.r + k]*(double) p.y[(size_t) i*p.r + k];
    }
    p.out[k] = (float) sum;
}

// Cyclic coordinate descent on the signs of rows: row i of out (n rows of r signs) minimises |a_i| u^T G u - 2 sign(a_i) u^T c
// with G = y (r x r), its diagonal b, c = row i of x; more has U G and is kept. count_i = flips. grid: a block a row
//
// Between two flips nothing changes, so all threads look for the next sign that pays at once, and the order of flips is
// that of a loop over the row.
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_descend(lbf_args p) {
    LBK_SHARED(shared);
    constexpr uint32_t WARPS = LBF_THREADS/32, NONE = 0xffffffffu;
    uint32_t * found = (uint32_t *) shared; // two sets, taken in turn: one barrier a flip
    const float * c = p.x + (size_t) blockIdx.x*p.r;
    float * u  = p.out + (size_t) blockIdx.x*p.r;
    float * gu = p.more + (size_t) blockIdx.x*p.r;
    const float a = lbf_abs(p.a[blockIdx.x]);
    const float direction = lbk_bits(p.a[blockIdx.x]) >> 31 ? -1.0f : 1.0f;
    uint32_t flips = 0, turn = 0;
    for (uint32_t sweep = 0; sweep < LBF_SWEEPS; ++sweep) {
        const uint32_t before = flips;
        uint32_t from = 0;       // the place in the row
        uint32_t flipped = NONE; // what the last flip was
        for (;;) {
            // the last flip into G u, and the next place where one pays: twice its index, 1 more where the sign is -1
            const float change = flipped%2 ? 2.0f : -2.0f;
            const float * row = p.y + (size_t) (flipped == NONE ? 0 : flipped/2)*p.r;
            uint32_t next = NONE;
            for (uint32_t k = threadIdx.x; k < p.r; k += LBF_THREADS) {
                if (flipped != NONE) {
                    gu[k] += change*row[k];
                }
                if (k >= from && next == NONE) {
                    const float pull = c[k]*direction - a*(gu[k] - u[k]*p.b[k]);
                    if (pull*u[k] < 0.0f) {
                        next = 2*k + (u[k] < 0.0f ? 1 : 0);
                    }
                }
            }
            LBK_UNROLL
            for (int mask = 16; mask > 0; mask /= 2) {
                const uint32_t other = lbk_shuffle_xor(next, mask);
                next = other < next ? other : next;
            }
            if (threadIdx.x%32 == 0) {
                found[turn*WARPS + threadIdx.x/32] = next;
            }
            __syncthreads();
            for (uint32_t w = 0; w < WARPS; ++w) {
                const uint32_t other = found[turn*WARPS + w];
                next = other < next ? other : next;
            }
            turn = 1 - turn;
            if (next == NONE) {
                break;
            }
            // Only the thread that owns a sign reads it.
            if (next/2%LBF_THREADS == threadIdx.x) {
                u[next/2] = next%2 ? 1.0f : -1.0f;
            }
            flipped = next;
            from = next/2 + 1;
            ++flips;
        }
        if (flips == before) {
            break;
        }
    }
    if (threadIdx.x == 0) {
        p.count[blockIdx.x] = flips;
    }
}

//
// products of the decoder; matrices are row-major, n rows of r values
//

// out_ik = value x_ik of rows `stride` apart
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_gather(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    for (uint32_t i = blockIdx.y; k < p.r && i < p.n; i += gridDim.y) {
        p.out[(size_t) i*p.r + k] = p.value*p.x[(size_t) i*p.stride + k];
    }
}

// out_ik = x_ik b_k into rows `stride` apart, added to what is there if value is not 0
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_scatter(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    for (uint32_t i = blockIdx.y; k < p.r && i < p.n; i += gridDim.y) {
        const size_t at = (size_t) i*p.stride + k;
        const float v = p.x[(size_t) i*p.r + k]*p.b[k];
        p.out[at] = p.value != 0.0f ? p.out[at] + v : v;
    }
}

// the bfloat16 numbers at count as f32
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_widen(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    for (uint32_t i = blockIdx.y; k < p.r && i < p.n; i += gridDim.y) {
        const size_t at = (size_t) i*p.r + k;
        const uint32_t word = p.count[at/2];
        p.out[at] = lbk_from_bits(at%2 ? word & 0xffff0000u : word << 16);
    }
}

// The signs at count as 1 and -1. There are 64 bits for every 32 rows and two columns: bit 2 (i%32) + k%2.
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_sign_pairs(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    for (uint32_t i = blockIdx.y; k < p.r && i < p.n; i += gridDim.y) {
        const uint32_t bit = 2*(i%32) + k%2;
        const size_t word = 2*((size_t) (i/32)*((p.r + 1)/2) + k/2) + bit/32;
        p.out[(size_t) i*p.r + k] = p.count[word] >> bit%32 & 1 ? 1.0f : -1.0f;
    }
}

// The same of a tile as files have it: byte[i/32][k/8][i%32], columns padded to 16, bit k%8.
LBK_KERNEL LBK_BOUNDS(LBF_THREADS) lbf_sign_tile(lbf_args p) {
    const uint32_t k = blockIdx.x*LBF_THREADS + threadIdx.x;
    const uint8_t * tile = (const uint8_t *) p.count;
    for (uint32_t i = blockIdx.y; k < p.r && i < p.n; i += gridDim.y) {
        const size_t byte = ((size_t) (i/32)*((p.r + 15)/16*2) + k/8)*32 + i%32;
        p.out[(size_t) i*p.r + k] = tile[byte] >> k%8 & 1 ? 1.0f : -1.0f;
    }
}
