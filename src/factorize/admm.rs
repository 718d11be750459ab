//! LB-ADMM: alternating direction method of multipliers for `W ~ A B` with binary factors.
//!
//! Each factor has three parts: the solution of a ridge problem, its projection Z onto sign matrices with
//! rank-one magnitudes, and the running disagreement of the two (the scaled dual). One iteration solves
//!
//! ```text
//! (X X^T + (rho + REGULARIZATION) I) A^T = X W^T + rho (Z_A - D_A)^T     X: Z_B with rows of length 1
//! (Y^T Y + (rho + REGULARIZATION) I) B   = Y^T W + rho (Z_B - D_B)       Y: Z_A with columns of length 1
//! Z = project(solution + D),   D += solution - Z
//! ```
//!
//! with rho growing linearly from 0 to 1. Because each Z is an outer product of magnitudes times signs, the last
//! pair gives the three scale vectors without any fit: with `Z_A = sign * alpha beta^T` the column lengths cancel
//! beta, and `Z_B = sign * gamma delta^T`, so `h = alpha / ||alpha||`, `l = gamma`, `g = delta`.

use super::export::RealPath;
use super::rank_one::{RankOne, rank_one};
use super::{Job, gemm, ridge, start};
use crate::bits::SignMatrix;
use crate::error::{Error, Result};
use faer::{Mat, MatMut, MatRef};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Iterations unless the user says otherwise.
pub const DEFAULT_ITERATIONS: usize = 40;
/// Ridge that is there from the first iteration on; the Gram matrices have ones on their diagonals.
const REGULARIZATION: f32 = 0.03;
/// Power iterations of one projection. Each starts from the last projection's vector, so few are needed.
const POWER_ITERATIONS: usize = 2;
/// Columns that one thread works on at a time in elementwise passes.
const COLUMNS: usize = 64;

/// One factor, `r x n`, column-major: A transposed or B.
struct Factor {
    r: usize,
    /// Solution plus dual: its signs are those of Z.
    t: Vec<f32>,
    /// Scaled dual D.
    dual: Vec<f32>,
    /// Magnitudes of Z: `Z_ij = sign(t_ij) a_i b_j`.
    z: RankOne,
}

impl Factor {
    fn random(r: usize, n: usize, rng: &mut ChaCha8Rng) -> Self {
        let t = start::uniform(rng, r * n);
        let z = rank_one(&t, &vec![1.0; r], POWER_ITERATIONS);
        let mut factor = Self { r, t, dual: vec![0.0; r * n], z };
        factor.update_dual();
        factor
    }

    fn n(&self) -> usize {
        self.t.len() / self.r
    }

    /// `D = t - Z`.
    fn update_dual(&mut self) {
        let (r, z) = (self.r, &self.z);
        let chunks = self.dual.par_chunks_mut(r * COLUMNS).zip(self.t.par_chunks(r * COLUMNS));
        chunks.zip(z.b.par_chunks(COLUMNS)).for_each(|((dual, t), b)| {
            for ((dual, t), &b) in dual.chunks_exact_mut(r).zip(t.chunks_exact(r)).zip(b) {
                for ((d, &t), &a) in dual.iter_mut().zip(t).zip(&z.a) {
                    *d = t - signed(a * b, t);
                }
            }
        });
    }

