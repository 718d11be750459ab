#include "launch.h"
#include "kernels.cuh"

#include <atomic>

#if defined(CUDART_VERSION) && CUDART_VERSION >= 12030 // launches that overlap are captured into graphs from there on
#define LBK_OVERLAP
#endif

#ifdef LBK_OVERLAP
// Whether the current device starts a launch before the one before it has ended (compute capability 9.0), as far as the kernels let it:
// lbk_begin_next, lbk_wait.
static bool overlaps() {
    constexpr int known = 64;
    static std::atomic<int8_t> of[known] = {}; // 0: not asked yet
    int device = 0, major = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= known) {
        return false;
    }
    if (of[device] == 0) {
        const bool told = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess;
        of[device] = told && major >= 9 ? 1 : -1;
    }
    return of[device] > 0;
}
#endif

static cudaError_t launch(const void * kernel, const lbk_launch & l, lbk_group & group, cudaStream_t stream) {
    void * params[] = { &group };
#ifdef LBK_OVERLAP
    if (overlaps()) {
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim  = dim3(l.grid_x, l.grid_y);
        config.blockDim = dim3(l.block);
        config.dynamicSmemBytes = l.shared;
        config.stream   = stream;
        config.attrs    = &attribute;
        config.numAttrs = 1;
        return cudaLaunchKernelExC(&config, kernel, params);
    }
#endif
    return cudaLaunchKernel(kernel, dim3(l.grid_x, l.grid_y), dim3(l.block), params, l.shared, stream);
}

static cudaError_t run_together(const lbk_args * stage, uint32_t members, uint32_t chain, const lbk_plan & plan, cudaStream_t stream) {
    static const void * const kernels[LBK_N_KERNELS] = {
        (const void *) lbk_quantize, (const void *) lbk_fused, (const void *) lbk_small4, (const void *) lbk_small8,
        (const void *) lbk_large, (const void *) lbk_extent, (const void *) lbk_split, (const void *) lbk_fused_wide,
    };
    for (uint32_t k = 0; k < plan.count; ++k) {
        const lbk_launch & l = plan.launch[k];
        lbk_group group = lbk_make_group(stage, members, chain, k);
        const cudaError_t status = launch(kernels[l.kernel], l, group, stream);
        if (status != cudaSuccess) {
            return status;
        }
    }
    return cudaSuccess;
}

cudaError_t lbk_run_group(const lbk_args * stage, uint32_t members, uint32_t chain, void * work, cudaStream_t stream) {
    const uint32_t count = members*chain;
    if (count > LBK_STAGES) {
        return cudaErrorInvalidValue;
    }
    lbk_args placed[LBK_STAGES] = {};
    for (uint32_t i = 0; i < count; ++i) {
        placed[i] = stage[i];
        lbk_place_work(placed[i], work);
        work = (uint8_t *) work + lbk_work_bytes(placed[i].rows, placed[i].cols, placed[i].n);
    }
    const lbk_plan together = lbk_join(placed, members, chain);
    if (together.count > 0) {
        return run_together(placed, members, chain, together, stream);
    }
    for (uint32_t i = 0; i < count; ++i) {
        const cudaError_t status = run_together(placed + i, 1, 1, lbk_join(placed + i, 1, 1), stream);
        if (status != cudaSuccess) {
            return status;
        }
    }
    return cudaSuccess;
}
