// The part of ggml-cuda's common.cuh that ggml-cuda-littlebit.cu uses, on the host model.

#pragma once

#include "cuda_runtime.h"
#include "ggml.h"

#include <cstdlib>

#define GGML_CUDA_CC_AMPERE 800
#define CUDA_CHECK(call) GGML_ASSERT((call) == cudaSuccess)

struct ggml_cuda_device_info {
    struct { int cc; } devices[1];
};

inline const ggml_cuda_device_info & ggml_cuda_info() {
    static const ggml_cuda_device_info info = { { { GGML_CUDA_CC_AMPERE } } };
    return info;
}

inline bool ampere_mma_available(int cc) { return cc >= GGML_CUDA_CC_AMPERE; }

struct ggml_cuda_pool {};

// memory of exactly the size asked for
template <typename T>
struct ggml_cuda_pool_alloc {
    T * ptr;
    ggml_cuda_pool_alloc(ggml_cuda_pool &, size_t n) : ptr((T *) aligned_alloc(128, GGML_PAD(n*sizeof(T), 128))) {}
    ~ggml_cuda_pool_alloc() { free(ptr); }
    T * get() { return ptr; }
};

struct ggml_backend_cuda_context {
    ggml_cuda_pool the_pool;
    ggml_cuda_pool & pool() { return the_pool; }
    cudaStream_t stream() { return nullptr; }
};
