//! Activations, sixteen at a time, and their extent.

use super::super::quantize::Extent;
use half::f16;
use std::arch::x86_64::*;

/// 16 values of `pre * x` from column `k`; columns beyond the end of `x` are 0.
///
/// # Safety
/// `pre` is no shorter than `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn sixteen(x: &[f32], pre: Option<&[f16]>, k: usize) -> __m512 {
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
