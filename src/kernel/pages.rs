//! Address translations ahead of their use.
//!
//! A prefetch into a page that the processor has no translation for holds everything up until that is found. Weights
//! are read once per token, so every page of 4 KiB is such a page. Asked for one after the other they cost a quarter
//! of the time of a streamed layer; several side by side are found together.

use super::ops::Run;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

/// Row blocks whose pages are asked for together.
const BLOCKS: usize = 8;

const PAGE: usize = 4096;

/// To be called before row block `b` of the run: every [`BLOCKS`] blocks it asks for one line of each page of the
/// [`BLOCKS`] blocks after the next [`BLOCKS`], if the run comes from memory.
#[inline]
pub(super) fn ahead(run: &Run<'_>, b: usize) {
    if !run.cold || !b.is_multiple_of(BLOCKS) {
        return;
    }
    for b in b + BLOCKS..b + 2 * BLOCKS {
        for at in (0..32 * run.byte_cols).step_by(PAGE) {
            // SAFETY: a prefetch may point anywhere.
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(run.tile.as_ptr().wrapping_add(b * run.stride + at).cast())
            };
        }
    }
}
