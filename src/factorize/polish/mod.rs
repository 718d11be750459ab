//! Polish: coordinate descent on signs and least squares on scales under the full second moment of the inputs.
//!
//! ADMM works in a diagonal metric. Here the objective is the expected squared output error itself,
//! `E = tr((T - W') H (T - W')^T)` with `H = E[x x^T]`, and every step lowers it: h, l and g by their normal
//! equations, signs one at a time whenever the flip pays (U: rows are independent; V: columns are coupled by H).

#[cfg(feature = "cuda")]
pub(super) mod check;
mod host;
mod scales;
mod signs;

use super::algebra::{Algebra, Computed};
use super::device::{Device, compute};
use super::export;
use super::export::RealPath;
use crate::bits::SignMatrix;
use crate::error::Result;
use crate::format::FactorPath;
use std::ops::Range;

/// Share of H that its diagonal takes: cross moments of little text do not carry over to other text.
const DIAGONAL: f32 = 0.6;
/// Ridge, relative to the mean of the diagonal.
const DAMP: f32 = 0.01;
/// A round that gains less than this share of the objective is the last.
const TOLERANCE: f64 = 1e-3;

/// H as the polish uses it: off-diagonal elements times 0.4, a little ridge; `moments` is `d x d`.
pub fn metric(moments: &[f32], d: usize) -> Vec<f32> {
    let mean = (0..d).map(|i| moments[i * d + i]).sum::<f32>() / d as f32;
    let mut h: Vec<f32> = moments.iter().map(|x| (1.0 - DIAGONAL) * x).collect();
    for i in 0..d {
        h[i * d + i] = moments[i * d + i] + DAMP * mean;
    }
    h
}

/// Products and sums of row-major matrices.
pub(super) trait Products<'a>: Algebra<'a> {
    /// Rows `rows` of `a b`: `a` has rows of length k, `b` is `k x n`.
    fn times(
        &self,
        a: &Self::Values,
        rows: Range<usize>,
        b: &Self::Values,
        n: usize,
        k: usize,
    ) -> Computed<Self::Values>;
    /// `a b^T`: `a` has rows of length k, `b` is `n x k`.
    fn times_transposed(
        &self,
        a: &Self::Values,
        b: &Self::Values,
        n: usize,
        k: usize,
    ) -> Computed<Self::Values>;
    /// `a^T b`, `m x n`: `a` has rows of length m, `b` of length n.
    fn transposed_times(
        &self,
        a: &Self::Values,
        b: &Self::Values,
        n: usize,
        m: usize,
    ) -> Computed<Self::Values>;
    /// `diag(rows) x diag(columns)`, rows of length n.
    fn scaled(
        &self,
        x: &Self::Values,
        rows: Option<&[f32]>,
        columns: Option<&[f32]>,
        n: usize,
    ) -> Computed<Self::Values>;
    /// `out *= by`, value by value; rows of length n.
    fn multiply(&self, out: &mut Self::Values, by: &Self::Values, n: usize) -> Computed<()>;
    /// `sum_ik a_ik b_ik`, rows of length n.
    fn dot(&self, a: &Self::Values, b: &Self::Values, n: usize) -> Computed<f64>;
    /// `sum_ik w_ik (wh_ik - 2 th_ik)`.
    fn objective(&self, w: &Self::Values, wh: &Self::Values, th: &Self::Values, n: usize) -> Computed<f64> {
        Ok(self.dot(w, wh, n)? - 2.0 * self.dot(w, th, n)?)
    }
    /// `sum_k a_ik b_ik` for every row i, of length n.
    fn row_dots(&self, a: &Self::Values, b: &Self::Values, n: usize) -> Computed<Vec<f64>>;
    /// `sum_i a_ik b_ik` for every column k of n.
    fn column_dots(&self, a: &Self::Values, b: &Self::Values, n: usize) -> Computed<Vec<f32>>;
    /// Of an `n x n` matrix.
    fn diagonal(&self, m: &Self::Values, n: usize) -> Computed<Vec<f32>>;
    /// `(M + ridge I)^-1 rhs`, `None` if that is not positive definite.
    fn solve(&self, m: Self::Values, ridge: f32, rhs: Vec<f32>) -> Computed<Option<Vec<f32>>>;
    /// [`signs::descend`] on every row of u (length r) with `a = |h|` and c times the sign of h; gu holds `U G`. Returns the flips.
    fn descend_rows(
        &self,
        u: &mut Self::Values,
        gu: Self::Values,
        c: Self::Values,
        gram: &Self::Values,
        h: &[f32],
        r: usize,
    ) -> Computed<usize>;
}

