//! LB-ADMM: alternating direction method of multipliers for `W ~ A B` with binary factors.
//!
//! Each factor is the solution of a ridge problem, its projection Z onto sign matrices with rank-one magnitudes, and
//! the running disagreement of the two (the scaled dual D). Only T, the solution plus D, and the magnitudes of Z are
//! kept: Z has the signs of T, and D is T - Z. One iteration solves
//!
//! ```text
//! (X X^T + (rho + REGULARIZATION) I) A^T = X W^T + rho (Z_A - D_A)^T     X: Z_B with rows of length 1
//! (Y^T Y + (rho + REGULARIZATION) I) B   = Y^T W + rho (Z_B - D_B)       Y: Z_A with columns of length 1
//! T = solution + D,   Z = project(T),   D = T - Z
//! ```
//!
//! with rho growing linearly from 0 to 1. Because each Z is an outer product of magnitudes times signs, the last
//! pair gives the three scale vectors without any fit: with `Z_A = sign * alpha beta^T` the column lengths cancel
//! beta, and `Z_B = sign * gamma delta^T`, so `h = alpha / ||alpha||`, `l = gamma`, `g = delta`.

#[cfg(feature = "cuda")]
pub(super) mod check;
mod host;

use super::algebra::{Algebra, Computed};
use super::export::RealPath;
use super::{Job, start};
use crate::bits::SignMatrix;
use crate::error::{Error, Result};
use rand_chacha::ChaCha8Rng;

/// Iterations unless the user says otherwise.
pub const DEFAULT_ITERATIONS: usize = 40;
/// Ridge that is there from the first iteration on; the Gram matrices have ones on their diagonals.
const REGULARIZATION: f32 = 0.03;
/// Power iterations of one projection. Each starts from the last projection's vector, so few are needed.
pub(super) const POWER_ITERATIONS: usize = 2;

/// Columns of a factor: `n` columns of `r` values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub r: usize,
    pub n: usize,
}

/// Magnitudes of Z: `Z_ij = sign(t_ij) a_i b_j`.
pub(super) struct Magnitudes<V> {
    /// One value for each row, Euclidean norm 1 (or all 0).
    pub a: V,
    /// One value for each column.
    pub b: V,
}

/// The weights, row-major `d_out x d_in`, or their transpose.
pub(super) struct Weights<'v, V> {
    pub values: &'v V,
    pub d_out: usize,
    pub d_in: usize,
    pub transposed: bool,
}

/// What an iteration computes. Factors are column-major: the r values of a column lie together.
pub(super) trait Steps<'a>: Algebra<'a> {
    /// `r x r` matrices of which the lower triangle counts.
    type Square;

    /// A matrix that will be overwritten.
    fn square(&self, r: usize) -> Computed<Self::Square>;
    /// The magnitudes nearest to those of `t` ([`POWER_ITERATIONS`] from the present a, from ones if that is zero).
    fn project(&self, z: &mut Magnitudes<Self::Values>, t: &Self::Values, shape: Shape) -> Computed<()>;
    /// `out = sign(t) b_j / ||b||`: Z with rows of length 1, as the magnitude of a row cancels.
    fn unit_rows(
        &self,
        out: &mut Self::Values,
        t: &Self::Values,
        z: &Magnitudes<Self::Values>,
        shape: Shape,
    ) -> Computed<()>;
    /// `out = unit unit^T`.
    fn gram(&self, out: &mut Self::Square, unit: &Self::Values, shape: Shape) -> Computed<()>;
    /// `out = unit w`, with as many rows as `unit`.
    fn product(
        &self,
        out: &mut Self::Values,
        unit: &Self::Values,
        w: &Weights<Self::Values>,
        r: usize,
    ) -> Computed<()>;
    /// `rhs += rho (Z - D)`.
    fn add_pull(
        &self,
        rhs: &mut Self::Values,
        rho: f32,
        t: &Self::Values,
        z: &Magnitudes<Self::Values>,
        shape: Shape,
    ) -> Computed<()>;
    /// `rhs = (gram + ridge I)^-1 rhs`, with a ridge ten times as large as often as it takes. `false` if that does not help.
    fn solve(
        &self,
        gram: &Self::Square,
        ridge: f32,
        factor: &mut Self::Square,
        rhs: &mut Self::Values,
        shape: Shape,
    ) -> Computed<bool>;
    /// `t = rhs + D` with the D of the present `t` and `z`.
    fn advance(
        &self,
        t: &mut Self::Values,
        rhs: &Self::Values,
        z: &Magnitudes<Self::Values>,
        shape: Shape,
    ) -> Computed<()>;
}

