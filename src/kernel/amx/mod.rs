//! The AMX kernel, for processors with matrix tiles of bytes (Sapphire Rapids and later), on Linux.
//!
//! Nothing is looked up here: signs become bytes, +1 and -1, and a tile instruction multiplies 16 rows of them by 16 rows
//! of bytes of activations, 64 columns at a time. An activation is two bytes, `q = 128 high + low`, and these are two rows.
//! What signs cost to expand is shared by all vectors of a batch, so fewer than [`FROM`] vectors go to [`super::avx512`].

mod planes;
mod rows;
mod tile;

use super::avx2::exact;
use super::avx512;
use super::ops::{IntTables, Ops};
use super::stage::MAX_COLS;
use std::sync::OnceLock;

pub(super) const OPS: Ops = Ops {
    // Tiles of sums stay what they are from the first column to the last.
    run_cols: MAX_COLS,
    vectors: rows::VECTORS,
    extent: avx512::OPS.extent,
    int_tables: IntTables::Shared(planes::planes),
    f32_tables: exact::tables,
    index: None,
    lanes: None,
    int_rows: rows::rows,
    f32_rows: exact::rows,
    int_out: avx512::OPS.int_out,
    f32_out: exact::out,
};

/// Vectors of activations from which signs are worth expanding.
pub(super) const FROM: usize = 4;

/// Whether the processor has the instructions, and the system lets this process use them. Asks for that once; processes
/// that never ask keep the smaller state that the system saves of a thread.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| super::Kernel::Avx512.is_available() && tile::exist() && tile::permitted())
}
