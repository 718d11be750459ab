//! Exact cyclic coordinate descent over signs.

use super::{Path, Problem, Products};
use crate::factorize::algebra::Computed;
use rayon::prelude::*;

/// Sweeps over the signs of a row at most; `LBF_SWEEPS` in cpp/cuda/factorize_args.h.
const SWEEPS: usize = 4;
/// Columns of V whose gradient is kept up to date together.
const COLUMNS: usize = 64;

/// Minimises `a u^T G u - 2 u^T c` over the signs u; `gu` holds `G u` and is kept. Returns the number of flips.
///
/// Flipping u_k changes the objective by `4 u_k (c_k - a ((G u)_k - u_k G_kk))`: the sign that pays is that of the
/// term in brackets.
pub(super) fn descend(u: &mut [f32], gu: &mut [f32], c: &[f32], gram: &[f32], a: f32) -> usize {
    let r = u.len();
    let mut flips = 0;
    for _ in 0..SWEEPS {
        let before = flips;
        for k in 0..r {
            let row = &gram[k * r..(k + 1) * r];
            let pull = c[k] - a * (gu[k] - u[k] * row[k]);
            // A tie keeps the sign.
            if pull * u[k] < 0.0 {
                let change = -2.0 * u[k];
                u[k] = -u[k];
                flips += 1;
                gu.iter_mut().zip(row).for_each(|(p, g)| *p += change * g);
            }
        }
        if flips == before {
            break;
        }
    }
    flips
}

/// `G = M H M^T` (`r x r`), `T H M^T` and `U G` (both `d_out x r`) with `M = diag(l) V^T diag(g)`: row i of the error is
/// `h_i^2 u G u - 2 h_i u (T H M^T)_i` and a constant.
fn products_u<'a, A: Products<'a>>(
    algebra: &A,
    problem: &Problem<A::Values>,
    p: &Path<A::Values>,
) -> Computed<[A::Values; 3]> {
    let (r, d_in) = (p.rank, p.d_in);
    let m = p.right(algebra)?;
    let hm = algebra.times(&problem.metric, 0..d_in, &m, r, d_in)?;
    let gram = algebra.transposed_times(&m, &hm, r, r)?;
    drop(m);
    let c = algebra.times(&problem.target, 0..p.d_out, &hm, r, d_in)?;
    drop(hm);
    let gu = algebra.times(&p.u, 0..p.d_out, &gram, r, r)?;
    Ok([gram, c, gu])
}

/// `Ga = A^T A` (`r x r`), `H T^T A` and `B = diag(g) V` (both `d_in x r`) with `A = diag(h) U diag(l)`.
fn products_v<'a, A: Products<'a>>(
    algebra: &A,
    problem: &Problem<A::Values>,
    p: &Path<A::Values>,
) -> Computed<[A::Values; 3]> {
    let (r, d_in) = (p.rank, p.d_in);
    let a = algebra.scaled(&p.u, Some(&p.h), Some(&p.l), r)?;
    let gram = algebra.transposed_times(&a, &a, r, r)?;
    // H T^T A = (T H)^T A, H being symmetric.
    let wanted = algebra.transposed_times(&problem.weighed, &a, r, d_in)?;
    drop(a);
    let b = algebra.scaled(&p.v, Some(&p.g), None, r)?;
    Ok([gram, wanted, b])
}

/// Rows of U are independent.
pub(super) fn descend_u<'a, A: Products<'a>>(
    algebra: &A,
    problem: &Problem<A::Values>,
    p: &mut Path<A::Values>,
) -> Computed<usize> {
    let [gram, c, gu] = products_u(algebra, problem, p)?;
    algebra.descend_rows(&mut p.u, gu, c, &gram, &p.h, p.rank)
}

