// The part of the CUDA runtime that launch.cu uses, on the host model.

#pragma once

#include <cstddef>
#include <cstdint>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };

typedef struct CUstream_st * cudaStream_t;

struct dim3 {
    uint32_t x, y, z;
    dim3(uint32_t x, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};

cudaError_t cudaLaunchKernel(const void * kernel, dim3 grid, dim3 block, void ** params, size_t shared, cudaStream_t stream);
