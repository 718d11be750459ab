//! What an instruction set has to provide; the loops around it are shared (`stage`).

use super::quantize::{Extent, Step};
use super::scratch::Line;
use half::f16;

/// Columns of one accumulation run. Bounded twice: 16-bit accumulators take 256 sums of four 6-bit table
/// entries, and the tables of a run fill 32 KiB, a first-level cache.
pub(super) const RUN_COLS: usize = 4096;

/// Columns summed in f32 before the sum moves on to f64 in `Mode::F32`.
pub const F32_CHUNK: usize = 256;

/// Lines of integer tables per 8 columns. A kernel chooses what it stores in them.
pub(super) const INT_LINES: usize = 1;

/// Lines of f32 tables per 8 columns: two groups of four columns, 16 sums each. Entry `i` of a group is
/// `(+-v_0 +- v_1) + (+-v_2 +- v_3)`, where bit `j` of `i` set means `+v_j`.
pub(super) const F32_LINES: usize = 2;

/// Sums of the 32 rows of one row block.
pub(super) type IntSums = [i32; 32];
/// Sums of the 32 rows of one row block, [`super::Mode::F32`].
pub(super) type F32Sums = [f64; 32];

/// Where the results of one row block of one column go.
#[derive(Clone, Copy)]
pub(super) struct Output<'a> {
    /// Rows of the block that exist, 1 to 32.
    pub rows: usize,
    pub step: Step,
    /// Output scales of these rows.
    pub post: Option<&'a [f16]>,
    /// Addend of these rows; may be `y` itself.
    pub add: Option<*const f32>,
    pub y: *mut f32,
}

/// The primitives of one instruction set.
///
/// Tables cover the columns padded to 16. `tile` starts at the first row block and column of a call; row
/// block `b` starts `b * stride` bytes further on. There are as many row blocks as `sums`.
pub(super) struct Ops {
    /// Extent of `pre * x`.
    pub extent: unsafe fn(x: &[f32], pre: Option<&[f16]>) -> Extent,
    /// Quantizes `pre * x` with a usable step and builds its tables. Returns what every row's sum starts at.
    pub int_tables: unsafe fn(x: &[f32], pre: Option<&[f16]>, step: Step, tables: &mut [Line]) -> i32,
    /// Builds the f32 tables of `pre * x`.
    pub f32_tables: unsafe fn(x: &[f32], pre: Option<&[f16]>, tables: &mut [Line]),
    /// Adds the columns of `tables` (at most [`RUN_COLS`]) to `sums`, which start at `start` if given.
    pub int_rows:
        unsafe fn(tile: &[u8], stride: usize, tables: &[Line], sums: &mut [IntSums], start: Option<i32>),
    /// As `int_rows`, in chunks of [`F32_CHUNK`] columns from the first of the call.
    pub f32_rows:
        unsafe fn(tile: &[u8], stride: usize, tables: &[Line], sums: &mut [F32Sums], start: Option<f64>),
    /// `y = add + ((f32(sum) * step) * unshift) * post`.
    pub int_out: unsafe fn(sums: &IntSums, out: Output<'_>),
    /// As `int_out`.
    pub f32_out: unsafe fn(sums: &F32Sums, out: Output<'_>),
}
