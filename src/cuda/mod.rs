//! Stages on NVIDIA GPUs of compute capability 8.0 or later. The kernels are `cpp/cuda/kernels.cuh`; their integers are
//! those of [`crate::kernel`].
//!
//! | file | job | needs feature |
//! |---|---|---|
//! | `plan` | launches and work memory of a stage | |
//! | `driver` | the kernels in a CUDA context, through the driver's library | `cuda` |

mod plan;

pub use plan::{Args, Kernel, Launch, plan, plane_bytes, work_bytes};
