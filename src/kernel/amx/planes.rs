//! Activations as bytes in the order of tiles: `q = 128 high + low`, `-64 <= high < 64`, `0 <= low < 128`.
//!
//! Eight vectors make the 16 rows of a tile, high bytes before low ones; the tiles of the first eight go through all
//! columns, 64 at a time, then come those of the next. Rows of vectors that do not exist are what they were.

use super::super::avx512::values::{Quotient, sixteen};
use super::super::quantize::Step;
use super::super::scratch::Line;
use super::tile::{COLS, ROWS};
use half::f16;
use std::arch::x86_64::*;

/// Vectors of a tile: two rows each.
pub(super) const TILE_VECTORS: usize = ROWS / 2;

/// Quantizes `pre * x`, which is vector `vector` of its batch.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn planes(x: &[f32], pre: Option<&[f16]>, step: Step, tables: &mut [Line], vector: usize) {
    assert!(pre.is_none_or(|g| g.len() >= x.len()));
    let steps = x.len().div_ceil(COLS);
    let tiles = &mut tables[vector / TILE_VECTORS * steps * ROWS..][..steps * ROWS];
    let row = 2 * (vector % TILE_VECTORS);
    if !step.is_usable() {
        for tile in tiles.as_chunks_mut::<ROWS>().0 {
            tile[row..row + 2].fill(Line::ZERO);
        }
        return;
    }
    let quotient = Quotient::new(step);
    // What two rounds of `packs` do to words of four columns.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let seven = _mm512_set1_epi16(127);
    for (i, tile) in tiles.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        let mut q = [_mm512_setzero_si512(); 4];
        for (j, q) in q.iter_mut().enumerate() {
            // SAFETY: checked above.
            *q = _mm512_cvtps_epi32(quotient.of(unsafe { sixteen(x, pre, COLS * i + 16 * j) }));
        }
        let q = [_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3])];
        let h = _mm512_packs_epi16(_mm512_srai_epi16::<7>(q[0]), _mm512_srai_epi16::<7>(q[1]));
        let l = _mm512_packs_epi16(_mm512_and_si512(q[0], seven), _mm512_and_si512(q[1], seven));
        // SAFETY: lines of 64 bytes, 64-byte aligned.
        unsafe {
            _mm512_store_si512(tile[row].0.as_mut_ptr().cast(), _mm512_permutexvar_epi32(order, h));
            _mm512_store_si512(tile[row + 1].0.as_mut_ptr().cast(), _mm512_permutexvar_epi32(order, l));
        }
    }
}
