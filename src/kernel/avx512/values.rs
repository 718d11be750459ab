//! Activations, sixteen at a time, and their extent.

use super::super::ops::{IntSums, Output};
use super::super::quantize::{Extent, Step};
use half::f16;
use std::arch::x86_64::*;

/// 16 values of `pre * x` from column `k`; columns beyond the end of `x` are 0.
///
/// # Safety
/// `pre` is no shorter than `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(in super::super) unsafe fn sixteen(x: &[f32], pre: Option<&[f16]>, k: usize) -> __m512 {
    let left = x.len().saturating_sub(k);
    let at = x.as_ptr().wrapping_add(k);
    if left >= 16 {
        // SAFETY: sixteen columns from `k` exist, and their scales.
        return unsafe {
            let v = _mm512_loadu_ps(at);
            match pre {
                None => v,
                Some(g) => _mm512_mul_ps(v, _mm512_cvtph_ps(_mm256_loadu_si256(g.as_ptr().add(k).cast()))),
            }
        };
    }
    let mask = (1_u16 << left) - 1;
    // SAFETY: of what begins at column k only those values are read that the mask names, and these exist.
    unsafe {
        let v = _mm512_maskz_loadu_ps(mask, at);
        match pre {
            None => v,
            Some(g) => {
                let g = _mm256_maskz_loadu_epi16(mask, g.as_ptr().wrapping_add(k).cast());
                _mm512_mul_ps(v, _mm512_cvtph_ps(g))
            }
        }
    }
}

/// Division by a step: the correctly rounded quotient, wherever it is not far below 1/2, by multiplications alone.
///
/// The inverse is correctly rounded, so the first quotient is off by less than two units in the last place, the second by
/// less than one, and the third is the rounded one (Markstein, IBM J. Res. Dev. 34, 1990: correction by exact remainders).
pub(in super::super) struct Quotient {
    /// What values are multiplied by first, a power of two.
    scale: __m512,
    divisor: __m512,
    inverse: __m512,
}

impl Quotient {
    #[target_feature(enable = "avx512f")]
    pub fn new(step: Step) -> Self {
        // Remainders lie up to 2^48 below the step, and must not be subnormal.
        let away = if step.step < 2f32.powi(-70) { 2f32.powi(40) } else { 1.0 };
        let divisor = step.step * away;
        Quotient {
            scale: _mm512_set1_ps(step.shift * away),
            divisor: _mm512_set1_ps(divisor),
            inverse: _mm512_set1_ps(1.0 / divisor),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn of(&self, v: __m512) -> __m512 {
        let v = _mm512_mul_ps(v, self.scale);
        let q = _mm512_mul_ps(v, self.inverse);
        let q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, self.divisor, v), self.inverse, q);
        _mm512_fmadd_ps(_mm512_fnmadd_ps(q, self.divisor, v), self.inverse, q)
    }
}

/// Extent of `pre * x`, 64 columns at a time: sums of fours then lie side by side.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn extent(x: &[f32], pre: Option<&[f16]>) -> Extent {
    assert!(pre.is_none_or(|g| g.len() >= x.len()));
    let (mut value, mut group) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    for k in (0..x.len()).step_by(64) {
        let mut v = [_mm512_setzero_ps(); 4];
        for (i, v) in v.iter_mut().enumerate() {
            // SAFETY: checked above.
            *v = _mm512_abs_ps(unsafe { sixteen(x, pre, k + 16 * i) });
            value = _mm512_max_epu32(value, _mm512_castps_si512(*v));
        }
        let fours = neighbours(neighbours(v[0], v[1]), neighbours(v[2], v[3]));
        group = _mm512_max_epu32(group, _mm512_castps_si512(fours));
    }
    Extent { value: _mm512_reduce_max_epu32(value), group: _mm512_reduce_max_epu32(group) }
}

/// Sums of neighbours; in each 128 bits those of `a` before those of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn neighbours(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_ps::<0b10_00_10_00>(a, b), _mm512_shuffle_ps::<0b11_01_11_01>(a, b))
}

/// # Safety
/// `out.y` and `out.add` are valid for `out.rows` floats.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(in super::super) unsafe fn out(sums: &IntSums, out: Output<'_>) {
    assert!(out.rows <= sums.len() && out.post.is_none_or(|p| p.len() >= out.rows));
    let (step, unshift) = (_mm512_set1_ps(out.step.step), _mm512_set1_ps(out.step.unshift));
    for i in (0..out.rows).step_by(16) {
        let mask = if out.rows - i < 16 { (1_u16 << (out.rows - i)) - 1 } else { !0 };
        // SAFETY: sixteen sums from `i` exist; of scales, addend and output the mask names only those that do.
        unsafe {
            let sums = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.as_ptr().add(i).cast()));
            let mut v = _mm512_mul_ps(_mm512_mul_ps(sums, step), unshift);
            if let Some(post) = out.post {
                let post = _mm256_maskz_loadu_epi16(mask, post.as_ptr().add(i).cast());
                v = _mm512_mul_ps(v, _mm512_cvtph_ps(post));
            }
            if let Some(add) = out.add {
                v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, add.add(i)), v);
            }
            _mm512_mask_storeu_ps(out.y.add(i), mask, v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use rand::{Rng, RngCore, SeedableRng};

    #[target_feature(enable = "avx512f")]
    fn quantized(step: Step, v: &[f32; 16]) -> [i32; 16] {
        let mut q = [0; 16];
        // SAFETY: sixteen values each.
        unsafe {
            let v = Quotient::new(step).of(_mm512_loadu_ps(v.as_ptr()));
            _mm512_storeu_si512(q.as_mut_ptr().cast(), _mm512_cvtps_epi32(v));
        }
        q
    }

    #[test]
    fn quotients_round_like_those_of_a_division() {
        if !Kernel::Avx512.is_available() {
            return;
        }
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        // Values at ties of rounding or next to them, for steps of every size.
        for exponent in (-149..=127).chain([-148, -127, -126, -91, -90, -89, -70, -69]) {
            let value = (2f64.powi(exponent) * random.random_range(1.0..2.0)).min(f64::from(f32::MAX)) as f32;
            let group = value * random.random_range(1.0..4.0f32);
            let group = if group.is_finite() { group } else { value };
            let step = Step::of(Extent { value: value.to_bits(), group: group.to_bits() });
            for i in 0..500 {
                let v: [f32; 16] = std::array::from_fn(|_| {
                    let tie = f64::from(random.random_range(0..8191)) + 0.5;
                    let off = if i % 4 == 0 { random.random_range(-0.5..0.5) } else { 0.0 };
                    let v = ((tie + off) * f64::from(step.step) / f64::from(step.shift)) as f32;
                    let v =
                        f32::from_bits((v.to_bits() + random.next_u32() % 5).saturating_sub(2)).min(value);
                    if i % 2 == 0 { v } else { -v }
                });
                // SAFETY: the kernel is available.
                let q = unsafe { quantized(step, &v) };
                assert_eq!(q, v.map(|v| i32::from(step.quantize(v))), "{step:?} {v:?}");
            }
        }
    }
}
