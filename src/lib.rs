//! littlebit: language models below two bits per weight.
//!
//! Every linear layer `W` (`d_out x d_in`) becomes
//! `W ~ sum_p diag(h_p) U_p diag(l_p) V_p^T diag(g_p)` with `U`, `V` in {-1, +1}
//! (LittleBit, arXiv:2506.13771). Data flows one way, each arrow is one plain type:
//!
//! ```text
//! source -> calibrate -> plan -> factorize -> format -> verify
//! ```
//!
//! | module | job | needs feature |
//! |---|---|---|
//! | [`gguf`] | read and write GGUF v3, ordered and checked | |
//! | [`bits`] | the sign matrix and its tile layout | |
//! | [`kernel`] | factorized matmul on the CPU: scalar, AVX2, AVX-512, NEON; dispatch | |
//! | [`format`] | LittleBit GGUF schema v1, `.littlebit`, lossy GGUF | |
//! | [`cuda`] | the same products on NVIDIA GPUs, and what factorization computes there | `cuda` to launch them |
//! | [`capi`] | the C ABI (`include/littlebit.h`) | |
//! | `source` | GGUF and Hugging Face checkpoints behind one trait; compressed checkpoints | `convert` |
//! | `arch` | which tensors of a model are multiplied and may be factorized | `convert` |
//! | `calibrate` | importance statistics (imatrix) | `convert` |
//! | `decoder` | forward and backward pass of decoder-only models | `convert` |
//! | `plan` | exact bit account, ranks from a bit budget | `convert` |
//! | `factorize` | SVID, ITQ, LB-ADMM, errors | `convert` |
//! | `tokenize` | llama.cpp's tokens from the keys of a GGUF | `convert` |
//! | `tune` | distillation into scales and norms | `convert` |
//! | `verify` | perplexity and KL divergence against the source, differences of models | `convert` |
//! | `job` | atomic output and limits of a run | `convert` |
//! | `present` | a finished run as HTML report and model card | `convert` |
//! | `cli` | flags, progress and reports of `littlebit-convert` | `cli` |

#![warn(missing_docs)]

pub mod bits;
pub mod capi;
pub mod cuda;
pub mod error;
pub mod format;
pub mod gguf;
pub mod kernel;

#[cfg(feature = "convert")]
pub mod arch;
#[cfg(feature = "convert")]
pub mod calibrate;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "convert")]
pub mod decoder;
#[cfg(feature = "convert")]
pub mod factorize;
#[cfg(feature = "convert")]
pub mod job;
#[cfg(feature = "convert")]
pub mod plan;
#[cfg(feature = "convert")]
pub mod present;
#[cfg(feature = "convert")]
pub mod source;
#[cfg(feature = "convert")]
pub mod tokenize;
#[cfg(feature = "convert")]
pub mod tune;
#[cfg(feature = "convert")]
pub mod verify;

pub use error::{Error, Result};
