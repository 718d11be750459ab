//! Errors of factors against the matrix that they stand for, from the scales as they are stored.
//!
//! Products are formed in f32 for blocks of rows, sums in f64 in the order of the blocks, so that neither memory
//! nor the last bit depends on the number of threads.

use super::export::RealPath;
use crate::bits::SignMatrix;
use crate::format::factors::FactorPath;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use rayon::prelude::*;

/// Rows of a block.
const ROWS: usize = 128;

/// Signs and scales unpacked for products.
struct Unpacked<'a> {
    u: &'a SignMatrix,
    /// `diag(l) V^T diag(g)`, row-major `r x d_in`.
    right: Vec<f32>,
    h: Vec<f32>,
}

impl<'a> Unpacked<'a> {
    fn new(u: &'a SignMatrix, vt: &SignMatrix, h: Vec<f32>, l: &[f64], g: &[f64]) -> Self {
        let mut right = vt.to_row_major();
        for (row, &l) in right.chunks_exact_mut(g.len()).zip(l) {
            row.iter_mut().zip(g).for_each(|(x, &g)| *x *= (l * g) as f32);
        }
        Self { u, right, h }
    }

    fn stored(path: &'a FactorPath) -> Self {
        let wide = |v: &[f16]| v.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let h = path.h.iter().map(|x| x.to_f32()).collect();
        Self::new(&path.u, &path.vt, h, &wide(&path.l), &wide(&path.g))
    }

    fn exact(path: &'a RealPath) -> Self {
        let h = path.h.iter().map(|&x| x as f32).collect();
        Self::new(&path.u, &path.vt, h, &path.l, &path.g)
    }

    /// Adds `by` times rows `first..` of the product to `out` (row-major, whole rows).
    fn add_rows(&self, first: usize, by: f32, out: &mut [f32]) {
        let r = self.u.cols();
        let n = self.right.len() / r;
        let rows = out.len() / n;
        let mut left = vec![0f32; rows * r];
        for (i, row) in left.chunks_exact_mut(r).enumerate() {
            self.u.row_f32(first + i, row);
            let h = by * self.h[first + i];
            row.iter_mut().for_each(|x| *x *= h);
        }
        let left = MatRef::from_row_major_slice(&left, rows, r);
        let right = MatRef::from_row_major_slice(&self.right, r, n);
        matmul(MatMut::from_row_major_slice_mut(out, rows, n), Accum::Add, left, right, 1.0, Par::Seq);
    }
}

/// `w - W'` for one path.
pub(super) fn residual(w: &[f32], path: &FactorPath) -> Vec<f32> {
    let unpacked = Unpacked::stored(path);
    let mut out = w.to_vec();
    out.par_chunks_mut(ROWS * path.d_in()).enumerate().for_each(|(block, rows)| {
        unpacked.add_rows(block * ROWS, -1.0, rows);
    });
    out
}

/// Relative Frobenius errors of the sum of `paths`: plain, and with columns weighted by `sqrt(importance)`.
///
/// 0 against a zero matrix: its factors are exact.
pub(super) fn relative(w: &[f32], paths: &[FactorPath], importance: Option<&[f32]>) -> (f64, f64) {
    let n = paths[0].d_in();
    let unpacked: Vec<Unpacked> = paths.iter().map(Unpacked::stored).collect();
    let blocks: Vec<[f64; 4]> = w
        .par_chunks(ROWS * n)
        .enumerate()
        .map(|(block, w)| {
            let mut rest = w.to_vec();
            unpacked.iter().for_each(|u| u.add_rows(block * ROWS, -1.0, &mut rest));
            let mut sums = [0f64; 4];
            for (w, rest) in w.chunks_exact(n).zip(rest.chunks_exact(n)) {
                for (j, (&w, &d)) in w.iter().zip(rest).enumerate() {
                    let (w, d) = (f64::from(w).powi(2), f64::from(d).powi(2));
                    let imp = importance.map_or(1.0, |imp| f64::from(imp[j]));
                    sums[0] += d;
                    sums[1] += w;
                    sums[2] += imp * d;
                    sums[3] += imp * w;
                }
            }
            sums
        })
        .collect();
    let sum = |k: usize| blocks.iter().map(|b| b[k]).sum::<f64>();
    let ratio = |d: f64, w: f64| if d == 0.0 { 0.0 } else { (d / w).sqrt() };
    let plain = ratio(sum(0), sum(1));
    // Importance that is zero wherever the matrix is not says nothing.
    let weighted = if sum(3) > 0.0 { ratio(sum(2), sum(3)) } else { plain };
    (plain, weighted)
}

