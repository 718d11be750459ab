//! The steps of LB-ADMM on the CPU.

use super::{Magnitudes, POWER_ITERATIONS, Shape, Steps, Weights};
use crate::factorize::algebra::{Computed, Host};
use crate::factorize::rank_one::rank_one;
use crate::factorize::{gemm, ridge};
use faer::{Mat, MatMut, MatRef};
use rayon::prelude::*;
use std::borrow::Cow;

/// Columns that one thread works on at a time in elementwise passes.
const COLUMNS: usize = 64;

/// `magnitude` with the sign of `t`; zero counts as positive, as it does when signs are packed.
#[inline]
pub(super) fn signed(magnitude: f32, t: f32) -> f32 {
    if t >= 0.0 { magnitude } else { -magnitude }
}

/// Calls `f` with the values of `x` and `y` at each place and the magnitude of Z there.
fn with_magnitudes(
    x: &mut [f32],
    y: &[f32],
    z: &Magnitudes<Cow<[f32]>>,
    Shape { r, .. }: Shape,
    f: impl Fn(&mut f32, f32, f32) + Sync,
) {
    let chunks = x.par_chunks_mut(r * COLUMNS).zip(y.par_chunks(r * COLUMNS)).zip(z.b.par_chunks(COLUMNS));
    chunks.for_each(|((x, y), b)| {
        for ((x, y), &b) in x.chunks_exact_mut(r).zip(y.chunks_exact(r)).zip(b) {
            for ((x, &y), &a) in x.iter_mut().zip(y).zip(&*z.a) {
                f(x, y, a * b);
            }
        }
    });
}

impl<'a> Steps<'a> for Host {
    type Square = Mat<f32>;

    fn square(&self, r: usize) -> Computed<Mat<f32>> {
        Ok(Mat::zeros(r, r))
    }

    fn project(&self, z: &mut Magnitudes<Cow<'a, [f32]>>, t: &Cow<'a, [f32]>, shape: Shape) -> Computed<()> {
        // A factor that has collapsed to zero has no direction to start from.
        let collapsed = z.a.iter().all(|&a| a == 0.0);
        let from = if collapsed { vec![1.0; shape.r] } else { std::mem::take(&mut z.a).into_owned() };
        let new = rank_one(t, &from, POWER_ITERATIONS);
        *z = Magnitudes { a: Cow::Owned(new.a), b: Cow::Owned(new.b) };
        Ok(())
    }

    fn unit_rows(
        &self,
        out: &mut Cow<'a, [f32]>,
        t: &Cow<'a, [f32]>,
        z: &Magnitudes<Cow<'a, [f32]>>,
        Shape { r, .. }: Shape,
    ) -> Computed<()> {
        let norm = z.b.iter().map(|&b| f64::from(b).powi(2)).sum::<f64>().sqrt();
        let inverse = if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 };
        let chunks = out.to_mut().par_chunks_mut(r * COLUMNS).zip(t.par_chunks(r * COLUMNS));
        chunks.zip(z.b.par_chunks(COLUMNS)).for_each(|((out, t), b)| {
            for ((out, t), &b) in out.chunks_exact_mut(r).zip(t.chunks_exact(r)).zip(b) {
                let b = b * inverse;
                out.iter_mut().zip(t).for_each(|(o, &t)| *o = signed(b, t));
            }
        });
        Ok(())
    }

    fn gram(&self, out: &mut Mat<f32>, unit: &Cow<'a, [f32]>, Shape { r, n }: Shape) -> Computed<()> {
        gemm::gram(out.as_mut(), MatRef::from_column_major_slice(unit, r, n));
        Ok(())
    }

    fn product(
        &self,
        out: &mut Cow<'a, [f32]>,
        unit: &Cow<'a, [f32]>,
        w: &Weights<Cow<'a, [f32]>>,
        r: usize,
    ) -> Computed<()> {
        let matrix = MatRef::from_row_major_slice(w.values, w.d_out, w.d_in);
        let matrix = if w.transposed { matrix.transpose() } else { matrix };
        let (n, columns) = (matrix.nrows(), matrix.ncols());
        let unit = MatRef::from_column_major_slice(unit, r, n);
        gemm::product(MatMut::from_column_major_slice_mut(out.to_mut(), r, columns), unit, matrix);
        Ok(())
    }

    fn add_pull(
        &self,
        rhs: &mut Cow<'a, [f32]>,
        rho: f32,
        t: &Cow<'a, [f32]>,
        z: &Magnitudes<Cow<'a, [f32]>>,
        shape: Shape,
    ) -> Computed<()> {
        with_magnitudes(rhs.to_mut(), t, z, shape, |x, t, magnitude| {
            let z = signed(magnitude, t);
            *x += rho * (z - (t - z));
        });
        Ok(())
    }

    fn solve(
        &self,
        gram: &Mat<f32>,
        ridge: f32,
        factor: &mut Mat<f32>,
        rhs: &mut Cow<'a, [f32]>,
        Shape { r, n }: Shape,
    ) -> Computed<bool> {
        let rhs = MatMut::from_column_major_slice_mut(rhs.to_mut(), r, n);
        Ok(ridge::solve(gram, ridge, factor, rhs))
    }

    fn advance(
        &self,
        t: &mut Cow<'a, [f32]>,
        rhs: &Cow<'a, [f32]>,
        z: &Magnitudes<Cow<'a, [f32]>>,
        shape: Shape,
    ) -> Computed<()> {
        with_magnitudes(t.to_mut(), rhs, z, shape, |t, x, magnitude| *t = x + (*t - signed(magnitude, *t)));
        Ok(())
    }
}