/// A path in f32 with unpacked signs.
struct Path<V> {
    d_out: usize,
    d_in: usize,
    rank: usize,
    h: Vec<f32>,
    l: Vec<f32>,
    g: Vec<f32>,
    /// `d_out x r`.
    u: V,
    /// `d_in x r`.
    v: V,
}

impl<V> Path<V> {
    fn new<'a, A: Products<'a, Values = V>>(algebra: &A, path: &FactorPath) -> Computed<Self> {
        let (d_out, d_in, rank) = (path.d_out(), path.d_in(), path.rank());
        let wide = |x: &[half::f16]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let vt = path.vt.to_row_major();
        let mut v = vec![0f32; vt.len()];
        (0..d_in).for_each(|j| (0..rank).for_each(|k| v[j * rank + k] = vt[k * d_in + j]));
        let (u, v) = (algebra.own(path.u.to_row_major())?, algebra.own(v)?);
        Ok(Self { d_out, d_in, rank, h: wide(&path.h), l: wide(&path.l), g: wide(&path.g), u, v })
    }

    /// `diag(l) V^T diag(g)` transposed: `d_in x r`.
    fn right<'a, A: Products<'a, Values = V>>(&self, algebra: &A) -> Computed<V> {
        algebra.scaled(&self.v, Some(&self.g), Some(&self.l), self.rank)
    }

    /// `diag(h) U`, `d_out x r`.
    fn left<'a, A: Products<'a, Values = V>>(&self, algebra: &A) -> Computed<V> {
        algebra.scaled(&self.u, Some(&self.h), None, self.rank)
    }
}

/// What the steps share: the target, the metric and their product.
struct Problem<V> {
    metric: V,
    /// `T`, `d_out x d_in`.
    target: V,
    /// `T H`.
    weighed: V,
    d_out: usize,
    d_in: usize,
}

impl<V> Problem<V> {
    fn new<'a, A: Products<'a, Values = V>>(
        algebra: &A,
        target: &'a [f32],
        metric: &'a [f32],
        d_in: usize,
    ) -> Computed<Self> {
        assert_eq!((target.len() % d_in, metric.len()), (0, d_in * d_in));
        let d_out = target.len() / d_in;
        let (target, metric) = (algebra.borrow(target)?, algebra.borrow(metric)?);
        let weighed = algebra.times(&target, 0..d_out, &metric, d_in, d_in)?;
        Ok(Self { metric, target, weighed, d_out, d_in })
    }

    /// The objective less `tr(T H T^T)`, which no step changes: `tr(W' H W'^T) - 2 tr(W' H T^T)`.
    fn objective<'a, A: Products<'a, Values = V>>(&self, algebra: &A, p: &Path<V>) -> Computed<f64> {
        let (left, right) = (p.left(algebra)?, p.right(algebra)?);
        let w = algebra.times_transposed(&left, &right, p.d_in, p.rank)?;
        drop((left, right));
        let wh = algebra.times(&w, 0..self.d_out, &self.metric, self.d_in, self.d_in)?;
        algebra.objective(&w, &wh, &self.weighed, self.d_in)
    }
}

/// Improves `path` towards `target` (row-major `d_out x d_in`) under `metric` (`d_in x d_in`, symmetric, positive
/// definite) in at most `rounds` rounds, on `device`. Never worse than what came in, up to the rounding to f16.
///
/// # Errors
/// [`crate::Error::Numeric`] if the scales do not fit into f16, [`crate::Error::Device`] if the device fails.
pub fn polish(
    device: &Device,
    name: &str,
    target: &[f32],
    path: &FactorPath,
    metric: &[f32],
    rounds: usize,
) -> Result<FactorPath> {
    assert_eq!(target.len(), path.d_out() * path.d_in());
    let better = compute!(device, name, polish_bytes(path.d_out(), path.d_in(), path.rank()), algebra => {
        improve(algebra, target, path, metric, rounds)
    });
    better.map_or_else(|| Ok(path.clone()), |better| export::to_f16(name, better))
}

