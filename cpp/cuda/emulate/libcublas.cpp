// The part of cuBLAS that src/cuda calls, on the host model's memory: column-major products by their definitions, sums in f32.

#include "libcuda.h"

#include <cmath>

namespace {

// cublasStatus_t
constexpr int SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13;
// cublasOperation_t, cublasFillMode_t, cublasSideMode_t, cublasDiagType_t
constexpr int OP_N = 0, OP_T = 1, LOWER = 0, LEFT = 0, RIGHT = 1, NON_UNIT = 0;

int handle;

// a column-major matrix in device memory
template <typename T>
struct matrix {
    T *    at;
    size_t ld;
    T & operator()(size_t i, size_t j) const { return at[j*ld + i]; }
};

// false if it does not lie in one allocation
template <typename T>
bool get(matrix<T> & m, T * device, int rows, int cols, int ld) {
    if (rows < 0 || cols < 0 || ld < (rows > 1 ? rows : 1)) {
        return false;
    }
    m.ld = (size_t) ld;
    m.at = nullptr;
    if (rows == 0 || cols == 0) {
        return true;
    }
    m.at = (T *) lbm_host((uint64_t) device, sizeof(T)*((size_t) (cols - 1)*(size_t) ld + (size_t) rows));
    return m.at != nullptr;
}

float spoiled(float x) { return x + 1.0f + std::fabs(x); }

} // namespace

#define LBM_API extern "C" __attribute__((visibility("default")))

LBM_API int cublasCreate_v2(void ** out) {
    *out = &handle;
    return lbm_refused("cublasCreate") ? 1 : SUCCESS; // not initialized
}
LBM_API int cublasDestroy_v2(void *) { return SUCCESS; }
LBM_API int cublasSetMathMode(void *, int mode) { return mode == 0 ? SUCCESS : INVALID_VALUE; }

// C = alpha op(A) op(B) + beta C, m x n, sums over k
LBM_API int cublasSgemm_v2(void *, int op_a, int op_b, int m, int n, int k, const float * alpha, const float * a, int lda,
        const float * b, int ldb, const float * beta, float * c, int ldc) {
    matrix<const float> A, B;
    matrix<float> C;
    if (lbm_refused("cublasSgemm")) {
        return EXECUTION_FAILED;
    }
    if (!get(A, a, op_a == OP_N ? m : k, op_a == OP_N ? k : m, lda) || !get(B, b, op_b == OP_N ? k : n, op_b == OP_N ? n : k, ldb) ||
            !get(C, c, m, n, ldc)) {
        return INVALID_VALUE;
    }
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
            C(i, j) = *beta == 0.0f ? 0.0f : *beta*C(i, j);
        }
        if (op_a == OP_N) {
            for (int l = 0; l < k; ++l) {
                const float v = *alpha*(op_b == OP_N ? B(l, j) : B(j, l));
                const float * from = &A(0, l);
                float * to = &C(0, j);
                for (int i = 0; i < m; ++i) {
                    to[i] += from[i]*v;
                }
            }
        } else {
            for (int i = 0; i < m; ++i) {
                float sum = 0.0f;
                for (int l = 0; l < k; ++l) {
                    sum += A(l, i)*(op_b == OP_N ? B(l, j) : B(j, l));
                }
                C(i, j) += *alpha*sum;
            }
        }
    }
    if (lbm_faulty("cublasSgemm") && m > 0 && n > 0) {
        C(0, 0) = spoiled(C(0, 0));
    }
    return SUCCESS;
}

// lower triangle of C = alpha A A^T + beta C, n x n, A n x k
LBM_API int cublasSsyrk_v2(void *, int uplo, int op, int n, int k, const float * alpha, const float * a, int lda, const float * beta,
        float * c, int ldc) {
    matrix<const float> A;
    matrix<float> C;
    if (uplo != LOWER || op != OP_N || !get(A, a, n, k, lda) || !get(C, c, n, n, ldc)) {
        return INVALID_VALUE;
    }
    for (int j = 0; j < n; ++j) {
        for (int i = j; i < n; ++i) {
            C(i, j) = *beta == 0.0f ? 0.0f : *beta*C(i, j);
        }
        for (int l = 0; l < k; ++l) {
            const float v = *alpha*A(j, l);
            for (int i = j; i < n; ++i) {
                C(i, j) += A(i, l)*v;
            }
        }
    }
    if (lbm_faulty("cublasSsyrk") && n > 0) {
        C(0, 0) = spoiled(C(0, 0));
    }
    return SUCCESS;
}

// B = op(A)^-1 B or B op(A)^-1 for a lower triangular A; B m x n
LBM_API int cublasStrsm_v2(void *, int side, int uplo, int op, int diag, int m, int n, const float * alpha, const float * a, int lda,
        float * b, int ldb) {
    matrix<const float> A;
    matrix<float> B;
    const int order = side == LEFT ? m : n;
    if (uplo != LOWER || diag != NON_UNIT || *alpha != 1.0f || (op != OP_N && op != OP_T) || (side == RIGHT && op != OP_T) ||
            !get(A, a, order, order, lda) || !get(B, b, m, n, ldb)) {
        return INVALID_VALUE;
    }
    if (side == LEFT) {
        for (int j = 0; j < n; ++j) {
            for (int s = 0; s < m; ++s) {
                const int i = op == OP_N ? s : m - 1 - s;
                float v = B(i, j);
                for (int l = op == OP_N ? 0 : i + 1; l < (op == OP_N ? i : m); ++l) {
                    v -= (op == OP_N ? A(i, l) : A(l, i))*B(l, j);
                }
                B(i, j) = v/A(i, i);
            }
        }
    } else { // X A^T = B: column by column
        for (int j = 0; j < n; ++j) {
            for (int l = 0; l < j; ++l) {
                for (int i = 0; i < m; ++i) {
                    B(i, j) -= B(i, l)*A(j, l);
                }
            }
            for (int i = 0; i < m; ++i) {
                B(i, j) /= A(j, j);
            }
        }
    }
    if (lbm_faulty("cublasStrsm") && m > 0 && n > 0) {
        B(0, 0) = spoiled(B(0, 0));
    }
    return SUCCESS;
}
