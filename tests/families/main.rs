//! Hugging Face checkpoints of all families that are read: keys, tensors and tokens are those that llama.cpp's converter
//! gives them (specs/results.md, section 5, compares with the converter itself).

#[path = "../support/mod.rs"]
mod support;

mod checkpoint;
mod compare;
mod gemma;
mod llama;
mod phi;
mod qwen;
