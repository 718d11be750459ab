//! Batches whose vectors of activations lie side by side in registers ([`Lanes`]).

use super::ops::{IntSums, LANE_COLS, LANE_TABLES, LANES, LaneRun, Lanes, Ops, Output};
use super::quantize::Step;
use super::scratch::{LINE, Line, lines, view};
use super::stage::{Columns, Stage};
use crate::bits::{TILE_ROWS, padded_cols};
use std::ops::Range;

/// Columns of signs beyond which the activations of a batch would need more than 1 MiB of scratch memory.
pub(super) const MOST_COLS: usize = 32768;

/// Row blocks that share the tables: what it costs to build them is the lookups of 35 rows, by the count of instructions.
const GROUP_BLOCKS: usize = 32;

/// Lines of a row block's sums.
const BLOCK_LINES: usize = size_of::<[IntSums; LANES]>() / LINE;

/// Lines of scratch memory for batches of a matrix of so many columns; none if there are no such batches.
pub(super) fn work_lines(cols: usize) -> usize {
    if cols > MOST_COLS {
        return 0;
    }
    let q = LANES * cols.next_multiple_of(LANE_COLS) * size_of::<i16>() / LINE;
    LANE_TABLES + q + (GROUP_BLOCKS + 1) * BLOCK_LINES
}

impl Stage<'_> {
    /// Row blocks `blocks` of the columns `columns`, at most as many as there are lanes.
    ///
    /// # Safety
    /// As [`Stage::run`], and this CPU has what `ops` and `lanes` need.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn lanes_of(
        &self,
        ops: &Ops,
        lanes: &Lanes,
        blocks: Range<usize>,
        columns: Range<usize>,
        x: Columns<*const f32>,
        add: Option<Columns<*const f32>>,
        y: Columns<*mut f32>,
        work: &mut [u8],
    ) {
        let vectors = columns.len();
        assert!(vectors <= LANES && self.cols <= MOST_COLS);
        let q_stride = self.cols.next_multiple_of(LANE_COLS);
        let (tables, rest) = lines(work).split_first_chunk_mut().expect("scratch memory");
        let (q, rest) = rest.split_at_mut(vectors * q_stride * size_of::<i16>() / LINE);
        let (raised, rest) = rest.split_at_mut(GROUP_BLOCKS * BLOCK_LINES);
        let sums = view(&mut rest[..BLOCK_LINES]).first_chunk_mut().expect("scratch memory");

        let mut steps = [Step { shift: 1.0, step: 0.0, unshift: 1.0 }; LANES];
        let mut start = [0; LANES];
        let q: &mut [i16] = view(q);
        for (c, q) in q.chunks_exact_mut(q_stride).enumerate() {
            // SAFETY: a column of x, by the caller's promise; this CPU has what is needed.
            unsafe {
                let x = x.start.add((columns.start + c) * x.stride);
                let x = std::slice::from_raw_parts(x, self.cols);
                steps[c] = Step::of((ops.extent)(x, self.pre));
                if steps[c].is_usable() {
                    start[c] = (lanes.quantize)(x, self.pre, steps[c], q);
                } else {
                    q.fill(0);
                }
            }
        }

        let byte_cols = padded_cols(self.cols) / 8;
        let stride = byte_cols * TILE_ROWS;
        for first in blocks.clone().step_by(GROUP_BLOCKS) {
            let group = first..blocks.end.min(first + GROUP_BLOCKS);
            let raised = &mut raised[..group.len() * BLOCK_LINES];
            raised.fill(Line::ZERO);
            let tile = &self.tile[first * stride..];
            let run = LaneRun { tile, stride, byte_cols, blocks: group.len(), q, q_stride, vectors };
            // SAFETY: this CPU has what `lanes` needs.
            unsafe { (lanes.rows)(&run, tables, raised) };
            for (block, raised) in group.zip(raised.chunks_exact(BLOCK_LINES)) {
                let row = block * TILE_ROWS;
                let rows = TILE_ROWS.min(self.rows - row);
                let post = self.post.map(|p| &p[row..row + rows]);
                // SAFETY: rows `row..row + rows` of the columns are inside the caller's columns.
                unsafe {
                    (lanes.sums)(raised, &start, sums);
                    for ((t, sums), step) in columns.clone().zip(&*sums).zip(steps) {
                        let add = add.map(|a| a.start.add(t * a.stride + row));
                        let y = y.start.add(t * y.stride + row);
                        (ops.int_out)(sums, Output { rows, step, post, add, y });
                    }
                }
            }
        }
    }
}
