//! One half of a factorized product, for runtimes that own their threads.

use super::Kernel;
use super::arithmetic::{Arithmetic, F32, Int, Mode, Place};
use super::lanes;
use super::ops::{INDEX_COLS, INDEX_LINES, LANES, LANES_FROM, Ops, Output, Run, TABLE_COLS};
use super::quantize::Step;
use super::scratch::{LINE, lines, view};
use crate::bits::{TILE_ROWS, padded_cols, padded_rows, tile_bytes};
use crate::error::{Error, Result};
use half::f16;
use std::ops::Range;

/// Most columns of a stage. With `|q_0| + .. + |q_3| <= 16383` sums stay below 2^30.
pub const MAX_COLS: usize = 1 << 18;

/// Columns of a batch whose tables are alive together. Their row blocks of signs are then read from the cache.
pub(super) const MAX_BATCH: usize = 32;
/// Bytes that the tables of a batch should not exceed, unless [`MIN_BATCH`] columns need more.
const BATCH_BYTES: usize = 2 << 20;
const MIN_BATCH: usize = 4;

/// Row blocks whose sums are alive together, and whose signs stay in the second-level cache while the columns
/// of a batch pass over them: 64 KiB for each 1024 columns of a run. Half and twice as many are as fast.
const GROUP_BLOCKS: usize = 16;

/// Columns of a batch from which signs are made indices first, by kernels that can.
const INDEX_FROM: usize = 12;

/// Part `i` of `n` of `0..total`, as even as possible.
fn share(total: usize, i: usize, n: usize) -> Range<usize> {
    let at = |i: usize| (total as u128 * i as u128 / n as u128) as usize;
    at(i)..at(i + 1)
}

/// Columns per thread from which threads share out columns instead of rows: below, the tables that every
/// thread then builds for itself cost less than an uneven share.
const COLUMNS_PER_THREAD: usize = 8;

/// One half of the product: `y = post * (S (pre * x))`, `S` the `rows x cols` sign tile.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// Rows of `S`: outputs.
    pub rows: usize,
    /// Columns of `S`: inputs.
    pub cols: usize,
    /// `S` in the layout of [`crate::bits`]; may start at any address. Padding bits do not matter.
    pub tile: &'a [u8],
    /// `cols` input scales.
    pub pre: Option<&'a [f16]>,
    /// `rows` output scales.
    pub post: Option<&'a [f16]>,
}

/// Columns of activations, or of the addend: column `t` starts `t * stride` floats after `start`.
#[derive(Clone, Copy)]
struct Columns<P> {
    start: P,
    stride: usize,
}

/// Which row blocks of which columns are computed at once, and where inputs and outputs lie.
#[derive(Clone)]
pub(super) struct Batch {
    pub blocks: Range<usize>,
    pub columns: Range<usize>,
    x: Columns<*const f32>,
    add: Option<Columns<*const f32>>,
    y: Columns<*mut f32>,
}

impl<'a> Stage<'a> {
    /// Whether the parts fit together. Errors: [`Error::Usage`] names the part that does not.
    pub fn check(&self) -> Result<()> {
        let fault = |what: String| Err(Error::usage(format!("{} x {} signs: {what}", self.rows, self.cols)));
        if self.rows == 0 || self.cols == 0 {
            return fault("an empty matrix".into());
        }
        if self.cols > MAX_COLS {
            return fault(format!("more than {MAX_COLS} columns"));
        }
        if self.rows > isize::MAX as usize / MAX_COLS {
            return fault("too many rows".into());
        }
        let want = tile_bytes(self.rows, self.cols);
        if self.tile.len() != want {
            return fault(format!("the tile has {} bytes, not {want}", self.tile.len()));
        }
        for (name, scales, want) in [("input", self.pre, self.cols), ("output", self.post, self.rows)] {
            if let Some(scales) = scales.filter(|s| s.len() != want) {
                return fault(format!("{} {name} scales, not {want}", scales.len()));
            }
        }
        Ok(())
    }

    /// Lines.
    fn tables_per_column(&self, mode: Mode) -> usize {
        self.cols.next_multiple_of(TABLE_COLS) / 8 * mode.table_lines()
    }

    /// Columns processed together.
    fn batch(&self, n: usize, mode: Mode) -> usize {
        let bytes = (self.tables_per_column(mode) * LINE).max(1);
        (BATCH_BYTES / bytes).clamp(MIN_BATCH, MAX_BATCH).min(n).max(1)
    }

