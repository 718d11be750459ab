// A small host model of a GPU, for the kernels as they are: a block's threads are fibers that run one after the other and
// change places at barriers and collectives; blocks follow each other in a chosen order.
//
// What it finds: wrong arithmetic, indices and fragments; reads of shared memory that nobody wrote (it starts as
// garbage); accesses beyond shared memory (it ends at a closed page); barriers that not all threads reach; and races,
// where a result depends on the order in which threads run between barriers (the order is chosen by the caller).
// What it does not model: memory ordering within a warp, alignment faults (compile with -fsanitize=alignment), time.

#pragma once

#include <cstddef>
#include <cstdint>

namespace lbe {

struct dim { uint32_t x, y, z; };

// In what order blocks run, and the threads of a block from barrier to barrier.
enum class order { forward, backward, shuffled };

extern dim thread_index, block_index, block_size, grid_size;

using body = void (*)(const void * args);

// Runs grid_x * grid_y blocks. False if threads disagree about barriers or collectives.
bool launch(body kernel, const void * args, uint32_t grid_x, uint32_t grid_y, uint32_t block, uint32_t shared, order how);

uint8_t * shared_memory();
void barrier();
uint32_t shuffle_xor(uint32_t v, int mask);
void mma(int d[4], const uint32_t a[4], const uint32_t b[2]);

float half(uint16_t h);

// Whole pages for `size` bytes, and a page after them that nobody may touch; map is NULL if there are none.
struct pages {
    uint8_t * map;
    size_t    inner, whole; // bytes without and with the closed page
    uint8_t * end() const { return map + inner; }
};

pages map_pages(size_t size);

} // namespace lbe

#define threadIdx (lbe::thread_index)
#define blockIdx  (lbe::block_index)
#define blockDim  (lbe::block_size)
#define gridDim   (lbe::grid_size)
#define __syncthreads() lbe::barrier()

#define LBK_KERNEL        static void
#define LBK_BOUNDS(n)
#define LBK_BOUNDS2(n, m)
#define LBK_PARAM         const
#define LBK_DEVICE        static inline
#define LBK_SHARED(name)  uint8_t * const name = lbe::shared_memory()
#define LBK_UNROLL

// One operation each: the compiler must not fuse them (-ffp-contract=off).
LBK_DEVICE float lbk_mul(float a, float b) { return a*b; }
LBK_DEVICE float lbk_add(float a, float b) { return a + b; }
LBK_DEVICE float lbk_div(float a, float b) { return a/b; }
LBK_DEVICE float lbk_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
LBK_DEVICE uint32_t lbk_bytes_of(uint32_t a, uint32_t b, uint32_t select) {
    const uint64_t both = (uint64_t) b << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; ++i) {
        r |= (uint32_t) (both >> 8*(select >> 4*i & 7) & 255) << 8*i;
    }
    return r;
}
LBK_DEVICE float lbk_float(int a)          { return (float) a; }
LBK_DEVICE uint32_t lbk_bits(float a)      { uint32_t b; __builtin_memcpy(&b, &a, 4); return b; }
LBK_DEVICE float lbk_from_bits(uint32_t a) { float b; __builtin_memcpy(&b, &a, 4); return b; }
LBK_DEVICE float lbk_half(uint16_t h)      { return lbe::half(h); }
LBK_DEVICE uint64_t lbk_fetch_add(uint64_t * p, uint64_t v) {
    const uint64_t before = *p;
    *p = before + v;
    return before;
}
LBK_DEVICE uint32_t lbk_shuffle_xor(uint32_t v, int mask) { return lbe::shuffle_xor(v, mask); }

LBK_DEVICE uint32_t lbk_warp_largest(uint32_t v) {
    for (int mask = 16; mask > 0; mask /= 2) {
        const uint32_t other = lbk_shuffle_xor(v, mask);
        v = v > other ? v : other;
    }
    return v;
}
LBK_DEVICE uint32_t lbk_warp_sum(uint32_t v) {
    for (int mask = 16; mask > 0; mask /= 2) {
        v += lbk_shuffle_xor(v, mask);
    }
    return v;
}

// Launches do not overlap here, and copies are made at once.
LBK_DEVICE void lbk_begin_next() {}
LBK_DEVICE void lbk_wait() {}
LBK_DEVICE void lbk_copies_end() {}
template <int N> LBK_DEVICE void lbk_copies_left() {}

template <size_t N>
LBK_DEVICE void lbk_copy(void * to, const void * from, bool present) {
    if (present) {
        __builtin_memcpy(__builtin_assume_aligned(to, N), __builtin_assume_aligned(from, N), N);
    } else {
        __builtin_memset(to, 0, N);
    }
}
LBK_DEVICE void lbk_copy16(void * to, const void * from, bool present) { lbk_copy<16>(to, from, present); }
LBK_DEVICE void lbk_copy4(void * to, const void * from, bool present)  { lbk_copy<4>(to, from, present); }

LBK_DEVICE void lbk_mma(int d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    const uint32_t a[4] = { a0, a1, a2, a3 }, b[2] = { b0, b1 };
    lbe::mma(d, a, b);
}
