//! Integer tables of two 7-bit halves ("L7H7").
//!
//! A byte shuffle looks up bytes, but a sum `S` of four 14-bit activations has 14 bits and a sign. All 16 sums of a
//! group are even or all are odd, so half of them, rounded down, says as much: `S = 2 T - 16384 + odd` with
//! `0 <= T <= 16383`, and the other terms are one constant for all rows. The 14 bits are split into two halves of 7,
//! because then two lookups still add up in a byte and the costly widening to 16 bits happens once per 8 columns.
//! (Halves of 6 bits would allow four lookups and save two operations of fifteen, with activations four times as
//! coarse; see specs/results.md.)

use super::super::ops::{IntSums, Output, Run};
use super::super::pages;
use super::super::quantize::Step;
use super::super::scratch::Line;
use super::{Quantizer, each_eight, write};
use half::f16;
use std::arch::x86_64::*;

/// Columns of a run: their tables stay in the second-level cache, and signs are read from their beginning to their end.
pub(super) const RUN_COLS: usize = 16384;

/// Columns over 8 that 16-bit accumulators take: 256 sums of two 7-bit table entries.
const PIECE: usize = 2048 / 8;

/// Vectors of activations that share the extraction of indices. More do not fit into sixteen registers.
pub(super) const VECTORS: usize = 2;

/// How many bytes of signs ahead of the lookups memory is asked for: about a DRAM latency's worth of lookups.
const PREFETCH: usize = 6144;

/// What `S` is raised by so that it is not negative.
const RAISE: i16 = 16384;

/// A line holds the tables of two groups A, B of four columns: low halves of A and B, high halves of A and B,
/// 16 bytes each. Returns what is left of the sums of all groups without their `2 T`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn tables(x: &[f32], pre: Option<&[f16]>, step: Step, tables: &mut [Line]) -> i32 {
    let quantizer = Quantizer::new(step);
    let (one, zero) = (_mm_set1_epi16(1), _mm_setzero_si128());
    let patterns = Patterns::new();
    // One count for each group.
    let mut odd = zero;
    each_eight(x, pre, tables.len(), |i, v| {
        let q = quantizer.eight(v);
        let odd_values = _mm_sad_epu8(_mm_and_si128(q, one), zero);
        odd = _mm_add_epi16(odd, _mm_and_si128(odd_values, one));
        let (low, high) = halves(q, &patterns);
        let line = tables[i].0.as_mut_ptr();
        // SAFETY: a line is 64 bytes, 64-byte aligned.
        unsafe {
            _mm256_store_si256(line.cast(), low);
            _mm256_store_si256(line.add(32).cast(), high);
        }
    });
    let odd = _mm_extract_epi16::<0>(odd) + _mm_extract_epi16::<4>(odd);
    // Lookups end with the signs, at the next 16 columns.
    let groups = x.len().next_multiple_of(16) / 4;
    odd - i32::from(RAISE) * groups as i32
}

/// Shuffles of a lane that holds `q_0 .. q_3` and `-q_0 .. -q_3` of a group.
struct Patterns {
    /// First and second values of the sums `+-q_0 +- q_1` (entries 0 .. 4) and `+-q_2 +- q_3` (the same after them).
    pairs: [__m256i; 2],
    /// Second pair's sums for entries 0 .. 8 and 8 .. 16 of the group.
    upper: [__m256i; 2],
    /// `RAISE` for the sums of the first pair.
    raise: __m256i,
    negative: __m256i,
}

/// Words of [`Patterns::pairs`], [`Patterns::upper`].
const WORDS: [[u8; 8]; 4] =
    [[4, 0, 4, 0, 6, 2, 6, 2], [5, 5, 1, 1, 7, 7, 3, 3], [4, 4, 4, 4, 5, 5, 5, 5], [6, 6, 6, 6, 7, 7, 7, 7]];