/// What [`polish`] finds; `None` if it is no better.
fn improve<'a, A: Products<'a>>(
    algebra: &A,
    target: &'a [f32],
    path: &FactorPath,
    metric: &'a [f32],
    rounds: usize,
) -> Computed<Option<RealPath>> {
    let (d_out, d_in, rank) = (path.d_out(), path.d_in(), path.rank());
    let problem = Problem::new(algebra, target, metric, d_in)?;
    let mut p = Path::new(algebra, path)?;
    let start = problem.objective(algebra, &p)?;
    // The constant makes shares of the objective meaningful.
    let constant = algebra.dot(&problem.weighed, &problem.target, d_in)?;
    let mut last = start;
    scales::refit(algebra, &problem, &mut p)?;
    for _ in 0..rounds {
        let flips =
            signs::descend_u(algebra, &problem, &mut p)? + signs::descend_v(algebra, &problem, &mut p)?;
        scales::refit(algebra, &problem, &mut p)?;
        let now = problem.objective(algebra, &p)?;
        let gain = last - now;
        last = now;
        if flips == 0 || gain < TOLERANCE * (now + constant).max(0.0) {
            break;
        }
    }
    let finite = [&p.h, &p.l, &p.g].iter().all(|x| x.iter().all(|x| x.is_finite()));
    if !finite || last.is_nan() || last > start {
        return Ok(None);
    }
    let real = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect();
    let v = algebra.read(&p.v, 0..d_in * rank)?;
    Ok(Some(RealPath {
        u: SignMatrix::from_row_major(d_out, rank, &algebra.read(&p.u, 0..d_out * rank)?),
        vt: SignMatrix::from_fn(rank, d_in, |k, j| v[j * rank + k] > 0.0),
        h: real(&p.h),
        l: real(&p.l),
        g: real(&p.g),
    }))
}

/// By how much the objective rises when one sign turns, for every path: U (`d_out x r`) and V^T (`r x d_in`). Less than
/// zero where a flip would pay, which [`polish`] leaves to few signs. Row i of the error counts `rows[i]^2` times.
///
/// # Errors
/// [`crate::Error::Device`] if the device fails.
pub fn margins(
    device: &Device,
    name: &str,
    target: &[f32],
    paths: &[FactorPath],
    metric: &[f32],
    rows: Option<&[f32]>,
) -> Result<Vec<[Vec<f32>; 2]>> {
    let d_in = paths[0].d_in();
    let of_path = |i: usize| {
        let path = &paths[i];
        // What the other paths leave to this one.
        let mut rest: Vec<f32> = target.iter().map(|x| -x).collect();
        paths.iter().enumerate().filter(|(j, _)| *j != i).for_each(|(_, p)| p.add_dense(&mut rest));
        rest.iter_mut().for_each(|x| *x = -*x);
        if let Some(rows) = rows {
            rest.chunks_exact_mut(d_in).zip(rows).for_each(|(r, s)| r.iter_mut().for_each(|x| *x *= s));
        }
        let (u, pulls) = compute!(device, name, polish_bytes(path.d_out(), d_in, path.rank()), algebra => {
            pulls_of(algebra, &rest, path, metric, rows)
        });
        Ok([u, pulls.margins()])
    };
    (0..paths.len()).map(of_path).collect()
}

/// Margins of U, and what those of V^T are made of, towards `target`, whose rows and with them h count `rows` times.
fn pulls_of<'a, A: Products<'a>>(
    algebra: &A,
    target: &'a [f32],
    path: &FactorPath,
    metric: &'a [f32],
    rows: Option<&[f32]>,
) -> Computed<(Vec<f32>, signs::Pulls)> {
    let problem = Problem::new(algebra, target, metric, path.d_in())?;
    let mut p = Path::new(algebra, path)?;
    if let Some(rows) = rows {
        p.h.iter_mut().zip(rows).for_each(|(h, s)| *h *= s);
    }
    Ok((signs::margins_u(algebra, &problem, &p)?, signs::pulls(algebra, &problem, p)?))
}

#[cfg(test)]
mod tests;
