//! How far a compressed model is from its source, on text.

mod divergence;
mod gate;
mod sample;

pub use divergence::{Comparison, Estimate, compare};
pub use gate::Gates;
pub use sample::greedy;
