//! `.littlebit`: a model with the tensor names and sign packing of official LittleBit checkpoints, in one safetensors
//! file that any safetensors reader opens (normative text: `specs/littlebit-file.md`).
//!
//! It carries the header of the LittleBit GGUF that it stands for, so both forms say the same, and the way back gives
//! the same bytes. [`layout`] derives what a file holds from that header alone; writing and reading both follow it.

mod layout;
mod read;
mod write;

pub use read::{is_container, open};
pub use write::write;

/// `format` of the metadata.
const FORMAT: &str = "littlebit";
/// `version` of the metadata: readers accept their own major number with any minor one.
const VERSION: (u32, u32) = (1, 0);
/// The tensor with the header of the GGUF.
const HEADER: &str = "littlebit.gguf_header";
/// Tensors with files that came with the model: this and the file's name.
const FILES: &str = "littlebit.files.";
/// Names that belong to the container and not to the model.
const RESERVED: &str = "littlebit.";

#[cfg(test)]
mod tests;
