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

/// Indices of 32 columns of a row block: of rows 0 .. 16, 16 .. 32, in the lower and the upper groups of each 8 columns.
type Index = [[__m512i; 2]; 2];

/// Adds the lookups of all columns to the sums of every row block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn rows(run: &Run<'_>, sums: &mut [IntSums]) {
    match (run.vectors, run.index) {
        (1, None) => vectors::<1, false>(run, &[], sums),
        (2, None) => vectors::<2, false>(run, &[], sums),
        (3, None) => vectors::<3, false>(run, &[], sums),
        (VECTORS, None) => vectors::<VECTORS, false>(run, &[], sums),
        (1, Some(index)) => vectors::<1, true>(run, index, sums),
        (2, Some(index)) => vectors::<2, true>(run, index, sums),
        (3, Some(index)) => vectors::<3, true>(run, index, sums),
        (VECTORS, Some(index)) => vectors::<VECTORS, true>(run, index, sums),
        (more, _) => unreachable!("{more} vectors"),
    }
}

/// Writes the indices of the lookups of `blocks` row blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn index(run: &Run<'_>, blocks: usize, index: &mut [Line]) {
    check(run, blocks);
    let order = Order::new();
    for (b, lines) in run.index_of_blocks(blocks, index).enumerate() {
        for (unit, lines) in lines.chunks_exact_mut(UNIT_LINES).enumerate() {
            // SAFETY: this unit of this row block was checked to exist.
            let index = unsafe { order.unit(run, b, unit) };
            for (line, index) in lines.iter_mut().zip(index.as_flattened()) {
                // SAFETY: a line is 64 bytes, 64-byte aligned.
                unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), *index) };
            }
        }
    }
}

/// Units of a run. Panics if it has not the signs of so many row blocks.
fn check(run: &Run<'_>, blocks: usize) -> usize {
    assert!(run.byte_cols.is_multiple_of(2));
    assert!(blocks == 0 || run.tile.len() >= (blocks - 1) * run.stride + 32 * run.byte_cols);
    run.byte_cols.div_ceil(4)
}

/// Two row blocks at a time, which halves the loads of tables and gives the adders independent chains.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn vectors<const N: usize, const INDEXED: bool>(run: &Run<'_>, index: &[Line], sums: &mut [IntSums]) {
    let blocks = sums.len() / N;
    let units = check(run, blocks);
    assert!(sums.len() == N * blocks);
    assert!(run.tables.len() >= (N - 1) * run.table_stride + UNIT_LINES * units);
    assert!(!INDEXED || index.len() >= run.index_stride() * blocks);
    for b in (0..blocks & !1).step_by(2) {
        if !INDEXED {
            pages::ahead(run, b, blocks);
        }
        // SAFETY: the lengths were checked.
        unsafe { row_blocks::<2, N, INDEXED>(run, index, b, blocks, sums) }
    }
    if blocks % 2 == 1 {
        // SAFETY: as above.
        unsafe { row_blocks::<1, N, INDEXED>(run, index, blocks - 1, blocks, sums) }
    }
}

