//! Matrix products on the current rayon pool whose bits do not depend on the number of threads.
//!
//! A product that is split over threads as the library likes adds its terms in an order that depends on their
//! number. Here the output is cut into blocks of fixed size, each computed by one thread.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows and columns of an output block: large enough that packing the operands again for each block costs little.
pub(super) const BLOCK: usize = 256;

/// `out = a b`.
pub(super) fn product(out: MatMut<f32>, a: MatRef<f32>, b: MatRef<f32>) {
    out.par_col_chunks_mut(BLOCK).zip(b.par_col_chunks(BLOCK)).for_each(|(out, b)| {
        out.par_row_chunks_mut(BLOCK).zip(a.par_row_chunks(BLOCK)).for_each(|(out, a)| {
            matmul(out, Accum::Replace, a, b, 1.0, Par::Seq);
        });
    });
}

/// Lower triangle of `out = x x^T`; blocks above the diagonal are left alone.
pub(super) fn gram(out: MatMut<f32>, x: MatRef<f32>) {
    out.par_col_chunks_mut(BLOCK).zip(x.par_row_chunks(BLOCK)).enumerate().for_each(|(j, (out, xj))| {
        out.par_row_chunks_mut(BLOCK).zip(x.par_row_chunks(BLOCK)).enumerate().for_each(|(i, (out, xi))| {
            if i >= j {
                matmul(out, Accum::Replace, xi, xj.transpose(), 1.0, Par::Seq);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::Mat;

    fn value(i: usize, j: usize) -> f32 {
        ((i * 31 + j * 17) % 23) as f32 / 7.0 - 1.5
    }

    #[test]
    fn blocks_cover_the_output_and_agree_with_plain_sums() {
        let (m, k, n) = (300, 19, 260);
        let (a, b) = (Mat::from_fn(m, k, value), Mat::from_fn(k, n, |i, j| value(j, i)));
        let mut c = Mat::full(m, n, f32::NAN);
        product(c.as_mut(), a.as_ref(), b.as_ref());
        for (i, j) in [(0, 0), (255, 255), (256, 0), (299, 259), (17, 256)] {
            let sum: f64 = (0..k).map(|t| f64::from(a[(i, t)]) * f64::from(b[(t, j)])).sum();
            assert!((f64::from(c[(i, j)]) - sum).abs() < 1e-4, "({i}, {j})");
        }
        assert!((0..n).all(|j| (0..m).all(|i| c[(i, j)].is_finite())));
    }

    #[test]
    fn gram_fills_the_lower_triangle() {
        let x = Mat::from_fn(270, 33, value);
        let mut g = Mat::full(270, 270, f32::NAN);
        gram(g.as_mut(), x.as_ref());
        for j in 0..270 {
            for i in j..270 {
                let sum: f32 = (0..33).map(|t| x[(i, t)] * x[(j, t)]).sum();
                assert!((g[(i, j)] - sum).abs() < 1e-3);
            }
        }
    }
}
