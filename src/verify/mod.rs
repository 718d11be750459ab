//! How far a compressed model is from its source on text, and any two models from each other.

mod coherence;
mod difference;
mod divergence;
mod gate;
mod prompts;

pub use coherence::{Coherence, Continuation, Task, WRITTEN, Writing, Written};
pub use difference::{Difference, FactorChange, KeyChange, TensorChange, Weights, difference, relative};
pub use divergence::{Comparison, Estimate, compare, compare_rows};
pub use gate::Gates;
