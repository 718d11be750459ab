//! The forward and backward pass of decoder-only language models, in f32 on the CPU; products of linear layers also on a GPU.
//!
//! One description ([`Config`]) covers the families; a [`Linear`] is dense or factorized, so the same code runs the
//! source model, the compressed one and everything between. Activations are row-major `tokens x width`; a batch
//! is `sequences` windows of equal length, one after the other.
//!
//! The backward pass is written by hand: a block has ten kinds of operations, frozen weights cost nothing, and the
//! gradients are pinned by finite differences. Products are cut into blocks of fixed size, so that results do not
//! depend on the number of threads.

mod attention;
mod block;
mod cache;
mod coarse;
mod config;
mod dense;
pub(crate) mod device;
mod exponential;
mod fisher;
mod generate;
mod linear;
mod load;
mod model;
mod norm;
pub(crate) mod product;
mod rope;
mod signs;

pub use block::{Block, BlockGrad, BlockTape, Site, site_backward, site_forward};
pub use coarse::{Coarse, add_gram, add_outer};
pub use config::{Activation, Config, RopeStyle, SUPPORTED};
pub use dense::Dense;
pub use device::Place;
pub use exponential::exp_below_max;
pub use fisher::{Fisher, token_weights, weighed};
pub use generate::{Prompt, continuations, exclude, sample};
pub use linear::{Binary, FactorGrad, Linear, LinearGrad, LinearTape, Trained, Weight};
pub use load::{Loader, load};
pub use model::{CoarseHead, Model, ModelGrad, ModelTape};
pub use rope::Rotation;
pub use signs::{Precision, Signs};

#[cfg(test)]
pub(crate) mod tests;
