//! Sign products by `vdpbf16ps`.

use super::{PANEL, Signs};
use rayon::prelude::*;
use std::arch::x86_64::*;

/// Rows of x in one register tile: with 2 x 16 columns, 24 accumulators.
const ROWS: usize = 12;
/// Rows of x that one task handles.
const TASK: usize = 8 * ROWS;
/// 1.0 in bfloat16.
const ONE: i16 = 0x3f80;

/// Whether this processor has the instructions.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw")
}

/// `out = (x diag(scale)) S^T` with x in `terms` bfloat16 terms. Call only if [`available`].
pub fn product(s: &Signs, x: &[f32], scale: &[f32], terms: usize, out: &mut [f32]) {
    assert!(available());
    let (n, k) = (s.n, s.k);
    let pairs = k.div_ceil(2);
    out.par_chunks_mut(TASK * n).zip(x.par_chunks(TASK * k)).for_each(|(out, x)| {
        let mut packed = vec![0u32; terms * pairs * ROWS];
        for (out, x) in out.chunks_mut(ROWS * n).zip(x.chunks(ROWS * k)) {
            let rows = x.len() / k;
            pack(x, scale, terms, rows, &mut packed);
            let run = |panel: usize, words: &[u64]| {
                let width = PANEL.min(n - panel * PANEL);
                // SAFETY: the features are there, `tile` checks nothing else that it relies on: `packed` holds
                // terms * pairs groups of `rows` values, `words` one word for each pair.
                let tile = unsafe { tile_of(rows)(&packed, words, terms) };
                (width, tile)
            };
            for (panel, words) in s.words.chunks_exact(pairs).enumerate() {
                let (width, tile) = run(panel, words);
                for (out, tile) in out.chunks_exact_mut(n).zip(&tile) {
                    out[panel * PANEL..panel * PANEL + width].copy_from_slice(&tile[..width]);
                }
            }
        }
    });
}

/// Terms of `x diag(scale)` as `[term][pair][row]`, each a pair of neighbouring columns.
fn pack(x: &[f32], scale: &[f32], terms: usize, rows: usize, packed: &mut [u32]) {
    let k = scale.len();
    let pairs = k.div_ceil(2);
    for (row, x) in x.chunks_exact(k).enumerate() {
        for pair in 0..pairs {
            let at = |c: usize| if c < k { x[c] * scale[c] } else { 0.0 };
            let (mut first, mut second) = (at(2 * pair), at(2 * pair + 1));
            for term in 0..terms {
                let (a, b) = (round(first), round(second));
                packed[(term * pairs + pair) * rows + row] = a >> 16 | b;
                first -= f32::from_bits(a);
                second -= f32::from_bits(b);
            }
        }
    }
}

/// Bits of the nearest bfloat16, in the upper half.
#[inline]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    // Not finite: adding could carry out of the exponent.
    if !x.is_finite() {
        return bits & 0xffff_0000;
    }
    bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000
}

type Tile = [[f32; PANEL]; ROWS];

fn tile_of(rows: usize) -> unsafe fn(&[u32], &[u64], usize) -> Tile {
    match rows {
        1 => tile::<1>,
        2 => tile::<2>,
        3 => tile::<3>,
        4 => tile::<4>,
        5 => tile::<5>,
        6 => tile::<6>,
        7 => tile::<7>,
        8 => tile::<8>,
        9 => tile::<9>,
        10 => tile::<10>,
        11 => tile::<11>,
        _ => tile::<12>,
    }
}

/// `R` rows times 32 sign rows. `packed` is `[term][pair][R]`, `words` `[pair]`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn tile<const R: usize>(packed: &[u32], words: &[u64], terms: usize) -> Tile {
    assert!(packed.len() >= terms * words.len() * R);
    let (plus, minus) = (_mm512_set1_epi16(ONE), _mm512_set1_epi16(ONE | i16::MIN));
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    let mut x = packed.as_ptr();
    for _ in 0..terms {
        for &word in words {
            let signs = [word as u32, (word >> 32) as u32];
            let signs = [
                _mm512_mask_blend_epi16(signs[0], minus, plus),
                _mm512_mask_blend_epi16(signs[1], minus, plus),
            ];
            // SAFETY: integer and bfloat16 vectors are 512 bits of any content.
            let signs: [__m512bh; 2] = unsafe { std::mem::transmute(signs) };
            let mut row = 0;
            while row < R {
                // SAFETY: x has gone over less than terms * pairs groups of R, as many as `packed` has.
                let x = unsafe { *x.add(row) };
                // SAFETY: as above.
                let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(x as i32)) };
                sums[row][0] = _mm512_dpbf16_ps(sums[row][0], x, signs[0]);
                sums[row][1] = _mm512_dpbf16_ps(sums[row][1], x, signs[1]);
                row += 1;
            }
            // SAFETY: at most one past the end.
            x = unsafe { x.add(R) };
        }
    }
    let mut out = [[0f32; PANEL]; ROWS];
    for (out, sum) in out.iter_mut().zip(&sums) {
        // SAFETY: a row holds 32 values.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), sum[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(16), sum[1]);
        }
    }
    out
}