    /// Columns of a run whose signs are made indices first: runs of equal length.
    fn index_cols(&self) -> usize {
        self.cols.div_ceil(self.cols.div_ceil(INDEX_COLS)).next_multiple_of(TABLE_COLS)
    }

    /// Lines of indices, for batches of columns that gain by them.
    fn index_lines(&self, batch: usize, mode: Mode) -> usize {
        let gain = mode == Mode::Int && batch >= INDEX_FROM;
        if gain { GROUP_BLOCKS * self.index_cols() / 8 * INDEX_LINES } else { 0 }
    }

    /// Whether so many columns, or the first of them, may be processed side by side.
    fn in_lanes(&self, n: usize, mode: Mode) -> bool {
        mode == Mode::Int && self.cols <= lanes::MOST_COLS && n >= LANES_FROM
    }

    /// Bytes of scratch memory that one thread needs for `n` columns, at any alignment. Bounded: it stops
    /// growing at 32 columns.
    pub fn work_size(&self, n: usize, mode: Mode) -> usize {
        let batch = self.batch(n, mode);
        let sums = GROUP_BLOCKS * batch * mode.sum_lines();
        let tables = self.tables_per_column(mode) * batch + sums + self.index_lines(batch, mode);
        let lanes = if self.in_lanes(n, mode) { lanes::work_lines(self.cols) } else { 0 };
        tables.max(lanes) * LINE + LINE - 1
    }

