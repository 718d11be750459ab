//! Exact least squares for one scale vector at a time.

use super::{Path, Problem, Products};
use crate::factorize::algebra::Computed;

/// Ridge towards the present value, relative to the mean of the diagonal.
const RIDGE: f32 = 1e-4;

/// Refits l, then h, then g.
pub(super) fn refit<'a, A: Products<'a>>(
    algebra: &A,
    problem: &Problem<A::Values>,
    p: &mut Path<A::Values>,
) -> Computed<()> {
    refit_l(algebra, problem, p)?;
    refit_h(algebra, problem, p)?;
    refit_g(algebra, problem, p)
}

/// `((A^T A) o (N^T H N)) l = diag(A^T T H N)` with `A = diag(h) U` and `N = diag(g) V`.
pub(super) fn refit_l<'a, A: Products<'a>>(
    algebra: &A,
    problem: &Problem<A::Values>,
    p: &mut Path<A::Values>,
) -> Computed<()> {
    let (r, d_in) = (p.rank, p.d_in);
    let a = p.left(algebra)?;
    let n = algebra.scaled(&p.v, Some(&p.g), None, r)?;
    let mut gram = algebra.transposed_times(&a, &a, r, r)?;
    let hn = algebra.times(&problem.metric, 0..d_in, &n, r, d_in)?;
    let inner = algebra.transposed_times(&n, &hn, r, r)?;
    drop(hn);
    algebra.multiply(&mut gram, &inner, r)?;
    drop(inner);
    let thn = algebra.times(&problem.weighed, 0..p.d_out, &n, r, d_in)?;
    let rhs = algebra.column_dots(&a, &thn, r)?;
    drop((a, n, thn));
    solve(algebra, gram, rhs, &mut p.l)
}

/// Rows are independent: `h_i = (C H T^T)_ii / (C H C^T)_ii` with `C = U diag(l) V^T diag(g)`.
pub(super) fn refit_h<'a, A: Products<'a>>(
    algebra: &A,
    problem: &Problem<A::Values>,
    p: &mut Path<A::Values>,
) -> Computed<()> {
    let d = p.d_in;
    let right = p.right(algebra)?;
    let c = algebra.times_transposed(&p.u, &right, d, p.rank)?;
    drop(right);
    let ch = algebra.times(&c, 0..p.d_out, &problem.metric, d, d)?;
    let own = algebra.row_dots(&c, &ch, d)?;
    let with = algebra.row_dots(&c, &problem.weighed, d)?;
    for (h, (own, with)) in p.h.iter_mut().zip(own.iter().zip(with)) {
        if *own > 0.0 {
            *h = (with / own) as f32;
        }
    }
    Ok(())
}

/// `((F^T F) o H) g = diag(F^T T H)` with `F = diag(h) U diag(l) V^T`.
pub(super) fn refit_g<'a, A: Products<'a>>(
    algebra: &A,
    problem: &Problem<A::Values>,
    p: &mut Path<A::Values>,
) -> Computed<()> {
    let d = p.d_in;
    let scaled = algebra.scaled(&p.v, None, Some(&p.l), p.rank)?;
    let left = p.left(algebra)?;
    let f = algebra.times_transposed(&left, &scaled, d, p.rank)?;
    drop((left, scaled));
    let mut gram = algebra.transposed_times(&f, &f, d, d)?;
    algebra.multiply(&mut gram, &problem.metric, d)?;
    let rhs = algebra.column_dots(&f, &problem.weighed, d)?;
    drop(f);
    solve(algebra, gram, rhs, &mut p.g)
}

/// Replaces `x` by the solution of `(M + ridge I) y = b + ridge x`; leaves it if M is not positive definite.
fn solve<'a, A: Products<'a>>(algebra: &A, m: A::Values, mut b: Vec<f32>, x: &mut Vec<f32>) -> Computed<()> {
    let n = x.len();
    let ridge = RIDGE * algebra.diagonal(&m, n)?.iter().sum::<f32>() / n as f32;
    b.iter_mut().zip(&*x).for_each(|(b, x)| *b += ridge * x);
    if let Some(y) = algebra.solve(m, ridge, b)?.filter(|y| y.iter().all(|y| y.is_finite())) {
        *x = y;
    }
    Ok(())
}
