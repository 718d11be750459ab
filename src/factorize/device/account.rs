//! Device memory that a matrix takes, known beforehand.

use crate::cuda::compute::CHUNK;

/// Bytes that stay free besides: working memory of cuBLAS, the rounding of allocations.
pub const RESERVE: u64 = 96 << 20;

fn bytes(numbers: usize) -> u64 {
    4 * numbers as u64
}

/// Bytes of LB-ADMM on a `m x n` matrix at rank r.
pub fn admm_bytes(m: usize, n: usize, r: usize) -> u64 {
    let longer = m.max(n);
    // Latent values and as much to work with, magnitudes.
    let factors = 2 * r * (m + n) + m + n + 2 * r;
    let squares = 2 * r * r;
    // Chunks of sums and their totals in f64; a few single numbers.
    let projection = r * (longer.div_ceil(CHUNK) + 2) + 16;
    bytes(m * n + factors + squares + projection)
}

/// Bytes of the polish, and of margins.
pub fn polish_bytes(m: usize, n: usize, r: usize) -> u64 {
    let kept = 2 * m * n + n * n + r * (m + n);
    let (left, right, inner) = (r * m, r * n, r * r);
    let phases = [
        // The objective: both sides and their product, or that and its product with the metric.
        m * n + (left + right).max(m * n),
        // l: both sides, two Gram matrices, the metric's product with the right side or the target's.
        left + right + 2 * inner + right.max(left),
        // h
        m * n + right.max(m * n),
        // g: the product and its Gram matrix.
        m * n + (left + right).max(n * n),
        // U: Gram matrix, wanted values, U G and the way there.
        inner + left + right.max(left) + right,
        // V, and its margins.
        left.max(3 * right) + inner + right + 64 * 3 * r,
    ];
    let vectors = 8 * (m + n + r) + 16;
    bytes(kept + phases.into_iter().max().unwrap_or(0) + vectors)
}
