#include "launch.h"
#include "kernels.cuh"

cudaError_t lbk_run(lbk_args args, void * work, cudaStream_t stream) {
    static const void * const kernels[LBK_N_KERNELS] = {
        (const void *) lbk_quantize, (const void *) lbk_fused, (const void *) lbk_small4, (const void *) lbk_small8,
        (const void *) lbk_large, (const void *) lbk_extent, (const void *) lbk_split,
    };
    args.split   = (uint32_t *) work;
    args.columns = (lbk_column *) work;
    args.planes  = (uint8_t *) work + args.n*sizeof(lbk_column);
    args.plane   = (uint32_t) lbk_plane_bytes(args.cols);
    const lbk_plan plan = lbk_make_plan(args.rows, args.cols, args.n);
    for (uint32_t i = 0; i < plan.count; ++i) {
        const lbk_launch & l = plan.launch[i];
        void * params[] = { &args };
        const cudaError_t status = cudaLaunchKernel(kernels[l.kernel], dim3(l.grid_x, l.grid_y), dim3(l.block), params,
                l.shared, stream);
        if (status != cudaSuccess) {
            return status;
        }
    }
    return cudaSuccess;
}
