//! f32 activations: tables of sixteen f32 sums, looked up for eight rows at a time.

use super::super::ops::{F32_CHUNK, F32_LINES, F32Sums, Output, Run};
use super::super::scratch::Line;
use super::{each_eight, write};
use half::f16;
use std::arch::x86_64::*;

/// See [`super::super::ops::F32_LINES`] for the entries and the order of their additions.
#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn tables(x: &[f32], pre: Option<&[f16]>, tables: &mut [Line]) {
    each_eight(x, pre, tables.len() / F32_LINES, |i, v| {
        let out = tables[F32_LINES * i..][..F32_LINES].as_mut_ptr().cast::<f32>();
        let halves = [_mm256_permute2f128_ps::<0x00>(v, v), _mm256_permute2f128_ps::<0x11>(v, v)];
        for (half, v) in halves.into_iter().enumerate() {
            let value = [
                _mm256_permute_ps::<0b00_00_00_00>(v),
                _mm256_permute_ps::<0b01_01_01_01>(v),
                _mm256_permute_ps::<0b10_10_10_10>(v),
                _mm256_permute_ps::<0b11_11_11_11>(v),
            ];
            // Bits 0, 1, 2 of the entry's number give the signs of values 0, 1, 2; bit 3 tells the halves apart.
            let (m, p) = (-0.0f32, 0.0f32);
            let v0 = _mm256_xor_ps(value[0], _mm256_setr_ps(m, p, m, p, m, p, m, p));
            let v1 = _mm256_xor_ps(value[1], _mm256_setr_ps(m, m, p, p, m, m, p, p));
            let v2 = _mm256_xor_ps(value[2], _mm256_setr_ps(m, m, m, m, p, p, p, p));
            let v01 = _mm256_add_ps(v0, v1);
            // SAFETY: two lines are 32 aligned floats, half of them per group.
            unsafe {
                _mm256_store_ps(out.add(16 * half), _mm256_add_ps(v01, _mm256_sub_ps(v2, value[3])));
                _mm256_store_ps(out.add(16 * half + 8), _mm256_add_ps(v01, _mm256_add_ps(v2, value[3])));
            }
        }
    });
}

/// Adds the lookups of all columns to the sums of every row block.
#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn rows(run: &Run<'_>, sums: &mut [F32Sums]) {
    let tables = &run.tables[..F32_LINES * run.byte_cols];
    for (b, sums) in sums.iter_mut().enumerate() {
        let block = &run.tile[b * run.stride..][..32 * run.byte_cols];
        let chunks = block.chunks(32 * F32_CHUNK / 8).zip(tables.chunks(F32_LINES * F32_CHUNK / 8));
        for (tile, tables) in chunks {
            add_chunk(tile, tables, sums);
        }
    }
}

/// The entry that bits 0 to 2 of `index` choose, from `t8` where the sign bit of `pick` is set, else from `t0`.
#[inline]
#[target_feature(enable = "avx2")]
fn look(t0: __m256, t8: __m256, index: __m256i, pick: __m256i) -> __m256 {
    let (a, b) = (_mm256_permutevar8x32_ps(t0, index), _mm256_permutevar8x32_ps(t8, index));
    _mm256_blendv_ps(a, b, _mm256_castsi256_ps(pick))
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_chunk(tile: &[u8], tables: &[Line], sums: &mut F32Sums) {
    let mut chunk = [_mm256_setzero_ps(); 4];
    for (bytes, t) in tile.chunks_exact(32).zip(tables.chunks_exact(F32_LINES)) {
        let t = t.as_ptr().cast::<f32>();
        // SAFETY: two lines are 32 aligned floats.
        let table = |i: usize| unsafe { _mm256_load_ps(t.add(8 * i)) };
        let (low0, low8, high0, high8) = (table(0), table(1), table(2), table(3));
        for (sum, bytes) in chunk.iter_mut().zip(bytes.chunks_exact(8)) {
            // SAFETY: eight bytes.
            let w = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) });
            *sum = _mm256_add_ps(*sum, look(low0, low8, w, _mm256_slli_epi32::<28>(w)));
            let high = _mm256_srli_epi32::<4>(w);
            *sum = _mm256_add_ps(*sum, look(high0, high8, high, _mm256_slli_epi32::<24>(w)));
        }
    }
    for (chunk, sums) in chunk.into_iter().zip(sums.chunks_exact_mut(8)) {
        let halves = [_mm256_castps256_ps128(chunk), _mm256_extractf128_ps::<1>(chunk)];
        for (half, sums) in halves.into_iter().zip(sums.chunks_exact_mut(4)) {
            let p = sums.as_mut_ptr();
            // SAFETY: four f64.
            unsafe { _mm256_storeu_pd(p, _mm256_add_pd(_mm256_loadu_pd(p), _mm256_cvtps_pd(half))) };
        }
    }
}

/// # Safety
/// As [`write`].
#[target_feature(enable = "avx2,f16c")]
pub(in super::super) unsafe fn out(sums: &F32Sums, out: Output<'_>) {
    let eight = |i: usize| {
        let p = sums[8 * i..8 * i + 8].as_ptr();
        // SAFETY: eight f64.
        let (a, b) = unsafe { (_mm256_loadu_pd(p), _mm256_loadu_pd(p.add(4))) };
        _mm256_set_m128(_mm256_cvtpd_ps(b), _mm256_cvtpd_ps(a))
    };
    // SAFETY: passed on.
    unsafe { write(out, eight) }
}
