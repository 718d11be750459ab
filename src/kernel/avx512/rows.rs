//! Lookups and their sums.

use super::super::ops::{IntSums, Run};
use super::super::pages;
use super::super::scratch::Line;
use super::UNIT_LINES;
use std::arch::x86_64::*;

/// Columns of a run. Nothing overflows; the tables of most matrices are one run, which the second-level cache holds,
/// so signs are read from their beginning to their end.
pub(super) const RUN_COLS: usize = 16384;

/// Vectors of activations that share the work on the signs: their 16 sums, 8 tables and the constants fill the
/// registers.
pub(super) const VECTORS: usize = 4;

/// How many bytes of signs ahead of the lookups memory is asked for, in each row block.
const PREFETCH: usize = 4096;

/// Adds the lookups of all columns to the sums of every row block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn rows(run: &Run<'_>, sums: &mut [IntSums]) {
    match run.vectors {
        1 => vectors::<1>(run, sums),
        2 => vectors::<2>(run, sums),
        3 => vectors::<3>(run, sums),
        VECTORS => vectors::<VECTORS>(run, sums),
        more => unreachable!("{more} vectors"),
    }
}

/// Two row blocks at a time, which halves the loads of tables and gives the adders independent chains.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn vectors<const N: usize>(run: &Run<'_>, sums: &mut [IntSums]) {
    let (blocks, units) = (sums.len() / N, run.byte_cols.div_ceil(4));
    assert!(run.byte_cols.is_multiple_of(2) && sums.len() == N * blocks);
    assert!(blocks == 0 || run.tile.len() >= (blocks - 1) * run.stride + 32 * run.byte_cols);
    assert!(run.tables.len() >= (N - 1) * run.table_stride + UNIT_LINES * units);
    for b in (0..blocks & !1).step_by(2) {
        pages::ahead(run, b, blocks);
        // SAFETY: the lengths were checked.
        unsafe { row_blocks::<2, N>(run, b, blocks, sums) }
    }
    if blocks % 2 == 1 {
        // SAFETY: as above.
        unsafe { row_blocks::<1, N>(run, blocks - 1, blocks, sums) }
    }
}

/// `R` row blocks from `first` of `blocks`.
///
/// # Safety
/// `run` has these blocks and tables of `N` vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn row_blocks<const R: usize, const N: usize>(
    run: &Run<'_>,
    first: usize,
    blocks: usize,
    sums: &mut [IntSums],
) {
    let order = Order::new();
    let mut acc = [[[_mm512_setzero_si512(); 2]; N]; R];
    let tile = run.tile.as_ptr().wrapping_add(first * run.stride);
    let bytes = 32 * run.byte_cols;
    // The row blocks that are read after these, and where the byte after these blocks' last would lie if those
    // followed at once.
    let beyond = run.row_block(first + R, blocks).wrapping_sub(bytes);
    for unit in 0..run.byte_cols / 4 {
        let ahead = 128 * unit + PREFETCH;
        let ahead = if ahead < bytes { tile } else { beyond }.wrapping_add(ahead);
        let mut signs = [[_mm512_setzero_si512(); 2]; R];
        for (r, signs) in signs.iter_mut().enumerate() {
            let w = tile.wrapping_add(r * run.stride + 128 * unit);
            // SAFETY: 128 bytes of row block r; a prefetch may point anywhere.
            unsafe {
                let ahead = ahead.wrapping_add(r * run.stride);
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64).cast());
                let v = [_mm512_loadu_si512(w.cast()), _mm512_loadu_si512(w.add(64).cast())];
                *signs = order.by_row(v);
            }
        }
        // SAFETY: the unit's lines of every vector.
        unsafe {
            add_unit(&order, signs, run.tables.as_ptr().add(UNIT_LINES * unit), run.table_stride, &mut acc)
        };
    }
    if run.byte_cols % 4 == 2 {
        let unit = run.byte_cols / 4;
        let mut signs = [[_mm512_setzero_si512(); 2]; R];
        for (r, signs) in signs.iter_mut().enumerate() {
            // SAFETY: 64 bytes of row block r.
            let v = unsafe { _mm512_loadu_si512(tile.add(r * run.stride + 128 * unit).cast()) };
            // Tables of the 16 columns that do not exist are 0.
            *signs = order.by_row([v, _mm512_setzero_si512()]);
        }
        // SAFETY: as above, tables are padded to 32 columns.
        unsafe {
            add_unit(&order, signs, run.tables.as_ptr().add(UNIT_LINES * unit), run.table_stride, &mut acc)
        };
    }
    for (r, acc) in acc.iter().enumerate() {
        for (i, acc) in acc.iter().enumerate() {
            for (acc, sums) in acc.iter().zip(sums[i * blocks + first + r].chunks_exact_mut(16)) {
                let p = sums.as_mut_ptr();
                // SAFETY: sixteen integers.
                unsafe {
                    let sum = _mm512_add_epi32(_mm512_loadu_si512(p.cast()), *acc);
                    _mm512_storeu_si512(p.cast(), sum);
                }
            }
        }
    }
}