/// One factor: A transposed or B.
pub(super) struct Factor<V> {
    pub shape: Shape,
    /// Solution plus dual: its signs are those of Z.
    pub t: V,
    pub z: Magnitudes<V>,
    /// As large as t: the right side of this factor's own problem, Z with unit lengths in the other's.
    work: V,
}

impl<V> Factor<V> {
    fn random<'a, A: Steps<'a, Values = V>>(
        algebra: &A,
        r: usize,
        n: usize,
        rng: &mut ChaCha8Rng,
    ) -> Computed<Self> {
        let shape = Shape { r, n };
        let t = algebra.own(start::uniform(rng, r * n))?;
        let mut z = Magnitudes { a: algebra.own(vec![1.0; r])?, b: algebra.blank(n)? };
        algebra.project(&mut z, &t, shape)?;
        Ok(Self { shape, t, z, work: algebra.blank(r * n)? })
    }

    /// Takes over the solution that `work` holds: adds the dual, projects.
    fn accept<'a, A: Steps<'a, Values = V>>(&mut self, algebra: &A) -> Computed<()> {
        let Self { shape, t, z, work } = self;
        algebra.advance(t, work, z, *shape)?;
        algebra.project(z, t, *shape)
    }
}

/// `r x r` buffers of a step, kept from one to the next.
struct Squares<S> {
    gram: S,
    cholesky: S,
}

/// Updates `target` for `other`, of which only the buffer changes; `w` has the columns of `target` as its columns.
/// `false` if the ridge problem has no solution.
fn step<'a, A: Steps<'a>>(
    algebra: &A,
    target: &mut Factor<A::Values>,
    other: &mut Factor<A::Values>,
    w: &Weights<A::Values>,
    rho: f32,
    squares: &mut Squares<A::Square>,
) -> Computed<bool> {
    let Squares { gram, cholesky } = squares;
    let unit = &mut other.work;
    algebra.unit_rows(unit, &other.t, &other.z, other.shape)?;
    algebra.gram(gram, unit, other.shape)?;
    algebra.product(&mut target.work, unit, w, target.shape.r)?;
    algebra.add_pull(&mut target.work, rho, &target.t, &target.z, target.shape)?;
    let ridge = rho + REGULARIZATION;
    let solved = algebra.solve(gram, ridge, cholesky, &mut target.work, target.shape)?;
    target.accept(algebra)?;
    Ok(solved)
}

/// Both factors.
pub(super) type Pair<V> = (Factor<V>, Factor<V>);

/// Factorizes `w` (row-major, of the job's shape, mean square 1): A transposed and B.
pub(super) fn iterate<'a, A: Steps<'a>>(
    algebra: &A,
    job: &Job,
    w: &'a [f32],
    iterations: usize,
    rng: &mut ChaCha8Rng,
) -> Computed<Result<Pair<A::Values>>> {
    let (r, d_out, d_in) = (job.rank, job.d_out, job.d_in);
    let w = &algebra.borrow(w)?;
    let mut a = Factor::random(algebra, r, d_out, rng)?;
    let mut b = Factor::random(algebra, r, d_in, rng)?;
    let mut squares = Squares { gram: algebra.square(r)?, cholesky: algebra.square(r)? };
    let [rows, columns] = [true, false].map(|transposed| Weights { values: w, d_out, d_in, transposed });
    for t in 0..iterations {
        let rho = t as f32 / iterations as f32;
        if !step(algebra, &mut a, &mut b, &rows, rho, &mut squares)?
            || !step(algebra, &mut b, &mut a, &columns, rho, &mut squares)?
        {
            let what = format!("iteration {t}: the ridge problem has no solution");
            return Ok(Err(Error::Numeric { matrix: job.name.to_owned(), what }));
        }
    }
    Ok(Ok((a, b)))
}

