//! Signed tables in two bytes of 7 bits.
//!
//! The 16 signed sums `S` of a group are all even or all odd, `|S| <= 16383`. So half of them, rounded down, has 14 bits,
//! `S = 2 (128 high + low) + odd` with `-64 <= high < 64` and `0 <= low < 128`, and two entries add up in a byte. What
//! odd groups leave out is the same for all rows: where their sums start.
//!
//! Four lines hold the tables of 32 columns: low and high bytes for the lower groups of four in each 8 columns,
//! low and high bytes for the upper groups. Entry `16 k + i` of a line belongs to columns `8 k ..` and the signs `i`.

use super::super::ops::TABLE_COLS;
use super::super::quantize::Step;
use super::super::scratch::Line;
use super::UNIT_LINES;
use super::values::{Quotient, sixteen};
use half::f16;
use std::arch::x86_64::*;

/// Index patterns, see [`tables`].
struct Patterns {
    /// `[upper group][first or second value of a pair]`
    pairs: [[[u16; 32]; 2]; 2],
    /// `[line half][pair]`
    fours: [[[u16; 32]; 2]; 2],
    /// Low, high byte of 64 words.
    bytes: [[u8; 64]; 2],
}

static PATTERNS: Patterns = patterns();

const fn patterns() -> Patterns {
    let mut p = Patterns { pairs: [[[0; 32]; 2]; 2], fours: [[[0; 32]; 2]; 2], bytes: [[0; 64]; 2] };
    let mut i = 0;
    while i < 64 {
        p.bytes[0][i] = 2 * i as u8;
        p.bytes[1][i] = 2 * i as u8 + 1;
        // Pair sums: eight for each 8 columns, the four of values 0 and 1 before the four of values 2 and 3. Column c is
        // word c / 4 % 4 * 8 + c / 16 * 4 + c % 4, where `packs` leaves it. Bit 5 of an index chooses between q and -q.
        let (upper, at) = (i / 32, i % 32);
        let first = (8 * (at / 8) + 4 * upper + 2 * (at / 4 % 2)) as u16;
        let word = first / 4 % 4 * 8 + first / 16 * 4 + first % 4;
        p.pairs[upper][0][at] = word + if at & 1 == 1 { 0 } else { 32 };
        p.pairs[upper][1][at] = word + 1 + if at & 2 == 2 { 0 } else { 32 };
        let (k, signs) = (i / 16, i % 16);
        p.fours[i / 32][0][i % 32] = (8 * k + signs % 4) as u16;
        p.fours[i / 32][1][i % 32] = (8 * k + 4 + signs / 4) as u16;
        i += 1;
    }
    p
}

/// Halved sums of all groups. Returns the number of odd ones.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn tables(x: &[f32], pre: Option<&[f16]>, step: Step, tables: &mut [Line]) -> i32 {
    assert!(pre.is_none_or(|g| g.len() >= x.len()));
    let words = |p: &[u16; 32]| {
        // SAFETY: 64 bytes.
        unsafe { _mm512_loadu_si512(p.as_ptr().cast()) }
    };
    let pairs = [0, 1].map(|upper| [words(&PATTERNS.pairs[upper][0]), words(&PATTERNS.pairs[upper][1])]);
    let fours = [0, 1].map(|half| [words(&PATTERNS.fours[half][0]), words(&PATTERNS.fours[half][1])]);
    let bytes = PATTERNS.bytes.each_ref().map(|p| {
        // SAFETY: 64 bytes.
        unsafe { _mm512_loadu_si512(p.as_ptr().cast()) }
    });
    let quotient = Quotient::new(step);
    let (seven, one) = (_mm512_set1_epi8(127), _mm512_set1_epi16(1));
    // One count for each four columns.
    let mut odd = _mm512_setzero_si512();
    let quantized = |k: usize| {
        // SAFETY: checked above.
        let v = unsafe { sixteen(x, pre, k) };
        _mm512_cvtps_epi32(quotient.of(v))
    };
    for (unit, lines) in tables.chunks_exact_mut(UNIT_LINES).enumerate() {
        let k = TABLE_COLS * unit;
        let q = _mm512_packs_epi32(quantized(k), quantized(k + 16));
        let zero = _mm512_setzero_si512();
        let minus = _mm512_sub_epi16(zero, q);
        let odd_values = _mm512_sad_epu8(_mm512_and_si512(q, one), zero);
        odd = _mm512_add_epi64(odd, _mm512_and_si512(odd_values, _mm512_set1_epi64(1)));
        for (pairs, lines) in pairs.iter().zip(lines.chunks_exact_mut(2)) {
            let both = _mm512_add_epi16(
                _mm512_permutex2var_epi16(q, pairs[0], minus),
                _mm512_permutex2var_epi16(q, pairs[1], minus),
            );
            let mut sums = [zero; 2];
            for (sums, [first, second]) in sums.iter_mut().zip(fours) {
                *sums = _mm512_add_epi16(
                    _mm512_permutexvar_epi16(first, both),
                    _mm512_permutexvar_epi16(second, both),
                );
            }
            // The upper byte of S is that of its half, the lower one is so but for its lowest bit.
            let twice = _mm512_permutex2var_epi8(sums[0], bytes[0], sums[1]);
            let low = _mm512_srli_epi16::<1>(twice);
            let high = _mm512_permutex2var_epi8(sums[0], bytes[1], sums[1]);
            // SAFETY: two lines of 64 bytes, 64-byte aligned.
            unsafe {
                _mm512_store_si512(lines[0].0.as_mut_ptr().cast(), _mm512_and_si512(low, seven));
                _mm512_store_si512(lines[1].0.as_mut_ptr().cast(), high);
            }
        }
    }
    _mm512_reduce_add_epi64(odd) as i32
}