/// Columns of V are coupled by H: the pull on column j is `(H T^T A - H B Ga)_j` without its own share `H_jj B_j Ga`.
///
/// One column waits for the other, so the descent itself runs on one thread of the CPU wherever the products are formed.
pub(super) fn descend_v<'a, A: Products<'a>>(
    algebra: &A,
    problem: &Problem<A::Values>,
    p: &mut Path<A::Values>,
) -> Computed<usize> {
    let (r, d_in) = (p.rank, p.d_in);
    let [gram, wanted, mut b] = products_v(algebra, problem, p)?;
    let near = algebra.read(&gram, 0..r * r)?;
    let mut flips = 0;
    for start in (0..d_in).step_by(COLUMNS) {
        let n = COLUMNS.min(d_in - start);
        let (rows, place) = (start..start + n, start * r..(start + n) * r);
        let h = algebra.read(&problem.metric, start * d_in..(start + n) * d_in)?;
        let hb = algebra.times(&problem.metric, rows.clone(), &b, r, d_in)?;
        let share = algebra.times_transposed(&hb, &gram, r, r)?;
        let mut pull = algebra.read(&wanted, place.clone())?.into_owned();
        let share = algebra.read(&share, 0..n * r)?;
        pull.iter_mut().zip(&*share).for_each(|(p, s)| *p -= s);
        let gv = algebra.times(&p.v, rows, &gram, r, r)?;
        let mut gv = algebra.read(&gv, 0..n * r)?.into_owned();
        let mut v = algebra.read(&p.v, place)?.into_owned();
        let before = flips;
        for j in 0..n {
            let (g, own) = (p.g[start + j], h[j * d_in + start + j]);
            let (done, rest) = pull.split_at_mut((j + 1) * r);
            let l = &mut done[j * r..];
            let gv = &mut gv[j * r..(j + 1) * r];
            let before = gv.to_vec();
            // Own share out, then g^2 H_jj v Ga v - 2 g v l, divided by |g|.
            l.iter_mut().zip(&before).for_each(|(l, q)| *l = (*l + own * g * q) * g.signum());
            let turned = descend(&mut v[j * r..(j + 1) * r], gv, l, &near, g.abs() * own);
            if turned == 0 {
                continue;
            }
            flips += turned;
            let change: Vec<f32> = gv.iter().zip(&before).map(|(a, b)| g * (a - b)).collect();
            for (q, rest) in rest.chunks_exact_mut(r).enumerate() {
                let coupling = h[j * d_in + start + j + 1 + q];
                rest.iter_mut().zip(&change).for_each(|(p, c)| *p -= coupling * c);
            }
        }
        if flips > before {
            algebra.write(&mut p.v, start * r, &v)?;
            v.chunks_exact_mut(r).zip(&p.g[start..]).for_each(|(v, g)| v.iter_mut().for_each(|v| *v *= g));
            algebra.write(&mut b, start * r, &v)?;
        }
    }
    Ok(flips)
}

/// Rise of the objective when one sign of U turns, `d_out x r`: `4 h u (c - h (G u - u G_kk))` with `c = T H M^T`.
pub(super) fn margins_u<'a, A: Products<'a>>(
    algebra: &A,
    problem: &Problem<A::Values>,
    p: &Path<A::Values>,
) -> Computed<Vec<f32>> {
    let (r, all) = (p.rank, 0..p.d_out * p.rank);
    let [gram, c, gu] = products_u(algebra, problem, p)?;
    let diagonal = algebra.diagonal(&gram, r)?;
    let mut out = algebra.take(c)?;
    let (gu, u) = (algebra.read(&gu, all.clone())?, algebra.read(&p.u, all)?);
    let rows = out.chunks_exact_mut(r).zip(gu.chunks_exact(r)).zip(u.chunks_exact(r)).zip(&p.h);
    rows.for_each(|(((out, gu), u), h)| {
        for k in 0..r {
            out[k] = 4.0 * h * u[k] * (out[k] - h * (gu[k] - u[k] * diagonal[k]));
        }
    });
    Ok(out)
}

/// What the margins of V^T are made of: matrices `d_in x r`, and two diagonals.
pub(super) struct Pulls {
    pull: Vec<f32>,
    share: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    /// Of Ga and of H.
    diagonals: [Vec<f32>; 2],
}

/// The pull of [`descend_v`] on every column, own share and all.
pub(super) fn pulls<'a, A: Products<'a>>(
    algebra: &A,
    problem: &Problem<A::Values>,
    p: Path<A::Values>,
) -> Computed<Pulls> {
    let (r, d_in) = (p.rank, p.d_in);
    let [gram, pull, b] = products_v(algebra, problem, &p)?;
    let hb = algebra.times(&problem.metric, 0..d_in, &b, r, d_in)?;
    drop(b);
    let share = algebra.times(&hb, 0..d_in, &gram, r, r)?;
    drop(hb);
    let diagonals = [algebra.diagonal(&gram, r)?, algebra.diagonal(&problem.metric, d_in)?];
    let [pull, share, v] = [algebra.take(pull)?, algebra.take(share)?, algebra.take(p.v)?];
    Ok(Pulls { pull, share, v, g: p.g, diagonals })
}

impl Pulls {
    /// Rise of the objective when one sign of V^T turns, `r x d_in`: `4 b (pull + H_jj b Ga_kk)`.
    pub fn margins(&self) -> Vec<f32> {
        let Self { pull, share, v, g, diagonals: [inner, outer] } = self;
        let (r, d_in) = (inner.len(), outer.len());
        let mut out = vec![0f32; r * d_in];
        out.par_chunks_mut(d_in).enumerate().for_each(|(k, out)| {
            for (j, out) in out.iter_mut().enumerate() {
                let (g, own) = (g[j], outer[j]);
                let at = j * r + k;
                let v = v[at];
                *out = 4.0 * g * v * (pull[at] - share[at] + own * g * v * inner[k]);
            }
        });
        out
    }
}
