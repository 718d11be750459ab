//! Activations to 14-bit integers: the group rule.
//!
//! A table of the sums of four signed activations is stored as two 7-bit halves, so the magnitudes of an
//! aligned group of four may add up to 16383 at most. Taking the step from that limit, instead of giving each
//! value a quarter of it, makes the step about half as large for typical activations at no cost.

use half::f16;

/// Largest magnitude of a quantized activation: 13 bits and a sign, two bytes of 7 bits in integer tensor units.
pub const MAX_Q: f32 = 8191.0;

/// Largest sum of magnitudes of an aligned group of four that quantizes to at most 16383: four roundings add
/// at most 2.
pub const MAX_GROUP: f32 = 16381.0;

/// Columns whose largest value is below this are scaled up first, by [`TINY_SHIFT`]: their step would be
/// subnormal, and a rounded step breaks the limits above.
const TINY: f32 = f32::from_bits((127 - 90) << 23);
const TINY_SHIFT: f32 = f32::from_bits((127 + 64) << 23);
const TINY_UNSHIFT: f32 = f32::from_bits((127 - 64) << 23);

const INFINITY_BITS: u32 = 0x7f80_0000;

/// How large a scaled column gets, as bit patterns of non-negative floats. Patterns order like the floats
/// and place infinity and NaN above everything finite, so an integer maximum loses neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Bits of the largest `|v_k|`.
    pub value: u32,
    /// Bits of the largest `(|v_0| + |v_1|) + (|v_2| + |v_3|)` of an aligned group.
    pub group: u32,
}

/// The quantization step of one column and the powers of two around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// `v` is multiplied by this (1 or a power of two) before it is divided by `step`.
    pub shift: f32,
    /// `s`: 0 for a column of zeros, NaN for a column that is not finite.
    pub step: f32,
    /// `1 / shift`, exact.
    pub unshift: f32,
}

impl Step {
    /// The step for a column of this extent: `max(max |v| / 8191, max group / 16381)`.
    pub fn of(extent: Extent) -> Self {
        if extent.value.max(extent.group) >= INFINITY_BITS {
            return Step { shift: 1.0, step: f32::NAN, unshift: 1.0 };
        }
        let (value, group) = (f32::from_bits(extent.value), f32::from_bits(extent.group));
        let (shift, unshift) = if value < TINY { (TINY_SHIFT, TINY_UNSHIFT) } else { (1.0, 1.0) };
        Step { shift, step: ((value * shift) / MAX_Q).max((group * shift) / MAX_GROUP), unshift }
    }

    /// Unit step for activations that stay f32; NaN for a column that is not finite.
    pub fn exact(extent: Extent) -> Self {
        Step { step: Self::of(extent).step * 0.0 + 1.0, shift: 1.0, unshift: 1.0 }
    }

    /// Whether there is anything to quantize: the column is finite and not all zero.
    pub fn is_usable(self) -> bool {
        self.step > 0.0
    }

    /// `round_ties_even(v / s)`. Only for a usable step.
    pub fn quantize(self, v: f32) -> i16 {
        ((v * self.shift) / self.step).round_ties_even() as i16
    }
}

/// `x_k * pre_k`, or `x_k` without `pre`.
#[inline]
pub(super) fn scaled(x: f32, pre: Option<&[f16]>, k: usize) -> f32 {
    match pre {
        Some(g) => x * g[k].to_f32(),
        None => x,
    }
}

/// Eight consecutive values of `pre * x` from column `k`, zero beyond the end of `x`.
#[inline]
pub(super) fn eight(x: &[f32], pre: Option<&[f16]>, k: usize) -> [f32; 8] {
    let mut v = [0.0; 8];
    for (i, v) in v.iter_mut().enumerate().take(x.len().saturating_sub(k)) {
        *v = scaled(x[k + i], pre, k + i);
    }
    v
}

/// Extent of `pre * x`, portable code.
pub fn extent(x: &[f32], pre: Option<&[f16]>) -> Extent {
    let mut e = Extent::default();
    for k in (0..x.len()).step_by(8) {
        let v = eight(x, pre, k).map(f32::abs);
        for v in v.chunks_exact(4) {
            e.value = v.iter().fold(e.value, |m, v| m.max(v.to_bits()));
            e.group = e.group.max(((v[0] + v[1]) + (v[2] + v[3])).abs().to_bits());
        }
    }
    e
}

/// Quantizes `pre * x` into `q` (as long as `x`) and returns the step, portable code. `q` is all zero where
/// the step is not usable.
pub fn quantize(x: &[f32], pre: Option<&[f16]>, q: &mut [i16]) -> Step {
    assert_eq!(x.len(), q.len());
    let step = Step::of(extent(x, pre));
    for (k, (q, x)) in q.iter_mut().zip(x).enumerate() {
        *q = if step.is_usable() { step.quantize(scaled(*x, pre, k)) } else { 0 };
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits_hold(x: &[f32]) {
        let mut q = vec![0i16; x.len()];
        let step = quantize(x, None, &mut q);
        assert!(step.is_usable());
        for q in q.chunks(4) {
            assert!(q.iter().all(|q| q.unsigned_abs() <= 8191), "{q:?}");
            assert!(q.iter().map(|q| i32::from(*q).abs()).sum::<i32>() <= 16383, "{q:?}");
        }
    }

    #[test]
    fn limits_hold_for_any_magnitude() {
        for e in -149..=124 {
            let unit = 2f64.powi(e);
            for mantissa in [1.0, 1.0000001, 1.3, 1.5, 1.9999999] {
                let a = (unit * mantissa) as f32;
                limits_hold(&[a]);
                limits_hold(&[a, a, a, a]);
                limits_hold(&[a, -a, a * 0.5, 0.0, a * 0.999, a * 0.99, -a * 0.51]);
                limits_hold(&[a, a * 0.9995, a * 0.0003, 0.0]);
            }
        }
    }

    #[test]
    fn step_is_as_fine_as_the_limits_allow() {
        let mut q = [0i16; 4];
        let mut q5 = [0i16; 5];
        assert_eq!(quantize(&[8191.0, -8190.0, 0.0, 0.0], None, &mut q).step, 1.0);
        assert_eq!(q, [8191, -8190, 0, 0]);
        assert_eq!(quantize(&[8191.0, 4095.0, 4095.0, 0.5], None, &mut q).step, 16381.5 / 16381.0);
        let step = quantize(&[1e-44, 0.0, 0.0, 0.0, -1e-44], None, &mut q5);
        assert_eq!((q5, step.shift * step.unshift), ([8191, 0, 0, 0, -8191], 1.0));
    }

    #[test]
    fn what_is_not_finite_has_no_step() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut q = [7i16; 5];
            assert!(quantize(&[1.0, 2.0, 3.0, 4.0, bad], None, &mut q).step.is_nan());
            assert_eq!(q, [0; 5]);
            assert!(Step::exact(extent(&[bad], None)).step.is_nan());
        }
        assert!(quantize(&[f32::MAX, f32::MAX], None, &mut [0; 2]).step.is_nan(), "group sum overflows");
        assert!(quantize(&[f32::MAX], Some(&[f16::from_f32(2.0)]), &mut [0]).step.is_nan());
        assert_eq!(quantize(&[0.0, -0.0], None, &mut [0; 2]).step, 0.0);
        assert_eq!(Step::exact(extent(&[0.0], None)).step, 1.0);
    }
}
