//! LittleBit GGUF schema v1 (normative text: `specs/format.md`) and the lossy GGUF form.

pub mod factors;
pub mod file;
pub mod lossy;
pub mod schema;

pub use factors::{FactorPath, Factors};
pub use file::{LittleBitFile, MatrixEntry};
