//! How far a compressed model is from its source, on text.

mod divergence;

pub use divergence::{Comparison, Estimate, compare};
