// A stage on a stream of the CUDA runtime.

#pragma once

#include "args.h"
#include "plan.h"

#include <cuda_runtime.h>

// Launches y = add + post * (S (pre * x)). The caller fills in everything but columns, planes, split and plane.
// work: lbk_work_bytes(rows, cols, n) of device memory, aligned to 16, not touched by others until the launches are done. No
// allocation, no waiting: may be captured into a graph. The tile is aligned to 4, cols at most 2^18, n > 0.
cudaError_t lbk_run(lbk_args args, void * work, cudaStream_t stream);