    /// Z with rows of length 1, into `out`: the magnitude of a row cancels, `sign * b / ||b||` is left.
    fn unit_rows(&self, out: &mut Vec<f32>) {
        let norm = self.z.b.iter().map(|&b| f64::from(b).powi(2)).sum::<f64>().sqrt();
        let inverse = if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 };
        out.resize(self.t.len(), 0.0);
        let r = self.r;
        let chunks = out.par_chunks_mut(r * COLUMNS).zip(self.t.par_chunks(r * COLUMNS));
        chunks.zip(self.z.b.par_chunks(COLUMNS)).for_each(|((out, t), b)| {
            for ((out, t), &b) in out.chunks_exact_mut(r).zip(t.chunks_exact(r)).zip(b) {
                let b = b * inverse;
                out.iter_mut().zip(t).for_each(|(o, &t)| *o = signed(b, t));
            }
        });
    }

    /// Adds `rho (Z - D)` to `rhs`.
    fn add_pull(&self, rho: f32, rhs: &mut [f32]) {
        let (r, z) = (self.r, &self.z);
        let chunks = rhs.par_chunks_mut(r * COLUMNS).zip(self.t.par_chunks(r * COLUMNS));
        let chunks = chunks.zip(self.dual.par_chunks(r * COLUMNS)).zip(z.b.par_chunks(COLUMNS));
        chunks.for_each(|(((rhs, t), dual), b)| {
            let columns = rhs.chunks_exact_mut(r).zip(t.chunks_exact(r)).zip(dual.chunks_exact(r));
            for (((rhs, t), dual), &b) in columns.zip(b) {
                for (((x, &t), &d), &a) in rhs.iter_mut().zip(t).zip(dual).zip(&z.a) {
                    *x += rho * (signed(a * b, t) - d);
                }
            }
        });
    }

    /// Takes over the solution in `rhs`: adds the dual, projects, updates the dual. `rhs` gets the old buffer.
    fn accept(&mut self, rhs: &mut Vec<f32>) {
        rhs.par_chunks_mut(self.r * COLUMNS).zip(self.dual.par_chunks(self.r * COLUMNS)).for_each(
            |(x, d)| {
                x.iter_mut().zip(d).for_each(|(x, d)| *x += d);
            },
        );
        std::mem::swap(&mut self.t, rhs);
        // A factor that has collapsed to zero has no direction to start from.
        let collapsed = self.z.a.iter().all(|&a| a == 0.0);
        let from = if collapsed { vec![1.0; self.r] } else { std::mem::take(&mut self.z.a) };
        self.z = rank_one(&self.t, &from, POWER_ITERATIONS);
        self.update_dual();
    }
}

/// `magnitude` with the sign of `t`; zero counts as positive, as it does when signs are packed.
#[inline]
fn signed(magnitude: f32, t: f32) -> f32 {
    if t >= 0.0 { magnitude } else { -magnitude }
}

/// Buffers of a step, kept from one to the next.
struct Work {
    unit: Vec<f32>,
    rhs: Vec<f32>,
    gram: Mat<f32>,
    cholesky: Mat<f32>,
}

/// Updates `target` for fixed `other`; `w` has the columns of `target` as its columns. `false` if the ridge problem
/// has no solution.
fn step(target: &mut Factor, other: &Factor, w: MatRef<f32>, rho: f32, work: &mut Work) -> bool {
    let (r, n) = (target.r, target.n());
    other.unit_rows(&mut work.unit);
    let unit = MatRef::from_column_major_slice(&work.unit, r, other.n());
    gemm::gram(work.gram.as_mut(), unit);
    work.rhs.resize(r * n, 0.0);
    gemm::product(MatMut::from_column_major_slice_mut(&mut work.rhs, r, n), unit, w);
    target.add_pull(rho, &mut work.rhs);
    let rhs = MatMut::from_column_major_slice_mut(&mut work.rhs, r, n);
    let solved = ridge::solve(&work.gram, rho + REGULARIZATION, &mut work.cholesky, rhs);
    target.accept(&mut work.rhs);
    solved
}

