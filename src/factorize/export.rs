//! From real scales to stored ones: the gauge and the rounding to f16.
//!
//! The product does not change when a factor moves between h, l and g. Stored are `mean h = mean g = 1` with the
//! magnitude in l, where it is easy to read, or equal shares where l would leave the comfortable range of f16.

use super::error;
use crate::bits::SignMatrix;
use crate::error::{Error, Result};
use crate::format::factors::FactorPath;
use half::f16;

/// A path with scales as computed.
#[derive(Clone, Debug)]
pub(super) struct RealPath {
    /// U, `d_out x r`.
    pub u: SignMatrix,
    /// V transposed, `r x d_in`.
    pub vt: SignMatrix,
    /// Output scales.
    pub h: Vec<f64>,
    /// Latent scales.
    pub l: Vec<f64>,
    /// Input scales.
    pub g: Vec<f64>,
}

/// Root mean square that l may have alone: within 2^10 on both sides of 1, single values that are 16 times smaller
/// or larger keep all bits of f16.
const L_RANGE: std::ops::RangeInclusive<f64> = (1.0 / 1024.0)..=1024.0;
/// Largest relative change of the product by rounding the scales: three scales, each off by the most that a normal
/// f16 number can be. Typical is a third of it. A matrix with one dominating entry comes near the limit, because
/// nothing averages; what goes beyond has left the range in which f16 keeps its precision.
const MAX_ROUNDING: f64 = 3.0 / 2048.0;

/// All signs +1 and all scales 0 in l: a product that is exactly 0.
pub(super) fn zero_path(d_out: usize, d_in: usize, rank: usize) -> FactorPath {
    FactorPath {
        u: SignMatrix::from_fn(d_out, rank, |_, _| true),
        vt: SignMatrix::from_fn(rank, d_in, |_, _| true),
        h: vec![f16::ONE; d_out],
        l: vec![f16::ZERO; rank],
        g: vec![f16::ONE; d_in],
    }
}

/// Fixes the gauge and rounds.
///
/// # Errors
/// [`Error::Numeric`] if rounding changes the product by more than 3/2048 of its norm, or if a scale is not finite.
pub(super) fn to_f16(name: &str, mut path: RealPath) -> Result<FactorPath> {
    let failed = |what: String| Error::Numeric { matrix: name.to_owned(), what };
    if ![&path.h, &path.l, &path.g].iter().all(|v| v.iter().all(|x| x.is_finite())) {
        return Err(failed("the factorization gave scales that are not finite".to_owned()));
    }
    if !fix_gauge(&mut path) {
        return Ok(zero_path(path.h.len(), path.g.len(), path.l.len()));
    }
    let round = |v: &[f64]| v.iter().map(|&x| f16::from_f64(x)).collect::<Vec<f16>>();
    let rounded = FactorPath {
        u: path.u.clone(),
        vt: path.vt.clone(),
        h: round(&path.h),
        l: round(&path.l),
        g: round(&path.g),
    };
    let finite = [&rounded.h, &rounded.l, &rounded.g].iter().all(|v| v.iter().all(|x| x.is_finite()));
    let change = if finite { error::rounding(&path, &rounded) } else { f64::INFINITY };
    if change <= MAX_ROUNDING {
        Ok(rounded)
    } else {
        Err(failed(format!(
            "its magnitudes do not fit into f16 scales: rounding them changes the product by {:.2} %",
            100.0 * change
        )))
    }
}

