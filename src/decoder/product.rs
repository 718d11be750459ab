//! Matrix products of row-major slices on the current rayon pool, bit-identical for any number of threads.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows of an output block.
const ROWS: usize = 128;

fn run(out: &mut [f32], cols: usize, add: bool, each: impl Fn(usize, MatMut<f32>, Accum) + Sync) {
    let accum = if add { Accum::Add } else { Accum::Replace };
    out.par_chunks_mut(ROWS * cols).enumerate().for_each(|(i, out)| {
        let rows = out.len() / cols;
        each(i * ROWS, MatMut::from_row_major_slice_mut(out, rows, cols), accum);
    });
}

/// `out (m x n) = a (m x k) b^T`, b `n x k`; adds to `out` if `add`.
pub fn times_transposed(out: &mut [f32], a: &[f32], b: &[f32], n: usize, k: usize, add: bool) {
    assert_eq!((out.len() / n * k, b.len()), (a.len(), n * k));
    run(out, n, add, |row, out, accum| {
        let rows = out.nrows();
        let a = MatRef::from_row_major_slice(&a[row * k..(row + rows) * k], rows, k);
        matmul(out, accum, a, MatRef::from_row_major_slice(b, n, k).transpose(), 1.0, Par::Seq);
    });
}

/// `out (m x n) = a (m x k) b`, b `k x n`; adds to `out` if `add`.
pub fn times(out: &mut [f32], a: &[f32], b: &[f32], n: usize, k: usize, add: bool) {
    assert_eq!((out.len() / n * k, b.len()), (a.len(), n * k));
    run(out, n, add, |row, out, accum| {
        let rows = out.nrows();
        let a = MatRef::from_row_major_slice(&a[row * k..(row + rows) * k], rows, k);
        matmul(out, accum, a, MatRef::from_row_major_slice(b, k, n), 1.0, Par::Seq);
    });
}

/// `out (m x n) = a^T b`, a `k x m`, b `k x n`; adds to `out` if `add`.
pub fn transposed_times(out: &mut [f32], a: &[f32], b: &[f32], n: usize, m: usize, add: bool) {
    let k = b.len() / n;
    assert_eq!((out.len(), a.len(), b.len()), (m * n, k * m, k * n));
    run(out, n, add, |row, out, accum| {
        let rows = out.nrows();
        let a = MatRef::from_row_major_slice(a, k, m).transpose().subrows(row, rows);
        matmul(out, accum, a, MatRef::from_row_major_slice(b, k, n), 1.0, Par::Seq);
    });
}
