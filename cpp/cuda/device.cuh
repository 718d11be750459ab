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
#define LBK_BOUNDS2(n, m) __launch_bounds__(n, m) // m blocks at a time
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

// a*b + c, rounded once
LBK_DEVICE float lbk_fma(float a, float b, float c) {
    float r;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c));
    return r;
}

// Byte i is byte `select >> 4*i & 7` of those of a, then b.
LBK_DEVICE uint32_t lbk_bytes_of(uint32_t a, uint32_t b, uint32_t select) { return __byte_perm(a, b, select); }

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

// Adds to a word that blocks share; what it held before.
LBK_DEVICE uint64_t lbk_fetch_add(uint64_t * p, uint64_t v) {
    return atomicAdd((unsigned long long *) p, (unsigned long long) v);
}

LBK_DEVICE uint32_t lbk_shuffle_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

// Of a warp, in all its lanes.
LBK_DEVICE uint32_t lbk_warp_largest(uint32_t v) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xffffffffu, v);
#else
    return v;
#endif
}

LBK_DEVICE uint32_t lbk_warp_sum(uint32_t v) {
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(0xffffffffu, v);
#else
    return v;
#endif
}

// Kernels that are launched to overlap (launch.cu): what the next one does before its lbk_wait may begin; and what follows sees all
// that the launches before have written. Every thread waits before it reads or writes what another launch uses.
LBK_DEVICE void lbk_begin_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

LBK_DEVICE void lbk_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Copies to shared memory that nobody waits for until lbk_copies_left: 16 or 4 bytes, zeros if not `present`.
LBK_DEVICE void lbk_copy16(void * to, const void * from, bool present) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :: "r"((uint32_t) __cvta_generic_to_shared(to)), "l"(from), "r"(present ? 16 : 0) : "memory");
#endif
}

LBK_DEVICE void lbk_copy4(void * to, const void * from, bool present) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
        :: "r"((uint32_t) __cvta_generic_to_shared(to)), "l"(from), "r"(present ? 4 : 0) : "memory");
#endif
}

// Ends a batch of the thread's copies.
LBK_DEVICE void lbk_copies_end() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the thread's last N batches are on their way.
template <int N>
LBK_DEVICE void lbk_copies_left() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
#endif
}

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
