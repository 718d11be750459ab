//! Batches whose vectors of activations lie side by side in registers ([`Lanes`]).

use super::ops::{LANE_COLS, LANE_SUMS, LANE_TABLES, LANES, LaneRun, Lanes, Ops};
use super::quantize::Step;
use super::scratch::{LINE, Line, lines, view};
use super::stage::{Batch, Stage};
use crate::bits::{TILE_ROWS, padded_cols};

/// Columns of signs beyond which the activations of a batch would need more than 1 MiB of scratch memory.
pub(super) const MOST_COLS: usize = 32768;

/// Row blocks that share the tables: what it costs to build them is the lookups of 35 rows, by the count of instructions.
const GROUP_BLOCKS: usize = 32;

/// Lines of scratch memory for batches of a matrix of so many columns.
pub(super) fn work_lines(cols: usize) -> usize {
    let q = LANES * cols.next_multiple_of(LANE_COLS) * size_of::<i16>() / LINE;
    LANE_TABLES + q + (GROUP_BLOCKS + 1) * LANE_SUMS
}

impl Stage<'_> {
    /// At most as many columns as there are lanes.
    ///
    /// # Safety
    /// As [`Stage::run`], and this CPU has what `ops` and `lanes` need.
    pub(super) unsafe fn lanes_of(&self, ops: &Ops, lanes: &Lanes, batch: &Batch, work: &mut [u8]) {
        let Batch { blocks, columns, .. } = batch;
        assert!(columns.len() <= LANES && self.cols <= MOST_COLS);
        let q_stride = self.cols.next_multiple_of(LANE_COLS);
        let (tables, rest) = lines(work).split_first_chunk_mut().expect("scratch memory");
        let (q, rest) = rest.split_at_mut(columns.len() * q_stride * size_of::<i16>() / LINE);
        let (raised, rest) = rest.split_at_mut(GROUP_BLOCKS * LANE_SUMS);
        let sums = view(&mut rest[..LANE_SUMS]).first_chunk_mut().expect("scratch memory");

        let mut steps = [Step { shift: 1.0, step: 0.0, unshift: 1.0 }; LANES];
        let mut start = [0; LANES];
        let q: &mut [i16] = view(q);
        for (c, (t, q)) in columns.clone().zip(q.chunks_exact_mut(q_stride)).enumerate() {
            // SAFETY: a column of the batch; this CPU has what is needed.
            unsafe {
                let x = self.input(batch, t);
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
            let raised = &mut raised.as_chunks_mut().0[..group.len()];
            raised.fill([Line::ZERO; LANE_SUMS]);
            let run = LaneRun { tile: &self.tile[first * stride..], stride, byte_cols, q, q_stride };
            // SAFETY: this CPU has what `lanes` needs.
            unsafe { (lanes.rows)(&run, tables, raised) };
            for (block, raised) in group.zip(&*raised) {
                // SAFETY: this CPU has what is needed; a block and columns of the batch.
                unsafe {
                    (lanes.sums)(raised, &start, sums);
                    for ((t, sums), step) in columns.clone().zip(&*sums).zip(steps) {
                        (ops.int_out)(sums, self.output(batch, block, t, step));
                    }
                }
            }
        }
    }
}