/// Adds 32 columns. `signs` are the bytes of rows 0 .. 16 and 16 .. 32 of each row block.
///
/// # Safety
/// `tables` is valid for [`UNIT_LINES`] lines, so are the `N - 1` places `stride` lines further on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn add_unit<const R: usize, const N: usize>(
    order: &Order,
    signs: [[__m512i; 2]; R],
    tables: *const Line,
    stride: usize,
    acc: &mut [[[__m512i; 2]; N]; R],
) {
    for upper in [false, true] {
        let mut t = [[_mm512_setzero_si512(); 2]; N];
        for (i, t) in t.iter_mut().enumerate() {
            // SAFETY: lines of vector i.
            *t = unsafe {
                let line = tables.add(i * stride + 2 * usize::from(upper));
                [_mm512_load_si512(line.cast()), _mm512_load_si512(line.add(1).cast())]
            };
        }
        for (signs, acc) in signs.iter().zip(&mut *acc) {
            for (s, signs) in signs.iter().enumerate() {
                let index = order.index(if upper { _mm512_srli_epi16::<4>(*signs) } else { *signs });
                for (acc, [low, high]) in acc.iter_mut().zip(t) {
                    let low = _mm512_permutexvar_epi8(index, low);
                    let high = _mm512_permutexvar_epi8(index, high);
                    acc[s] = _mm512_dpbusd_epi32(acc[s], order.low, low);
                    acc[s] = _mm512_dpbusd_epi32(acc[s], order.high, high);
                }
            }
        }
    }
}

/// Constants.
struct Order {
    /// Bytes of a unit's rows 0 .. 16, 16 .. 32.
    rows: [__m512i; 2],
    nibble: __m512i,
    /// Where each byte's table begins.
    table: __m512i,
    /// What low and high bytes of entries count.
    low: __m512i,
    high: __m512i,
}

/// Byte `4 i + j` of the output is row `16 half + i` of columns `8 j ..`; in the tile these are 32 bytes apart.
const ROWS: [[u8; 64]; 2] = {
    let mut order = [[0; 64]; 2];
    let mut i = 0;
    while i < 64 {
        order[0][i] = (32 * (i % 4) + i / 4) as u8;
        order[1][i] = order[0][i] + 16;
        i += 1;
    }
    order
};

impl Order {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new() -> Self {
        Order {
            // SAFETY: 64 bytes each.
            rows: ROWS.each_ref().map(|r| unsafe { _mm512_loadu_si512(r.as_ptr().cast()) }),
            nibble: _mm512_set1_epi8(15),
            table: _mm512_set1_epi32(0x30_20_10_00),
            low: _mm512_set1_epi8(1),
            high: _mm512_set1_epi8(i8::MIN),
        }
    }

    /// The four bytes of each row side by side, rows 0 .. 16 and 16 .. 32.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn by_row(&self, v: [__m512i; 2]) -> [__m512i; 2] {
        self.rows.map(|rows| _mm512_permutex2var_epi8(v[0], rows, v[1]))
    }

    /// `table | (signs & nibble)`
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn index(&self, signs: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32::<0b1111_1000>(self.table, signs, self.nibble)
    }
}
