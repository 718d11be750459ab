// Stages on a stream of the CUDA runtime.

#pragma once

#include "args.h"
#include "plan.h"

#include <cuda_runtime.h>

// Launches `members` chains of `chain` stages, stage i of member m at stage[m*chain + i], of which the caller fills in everything
// but columns, planes, split and plane. All together where lbk_join can, else one after the other; the results are the same.
// work: lbk_group_work_bytes of device memory, aligned to 16, not touched by others until the launches are done. No allocation, no
// waiting: may be captured into a graph. Tiles are aligned to 4, cols at most 2^18, n > 0 and at most LBK_MAX_N; no stage reads what another writes, but
// for the `add` of later stages of a chain. The kernel that the stream runs right before writes no tile: where launches overlap, signs
// are loaded before it has ended. At most LBK_STAGES stages.
cudaError_t lbk_run_group(const lbk_args * stage, uint32_t members, uint32_t chain, void * work, cudaStream_t stream);

// the same for one stage
inline cudaError_t lbk_run(const lbk_args & args, void * work, cudaStream_t stream) {
    return lbk_run_group(&args, 1, 1, work, stream);
}
