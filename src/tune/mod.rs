//! Training of what factorization has left free, against the source model.
//!
//! [`Distillation`] moves the scales and norms of a factorized model towards the logits of its source, all signs fixed:
//! the cheapest large gain after factorization (`specs/algorithm.md`).

mod adam;
mod block;
mod distill;
mod latent;
mod parameters;
mod teacher;

pub use block::{BlockOutcome, BlockSettings, BlockTask};
pub use distill::{Checkpoint, Distillation, Length, Settings, Step};
pub use teacher::Teacher;
