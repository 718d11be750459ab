// The few device operations that littlebit's kernels use, for nvcc and for the emulation on the host.
//
// Every floating-point operation is one IEEE operation, rounded to nearest even, with subnormal numbers: the integers
// must be those of the CPU kernels. They are written as PTX, which -use_fast_math (ggml-cuda has it) does not touch.
// Comparisons of floats would be touched; the kernels compare bit patterns.

#pragma once

#include <cstddef>
#include <cstdint>

#ifdef LBK_EMULATE

#include "emulate/machine.h" // threadIdx, blockIdx, __syncthreads, the collectives of a warp

#else

#define LBK_KERNEL        extern "C" __global__ void
#define LBK_BOUNDS(n)     __launch_bounds__(n)
#define LBK_PARAM         const __grid_constant__ // stays where it is: an index into it costs no copy
#define LBK_DEVICE        static __device__ __forceinline__
#define LBK_SHARED(name)  extern __shared__ __align__(16) uint8_t name[]
#define LBK_UNROLL        _Pragma("unroll")

LBK_DEVICE float lbk_mul(float a, float b) {
    float r;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

LBK_DEVICE float lbk_add(float a, float b) {
    float r;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

LBK_DEVICE float lbk_div(float a, float b) {
    float r;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

LBK_DEVICE int lbk_round(float a) {
    int r;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(r) : "f"(a));
    return r;
}

LBK_DEVICE float lbk_float(int a) {
    float r;
    asm("cvt.rn.f32.s32 %0, %1;" : "=f"(r) : "r"(a));
    return r;
}

LBK_DEVICE uint32_t lbk_bits(float a)      { return __float_as_uint(a); }
LBK_DEVICE float lbk_from_bits(uint32_t a) { return __uint_as_float(a); }

LBK_DEVICE float lbk_half(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

// Between blocks of a launch: what a block wrote before it took a ticket is seen by those that took a later one and read
// past the first-level cache.
LBK_DEVICE void     lbk_fence()                        { __threadfence(); }
LBK_DEVICE uint32_t lbk_ticket(uint32_t * counter)     { return atomicAdd(counter, 1u); }
LBK_DEVICE uint32_t lbk_load_fresh(const uint32_t * p) { return __ldcg(p); }

LBK_DEVICE uint32_t lbk_shuffle_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

// d += A B of a warp: A 16 x 32, B 32 x 8, bytes with sign, in the fragments of mma.m16n8k32
LBK_DEVICE void lbk_mma(int d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    __trap(); // hosts do not launch on devices below 8.0; a build for more devices still compiles
#endif
}

#endif

struct alignas(8)  lbk_u32x2 { uint32_t x, y; };
struct alignas(16) lbk_u32x4 { uint32_t x, y, z, w; };
struct alignas(16) lbk_f32x4 { float x, y, z, w; };
