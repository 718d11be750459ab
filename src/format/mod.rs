//! LittleBit GGUF schema v1 (normative text: `specs/format.md`), the `.littlebit` container and the lossy GGUF form.

#[cfg(feature = "convert")]
pub mod container;
pub mod factors;
pub mod file;
pub mod lossy;
#[cfg(feature = "convert")]
pub mod retype;
pub mod schema;

pub use factors::{FactorPath, Factors};
pub use file::{LittleBitFile, MatrixEntry};
