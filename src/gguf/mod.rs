//! GGUF version 3: what llama.cpp loads.
//!
//! The reader keeps key order and raw type ids, bounds every count by what the file could hold, and reads with
//! positioned reads rather than a memory map, so that a file that shrinks under it ends in an error and not in a
//! signal. The writer streams: descriptors first, tensor data after, nothing kept in memory.

pub mod dequant;
pub mod encode;
mod header;
pub mod reader;
pub mod types;
pub mod value;
pub mod writer;

#[cfg(test)]
mod tests;

pub use dequant::dequantize;
pub use encode::encode;
pub use reader::{Gguf, TensorData, TensorInfo};
pub use types::GgmlType;
pub use value::{Array, Value};
pub use writer::{TensorDesc, Writer};

/// First four bytes of every GGUF.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that this crate reads and writes.
pub const VERSION: u32 = 3;
/// Alignment of tensor data where `general.alignment` is absent.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's limit on tensor names, with their terminating zero.
pub const MAX_NAME: usize = 64;
/// ggml's limit on dimensions.
pub const MAX_DIMS: usize = 4;
