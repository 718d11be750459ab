//! Address translations ahead of their use.
//!
//! A prefetch into a page that the processor has no translation for holds everything up until that is found. Weights
//! are read once per token, so every page of 4 KiB is such a page. Asked for one after the other they cost a quarter
//! of the time of a streamed layer; several side by side are found together.

use super::ops::Run;
use crate::bits::TILE_ROWS;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

/// Bytes whose pages are asked for together, as far as [`BLOCKS`] and whole pairs of row blocks allow.
const BYTES: usize = 128 << 10;
/// Most row blocks whose pages are asked for together.
const BLOCKS: usize = 8;

const PAGE: usize = 4096;

/// To be called before row block `b` of the `blocks` of a run: every few blocks it asks for one line of each page of
/// the few after the next few, if the run comes from memory. Those may belong to what is read after this run.
#[inline]
pub(super) fn ahead(run: &Run<'_>, b: usize, blocks: usize) {
    if !run.cold {
        return;
    }
    let bytes = TILE_ROWS * run.byte_cols;
    let few = ((BYTES / bytes) & !1).clamp(2, BLOCKS).min(blocks);
    if !b.is_multiple_of(few) {
        return;
    }
    for b in b + few..b + 2 * few {
        let start = run.row_block(b, blocks);
        for at in (0..bytes).step_by(PAGE) {
            // SAFETY: a prefetch may point anywhere.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast()) };
        }
    }
}
