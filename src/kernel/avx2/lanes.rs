//! Many vectors of activations at once: vectors side by side in a register, lookups from memory.
//!
//! The 5 or 6 signs of a row in as many columns choose one of 32 or 64 sums of these columns' activations, and an entry
//! of a table holds that sum for 16 vectors: a load and an addition serve 80 to 96 products. Sums are of the
//! activations that count positive. Over 16 columns, raised by what the negative ones amount to, they lie between 0
//! and `|q_0| + .. + |q_15|`, which the group rule bounds by `4 * 16383`: they fit 16 bits without a sign, so three
//! lookups add up before anything is widened.
//!
//! ```text
//! sum_k +-q_k = 2 sum_{k: +} q_k - sum_k q_k = 2 (raised sums) - sum_k |q_k|
//! ```

use super::super::ops::{IntSums, LANE_COLS, LANE_SUMS, LANE_TABLES, LANES, LaneRun};
use super::super::quantize::Step;
use super::super::scratch::{LINE, Line};
use super::{Quantizer, each_eight};
use half::f16;
use std::arch::x86_64::*;

/// Columns whose lookups add up in 16 bits.
const STEP: usize = 16;

/// Where the tables of a step begin, in entries: of 5, 5, and 6 columns.
const TABLES: [usize; 3] = [0, 32, 64];
const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 2 * LANES;
const STEP_LINES: usize = ENTRIES * ENTRY_BYTES / LINE;

/// Steps whose tables are alive together, 16 KiB: half of a small first-level cache.
const STEPS: usize = LANE_COLS / STEP;
const _: () = assert!(STEPS * STEP_LINES == LANE_TABLES);

/// Indices of the rows of a row block: for each step and table, each row's, times four. An address has room for the
/// other factor of eight.
type Index = [[[u8; 32]; 3]; STEPS];

/// Quantizes `pre * x` into `q`, which is padded with zeros. Returns what twice the raised sums are too large by,
/// negative.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn quantize(x: &[f32], pre: Option<&[f16]>, step: Step, q: &mut [i16]) -> i32 {
    let quantizer = Quantizer::new(step);
    let one = _mm_set1_epi16(1);
    let mut magnitudes = _mm_setzero_si128();
    each_eight(x, pre, q.len() / 8, |i, v| {
        let v = quantizer.eight(v);
        magnitudes = _mm_add_epi32(magnitudes, _mm_madd_epi16(_mm_abs_epi16(v), one));
        // SAFETY: eight integers.
        unsafe { _mm_storeu_si128(q[8 * i..8 * i + 8].as_mut_ptr().cast(), v) };
    });
    let pairs = _mm_add_epi32(magnitudes, _mm_shuffle_epi32::<0b01_00_11_10>(magnitudes));
    -(_mm_cvtsi128_si32(pairs) + _mm_extract_epi32::<1>(pairs))
}

/// Adds the raised sums of all columns. A row block's `sums` are, for each row, two vectors of 32-bit sums: of pairs of lanes as they
/// are (even + 65536 odd), and of odd lanes.
#[target_feature(enable = "avx2")]
pub(super) fn rows(run: &LaneRun<'_>, tables: &mut [Line; LANE_TABLES], sums: &mut [[Line; LANE_SUMS]]) {
    assert!(run.byte_cols.is_multiple_of(2) && run.q_stride >= 8 * run.byte_cols);
    assert!(run.q.len() <= LANES * run.q_stride);
    let steps = run.byte_cols / 2;
    for first in (0..steps).step_by(STEPS) {
        let here = STEPS.min(steps - first);
        for s in 0..here {
            let mut q = [_mm256_setzero_si256(); LANES];
            for (q, vector) in q.iter_mut().zip(run.q.chunks_exact(run.q_stride)) {
                let columns = &vector[STEP * (first + s)..][..STEP];
                // SAFETY: sixteen integers.
                *q = unsafe { _mm256_loadu_si256(columns.as_ptr().cast()) };
            }
            build(transposed(q), &mut tables[s * STEP_LINES..(s + 1) * STEP_LINES]);
        }
        let mut index = [[[0; 32]; 3]; STEPS];
        for (b, sums) in sums.iter_mut().enumerate() {
            let at = b * run.stride + 64 * first;
            let tile = &run.tile[at..at + 64 * here];
            for line in 0..here {
                _mm_prefetch::<_MM_HINT_T0>(tile.as_ptr().wrapping_add(run.stride + 64 * line).cast());
            }
            for (index, signs) in index.iter_mut().zip(tile.chunks_exact(64)) {
                indices(signs, index);
            }
            match here {
                1 => row_block::<1>(&index, tables, sums),
                2 => row_block::<2>(&index, tables, sums),
                3 => row_block::<3>(&index, tables, sums),
                _ => row_block::<STEPS>(&index, tables, sums),
            }
        }
    }
}

/// The tables of a step from the activations of each of its columns.
#[inline]
#[target_feature(enable = "avx2")]
fn build(q: [__m256i; STEP], tables: &mut [Line]) {
    let zero = _mm256_setzero_si256();
    let mut raise = zero;
    for q in q {
        raise = _mm256_sub_epi16(raise, _mm256_min_epi16(q, zero));
    }
    assert!(tables.len() == STEP_LINES);
    let entries: *mut __m256i = tables.as_mut_ptr().cast();
    let fill = |first: usize, raise: __m256i, q: &[__m256i]| {
        // SAFETY: 2^5, 2^5, 2^6 of the step's entries.
        unsafe {
            let table = entries.add(first);
            table.write(raise);
            for (j, q) in q.iter().enumerate() {
                for i in 0..1 << j {
                    table.add((1 << j) + i).write(_mm256_add_epi16(table.add(i).read(), *q));
                }
            }
        }
    };
    fill(TABLES[0], raise, &q[..5]);
    fill(TABLES[1], zero, &q[5..10]);
    fill(TABLES[2], zero, &q[10..]);
}