impl Patterns {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new() -> Self {
        let mut shuffles = [_mm256_setzero_si256(); 4];
        // Were the patterns known, LLVM would make two shuffles of each.
        for (shuffle, words) in shuffles.iter_mut().zip(std::hint::black_box(WORDS)) {
            let bytes: [u8; 16] = std::array::from_fn(|i| 2 * words[i / 2] + i as u8 % 2);
            // SAFETY: sixteen bytes.
            *shuffle = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
        }
        let [first, second, lower, upper] = shuffles;
        const ONES: i64 = 0x0001_0001_0001_0001;
        let low_words = _mm256_set_epi64x(0, -1, 0, -1);
        Patterns {
            pairs: [first, second],
            upper: [lower, upper],
            raise: _mm256_and_si256(_mm256_set1_epi16(RAISE), low_words),
            negative: _mm256_set_epi64x(-1, ONES, -1, ONES),
        }
    }
}

/// Low and high 7-bit halves of `T` for the groups `q[0..4]` (lower lane) and `q[4..8]` (upper lane).
#[inline]
#[target_feature(enable = "avx2")]
fn halves(q: __m128i, p: &Patterns) -> (__m256i, __m256i) {
    let q = _mm256_permute4x64_epi64::<0b01_01_00_00>(_mm256_castsi128_si256(q));
    let q = _mm256_sign_epi16(q, p.negative);
    let pairs = _mm256_add_epi16(_mm256_shuffle_epi8(q, p.pairs[0]), _mm256_shuffle_epi8(q, p.pairs[1]));
    let pairs = _mm256_add_epi16(pairs, p.raise);
    let first = _mm256_shuffle_epi32::<0b01_00_01_00>(pairs);
    let s0 = _mm256_add_epi16(first, _mm256_shuffle_epi8(pairs, p.upper[0]));
    let s8 = _mm256_add_epi16(first, _mm256_shuffle_epi8(pairs, p.upper[1]));
    // T is half of the raised sum: bits 1 to 7 and 8 to 14.
    let seven = _mm256_set1_epi16(0xfe);
    let low = _mm256_packus_epi16(_mm256_and_si256(s0, seven), _mm256_and_si256(s8, seven));
    let high = _mm256_packus_epi16(_mm256_srli_epi16::<8>(s0), _mm256_srli_epi16::<8>(s8));
    (_mm256_srli_epi16::<1>(low), high)
}

