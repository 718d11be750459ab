//! Sign products by `vdpbf16ps`.

use super::PANEL;
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

/// `out = (x diag(scale)) S^T` with x in `terms` bfloat16 terms; S is `n x k`, its `words` as [`super::Bits::Pairs`] has
/// them. Call only if [`available`].
pub fn product(words: &[u64], [n, k]: [usize; 2], x: &[f32], scale: &[f32], terms: usize, out: &mut [f32]) {
    assert!(available());
    let pairs = k.div_ceil(2);
    out.par_chunks_mut(TASK * n).zip(x.par_chunks(TASK * k)).for_each(|(out, x)| {
        let mut packed = vec![0u32; terms * pairs * ROWS];
        let (mut rest, mut line) = (Vec::new(), Vec::new());
        for (out, x) in out.chunks_mut(ROWS * n).zip(x.chunks(ROWS * k)) {
            let rows = x.len() / k;
            // SAFETY: the features are there.
            unsafe { pack(x, scale, terms, rows, [&mut rest, &mut line], &mut packed) };
            for (panel, words) in words.chunks_exact(pairs).enumerate() {
                let width = PANEL.min(n - panel * PANEL);
                // SAFETY: the features are there, `tile` checks nothing else that it relies on: `packed` holds
                // terms * pairs groups of `rows` values, `words` one word for each pair.
                let tile = unsafe { tile_of(rows)(&packed, words, terms) };
                for (out, tile) in out.chunks_exact_mut(n).zip(&tile) {
                    out[panel * PANEL..panel * PANEL + width].copy_from_slice(&tile[..width]);
                }
            }
        }
    });
}

/// Terms of `x diag(scale)` as `[term][pair][row]`, each a pair of neighbouring columns. `rest` and `line` hold a row.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack(
    x: &[f32],
    scale: &[f32],
    terms: usize,
    rows: usize,
    [rest, line]: [&mut Vec<u32>; 2],
    packed: &mut [u32],
) {
    let (k, pairs) = (scale.len(), scale.len().div_ceil(2));
    rest.clear();
    rest.resize(2 * pairs, 0);
    line.resize(pairs, 0);
    let rest: &mut [f32] = bytemuck::cast_slice_mut(rest);
    for (row, x) in x.chunks_exact(k).enumerate() {
        rest.iter_mut().zip(x).zip(scale).for_each(|((r, x), s)| *r = x * s);
        for term in 0..terms {
            for (pair, r) in line.iter_mut().zip(rest.as_chunks_mut::<2>().0) {
                let (a, b) = (round(r[0]), round(r[1]));
                *pair = a >> 16 | b;
                r[0] -= f32::from_bits(a);
                r[1] -= f32::from_bits(b);
            }
            let to = packed[term * pairs * rows..].iter_mut().skip(row).step_by(rows);
            to.zip(&*line).for_each(|(to, pair)| *to = *pair);
        }
    }
}

