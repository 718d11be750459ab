//! Statistics of activations that weigh the factorization.

pub mod imatrix;
mod legacy;
