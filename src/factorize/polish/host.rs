//! The products and sums of the polish on the CPU.

use super::{Products, signs};
use crate::decoder::product::{times, times_transposed, transposed_times};
use crate::factorize::algebra::{Computed, Host};
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

impl<'a> Products<'a> for Host {
    fn times(
        &self,
        a: &Cow<'a, [f32]>,
        rows: Range<usize>,
        b: &Cow<'a, [f32]>,
        n: usize,
        k: usize,
    ) -> Computed<Cow<'a, [f32]>> {
        let mut out = vec![0f32; rows.len() * n];
        times(&mut out, &a[rows.start * k..rows.end * k], b, n, k, false);
        Ok(Cow::Owned(out))
    }

    fn times_transposed(
        &self,
        a: &Cow<'a, [f32]>,
        b: &Cow<'a, [f32]>,
        n: usize,
        k: usize,
    ) -> Computed<Cow<'a, [f32]>> {
        let mut out = vec![0f32; a.len() / k * n];
        times_transposed(&mut out, a, b, n, k, false);
        Ok(Cow::Owned(out))
    }

    fn transposed_times(
        &self,
        a: &Cow<'a, [f32]>,
        b: &Cow<'a, [f32]>,
        n: usize,
        m: usize,
    ) -> Computed<Cow<'a, [f32]>> {
        let mut out = vec![0f32; m * n];
        transposed_times(&mut out, a, b, n, m, false);
        Ok(Cow::Owned(out))
    }

    fn scaled(
        &self,
        x: &Cow<'a, [f32]>,
        rows: Option<&[f32]>,
        columns: Option<&[f32]>,
        n: usize,
    ) -> Computed<Cow<'a, [f32]>> {
        let mut out = x.to_vec();
        for (i, row) in out.chunks_exact_mut(n).enumerate() {
            if let Some(rows) = rows {
                row.iter_mut().for_each(|x| *x *= rows[i]);
            }
            if let Some(columns) = columns {
                row.iter_mut().zip(columns).for_each(|(x, c)| *x *= c);
            }
        }
        Ok(Cow::Owned(out))
    }

    fn multiply(&self, out: &mut Cow<'a, [f32]>, by: &Cow<'a, [f32]>, _n: usize) -> Computed<()> {
        out.to_mut().iter_mut().zip(&**by).for_each(|(a, b)| *a *= b);
        Ok(())
    }

    fn dot(&self, a: &Cow<'a, [f32]>, b: &Cow<'a, [f32]>, _n: usize) -> Computed<f64> {
        Ok(dot(a, b))
    }

    fn objective(
        &self,
        w: &Cow<'a, [f32]>,
        wh: &Cow<'a, [f32]>,
        th: &Cow<'a, [f32]>,
        _n: usize,
    ) -> Computed<f64> {
        let terms = w.iter().zip(&**wh).zip(&**th);
        Ok(terms.map(|((w, wh), th)| f64::from(*w) * (f64::from(*wh) - 2.0 * f64::from(*th))).sum())
    }

    fn row_dots(&self, a: &Cow<'a, [f32]>, b: &Cow<'a, [f32]>, n: usize) -> Computed<Vec<f64>> {
        Ok(a.chunks_exact(n).zip(b.chunks_exact(n)).map(|(a, b)| dot(a, b)).collect())
    }

    fn column_dots(&self, a: &Cow<'a, [f32]>, b: &Cow<'a, [f32]>, n: usize) -> Computed<Vec<f32>> {
        let mut out = vec![0f64; n];
        for (a, b) in a.chunks_exact(n).zip(b.chunks_exact(n)) {
            out.iter_mut().zip(a).zip(b).for_each(|((o, a), b)| *o += f64::from(*a) * f64::from(*b));
        }
        Ok(out.iter().map(|&x| x as f32).collect())
    }

    fn diagonal(&self, m: &Cow<'a, [f32]>, n: usize) -> Computed<Vec<f32>> {
        Ok((0..n).map(|i| m[i * n + i]).collect())
    }

    fn solve(&self, m: Cow<'a, [f32]>, ridge: f32, rhs: Vec<f32>) -> Computed<Option<Vec<f32>>> {
        let n = rhs.len();
        let matrix = Mat::from_fn(n, n, |i, j| m[i * n + j] + if i == j { ridge } else { 0.0 });
        let Ok(factor) = matrix.llt(Side::Lower) else { return Ok(None) };
        let y = factor.solve(&Mat::from_fn(n, 1, |i, _| rhs[i]));
        Ok(Some((0..n).map(|i| y[(i, 0)]).collect()))
    }

    fn descend_rows(
        &self,
        u: &mut Cow<'a, [f32]>,
        mut gu: Cow<'a, [f32]>,
        mut c: Cow<'a, [f32]>,
        gram: &Cow<'a, [f32]>,
        h: &[f32],
        r: usize,
    ) -> Computed<usize> {
        let rows = u.to_mut().par_chunks_mut(r).zip(gu.to_mut().par_chunks_mut(r));
        let flips = rows.zip(c.to_mut().par_chunks_mut(r)).zip(h).map(|(((u, gu), c), &h)| {
            // h^2 u G u - 2 h u c, divided by |h|.
            c.iter_mut().for_each(|c| *c *= h.signum());
            signs::descend(u, gu, c, gram, h.abs())
        });
        Ok(flips.sum())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
