//! Exact cyclic coordinate descent over signs.

use super::{Path, Problem};
use crate::decoder::product::{times, times_transposed, transposed_times};
use rayon::prelude::*;

/// Sweeps over the signs of a row at most.
const SWEEPS: usize = 4;
/// Columns of V whose gradient is kept up to date together.
const COLUMNS: usize = 64;

/// Minimises `a u^T G u - 2 u^T c` over the signs u; `gu` holds `G u` and is kept. Returns the number of flips.
///
/// Flipping u_k changes the objective by `4 u_k (c_k - a ((G u)_k - u_k G_kk))`: the sign that pays is that of the
/// term in brackets.
fn descend(u: &mut [f32], gu: &mut [f32], c: &[f32], gram: &[f32], a: f32) -> usize {
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
fn products_u(problem: &Problem, p: &Path) -> [Vec<f32>; 3] {
    let (r, d_in) = (p.rank, p.d_in);
    let m = p.right();
    let mut hm = vec![0f32; d_in * r];
    times(&mut hm, problem.metric, &m, r, d_in, false);
    let mut gram = vec![0f32; r * r];
    transposed_times(&mut gram, &m, &hm, r, r, false);
    let mut c = vec![0f32; p.d_out * r];
    times(&mut c, problem.target, &hm, r, d_in, false);
    let mut gu = vec![0f32; p.d_out * r];
    times(&mut gu, &p.u, &gram, r, r, false);
    [gram, c, gu]
}

/// `Ga = A^T A` (`r x r`), `H T^T A` and `B = diag(g) V` (both `d_in x r`) with `A = diag(h) U diag(l)`.
fn products_v(problem: &Problem, p: &Path) -> [Vec<f32>; 3] {
    let (r, d_in) = (p.rank, p.d_in);
    let a: Vec<f32> =
        p.left().chunks_exact(r).flat_map(|row| row.iter().zip(&p.l).map(|(a, l)| a * l)).collect();
    let mut gram = vec![0f32; r * r];
    transposed_times(&mut gram, &a, &a, r, r, false);
    // H T^T A = (T H)^T A, H being symmetric.
    let mut wanted = vec![0f32; d_in * r];
    transposed_times(&mut wanted, &problem.weighed, &a, r, d_in, false);
    let b = p.v.chunks_exact(r).zip(&p.g).flat_map(|(v, g)| v.iter().map(move |v| v * g)).collect();
    [gram, wanted, b]
}

/// Rows of U are independent.
pub(super) fn descend_u(problem: &Problem, p: &mut Path) -> usize {
    let r = p.rank;
    let [gram, mut c, mut gu] = products_u(problem, p);
    p.u.par_chunks_mut(r)
        .zip(gu.par_chunks_mut(r))
        .zip(c.par_chunks_mut(r))
        .zip(&p.h)
        .map(|(((u, gu), c), &h)| {
            // h^2 u G u - 2 h u c, divided by |h|.
            c.iter_mut().for_each(|c| *c *= h.signum());
            descend(u, gu, c, &gram, h.abs())
        })
        .sum()
}

/// Columns of V are coupled by H: the pull on column j is `(H T^T A - H B Ga)_j` without its own share `H_jj B_j Ga`.
pub(super) fn descend_v(problem: &Problem, p: &mut Path) -> usize {
    let (r, d_in) = (p.rank, p.d_in);
    let [gram, wanted, mut b] = products_v(problem, p);
    let mut flips = 0;
    for start in (0..d_in).step_by(COLUMNS) {
        let n = COLUMNS.min(d_in - start);
        let h = &problem.metric[start * d_in..(start + n) * d_in];
        let mut hb = vec![0f32; n * r];
        times(&mut hb, h, &b, r, d_in, false);
        let mut pull = wanted[start * r..(start + n) * r].to_vec();
        let mut share = vec![0f32; n * r];
        times_transposed(&mut share, &hb, &gram, r, r, false);
        pull.iter_mut().zip(&share).for_each(|(p, s)| *p -= s);
        let mut gv = vec![0f32; n * r];
        times(&mut gv, &p.v[start * r..(start + n) * r], &gram, r, r, false);
        for j in 0..n {
            let (g, own) = (p.g[start + j], h[j * d_in + start + j]);
            let (done, rest) = pull.split_at_mut((j + 1) * r);
            let l = &mut done[j * r..];
            let gv = &mut gv[j * r..(j + 1) * r];
            let before = gv.to_vec();
            // Own share out, then g^2 H_jj v Ga v - 2 g v l, divided by |g|.
            l.iter_mut().zip(&before).for_each(|(l, q)| *l = (*l + own * g * q) * g.signum());
            let v = &mut p.v[(start + j) * r..(start + j + 1) * r];
            let turned = descend(v, gv, l, &gram, g.abs() * own);
            if turned == 0 {
                continue;
            }
            flips += turned;
            b[(start + j) * r..(start + j + 1) * r].iter_mut().zip(&*v).for_each(|(b, v)| *b = v * g);
            let change: Vec<f32> = gv.iter().zip(&before).map(|(a, b)| g * (a - b)).collect();
            for (q, rest) in rest.chunks_exact_mut(r).enumerate() {
                let coupling = h[j * d_in + start + j + 1 + q];
                rest.iter_mut().zip(&change).for_each(|(p, c)| *p -= coupling * c);
            }
        }
    }
    flips
}

/// Rise of the objective when one sign of U turns, `d_out x r`: `4 h u (c - h (G u - u G_kk))` with `c = T H M^T`.
pub(super) fn margins_u(problem: &Problem, p: &Path) -> Vec<f32> {
    let r = p.rank;
    let [gram, mut out, gu] = products_u(problem, p);
    let rows = out.par_chunks_mut(r).zip(gu.par_chunks(r)).zip(p.u.par_chunks(r)).zip(&p.h);
    rows.for_each(|(((out, gu), u), h)| {
        for k in 0..r {
            out[k] = 4.0 * h * u[k] * (out[k] - h * (gu[k] - u[k] * gram[k * r + k]));
        }
    });
    out
}

/// The same for V^T, `r x d_in`: `4 b (pull + H_jj b Ga_kk)` with the pull of [`descend_v`], own share and all.
pub(super) fn margins_vt(problem: &Problem, p: &Path) -> Vec<f32> {
    let (r, d_in) = (p.rank, p.d_in);
    let [gram, pull, b] = products_v(problem, p);
    let mut hb = vec![0f32; d_in * r];
    times(&mut hb, problem.metric, &b, r, d_in, false);
    let mut share = vec![0f32; d_in * r];
    times(&mut share, &hb, &gram, r, r, false);
    let mut out = vec![0f32; r * d_in];
    out.par_chunks_mut(d_in).enumerate().for_each(|(k, out)| {
        for (j, out) in out.iter_mut().enumerate() {
            let (g, own) = (p.g[j], problem.metric[j * d_in + j]);
            let at = j * r + k;
            let v = p.v[at];
            *out = 4.0 * g * v * (pull[at] - share[at] + own * g * v * gram[k * r + k]);
        }
    });
    out
}
