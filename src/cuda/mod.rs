//! Stages on NVIDIA GPUs of compute capability 8.0 or later. The kernels are `cpp/cuda/kernels.cuh`; their integers are
//! those of [`crate::kernel`].
//!
//! | file | job |
//! |---|---|
//! | `plan` | launches and work memory of a stage |
//! | `driver` | the kernels in a CUDA context, through the driver's library; feature `cuda` |
//! | `absent` | says so in builds without that feature |

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod driver;
mod plan;

#[cfg(not(feature = "cuda"))]
pub use absent::Module;
#[cfg(feature = "cuda")]
pub use driver::Module;
pub use plan::{Args, Kernel, Launch, plan, plane_bytes, work_bytes};

/// Why nothing runs on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// This build, or this machine, has no CUDA, or the device is too old.
    #[error("no CUDA: {0}")]
    Absent(String),
    /// The calling thread has no CUDA context, or another one than the module.
    #[error("{0}")]
    Context(String),
    /// The driver refused a call.
    #[error("CUDA driver, {call}: {reason}")]
    Driver {
        /// Function of the driver.
        call: &'static str,
        /// In the driver's words.
        reason: String,
    },
}