/// Bits of the nearest bfloat16, in the upper half.
#[inline(always)]
pub fn round(x: f32) -> u32 {
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

/// Pairs of columns of the dense matrix that are handled before the next rows are.
const DEPTH: usize = 512;
/// Rows of x that one task of a dense product handles.
const DENSE_TASK: usize = 5 * ROWS;

/// `out += x B^T` with B (`n x k`) as `[n/32][k/2][32]` pairs and x rounded to bfloat16. Call only if [`available`].
pub fn dense_product(b: &[u32], n: usize, k: usize, x: &[f32], out: &mut [f32]) {
    assert!(available());
    let pairs = k.div_ceil(2);
    assert_eq!(b.len(), n.div_ceil(PANEL) * pairs * PANEL);
    out.par_chunks_mut(DENSE_TASK * n).zip(x.par_chunks(DENSE_TASK * k)).for_each(|(out, x)| {
        let rows = x.len() / k;
        let mut packed = vec![0u32; rows * DEPTH];
        for first in (0..pairs).step_by(DEPTH) {
            let depth = DEPTH.min(pairs - first);
            let blocks = || (0..rows).step_by(ROWS).map(|row| (row, ROWS.min(rows - row)));
            for (row, count) in blocks() {
                let to = &mut packed[row * depth..(row + count) * depth];
                for (i, x) in x[row * k..(row + count) * k].chunks_exact(k).enumerate() {
                    let x = &x[2 * first..k.min(2 * (first + depth))];
                    let pair = |p: &[f32]| round(p[0]) >> 16 | p.get(1).map_or(0, |&p| round(p));
                    to[i..].iter_mut().step_by(count).zip(x.chunks(2)).for_each(|(to, x)| *to = pair(x));
                }
            }
            for (panel, b) in b.chunks_exact(pairs * PANEL).enumerate() {
                let width = PANEL.min(n - panel * PANEL);
                let b = &b[first * PANEL..(first + depth) * PANEL];
                for (row, count) in blocks() {
                    let x = &packed[row * depth..(row + count) * depth];
                    // SAFETY: the features are there.
                    let tile = unsafe { dense_tile_of(count)(x, b) };
                    for (i, tile) in tile.iter().take(count).enumerate() {
                        let out = &mut out[(row + i) * n + panel * PANEL..][..width];
                        out.iter_mut().zip(tile).for_each(|(out, t)| *out += t);
                    }
                }
            }
        }
    });
}

/// Adds `diag(sa) A^T B diag(sb)` to `out`, as [`super::super::coarse::add_outer`] has it; with `lower` only what is not
/// above the diagonal is sure to be added. Call only if [`available`].
pub fn add_outer(out: &mut [f32], [a, b]: [&[f32]; 2], [sa, sb]: [&[f32]; 2], lower: bool) {
    assert!(available());
    let (m, n) = (sa.len(), sb.len());
    let tokens = a.len() / m;
    let pairs = tokens.div_ceil(2);
    // Pairs of tokens of `width` columns from `first` on: the earlier one in the lower half.
    let pack = |x: &[f32], scale: &[f32], first: usize, width: usize, to: &mut [u32], stride: usize| {
        let n = scale.len();
        let scale = &scale[first..first + width];
        for (pair, to) in to.chunks_exact_mut(stride).enumerate() {
            let low = &x[2 * pair * n + first..][..width];
            let to = to.iter_mut().zip(scale).zip(low);
            if 2 * pair + 1 < tokens {
                let high = &x[(2 * pair + 1) * n + first..][..width];
                to.zip(high).for_each(|(((to, s), a), b)| *to = round(a * s) >> 16 | round(b * s));
            } else {
                to.for_each(|((to, s), a)| *to = round(a * s) >> 16);
            }
        }
    };
    let mut right = vec![0u32; n.div_ceil(PANEL) * pairs * PANEL];
    right.par_chunks_mut(pairs * PANEL).enumerate().for_each(|(panel, to)| {
        pack(b, sb, panel * PANEL, PANEL.min(n - panel * PANEL), to, PANEL);
    });
    out.par_chunks_mut(DENSE_TASK * n).enumerate().for_each(|(task, out)| {
        let (first, rows) = (task * DENSE_TASK, out.len() / n);
        let mut left = vec![0u32; rows * pairs];
        let blocks = || (0..rows).step_by(ROWS).map(|row| (row, ROWS.min(rows - row)));
        for (row, count) in blocks() {
            pack(a, sa, first + row, count, &mut left[row * pairs..(row + count) * pairs], count);
        }
        let panels = if lower { (first + rows).div_ceil(PANEL) } else { usize::MAX };
        for (panel, right) in right.chunks_exact(pairs * PANEL).enumerate().take(panels) {
            let width = PANEL.min(n - panel * PANEL);
            for (row, count) in blocks() {
                // SAFETY: the features are there.
                let tile = unsafe { dense_tile_of(count)(&left[row * pairs..(row + count) * pairs], right) };
                for (i, tile) in tile.iter().take(count).enumerate() {
                    let out = &mut out[(row + i) * n + panel * PANEL..][..width];
                    out.iter_mut().zip(tile).for_each(|(out, t)| *out += t);
                }
            }
        }
    });
}

fn dense_tile_of(rows: usize) -> unsafe fn(&[u32], &[u32]) -> Tile {
    match rows {
        1 => dense_tile::<1>,
        2 => dense_tile::<2>,
        3 => dense_tile::<3>,
        4 => dense_tile::<4>,
        5 => dense_tile::<5>,
        6 => dense_tile::<6>,
        7 => dense_tile::<7>,
        8 => dense_tile::<8>,
        9 => dense_tile::<9>,
        10 => dense_tile::<10>,
        11 => dense_tile::<11>,
        _ => dense_tile::<12>,
    }
}

/// `R` rows of x, `[pair][R]`, times 32 rows of B, `[pair][32]`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn dense_tile<const R: usize>(x: &[u32], b: &[u32]) -> Tile {
    assert_eq!(x.len() / R, b.len() / PANEL);
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for (x, b) in x.chunks_exact(R).zip(b.chunks_exact(PANEL)) {
        // SAFETY: a chunk of b holds 32 words; vectors of bfloat16 are 512 bits of any content.
        let b: [__m512bh; 2] = unsafe {
            [
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.as_ptr().cast())),
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.as_ptr().add(16).cast())),
            ]
        };
        for (sums, &x) in sums.iter_mut().zip(x) {
            // SAFETY: as above.
            let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(x as i32)) };
            sums[0] = _mm512_dpbf16_ps(sums[0], x, b[0]);
            sums[1] = _mm512_dpbf16_ps(sums[1], x, b[1]);
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
