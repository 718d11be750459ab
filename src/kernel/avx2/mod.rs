//! The AVX2 kernel: one vector holds the 32 rows of a row block, a lookup of 16 bytes answers all of them.
//!
//! No fused multiply-add anywhere: it would round differently from the portable kernel.

pub(super) mod exact;
pub(super) mod int;
mod lanes;

use super::ops::{IntTables, Lanes, Ops, Output};
use super::quantize::{self, Extent, Step};
use super::scalar::write_rows;
use half::f16;
use std::arch::x86_64::*;

pub(super) const OPS: Ops = Ops {
    run_cols: int::RUN_COLS,
    vectors: int::VECTORS,
    extent,
    int_tables: IntTables::Each(int::tables),
    f32_tables: exact::tables,
    index: None,
    lanes: Some(Lanes { quantize: lanes::quantize, rows: lanes::rows, sums: lanes::sums }),
    int_rows: int::rows,
    f32_rows: exact::rows,
    int_out: int::out,
    f32_out: exact::out,
};

/// Calls `f(i, pre * x of columns 8 i ..)` for `i < groups`; columns beyond the end of `x` are 0.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn each_eight(x: &[f32], pre: Option<&[f16]>, groups: usize, mut f: impl FnMut(usize, __m256)) {
    let whole = x.len() / 8;
    match pre {
        Some(g) => {
            let g = &g[..x.len()];
            for i in 0..whole {
                // SAFETY: `8 i + 8 <= x.len() == g.len()`.
                f(i, unsafe {
                    _mm256_mul_ps(_mm256_loadu_ps(x.as_ptr().add(8 * i)), scales(g.as_ptr().add(8 * i)))
                });
            }
        }
        None => {
            for i in 0..whole {
                // SAFETY: `8 i + 8 <= x.len()`.
                f(i, unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) });
            }
        }
    }
    for i in whole..groups {
        let rest = quantize::eight(x, pre, 8 * i);
        // SAFETY: an array of eight floats.
        f(i, unsafe { _mm256_loadu_ps(rest.as_ptr()) });
    }
}

/// Quantizes with a usable step.
struct Quantizer {
    shift: __m256,
    divisor: __m256,
}

impl Quantizer {
    #[inline]
    #[target_feature(enable = "avx")]
    fn new(step: Step) -> Self {
        Quantizer { shift: _mm256_set1_ps(step.shift), divisor: _mm256_set1_ps(step.step) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn eight(&self, v: __m256) -> __m128i {
        let q = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_mul_ps(v, self.shift), self.divisor));
        _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q))
    }
}

/// Eight f16 scales as f32.
///
/// # Safety
/// `p` is valid for eight values.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn scales(p: *const f16) -> __m256 {
    // SAFETY: sixteen bytes, by the caller's promise.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
}

#[target_feature(enable = "avx2,f16c")]
fn extent(x: &[f32], pre: Option<&[f16]>) -> Extent {
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
    let (mut value, mut group) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    each_eight(x, pre, x.len().div_ceil(8), |_, v| {
        let v = _mm256_and_ps(v, magnitude);
        value = _mm256_max_epi32(value, _mm256_castps_si256(v));
        let pairs = _mm256_add_ps(v, _mm256_permute_ps::<0b10_11_00_01>(v));
        let fours = _mm256_add_ps(pairs, _mm256_permute_ps::<0b01_00_11_10>(pairs));
        group = _mm256_max_epi32(group, _mm256_castps_si256(_mm256_and_ps(fours, magnitude)));
    });
    Extent { value: max_lane(value), group: max_lane(group) }
}

/// Largest of eight non-negative integers.
#[inline]
#[target_feature(enable = "avx2")]
fn max_lane(v: __m256i) -> u32 {
    let v = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
    let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
    _mm_cvtsi128_si32(v) as u32
}

/// Writes the rows of `out`, eight at a time; `sums(i)` are the rows from `8 i` as f32.
///
/// # Safety
/// `out.y` and `out.add` are valid for `out.rows` floats.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn write(out: Output<'_>, sums: impl Fn(usize) -> __m256) {
    let (step, unshift) = (_mm256_set1_ps(out.step.step), _mm256_set1_ps(out.step.unshift));
    if let Some(post) = out.post {
        assert!(post.len() >= out.rows);
    }
    let whole = out.rows / 8;
    for i in 0..whole {
        let mut v = _mm256_mul_ps(_mm256_mul_ps(sums(i), step), unshift);
        // SAFETY: rows `8 i .. 8 i + 8` exist, so do their scales, by the assertion above.
        unsafe {
            if let Some(post) = out.post {
                v = _mm256_mul_ps(v, scales(post.as_ptr().add(8 * i)));
            }
            if let Some(add) = out.add {
                v = _mm256_add_ps(_mm256_loadu_ps(add.add(8 * i)), v);
            }
            _mm256_storeu_ps(out.y.add(8 * i), v);
        }
    }
    if out.rows > 8 * whole {
        let mut rest = [0f32; 8];
        // SAFETY: an array of eight floats; the rows are the caller's.
        unsafe {
            _mm256_storeu_ps(rest.as_mut_ptr(), sums(whole));
            write_rows(rest.into_iter(), 8 * whole, out);
        }
    }
}
