// The kernels on the host model, behind a C interface for tests/cuda.rs.

#define LBK_EMULATE
#include "../kernels.cuh"
#include "../plan.h"

namespace {

template <void (*kernel)(lbk_group)>
void call(const void * args) {
    kernel(*static_cast<const lbk_group *>(args));
}

constexpr lbe::body BODIES[LBK_N_KERNELS] = {
    call<lbk_quantize>, call<lbk_fused>, call<lbk_small4>, call<lbk_small8>, call<lbk_large>,
    call<lbk_extent>, call<lbk_split>, call<lbk_fused_wide>,
};

} // namespace

extern "C" {

lbk_plan lbe_plan(uint32_t rows, uint32_t cols, uint32_t n) {
    lbk_args a = {};
    a.rows = rows; a.cols = cols; a.n = n;
    return lbk_make_plan(rows, cols, n, lbk_agree(&a, 1, 1));
}

size_t lbe_work_bytes(uint32_t rows, uint32_t cols, uint32_t n) { return lbk_work_bytes(rows, cols, n); }

uint32_t lbe_max_n(void) { return LBK_MAX_N; }

uint32_t lbe_plane_bytes(uint32_t cols) { return (uint32_t) lbk_plane_bytes(cols); }

const char * lbe_kernel_name(uint32_t kernel) { return LBK_NAMES[kernel]; }

lbk_plan lbe_join(const lbk_args * stage, uint32_t members, uint32_t chain) { return lbk_join(stage, members, chain); }

lbk_group lbe_group(const lbk_args * stage, uint32_t members, uint32_t chain, uint32_t k) {
    return lbk_make_group(stage, members, chain, k);
}

void lbe_place_work(lbk_args * stage, void * work) { lbk_place_work(*stage, work); }

// 0 on success, 1 if the threads of a block did not meet at a barrier or a collective
int lbe_launch(const lbk_launch * launch, const lbk_group * group, int order) {
    const bool good = lbe::launch(BODIES[launch->kernel], group, launch->grid_x, launch->grid_y, launch->block,
            launch->shared, static_cast<lbe::order>(order));
    return good ? 0 : 1;
}

// For how many of `count` values the quotient of quantize.cuh by the step of a column whose extents are `value` and `group` is not that of a
// division: another integer, or another number at all if it is not far below 1/2.
size_t lbe_unlike_quotients(float value, float group, const float * v, size_t count) {
    const lbk_step s = lbk_step_of(lbk_bits(value), lbk_bits(group));
    const float shift = value < 0x1p-90f ? 0x1p64f : 1.0f;
    size_t unlike = 0;
    for (size_t i = 0; i < count; ++i) {
        const float got = lbk_quotient(v[i], s), want = v[i]*shift/s.step;
        unlike += !s.usable || __builtin_rintf(got) != __builtin_rintf(want) || (__builtin_fabsf(want) >= 0.25f && got != want);
    }
    return unlike;
}

// A kernel whose threads disagree about a barrier, to see that it is noticed; and one that races.
static void bad_barrier(const void *) {
    if (threadIdx.x != 5) {
        __syncthreads();
    }
}

static void race(const void * args) {
    LBK_SHARED(shared);
    uint32_t * words = (uint32_t *) shared;
    words[threadIdx.x] = threadIdx.x;
    // a barrier is missing here
    (*(uint32_t * const *) args)[threadIdx.x] = words[(threadIdx.x + 1)%blockDim.x];
}

int lbe_bad_barrier(void) { return lbe::launch(bad_barrier, nullptr, 1, 1, 64, 64, lbe::order::forward) ? 0 : 1; }

int lbe_race(uint32_t * out, int order) {
    return lbe::launch(race, &out, 1, 1, 64, 256, static_cast<lbe::order>(order)) ? 0 : 1;
}

}