    /// Computes thread `ith`'s share (of `nth`) of `n` columns: `y = add + post * (S (pre * x))`.
    ///
    /// Threads share out row blocks, or columns if there are many; each share is written by its thread alone
    /// and is the same for every stage of equal `rows`, `n` and `nth`. No allocation, no waiting.
    ///
    /// # Panics
    /// If [`Self::check`] fails, `work` is smaller than [`Self::work_size`], `ith >= nth`, or `kernel` does
    /// not run here.
    ///
    /// # Safety
    /// * Column `t < n` of `x` is `cols` floats from `x + t * x_stride`, of `y` and `add` `rows` floats from
    ///   `y + t * y_stride` and `add.0 + t * add.1`: all valid and aligned, and `y`'s columns do not overlap.
    /// * Nobody writes `x`, and nobody but this call touches its share of `y`. `add` may be `y`.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn run(
        &self,
        kernel: Kernel,
        mode: Mode,
        x: *const f32,
        x_stride: usize,
        n: usize,
        add: Option<(*const f32, usize)>,
        y: *mut f32,
        y_stride: usize,
        work: &mut [u8],
        ith: usize,
        nth: usize,
    ) {
        self.check().expect("the parts of a stage must fit together");
        assert!(ith < nth, "thread {ith} of {nth}");
        assert!(work.len() >= self.work_size(n, mode), "scratch memory is too small");
        assert!(kernel.is_available(), "kernel '{kernel}' does not run here");
        let blocks = padded_rows(self.rows) / TILE_ROWS;
        let (blocks, columns) = if n >= COLUMNS_PER_THREAD * nth {
            (0..blocks, share(n, ith, nth))
        } else {
            (share(blocks, ith, nth), 0..n)
        };
        if blocks.is_empty() {
            return;
        }
        let x = Columns { start: x, stride: x_stride };
        let y = Columns { start: y, stride: y_stride };
        let add = add.map(|(start, stride)| Columns { start, stride });
        let batch = self.batch(n, mode);
        let mut first = columns.start;
        while first < columns.end {
            let left = columns.end - first;
            let ops = kernel.ops(mode, left.min(batch));
            let lanes = ops.lanes.as_ref().filter(|_| self.in_lanes(left, mode));
            let columns = first..first + left.min(if lanes.is_some() { LANES } else { batch });
            first = columns.end;
            let batch = Batch { blocks: blocks.clone(), columns, x, add, y };
            // SAFETY: the kernel runs here; the caller vouches for the columns.
            unsafe {
                match (lanes, mode) {
                    (Some(lanes), _) => self.lanes_of(ops, lanes, &batch, work),
                    (None, Mode::Int) => self.batch_of::<Int>(ops, &batch, work),
                    (None, Mode::F32) => self.batch_of::<F32>(ops, &batch, work),
                }
            }
        }
    }

    /// Column `t` of the inputs.
    ///
    /// # Safety
    /// It exists, by the promise of [`Self::run`]'s caller.
    pub(super) unsafe fn input<'x>(&self, batch: &'x Batch, t: usize) -> &'x [f32] {
        // SAFETY: `cols` floats, by the caller's promise.
        unsafe { std::slice::from_raw_parts(batch.x.start.add(t * batch.x.stride), self.cols) }
    }

    /// Where the results of row block `block` of column `t` go.
    ///
    /// # Safety
    /// As [`Self::input`].
    pub(super) unsafe fn output(&self, batch: &Batch, block: usize, t: usize, step: Step) -> Output<'a> {
        let row = block * TILE_ROWS;
        let rows = TILE_ROWS.min(self.rows - row);
        // SAFETY: rows `row..row + rows` of column t are inside the caller's columns.
        let (add, y) = unsafe {
            let add = batch.add.map(|a| a.start.add(t * a.stride + row));
            (add, batch.y.start.add(t * batch.y.stride + row))
        };
        Output { rows, step, post: self.post.map(|p| &p[row..row + rows]), add, y }
    }

    /// At most as many columns as [`Self::batch`] says.
    ///
    /// # Safety
    /// As [`Self::run`], and this CPU has what `ops` needs.
    unsafe fn batch_of<A: Arithmetic>(&self, ops: &Ops, batch: &Batch, work: &mut [u8]) {
        let Batch { blocks, columns, .. } = batch;
        let per_column = self.tables_per_column(A::MODE);
        let (tables, rest) = lines(work).split_at_mut(per_column * columns.len());
        let (sums, rest) = rest.split_at_mut(GROUP_BLOCKS * columns.len() * A::MODE.sum_lines());
        let sums: &mut [A::Sums] = view(sums);
        let index = &mut rest[..self.index_lines(columns.len(), A::MODE)];
        let make_index = A::index(ops).filter(|_| !index.is_empty());
        let run_cols = if make_index.is_some() { self.index_cols() } else { ops.run_cols };

        let mut state = [(Step { shift: 1.0, step: 0.0, unshift: 1.0 }, A::Start::default()); MAX_BATCH];
        for (c, t) in columns.clone().enumerate() {
            let place = Place { tables: &mut *tables, vector: c, stride: per_column };
            // SAFETY: this CPU has what `ops` needs; a column of the batch.
            state[c] = unsafe { A::tables(ops, self.input(batch, t), self.pre, place) };
        }

        let byte_cols = padded_cols(self.cols) / 8;
        let stride = byte_cols * TILE_ROWS;
        for first in blocks.clone().step_by(GROUP_BLOCKS) {
            let group = first..blocks.end.min(first + GROUP_BLOCKS);
            for from in (0..byte_cols).step_by(run_cols / 8) {
                let to = byte_cols.min(from + run_cols / 8);
                // On with the next columns of these row blocks, or else with the next row blocks.
                let next = if to < byte_cols {
                    (to - from) * TILE_ROWS
                } else {
                    group.len() * stride - from * TILE_ROWS
                };
                let mut run = Run {
                    tile: &self.tile[first * stride + from * TILE_ROWS..],
                    stride,
                    next,
                    byte_cols: to - from,
                    tables,
                    table_stride: per_column,
                    vectors: 0,
                    index: None,
                    cold: true,
                };
                if let Some(make) = make_index {
                    // SAFETY: this CPU has what `ops` needs.
                    unsafe { make(&run, group.len(), index) };
                    run.index = Some(&*index);
                }
                for c in (0..columns.len()).step_by(A::vectors(ops)) {
                    let vectors = A::vectors(ops).min(columns.len() - c);
                    run.tables = &tables[c * per_column + from * A::MODE.table_lines()..];
                    run.vectors = vectors;
                    run.cold = c == 0;
                    let sums = &mut sums[c * group.len()..][..vectors * group.len()];
                    if from == 0 {
                        for (sums, state) in sums.chunks_exact_mut(group.len()).zip(&state[c..]) {
                            sums.fill(A::begin(state.1));
                        }
                    }
                    // SAFETY: this CPU has what `ops` needs.
                    unsafe { A::rows(ops, &run, sums) };
                    if to < byte_cols {
                        continue;
                    }
                    for (c, sums) in (c..).zip(sums.chunks_exact(group.len())) {
                        let t = columns.start + c;
                        for (block, sums) in group.clone().zip(sums) {
                            // SAFETY: this CPU has what `ops` needs; a block and column of the batch.
                            unsafe { A::out(ops, sums, self.output(batch, block, t, state[c].0)) };
                        }
                    }
                }
            }
        }
    }
}
