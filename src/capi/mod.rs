//! The C ABI, `lb_*`: [`include/littlebit.h`](https://docs.rs/crate/littlebit/latest/source/include/littlebit.h)
//! is generated from this module. The conventions are in `specs/c-abi.md`.
//!
//! | file | calls |
//! |---|---|
//! | `version` | `lb_version`, `lb_abi_version` |
//! | `status` | the status numbers, `lb_status_text`, `lb_last_error_message` |
//! | `model` | open a LittleBit GGUF, its matrices, whole products |
//! | `stage` | half a product for runtimes that own their threads |
//! | `cuda` | the same on an NVIDIA GPU |
//! | `kernels` | which kernel runs |
//! | `guard` | what every entry does first: no panic gets out, no bad pointer gets in |
//!
//! Entries are thin: they check what C could get wrong and call the Rust function of the same meaning.
//!
//! # Safety
//!
//! One contract holds for every `unsafe` entry, on top of what its text says. It is not repeated there because
//! those texts become the comments of the C header:
//!
//! * A pointer is NULL, or misaligned (both are refused), or leads to live memory of its type, and of the
//!   number of elements that the text or the other arguments give. A C string ends with NUL.
//! * What a `*const` leads to is written by nobody during the call; what a `*mut` leads to is touched by nobody
//!   else.
//! * A handle came from this library and was not freed; a matrix lives as long as its model.
//! * `struct_size` is set in every struct that is passed, also in those to be filled.

#![allow(non_camel_case_types)]
// The contract is above.
#![allow(clippy::missing_safety_doc)]

mod cuda;
mod guard;
mod kernels;
mod model;
mod stage;
mod status;
mod version;

pub use cuda::*;
pub use kernels::*;
pub use model::*;
pub use stage::*;
pub use status::*;
pub use version::*;
