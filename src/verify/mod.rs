//! How far a compressed model is from its source, on text.

mod divergence;
mod sample;

pub use divergence::{Comparison, Estimate, compare};
pub use sample::greedy;
