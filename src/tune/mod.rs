//! Training of what factorization has left free, against the source model.
//!
//! [`BlockTask`] brings the signs, scales and norms of one block towards the source's block. [`Distillation`] moves the scales and norms of a factorized model towards the logits of its source, all signs fixed:
//! the cheapest large gain after factorization (`specs/algorithm.md`).

mod absorb;
mod adam;
mod block;
mod descent;
mod distill;
mod latent;
mod parameters;
mod teacher;

use rayon::prelude::*;

pub use absorb::Absorption;
pub use block::{BlockOutcome, BlockSettings, BlockTask, Kept};
pub use distill::{Checkpoint, Distillation, Length, Settings, Step};
pub use teacher::Teacher;

/// Mean loss of a step's windows and the sum of their gradients. The windows run beside each other and the sums go in
/// their order, so that threads do not matter.
fn over_windows<W: Sync, G: Send>(
    windows: &[W],
    run: impl Fn(&W) -> (f64, G) + Sync + Send,
    add: impl Fn(&mut G, &G),
) -> (f64, G) {
    let parts: Vec<(f64, G)> = windows.par_iter().map(run).collect();
    let mut parts = parts.into_iter();
    let (mut loss, mut grad) = parts.next().expect("a step has a window");
    for (other_loss, other) in parts {
        loss += other_loss;
        add(&mut grad, &other);
    }
    (loss / windows.len() as f64, grad)
}
