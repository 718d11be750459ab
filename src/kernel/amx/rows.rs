//! Products of a batch with row blocks of signs.

use super::super::ops::{IntSums, Run};
use super::super::scratch::Line;
use super::super::stage::MAX_BATCH;
use super::planes::TILE_VECTORS;
use super::tile::{COLS, ROWS, STEP_LINES, Sums, Tiles};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Vectors of activations that share the expanded signs: whole batches, as their tables are shared.
pub(super) const VECTORS: usize = MAX_BATCH;

/// Columns of a row block whose signs are expanded at once: 16 KiB of bytes.
const CHUNK: usize = 512;

/// Adds the products of all columns to the sums of every row block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn rows(run: &Run<'_>, sums: &mut [IntSums]) {
    let vectors = run.vectors;
    assert!((1..=VECTORS).contains(&vectors) && sums.len().is_multiple_of(vectors));
    let blocks = sums.len() / vectors;
    assert!(run.byte_cols > 0 && run.byte_cols.is_multiple_of(2));
    assert!(blocks == 0 || run.tile.len() >= (blocks - 1) * run.stride + 32 * run.byte_cols);
    let (steps, used) = ((8 * run.byte_cols).div_ceil(COLS), vectors.div_ceil(TILE_VECTORS));
    let activations = &run.tables[..used * steps * ROWS];

    // SAFETY: this function needs what the kernel needs.
    let tiles = unsafe { Tiles::configure(2 * vectors.min(TILE_VECTORS)) };
    let mut signs = [const { MaybeUninit::<[Line; STEP_LINES]>::uninit() }; CHUNK / COLS];
    let mut products: [Sums; VECTORS / TILE_VECTORS] = [[[0; 32]; ROWS]; VECTORS / TILE_VECTORS];
    for b in 0..blocks {
        for from in (0..run.byte_cols).step_by(CHUNK / 8) {
            let byte_cols = (CHUNK / 8).min(run.byte_cols - from);
            // SAFETY: these columns of this row block were checked to exist.
            let signs =
                unsafe { expand(run.tile.as_ptr().add(b * run.stride + 32 * from), byte_cols, &mut signs) };
            let tile = |i: usize| &activations[(i * steps + 8 * from / COLS) * ROWS..(i + 1) * steps * ROWS];
            let (pairs, rest) = products[..used].as_chunks_mut::<2>();
            for (i, pair) in pairs.iter_mut().enumerate() {
                tiles.multiply([tile(2 * i), tile(2 * i + 1)], signs, from == 0, pair);
            }
            if let [last] = rest {
                tiles.multiply([tile(used - 1)], signs, from == 0, std::array::from_mut(last));
            }
        }
        for (v, sums) in sums.iter_mut().skip(b).step_by(blocks).enumerate() {
            let rows = &products[v / TILE_VECTORS][2 * (v % TILE_VECTORS)..][..2];
            add(&rows[0], &rows[1], sums);
        }
    }
}

/// Signs of `byte_cols` times 8 columns of a row block as bytes, in the order of tiles: a line has four columns of 16
/// rows; lines are of the next columns, 16 of the first 16 rows, then 16 of the others. Columns are padded to 64; what
/// pads them counts nothing, as activations are 0 there.
///
/// # Safety
/// `tile` is valid for `32 byte_cols` bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn expand(
    tile: *const u8,
    byte_cols: usize,
    signs: &mut [MaybeUninit<[Line; STEP_LINES]>; CHUNK / COLS],
) -> &[[Line; STEP_LINES]] {
    // Entry i: bit j of i set means that byte j is +1.
    const FOUR: [[i8; 4]; 16] = {
        let mut four = [[-1; 4]; 16];
        let mut i = 0;
        while i < 64 {
            if ((i / 4) >> (i % 4)) & 1 == 1 {
                four[i / 4][i % 4] = 1;
            }
            i += 1;
        }
        four
    };
    // SAFETY: 64 bytes.
    let four = unsafe { _mm512_loadu_si512(FOUR.as_ptr().cast()) };
    let signs = &mut signs[..byte_cols.div_ceil(COLS / 8)];
    for (step, lines) in signs.iter_mut().enumerate() {
        let lines = lines.as_mut_ptr().cast::<Line>();
        for i in 0..8 {
            let at = 8 * step + i;
            for half in 0..2 {
                let mut v = _mm512_setzero_si512();
                if at < byte_cols {
                    // SAFETY: 16 bytes of a byte column that exists.
                    v = _mm512_cvtepu8_epi32(unsafe {
                        _mm_loadu_si128(tile.add(32 * at + 16 * half).cast())
                    });
                }
                // Only the lowest four bits of a lane are an index.
                let lower = _mm512_permutexvar_epi32(v, four);
                let upper = _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(v), four);
                // SAFETY: two of the step's lines, of 64 bytes, 64-byte aligned.
                unsafe {
                    let line = lines.add(ROWS * half + 2 * i);
                    _mm512_store_si512(line.cast(), lower);
                    _mm512_store_si512(line.add(1).cast(), upper);
                }
            }
        }
    }
    // SAFETY: all lines of these have been written.
    unsafe { &*(std::ptr::from_ref(signs) as *const [[Line; STEP_LINES]]) }
}

/// `sums += 128 high + low`
#[inline]
#[target_feature(enable = "avx512f")]
fn add(high: &[i32; 32], low: &[i32; 32], sums: &mut IntSums) {
    for i in [0, 16] {
        // SAFETY: sixteen integers each.
        unsafe {
            let p = sums.as_mut_ptr().add(i);
            let high = _mm512_slli_epi32::<7>(_mm512_loadu_si512(high.as_ptr().add(i).cast()));
            let both = _mm512_add_epi32(high, _mm512_loadu_si512(low.as_ptr().add(i).cast()));
            _mm512_storeu_si512(p.cast(), _mm512_add_epi32(_mm512_loadu_si512(p.cast()), both));
        }
    }
}
