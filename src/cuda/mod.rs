//! Stages on NVIDIA GPUs of compute capability 8.0 or later. The kernels are `cpp/cuda/kernels.cuh`; their integers are
//! those of [`crate::kernel`].
//!
//! | file | job |
//! |---|---|
//! | `plan` | launches and work memory of stages |
//! | `driver` | the kernels in a CUDA context, through the driver's library; feature `cuda` |
//! | `absent` | says so in builds without that feature |
//! | `compute` | memory, products and kernels for the compressor; feature `cuda` |

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
pub mod compute;
#[cfg(feature = "cuda")]
mod driver;
mod plan;

#[cfg(not(feature = "cuda"))]
pub use absent::Module;
#[cfg(feature = "cuda")]
pub use driver::Module;
pub use plan::{
    Args, Group, Kernel, Launch, MAX_N, Plan, STAGES, group, join, plan, plane_bytes, work_bytes,
};

/// Why nothing runs on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// This build, or this machine, has no CUDA, or the device is too old.
    #[error("no CUDA: {0}")]
    Absent(String),
    /// The calling thread has no CUDA context, or another one than the module.
    #[error("{0}")]
    Context(String),
    /// Device memory is not there.
    #[error("{0} bytes of device memory are not free")]
    Memory(u64),
    /// The driver or a library refused a call.
    #[error("CUDA, {call}: {reason}")]
    Driver {
        /// The function.
        call: &'static str,
        /// In its words.
        reason: String,
    },
}
