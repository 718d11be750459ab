//! AVX2 (placeholder of this commit: portable code).
pub(super) use super::scalar::OPS;
