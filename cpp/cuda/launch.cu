#include "launch.h"
#include "kernels.cuh"

static cudaError_t run_together(const lbk_args * stage, uint32_t members, uint32_t chain, const lbk_plan & plan, cudaStream_t stream) {
    static const void * const kernels[LBK_N_KERNELS] = {
        (const void *) lbk_quantize, (const void *) lbk_fused, (const void *) lbk_small4, (const void *) lbk_small8,
        (const void *) lbk_large, (const void *) lbk_extent, (const void *) lbk_split,
    };
    for (uint32_t k = 0; k < plan.count; ++k) {
        const lbk_launch & l = plan.launch[k];
        lbk_group group = lbk_make_group(stage, members, chain, k);
        void * params[] = { &group };
        const cudaError_t status = cudaLaunchKernel(kernels[l.kernel], dim3(l.grid_x, l.grid_y), dim3(l.block), params,
                l.shared, stream);
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
