//! LittleBit GGUF schema v1 (normative text: `specs/format.md`) and the lossy GGUF form.

pub mod factors;

pub use factors::{FactorPath, Factors};