/// `R` row blocks from `first` of `blocks`.
///
/// # Safety
/// `run` has these blocks and tables of `N` vectors, `index` the indices of all blocks if `INDEXED`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn row_blocks<const R: usize, const N: usize, const INDEXED: bool>(
    run: &Run<'_>,
    index: &[Line],
    first: usize,
    blocks: usize,
    sums: &mut [IntSums],
) {
    let order = Order::new();
    let zero = _mm512_setzero_si512();
    let mut acc = [[[zero; 2]; N]; R];
    let bytes = 32 * run.byte_cols;
    let units = run.byte_cols.div_ceil(4);
    // Where these row blocks begin, and where they would if the ones that are read after them followed at once.
    let (tile, beyond) = (run.row_block(first, blocks), run.row_block(first + R, blocks).wrapping_sub(bytes));
    for unit in 0..units {
        let mut lookups = [[[zero; 2]; 2]; R];
        for (r, lookups) in lookups.iter_mut().enumerate() {
            // SAFETY: the unit is there; a prefetch may point anywhere.
            unsafe {
                if INDEXED {
                    let lines = index.as_ptr().add((first + r) * run.index_stride() + UNIT_LINES * unit);
                    *lookups = lines.cast::<Index>().read();
                    continue;
                }
                let ahead = 128 * unit + PREFETCH;
                let ahead = if ahead < bytes { tile } else { beyond }.wrapping_add(ahead + r * run.stride);
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64).cast());
                *lookups = order.unit(run, first + r, unit);
            }
        }
        // SAFETY: the unit's lines of every vector.
        unsafe {
            add_unit(&order, &lookups, run.tables.as_ptr().add(UNIT_LINES * unit), run.table_stride, &mut acc)
        };
    }
    for (r, acc) in acc.iter().enumerate() {
        for (i, acc) in acc.iter().enumerate() {
            for (acc, sums) in acc.iter().zip(sums[i * blocks + first + r].chunks_exact_mut(16)) {
                let p = sums.as_mut_ptr();
                // SAFETY: sixteen integers.
                unsafe {
                    let twice = _mm512_slli_epi32::<1>(*acc);
                    let sum = _mm512_add_epi32(_mm512_loadu_si512(p.cast()), twice);
                    _mm512_storeu_si512(p.cast(), sum);
                }
            }
        }
    }
}

/// Adds 32 columns.
///
/// # Safety
/// `tables` is valid for [`UNIT_LINES`] lines, so are the `N - 1` places `stride` lines further on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn add_unit<const R: usize, const N: usize>(
    order: &Order,
    index: &[Index; R],
    tables: *const Line,
    stride: usize,
    acc: &mut [[[__m512i; 2]; N]; R],
) {
    for i in 0..N {
        let mut t = [_mm512_setzero_si512(); UNIT_LINES];
        for (line, t) in t.iter_mut().enumerate() {
            // SAFETY: lines of vector i.
            *t = unsafe { _mm512_load_si512(tables.add(i * stride + line).cast()) };
        }
        let [low, high] = [[t[0], t[2]], [t[1], t[3]]];
        for (index, acc) in index.iter().zip(&mut *acc) {
            for (index, acc) in index.iter().zip(&mut acc[i]) {
                *acc = _mm512_dpbusd_epi32(*acc, entries(*index, low), order.low);
            }
        }
        for (index, acc) in index.iter().zip(&mut *acc) {
            for (index, acc) in index.iter().zip(&mut acc[i]) {
                *acc = _mm512_dpbusd_epi32(*acc, order.high, entries(*index, high));
            }
        }
    }
}

/// What the lower and the upper groups of 16 columns contribute: two entries fit into a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn entries(index: [__m512i; 2], tables: [__m512i; 2]) -> __m512i {
    let lower = _mm512_permutexvar_epi8(index[0], tables[0]);
    let upper = _mm512_permutexvar_epi8(index[1], tables[1]);
    _mm512_add_epi8(lower, upper)
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

    /// The four bytes of each row side by side, taken apart into the indices of their lookups.
    ///
    /// # Safety
    /// `run` has this row block and at least the first half of this unit of 32 columns.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    unsafe fn unit(&self, run: &Run<'_>, block: usize, unit: usize) -> Index {
        let w = run.tile.as_ptr().wrapping_add(block * run.stride + 128 * unit);
        // SAFETY: the first 64 bytes exist, the second if the run does not end before them. Tables of columns that do
        // not exist are 0.
        let v = unsafe {
            let half = 4 * unit + 2 == run.byte_cols;
            let second = if half { _mm512_setzero_si512() } else { _mm512_loadu_si512(w.add(64).cast()) };
            [_mm512_loadu_si512(w.cast()), second]
        };
        let mut index = [[v[0]; 2]; 2];
        // Loops, not closures: those are not inlined into functions without these instructions.
        for (index, rows) in index.iter_mut().zip(self.rows) {
            let signs = _mm512_permutex2var_epi8(v[0], rows, v[1]);
            *index = [self.index(signs), self.index(_mm512_srli_epi16::<4>(signs))];
        }
        index
    }

    /// `table | (signs & nibble)`
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn index(&self, signs: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32::<0b1111_1000>(self.table, signs, self.nibble)
    }
}