/// The factors of `w` with exact scales.
pub(super) fn factorize<'a, A: Steps<'a>>(
    algebra: &A,
    job: &Job,
    w: &'a [f32],
    iterations: usize,
    rng: &mut ChaCha8Rng,
) -> Computed<Result<RealPath>> {
    match iterate(algebra, job, w, iterations, rng)? {
        Ok((a, b)) => exact_scales(algebra, &a, &b).map(Ok),
        Err(e) => Ok(Err(e)),
    }
}

/// The three scales of `(Z_A with columns of length 1) Z_B`.
fn exact_scales<'a, A: Steps<'a>>(
    algebra: &A,
    a: &Factor<A::Values>,
    b: &Factor<A::Values>,
) -> Computed<RealPath> {
    let (r, d_out, d_in) = (a.shape.r, a.shape.n, b.shape.n);
    let wide = |v: &A::Values, n: usize| -> Computed<Vec<f64>> {
        Ok(algebra.read(v, 0..n)?.iter().map(|&x| f64::from(x)).collect())
    };
    let mut h = wide(&a.z.b, d_out)?;
    let norm = h.iter().map(|x| x * x).sum::<f64>().sqrt();
    if norm > 0.0 {
        h.iter_mut().for_each(|x| *x /= norm);
    }
    let (l, g) = (wide(&b.z.a, r)?, wide(&b.z.b, d_in)?);
    let t = algebra.read(&a.t, 0..r * d_out)?;
    let u = SignMatrix::from_fn(d_out, r, |i, k| t[i * r + k] >= 0.0);
    drop(t);
    let t = algebra.read(&b.t, 0..r * d_in)?;
    let vt = SignMatrix::from_fn(r, d_in, |k, j| t[j * r + k] >= 0.0);
    Ok(RealPath { u, vt, h, l, g })
}

#[cfg(test)]
mod tests {
    use super::host::signed;
    use super::*;
    use crate::factorize::Method;
    use crate::factorize::algebra::{Host, certain};
    use std::borrow::Cow;

    fn random(r: usize, n: usize, rng: &mut ChaCha8Rng) -> Factor<Cow<'static, [f32]>> {
        certain(Factor::random(&Host, r, n, rng))
    }

    #[test]
    fn the_export_reproduces_the_product_of_the_projections() {
        let (r, m, n) = (32, 50, 70);
        let mut rng = start::rng(0, "x", 0);
        let (a, b) = (random(r, m, &mut rng), random(r, n, &mut rng));
        let path = certain(exact_scales(&Host, &a, &b));
        let z = |f: &Factor<Cow<[f32]>>, t: usize, i: usize| {
            f64::from(signed(f.z.a[t] * f.z.b[i], f.t[i * r + t]))
        };
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
    fn unit_rows_pull_and_advance_follow_from_the_projection() {
        let (r, n) = (32, 90);
        let f = random(r, n, &mut start::rng(1, "x", 0));
        let mut unit = certain(Host.blank(r * n));
        certain(Host.unit_rows(&mut unit, &f.t, &f.z, f.shape));
        for t in 0..r {
            let square: f32 = (0..n).map(|j| unit[j * r + t].powi(2)).sum();
            assert!((square - 1.0).abs() < 1e-4);
        }
        let (mut pulled, mut advanced) = (unit.clone(), f.t.clone());
        certain(Host.add_pull(&mut pulled, 0.5, &f.t, &f.z, f.shape));
        certain(Host.advance(&mut advanced, &unit, &f.z, f.shape));
        for j in 0..n {
            for t in 0..r {
                let at = j * r + t;
                let z = signed(f.z.a[t] * f.z.b[j], f.t[at]);
                let dual = f.t[at] - z;
                assert!((pulled[at] - (unit[at] + 0.5 * (z - dual))).abs() < 1e-6);
                assert!((advanced[at] - (unit[at] + dual)).abs() < 1e-6);
                assert_eq!(unit[at] >= 0.0, f.t[at] >= 0.0);
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
