//! Statistics of activations that weigh the factorization.

pub mod imatrix;
mod legacy;
pub mod moments;
pub mod sensitivity;
pub mod text;
