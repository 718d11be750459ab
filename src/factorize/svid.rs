//! Dual-SVID: signs and rank-one magnitudes of the truncated SVD.
//!
//! With `W ~ P S Q^T` (r terms), the latent factors are `A = P sqrt(S)` and `B = Q sqrt(S)`. Their signs become U
//! and V; the leading rank-one terms `|A| ~ h a^T` and `|B| ~ g b^T` give the scales, with `l = a b`.

use super::export::RealPath;
use super::rank_one::rank_one;
use super::{Job, rotate, svd};
use crate::bits::SignMatrix;
use crate::error::{Error, Result};
use faer::{Mat, MatRef};
use rand_chacha::ChaCha8Rng;

/// Power iterations for the magnitudes; they are dominated by their leading term, a handful is exact in f32.
const POWER_ITERATIONS: usize = 12;

/// Both latent factors, `k x m` and `k x n`, column-major.
pub(super) struct Latent {
    /// Latent dimension, at most the rank asked for.
    pub k: usize,
    /// A transposed.
    pub a: Vec<f32>,
    /// B transposed.
    pub b: Vec<f32>,
}

/// Factorizes `w` (row-major, of the job's shape); `itq` is the number of rotation steps, if any.
pub(super) fn factorize(job: &Job, w: &[f32], itq: Option<usize>, rng: &mut ChaCha8Rng) -> Result<RealPath> {
    let failed = |what: &str| Error::Numeric { matrix: job.name.to_owned(), what: what.to_owned() };
    let w = MatRef::from_row_major_slice(w, job.d_out, job.d_in);
    let svd = svd::truncated(w, job.rank, &svd::LADDER)
        .ok_or_else(|| failed("the singular value decomposition did not converge"))?;
    let mut latent = latent(&svd);
    if let Some(iterations) = itq {
        rotate::joint_itq(&mut latent, iterations, rng)
            .ok_or_else(|| failed("the rotation of the latent space did not converge"))?;
    }
    Ok(binarize(&latent, job.rank))
}

/// `sqrt(S) P^T` and `sqrt(S) Q^T`.
fn latent(svd: &svd::Svd) -> Latent {
    let k = svd.s.len();
    let root: Vec<f32> = svd.s.iter().map(|s| s.max(0.0).sqrt()).collect();
    let scaled = |m: &Mat<f32>| -> Vec<f32> {
        (0..m.nrows()).flat_map(|i| (0..k).map(move |t| (i, t))).map(|(i, t)| m[(i, t)] * root[t]).collect()
    };
    Latent { k, a: scaled(&svd.p), b: scaled(&svd.q) }
}

/// Signs and scales of the latent factors; dimensions beyond theirs get l = 0.
pub(super) fn binarize(latent: &Latent, rank: usize) -> RealPath {
    let k = latent.k;
    let (m, n) = (latent.a.len() / k, latent.b.len() / k);
    let ones = vec![1.0; k];
    let (left, right) =
        (rank_one(&latent.a, &ones, POWER_ITERATIONS), rank_one(&latent.b, &ones, POWER_ITERATIONS));
    let l =
        (0..rank).map(|t| if t < k { f64::from(left.a[t]) * f64::from(right.a[t]) } else { 0.0 }).collect();
    let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect();
    RealPath {
        u: SignMatrix::from_fn(m, rank, |i, t| t >= k || latent.a[i * k + t] >= 0.0),
        vt: SignMatrix::from_fn(rank, n, |t, j| t >= k || latent.b[j * k + t] >= 0.0),
        h: wide(&left.b),
        l,
        g: wide(&right.b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factorize::{Method, start};

    /// The equations of the module's head, one after the other, in f64 and without any shared code but the SVD.
    fn naive(w: &[f32], m: usize, n: usize, r: usize) -> Vec<f64> {
        let svd = svd::truncated(MatRef::from_row_major_slice(w, m, n), r, &[svd::Rung::Double]).unwrap();
        let latent = |v: &Mat<f32>, i: usize, k: usize| f64::from(v[(i, k)]) * f64::from(svd.s[k]).sqrt();
        let rank_one = |v: &Mat<f32>| {
            let x: Vec<Vec<f64>> =
                (0..v.nrows()).map(|i| (0..r).map(|k| latent(v, i, k).abs()).collect()).collect();
            let mut right = vec![1f64; r];
            let mut left = vec![0f64; v.nrows()];
            for _ in 0..100 {
                for (left, x) in left.iter_mut().zip(&x) {
                    *left = x.iter().zip(&right).map(|(a, b)| a * b).sum();
                }
                let norm = left.iter().map(|x| x * x).sum::<f64>().sqrt();
                left.iter_mut().for_each(|x| *x /= norm);
                for (k, right) in right.iter_mut().enumerate() {
                    *right = x.iter().zip(&left).map(|(x, l)| x[k] * l).sum();
                }
            }
            (left, right)
        };
        let ((h, lu), (g, lv)) = (rank_one(&svd.p), rank_one(&svd.q));
        let sign = |x: f64| if x >= 0.0 { 1.0 } else { -1.0 };
        let mut out = Vec::new();
        for (i, h) in h.iter().enumerate() {
            for (j, g) in g.iter().enumerate() {
                let sum: f64 = (0..r)
                    .map(|k| sign(latent(&svd.p, i, k)) * lu[k] * lv[k] * sign(latent(&svd.q, j, k)))
                    .sum();
                out.push(h * sum * g);
            }
        }
        out
    }

    #[test]
    fn equals_the_equations() {
        let (m, n, r) = (70, 50, 32);
        let w = start::uniform(&mut start::rng(0, "w", 0), m * n);
        let job = Job {
            name: "w",
            w: &w,
            d_out: m,
            d_in: n,
            rank: r,
            paths: 1,
            method: Method::DualSvid,
            rotate: None,
            importance: None,
            seed: 0,
            iterations: None,
        };
        let path = factorize(&job, &w, None, &mut start::rng(0, "w", 0)).unwrap();
        let want = naive(&w, m, n, r);
        for i in 0..m {
            for j in 0..n {
                let got: f64 =
                    (0..r)
                        .map(|k| {
                            if path.u.is_plus(i, k) == path.vt.is_plus(k, j) { path.l[k] } else { -path.l[k] }
                        })
                        .sum::<f64>()
                        * path.h[i]
                        * path.g[j];
                assert!((got - want[i * n + j]).abs() < 1e-4, "({i}, {j}): {got} and {}", want[i * n + j]);
            }
        }
    }

    #[test]
    fn dimensions_beyond_the_latent_ones_are_silent() {
        let latent = Latent { k: 2, a: vec![1.0, -1.0, 0.5, 0.5], b: vec![-2.0, 1.0, 2.0, 1.0, 1.0, -1.0] };
        let path = binarize(&latent, 32);
        assert_eq!((path.h.len(), path.g.len()), (2, 3));
        assert!(path.l[..2].iter().all(|&l| l > 0.0) && path.l[2..].iter().all(|&l| l == 0.0));
        assert!(path.u.is_plus(0, 0) && !path.u.is_plus(0, 1) && path.u.is_plus(1, 31));
    }
}