/// Adds `2 T` of all lookups to the sums of every row block.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn rows(run: &Run<'_>, sums: &mut [IntSums]) {
    assert!(run.byte_cols.is_multiple_of(2) && run.byte_cols <= RUN_COLS / 8);
    match run.vectors {
        1 => row_blocks::<1>(run, sums),
        VECTORS => row_blocks::<VECTORS>(run, sums),
        more => unreachable!("{more} vectors"),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn row_blocks<const N: usize>(run: &Run<'_>, sums: &mut [IntSums]) {
    let blocks = sums.len() / N;
    for b in 0..blocks {
        pages::ahead(run, b, blocks);
        // The row block that is read after this one, where prefetching goes on.
        let next = run.row_block(b + 1, blocks);
        let tile = &run.tile[b * run.stride..][..32 * run.byte_cols];
        for (piece, tile) in tile.chunks(32 * PIECE).enumerate() {
            let (first, end) = (piece * PIECE, piece * PIECE + tile.len() / 32);
            let next = if end < run.byte_cols { tile.as_ptr_range().end } else { next };
            let tables = std::array::from_fn(|i| &run.tables[i * run.table_stride + first..][..end - first]);
            for (i, v) in row_block::<N>(tile, next, tables).into_iter().enumerate() {
                for (v, sums) in v.into_iter().zip(sums[i * blocks + b].chunks_exact_mut(8)) {
                    // SAFETY: eight integers.
                    unsafe {
                        let p: *mut __m256i = sums.as_mut_ptr().cast();
                        _mm256_storeu_si256(p, _mm256_add_epi32(_mm256_loadu_si256(p), v));
                    }
                }
            }
        }
    }
}

/// 16-bit sums of a half's bytes. `all` adds vectors of bytes (even + 256 odd) as they are, `odd` their odd bytes;
/// the even sums follow modulo 2^16. Both stay below 2^16: 128 steps of twice at most 2 * 127.
#[derive(Clone, Copy)]
struct Half {
    all: __m256i,
    odd: __m256i,
}

impl Half {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn add(&mut self, bytes: __m256i) {
        self.all = _mm256_add_epi16(self.all, bytes);
        self.odd = _mm256_add_epi16(self.odd, _mm256_srli_epi16::<8>(bytes));
    }
}

/// One row block: `tile` is 32 bytes per line of tables. Returns `2 T` of rows `8 i ..` for each vector of activations.
#[inline]
#[target_feature(enable = "avx2")]
fn row_block<const N: usize>(tile: &[u8], next: *const u8, tables: [&[Line]; N]) -> [[__m256i; 4]; N] {
    let nibble = _mm256_set1_epi8(15);
    let zero = Half { all: _mm256_setzero_si256(), odd: _mm256_setzero_si256() };
    let mut halves = [[zero; 2]; N];
    let tables = tables.map(|t| t.as_ptr().cast::<u8>());
    // Where the byte after this block's last would lie if the next block followed at once.
    let beyond = next.wrapping_sub(tile.len());
    for (i, bytes) in tile.chunks_exact(64).enumerate() {
        let w = bytes.as_ptr();
        let ahead = 64 * i + PREFETCH;
        let ahead = if ahead < tile.len() { tile.as_ptr() } else { beyond }.wrapping_add(ahead);
        // SAFETY: 64 bytes of signs; a prefetch may point anywhere.
        let (v0, v1) = unsafe {
            _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            (_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(w.add(32).cast()))
        };
        let index = [
            _mm256_and_si256(v0, nibble),
            _mm256_and_si256(_mm256_srli_epi16::<4>(v0), nibble),
            _mm256_and_si256(v1, nibble),
            _mm256_and_si256(_mm256_srli_epi16::<4>(v1), nibble),
        ];
        for (halves, t) in halves.iter_mut().zip(tables) {
            let look = |j: usize, at: usize| {
                // SAFETY: two lines of tables for every 64 bytes of signs, aligned.
                let table = unsafe { _mm_load_si128(t.add(128 * i + at).cast()) };
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), index[j])
            };
            for (half, at) in halves.iter_mut().zip([0, 32]) {
                half.add(_mm256_add_epi8(look(0, at), look(1, at + 16)));
                half.add(_mm256_add_epi8(look(2, at + 64), look(3, at + 80)));
            }
        }
    }
    let mut out = [[_mm256_setzero_si256(); 4]; N];
    for (out, halves) in out.iter_mut().zip(halves) {
        *out = doubled(halves);
    }
    out
}

/// `2 T` of rows `8 i ..` from the sums of both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn doubled([low, high]: [Half; 2]) -> [__m256i; 4] {
    let (low, high) = (widen(low), widen(high));
    let doubled =
        |i: usize| _mm256_slli_epi32::<1>(_mm256_add_epi32(low[i], _mm256_slli_epi32::<7>(high[i])));
    // `widen` leaves rows 4 i .. 4 i + 4 and 16 + 4 i .. in the lanes of vector i.
    [
        _mm256_permute2x128_si256::<0x20>(doubled(0), doubled(1)),
        _mm256_permute2x128_si256::<0x20>(doubled(2), doubled(3)),
        _mm256_permute2x128_si256::<0x31>(doubled(0), doubled(1)),
        _mm256_permute2x128_si256::<0x31>(doubled(2), doubled(3)),
    ]
}

/// Sums of 32 bytes each, in 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(Half { all, odd }: Half) -> [__m256i; 4] {
    let zero = _mm256_setzero_si256();
    let even = _mm256_sub_epi16(all, _mm256_slli_epi16::<8>(odd));
    let (l, h) = (_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd));
    [
        _mm256_unpacklo_epi16(l, zero),
        _mm256_unpackhi_epi16(l, zero),
        _mm256_unpacklo_epi16(h, zero),
        _mm256_unpackhi_epi16(h, zero),
    ]
}

/// # Safety
/// As [`write`].
#[target_feature(enable = "avx2,f16c")]
pub(in super::super) unsafe fn out(sums: &IntSums, out: Output<'_>) {
    // SAFETY: eight of 32 integers; the rest is passed on.
    unsafe { write(out, |i| _mm256_cvtepi32_ps(_mm256_loadu_si256(sums[8 * i..8 * i + 8].as_ptr().cast()))) }
}
