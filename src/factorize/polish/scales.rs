//! Exact least squares for one scale vector at a time.

use super::{Path, Problem};
use crate::decoder::product::{times, times_transposed, transposed_times};
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

/// Ridge towards the present value, relative to the mean of the diagonal.
const RIDGE: f32 = 1e-4;

/// Refits l, then h, then g.
pub(super) fn refit(problem: &Problem, p: &mut Path) {
    refit_l(problem, p);
    refit_h(problem, p);
    refit_g(problem, p);
}

/// `((A^T A) o (N^T H N)) l = diag(A^T T H N)` with `A = diag(h) U` and `N = diag(g) V`.
pub(super) fn refit_l(problem: &Problem, p: &mut Path) {
    let (r, d_in) = (p.rank, p.d_in);
    let a = p.left();
    let n: Vec<f32> = p.v.chunks_exact(r).zip(&p.g).flat_map(|(v, g)| v.iter().map(move |v| v * g)).collect();
    let mut gram = vec![0f32; r * r];
    transposed_times(&mut gram, &a, &a, r, r, false);
    let mut hn = vec![0f32; d_in * r];
    times(&mut hn, problem.metric, &n, r, d_in, false);
    let mut inner = vec![0f32; r * r];
    transposed_times(&mut inner, &n, &hn, r, r, false);
    gram.iter_mut().zip(&inner).for_each(|(a, b)| *a *= b);
    let mut thn = vec![0f32; p.d_out * r];
    times(&mut thn, &problem.weighed, &n, r, d_in, false);
    let rhs = column_dots(&a, &thn, r);
    solve(&mut gram, rhs, &mut p.l);
}

/// Rows are independent: `h_i = (C H T^T)_ii / (C H C^T)_ii` with `C = U diag(l) V^T diag(g)`.
pub(super) fn refit_h(problem: &Problem, p: &mut Path) {
    let d = p.d_in;
    let mut c = vec![0f32; p.d_out * d];
    times_transposed(&mut c, &p.u, &p.right(), d, p.rank, false);
    let mut ch = vec![0f32; c.len()];
    times(&mut ch, &c, problem.metric, d, d, false);
    let rows = c.chunks_exact(d).zip(ch.chunks_exact(d)).zip(problem.weighed.chunks_exact(d));
    for (h, ((c, ch), th)) in p.h.iter_mut().zip(rows) {
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (own, with) = (dot(c, ch), dot(c, th));
        if own > 0.0 {
            *h = (with / own) as f32;
        }
    }
}

/// `((F^T F) o H) g = diag(F^T T H)` with `F = diag(h) U diag(l) V^T`.
pub(super) fn refit_g(problem: &Problem, p: &mut Path) {
    let d = p.d_in;
    let scaled: Vec<f32> =
        p.v.chunks_exact(p.rank).flat_map(|v| v.iter().zip(&p.l).map(|(v, l)| v * l)).collect();
    let mut f = vec![0f32; p.d_out * d];
    times_transposed(&mut f, &p.left(), &scaled, d, p.rank, false);
    let mut gram = vec![0f32; d * d];
    transposed_times(&mut gram, &f, &f, d, d, false);
    gram.iter_mut().zip(problem.metric).for_each(|(a, b)| *a *= b);
    let rhs = column_dots(&f, &problem.weighed, d);
    solve(&mut gram, rhs, &mut p.g);
}

/// `sum_i a_ij b_ij` for every column j.
fn column_dots(a: &[f32], b: &[f32], n: usize) -> Vec<f32> {
    let mut out = vec![0f64; n];
    for (a, b) in a.chunks_exact(n).zip(b.chunks_exact(n)) {
        out.iter_mut().zip(a).zip(b).for_each(|((o, a), b)| *o += f64::from(*a) * f64::from(*b));
    }
    out.iter().map(|&x| x as f32).collect()
}

/// Replaces `x` by the solution of `(M + ridge I) y = b + ridge x`; leaves it if M is not positive definite.
fn solve(m: &mut [f32], b: Vec<f32>, x: &mut [f32]) {
    let n = x.len();
    let ridge = RIDGE * (0..n).map(|i| m[i * n + i]).sum::<f32>() / n as f32;
    let matrix = Mat::from_fn(n, n, |i, j| m[i * n + j] + if i == j { ridge } else { 0.0 });
    let Ok(factor) = matrix.llt(Side::Lower) else { return };
    let rhs = Mat::from_fn(n, 1, |i, _| b[i] + ridge * x[i]);
    let y = factor.solve(&rhs);
    if (0..n).all(|i| y[(i, 0)].is_finite()) {
        x.iter_mut().enumerate().for_each(|(i, x)| *x = y[(i, 0)]);
    }
}