/// `false` if the product is 0.
fn fix_gauge(path: &mut RealPath) -> bool {
    let mean = |v: &[f64]| v.iter().map(|x| x.abs()).sum::<f64>() / v.len() as f64;
    let scale = |v: &mut [f64], by: f64| v.iter_mut().for_each(|x| *x *= by);
    let (h, g) = (mean(&path.h), mean(&path.g));
    if h == 0.0 || g == 0.0 || mean(&path.l) == 0.0 {
        return false;
    }
    scale(&mut path.h, 1.0 / h);
    scale(&mut path.g, 1.0 / g);
    scale(&mut path.l, h * g);
    let l = (path.l.iter().map(|x| x * x).sum::<f64>() / path.l.len() as f64).sqrt();
    if l == 0.0 {
        return false;
    }
    if !L_RANGE.contains(&l) {
        let share = l.cbrt();
        scale(&mut path.h, share);
        scale(&mut path.g, share);
        scale(&mut path.l, share / l);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(magnitude: f64) -> RealPath {
        let wave = |n: usize, by: f64| (0..n).map(|i| by * (1.0 + 0.3 * (i as f64).sin())).collect();
        RealPath {
            u: SignMatrix::from_fn(40, 32, |i, k| (i * 7 + k * 3) % 5 < 2),
            vt: SignMatrix::from_fn(32, 24, |k, j| (k * 11 + j) % 3 == 0),
            h: wave(40, 5.0),
            l: wave(32, magnitude),
            g: wave(24, 0.01),
        }
    }

    fn mean(v: &[f16]) -> f64 {
        v.iter().map(|x| x.to_f64()).sum::<f64>() / v.len() as f64
    }

    fn dense(p: &RealPath) -> Vec<f64> {
        let value = |i: usize, j: usize| {
            (0..p.l.len())
                .map(|k| {
                    let sign = if p.u.is_plus(i, k) == p.vt.is_plus(k, j) { 1.0 } else { -1.0 };
                    sign * p.l[k]
                })
                .sum::<f64>()
                * p.h[i]
                * p.g[j]
        };
        (0..p.h.len()).flat_map(|i| (0..p.g.len()).map(move |j| (i, j))).map(|(i, j)| value(i, j)).collect()
    }

    #[test]
    fn scales_are_rounded_in_the_gauge_and_the_product_stays() {
        for magnitude in [1e-9, 1e-4, 0.02, 1.0, 300.0, 1e6] {
            let exact = path(magnitude);
            let want = dense(&exact);
            let got = to_f16("m", exact).unwrap();
            let mut dense = vec![0f32; want.len()];
            got.add_dense(&mut dense);
            let difference: f64 = dense.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
            let square: f64 = want.iter().map(|x| x * x).sum();
            assert!((difference / square).sqrt() < 1e-3, "{magnitude}");
            if magnitude == 1.0 {
                assert!((mean(&got.h) - 1.0).abs() < 1e-3 && (mean(&got.g) - 1.0).abs() < 1e-3);
                assert!((mean(&got.l) / 0.05 - 1.0).abs() < 0.1);
            }
        }
    }

    #[test]
    fn what_f16_cannot_hold_is_an_error() {
        for magnitude in [1e-30, 1e30, f64::NAN, f64::INFINITY] {
            match to_f16("blk.0.x.weight", path(magnitude)) {
                Err(Error::Numeric { matrix, .. }) => assert_eq!(matrix, "blk.0.x.weight"),
                other => panic!("{magnitude}: {other:?}"),
            }
        }
    }

    #[test]
    fn nothing_but_zeros_is_stored_as_zero() {
        let got = to_f16("m", path(0.0)).unwrap();
        let mut dense = vec![0f32; 40 * 24];
        got.add_dense(&mut dense);
        assert!(dense.iter().all(|&x| x == 0.0));
        assert!(got.h.iter().chain(&got.g).all(|&x| x == f16::ONE));
    }

    #[test]
    fn three_scales_at_their_worst_rounding_are_accepted() {
        // One entry dominates, and each of its scales lies just below the middle of two f16 numbers.
        let worst = 1.0 + 0.999 / 2048.0;
        let side = |n: usize| -> Vec<f64> {
            (0..n).map(|i| [8.0 * worst, 9.0 - 8.0 * worst].get(i).copied().unwrap_or(0.0)).collect()
        };
        let exact = RealPath {
            u: SignMatrix::from_fn(9, 32, |_, _| true),
            vt: SignMatrix::from_fn(32, 9, |_, _| true),
            h: side(9),
            l: (0..32).map(|k| if k == 0 { worst } else { 0.0 }).collect(),
            g: side(9),
        };
        to_f16("m", exact).unwrap();
    }
}