/// Factorizes `w` (row-major, of the job's shape, mean square 1).
pub(super) fn factorize(job: &Job, w: &[f32], iterations: usize, rng: &mut ChaCha8Rng) -> Result<RealPath> {
    let r = job.rank;
    let w = MatRef::from_row_major_slice(w, job.d_out, job.d_in);
    let mut a = Factor::random(r, job.d_out, rng);
    let mut b = Factor::random(r, job.d_in, rng);
    let mut work =
        Work { unit: Vec::new(), rhs: Vec::new(), gram: Mat::zeros(r, r), cholesky: Mat::zeros(r, r) };
    for t in 0..iterations {
        let rho = t as f32 / iterations as f32;
        if !step(&mut a, &b, w.transpose(), rho, &mut work) || !step(&mut b, &a, w, rho, &mut work) {
            let what = format!("iteration {t}: the ridge problem has no solution");
            return Err(Error::Numeric { matrix: job.name.to_owned(), what });
        }
    }
    Ok(exact_scales(&a, &b))
}

/// The three scales of `(Z_A with columns of length 1) Z_B`.
fn exact_scales(a: &Factor, b: &Factor) -> RealPath {
    let r = a.r;
    let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let mut h = wide(&a.z.b);
    let norm = h.iter().map(|x| x * x).sum::<f64>().sqrt();
    if norm > 0.0 {
        h.iter_mut().for_each(|x| *x /= norm);
    }
    RealPath {
        u: SignMatrix::from_fn(a.n(), r, |i, t| a.t[i * r + t] >= 0.0),
        vt: SignMatrix::from_fn(r, b.n(), |t, j| b.t[j * r + t] >= 0.0),
        h,
        l: wide(&b.z.a),
        g: wide(&b.z.b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::Method;

    #[test]
    fn the_export_reproduces_the_product_of_the_projections() {
        let (r, m, n) = (32, 50, 70);
        let mut rng = start::rng(0, "x", 0);
        let (a, b) = (Factor::random(r, m, &mut rng), Factor::random(r, n, &mut rng));
        let path = exact_scales(&a, &b);
        let z = |f: &Factor, t: usize, i: usize| f64::from(signed(f.z.a[t] * f.z.b[i], f.t[i * r + t]));
        let length = |t: usize| (0..m).map(|i| z(&a, t, i).powi(2)).sum::<f64>().sqrt();
        for i in 0..m {
            for j in 0..n {
                let want: f64 = (0..r).map(|t| z(&a, t, i) / length(t) * z(&b, t, j)).sum();
                let got: f64 =
                    (0..r)
                        .map(|t| {
                            if path.u.is_plus(i, t) == path.vt.is_plus(t, j) { path.l[t] } else { -path.l[t] }
                        })
                        .sum::<f64>()
                        * path.h[i]
                        * path.g[j];
                assert!((got - want).abs() < 1e-5 * want.abs().max(1.0));
            }
        }
    }

    #[test]
    fn unit_rows_and_dual_follow_from_the_projection() {
        let (r, n) = (32, 90);
        let f = Factor::random(r, n, &mut start::rng(1, "x", 0));
        let mut unit = Vec::new();
        f.unit_rows(&mut unit);
        for t in 0..r {
            let square: f32 = (0..n).map(|j| unit[j * r + t].powi(2)).sum();
            assert!((square - 1.0).abs() < 1e-4);
        }
        for j in 0..n {
            for t in 0..r {
                let z = signed(f.z.a[t] * f.z.b[j], f.t[j * r + t]);
                assert!((f.dual[j * r + t] - (f.t[j * r + t] - z)).abs() < 1e-6);
                assert_eq!(unit[j * r + t] >= 0.0, f.t[j * r + t] >= 0.0);
            }
        }
    }

    #[test]
    fn more_iterations_lower_the_error() {
        let (m, n) = (96, 64);
        let w = start::uniform(&mut start::rng(2, "w", 0), m * n);
        let job = Job {
            name: "w",
            w: &w,
            d_out: m,
            d_in: n,
            rank: 32,
            paths: 1,
            method: Method::Admm,
            rotate: None,
            importance: None,
            seed: 0,
            iterations: None,
        };
        let error = |iterations| {
            crate::factorize::factorize(&Job { iterations: Some(iterations), ..job }).unwrap().error_plain
        };
        let errors = [error(2), error(10), error(DEFAULT_ITERATIONS)];
        assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
    }
}