/// Indices of a step from its two bytes of signs of each row.
#[inline]
#[target_feature(enable = "avx2")]
fn indices(signs: &[u8], index: &mut [[u8; 32]; 3]) {
    assert!(signs.len() == 64);
    let mask = |bits: u8| _mm256_set1_epi8(bits as i8);
    // SAFETY: 32 bytes each.
    unsafe {
        let a = _mm256_loadu_si256(signs.as_ptr().cast());
        let b = _mm256_loadu_si256(signs.as_ptr().add(32).cast());
        let first = _mm256_and_si256(_mm256_slli_epi16::<2>(a), mask(0x7c));
        let second = _mm256_or_si256(
            _mm256_and_si256(_mm256_srli_epi16::<3>(a), mask(0x1c)),
            _mm256_and_si256(_mm256_slli_epi16::<5>(b), mask(0x60)),
        );
        let third = _mm256_and_si256(b, mask(0xfc));
        for (index, v) in index.iter_mut().zip([first, second, third]) {
            _mm256_storeu_si256(index.as_mut_ptr().cast(), v);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn row_block<const N: usize>(index: &Index, tables: &[Line; LANE_TABLES], sums: &mut [Line; LANE_SUMS]) {
    assert!(N <= STEPS);
    let tables: *const u8 = tables.as_ptr().cast();
    for (r, sums) in sums.iter_mut().enumerate() {
        let p: *mut __m256i = sums.0.as_mut_ptr().cast();
        // SAFETY: a line is two vectors; an index is below four times the entries of its table.
        unsafe {
            let (mut all, mut odd) = (p.read(), p.add(1).read());
            for (s, index) in index.iter().enumerate().take(N) {
                let entry = |t: usize| {
                    let offset = (s * ENTRIES + TABLES[t]) * ENTRY_BYTES;
                    _mm256_load_si256(tables.add(offset + ENTRY_BYTES / 4 * usize::from(index[t][r])).cast())
                };
                let x = _mm256_add_epi16(_mm256_add_epi16(entry(0), entry(1)), entry(2));
                all = _mm256_add_epi32(all, x);
                odd = _mm256_add_epi32(odd, _mm256_srli_epi32::<16>(x));
            }
            p.write(all);
            p.add(1).write(odd);
        }
    }
}

/// The sums of a row block for each vector: twice the raised ones, plus `start`.
#[target_feature(enable = "avx2")]
pub(super) fn sums(raised: &[Line; LANE_SUMS], start: &[i32; LANES], out: &mut [IntSums; LANES]) {
    for first in (0..32).step_by(8) {
        let (mut even, mut odd) = ([_mm256_setzero_si256(); 8], [_mm256_setzero_si256(); 8]);
        for (r, line) in raised[first..first + 8].iter().enumerate() {
            let p: *const __m256i = line.0.as_ptr().cast();
            // SAFETY: a line is two vectors.
            let all = unsafe {
                odd[r] = p.add(1).read();
                p.read()
            };
            even[r] = _mm256_sub_epi32(all, _mm256_slli_epi32::<16>(odd[r]));
        }
        for (parity, v) in [even, odd].into_iter().enumerate() {
            for (i, v) in transposed_8(v).into_iter().enumerate() {
                let lane = 2 * i + parity;
                let v = _mm256_add_epi32(_mm256_slli_epi32::<1>(v), _mm256_set1_epi32(start[lane]));
                // SAFETY: eight integers.
                unsafe { _mm256_storeu_si256(out[lane][first..first + 8].as_mut_ptr().cast(), v) };
            }
        }
    }
}

/// Eight rows of eight integers, transposed.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed_8(mut v: [__m256i; 8]) -> [__m256i; 8] {
    let mut t = v;
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for i in [0, 4] {
        for j in 0..2 {
            v[i + 2 * j] = _mm256_unpacklo_epi64(t[i + j], t[i + j + 2]);
            v[i + 2 * j + 1] = _mm256_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    }
    for i in 0..4 {
        t[i] = _mm256_permute2x128_si256::<0x20>(v[i], v[i + 4]);
        t[i + 4] = _mm256_permute2x128_si256::<0x31>(v[i], v[i + 4]);
    }
    t
}

/// Sixteen rows of sixteen integers, transposed.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(v: [__m256i; 16]) -> [__m256i; 16] {
    // Pairs of rows 2 i, 2 i + 1 in 32 bits, then as two matrices of integers of 32 bits.
    let zero = _mm256_setzero_si256();
    let mut out = [zero; 16];
    let (mut low, mut high) = ([zero; 8], [zero; 8]);
    for i in 0..8 {
        low[i] = _mm256_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
        high[i] = _mm256_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
    }
    // Columns 0 .. 4 and 8 .. 12 are in `low`, the others in `high`.
    for (first, v) in [(0, low), (4, high)] {
        for (i, v) in transposed_8(v).into_iter().enumerate() {
            out[first + i % 4 + 8 * (i / 4)] = v;
        }
    }
    out
}