/// Relative Frobenius change of the product by rounding the scales of `exact` to those of `rounded`.
pub(super) fn rounding(exact: &RealPath, rounded: &FactorPath) -> f64 {
    let (exact, rounded) = (Unpacked::exact(exact), Unpacked::stored(rounded));
    let n = exact.right.len() / exact.u.cols();
    let blocks: Vec<[f64; 2]> = (0..exact.h.len().div_ceil(ROWS))
        .into_par_iter()
        .map(|block| {
            let first = block * ROWS;
            let mut product = vec![0f32; ROWS.min(exact.h.len() - first) * n];
            exact.add_rows(first, 1.0, &mut product);
            let square = product.iter().map(|&x| f64::from(x).powi(2)).sum();
            rounded.add_rows(first, -1.0, &mut product);
            [product.iter().map(|&x| f64::from(x).powi(2)).sum(), square]
        })
        .collect();
    let (change, square) = blocks.iter().fold((0f64, 0f64), |(c, s), b| (c + b[0], s + b[1]));
    if square == 0.0 && change == 0.0 { 0.0 } else { (change / square).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> FactorPath {
        let scale = |n: usize, by: f32| (0..n).map(|i| f16::from_f32(by + i as f32 / 64.0)).collect();
        FactorPath {
            u: SignMatrix::from_fn(150, 32, |i, k| (i * 3 + k) % 7 < 3),
            vt: SignMatrix::from_fn(32, 20, |k, j| (k + j * 5) % 4 < 2),
            h: scale(150, 0.5),
            l: scale(32, -0.25),
            g: scale(20, 1.0),
        }
    }

    #[test]
    fn errors_equal_those_of_the_dense_product() {
        let p = path();
        let w: Vec<f32> = (0..150 * 20).map(|t| ((t * 37) % 101) as f32 / 10.0 - 4.0).collect();
        let importance: Vec<f32> = (0..20).map(|j| (j % 5) as f32).collect();
        let mut dense = vec![0f32; w.len()];
        p.add_dense(&mut dense);
        let (mut d, mut s, mut wd, mut ws) = (0f64, 0f64, 0f64, 0f64);
        for (t, (a, b)) in w.iter().zip(&dense).enumerate() {
            let (x, y) = ((f64::from(*a) - f64::from(*b)).powi(2), f64::from(*a).powi(2));
            let imp = f64::from(importance[t % 20]);
            (d, s, wd, ws) = (d + x, s + y, wd + imp * x, ws + imp * y);
        }
        let (plain, weighted) = relative(&w, std::slice::from_ref(&p), Some(&importance));
        assert!((plain / (d / s).sqrt() - 1.0).abs() < 1e-5);
        assert!((weighted / (wd / ws).sqrt() - 1.0).abs() < 1e-5);
        assert!((plain - weighted).abs() > 1e-4, "the weights matter in this example");
        assert_eq!(relative(&w, std::slice::from_ref(&p), None), (plain, plain));
        let rest = residual(&w, &p);
        assert!(rest.iter().zip(w.iter().zip(&dense)).all(|(r, (w, x))| (r - (w - x)).abs() < 1e-3));
    }

    #[test]
    fn a_product_has_no_error_against_itself() {
        let p = path();
        let mut dense = vec![0f32; 150 * 20];
        p.add_dense(&mut dense);
        assert!(relative(&dense, &[p], None).0 < 1e-6);
    }
}
