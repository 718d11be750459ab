//! Polish: coordinate descent on signs and least squares on scales under the full second moment of the inputs.
//!
//! ADMM works in a diagonal metric. Here the objective is the expected squared output error itself,
//! `E = tr((T - W') H (T - W')^T)` with `H = E[x x^T]`, and every step lowers it: h, l and g by their normal
//! equations, signs one at a time whenever the flip pays (U: rows are independent; V: columns are coupled by H).

mod scales;
mod signs;

use super::export;
use super::export::RealPath;
use crate::bits::SignMatrix;
use crate::decoder::product::{times, times_transposed};
use crate::error::Result;
use crate::format::FactorPath;

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

/// A path in f32 with unpacked signs.
struct Path {
    d_out: usize,
    d_in: usize,
    rank: usize,
    h: Vec<f32>,
    l: Vec<f32>,
    g: Vec<f32>,
    /// `d_out x r`.
    u: Vec<f32>,
    /// `d_in x r`.
    v: Vec<f32>,
}

impl From<&FactorPath> for Path {
    fn from(path: &FactorPath) -> Self {
        let (d_out, d_in, rank) = (path.d_out(), path.d_in(), path.rank());
        let wide = |x: &[half::f16]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let vt = path.vt.to_row_major();
        let mut v = vec![0f32; vt.len()];
        (0..d_in).for_each(|j| (0..rank).for_each(|k| v[j * rank + k] = vt[k * d_in + j]));
        let u = path.u.to_row_major();
        Self { d_out, d_in, rank, h: wide(&path.h), l: wide(&path.l), g: wide(&path.g), u, v }
    }
}

impl Path {
    /// `diag(l) V^T diag(g)` transposed: `d_in x r`.
    fn right(&self) -> Vec<f32> {
        let rows = self.v.chunks_exact(self.rank).zip(&self.g);
        rows.flat_map(|(v, g)| v.iter().zip(&self.l).map(move |(v, l)| v * l * g)).collect()
    }

    /// `diag(h) U`, `d_out x r`.
    fn left(&self) -> Vec<f32> {
        self.u.chunks_exact(self.rank).zip(&self.h).flat_map(|(u, h)| u.iter().map(move |u| u * h)).collect()
    }
}

/// What the steps share: the target, the metric and their product.
struct Problem<'a> {
    metric: &'a [f32],
    /// `T`, `d_out x d_in`.
    target: &'a [f32],
    /// `T H`.
    weighed: Vec<f32>,
}

impl<'a> Problem<'a> {
    fn new(target: &'a [f32], metric: &'a [f32], path: &FactorPath) -> Self {
        let d_in = path.d_in();
        assert_eq!((target.len(), metric.len()), (path.d_out() * d_in, d_in * d_in));
        let mut weighed = vec![0f32; target.len()];
        times(&mut weighed, target, metric, d_in, d_in, false);
        Self { metric, target, weighed }
    }

    /// The objective less `tr(T H T^T)`, which no step changes: `tr(W' H W'^T) - 2 tr(W' H T^T)`.
    fn objective(&self, p: &Path) -> f64 {
        let mut w = vec![0f32; self.target.len()];
        times_transposed(&mut w, &p.left(), &p.right(), p.d_in, p.rank, false);
        let mut wh = vec![0f32; w.len()];
        times(&mut wh, &w, self.metric, p.d_in, p.d_in, false);
        let terms = w.iter().zip(&wh).zip(&self.weighed);
        terms.map(|((w, wh), th)| f64::from(*w) * (f64::from(*wh) - 2.0 * f64::from(*th))).sum()
    }
}

/// Improves `path` towards `target` (row-major `d_out x d_in`) under `metric` (`d_in x d_in`, symmetric, positive
/// definite) in at most `rounds` rounds. Never worse than what came in, up to the rounding to f16.
///
/// # Errors
/// [`crate::Error::Numeric`] if the scales do not fit into f16.
pub fn polish(
    name: &str,
    target: &[f32],
    path: &FactorPath,
    metric: &[f32],
    rounds: usize,
) -> Result<FactorPath> {
    let (d_out, d_in, rank) = (path.d_out(), path.d_in(), path.rank());
    let problem = Problem::new(target, metric, path);
    let mut p = Path::from(path);
    let start = problem.objective(&p);
    // The constant makes shares of the objective meaningful.
    let constant: f64 = problem.weighed.iter().zip(target).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let mut last = start;
    scales::refit(&problem, &mut p);
    for _ in 0..rounds {
        let flips = signs::descend_u(&problem, &mut p) + signs::descend_v(&problem, &mut p);
        scales::refit(&problem, &mut p);
        let now = problem.objective(&p);
        let gain = last - now;
        last = now;
        if flips == 0 || gain < TOLERANCE * (now + constant).max(0.0) {
            break;
        }
    }
    let finite = [&p.h, &p.l, &p.g].iter().all(|x| x.iter().all(|x| x.is_finite()));
    if !finite || last.is_nan() || last > start {
        return Ok(path.clone());
    }
    let real = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect();
    export::to_f16(
        name,
        RealPath {
            u: SignMatrix::from_row_major(d_out, rank, &p.u),
            vt: SignMatrix::from_fn(rank, d_in, |k, j| p.v[j * rank + k] > 0.0),
            h: real(&p.h),
            l: real(&p.l),
            g: real(&p.g),
        },
    )
}

/// By how much the objective rises when one sign turns, for every path: U (`d_out x r`) and V^T (`r x d_in`). Less than
/// zero where a flip would pay, which [`polish`] leaves to few signs. Row i of the error counts `rows[i]^2` times.
pub fn margins(
    target: &[f32],
    paths: &[FactorPath],
    metric: &[f32],
    rows: Option<&[f32]>,
) -> Vec<[Vec<f32>; 2]> {
    let d_in = paths[0].d_in();
    let of_path = |i: usize| {
        let path = &paths[i];
        // What the other paths leave to this one.
        let mut rest: Vec<f32> = target.iter().map(|x| -x).collect();
        paths.iter().enumerate().filter(|(j, _)| *j != i).for_each(|(_, p)| p.add_dense(&mut rest));
        rest.iter_mut().for_each(|x| *x = -*x);
        let mut p = Path::from(path);
        if let Some(rows) = rows {
            rest.chunks_exact_mut(d_in).zip(rows).for_each(|(r, s)| r.iter_mut().for_each(|x| *x *= s));
            p.h.iter_mut().zip(rows).for_each(|(h, s)| *h *= s);
        }
        let problem = Problem::new(&rest, metric, path);
        [signs::margins_u(&problem, &p), signs::margins_vt(&problem, &p)]
    };
    (0..paths.len()).map(of_path).collect()
}

#[cfg(test)]
mod tests;
