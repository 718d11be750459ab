//! What an instruction set has to provide; the loops around it are shared (`stage`).

use super::quantize::{Extent, Step};
use super::scratch::{LINE, Line};
use half::f16;

/// Most columns of a run whose signs are made indices first, a multiple of [`TABLE_COLS`]: the indices of a group of row
/// blocks, 256 KiB, then stay in the second-level cache beside the tables of some vectors.
pub(super) const INDEX_COLS: usize = 2048;

/// Lines of indices per 8 columns of a row block.
pub(super) const INDEX_LINES: usize = 1;

/// Most vectors of activations side by side.
pub(super) const LANES: usize = 16;
/// Vectors from which [`Lanes`] are faster.
pub(super) const LANES_FROM: usize = 12;
/// Activations of [`Lanes`] are padded to this.
pub(super) const LANE_COLS: usize = 64;
/// Lines for the tables of as many columns.
pub(super) const LANE_TABLES: usize = 256;
/// Lines of a row block's sums of all lanes.
pub(super) const LANE_SUMS: usize = size_of::<[IntSums; LANES]>() / LINE;

/// Columns summed in f32 before the sum moves on to f64 in `Mode::F32`.
pub const F32_CHUNK: usize = 256;

/// Lines of integer tables per 8 columns. A kernel chooses what it stores in them.
pub(super) const INT_LINES: usize = 1;

/// Tables are built for columns padded to this, so that kernels may treat as many at once.
pub(super) const TABLE_COLS: usize = 32;

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

/// Extent of `pre * x`.
pub(super) type ExtentOf = unsafe fn(x: &[f32], pre: Option<&[f16]>) -> Extent;

/// Quantizes `pre * x` with a usable step and builds its tables. Returns what every row's sum starts at.
pub(super) type TablesOf = unsafe fn(x: &[f32], pre: Option<&[f16]>, step: Step, tables: &mut [Line]) -> i32;

/// Quantizes `pre * x`, all to 0 without a usable step, and puts it among the tables of its batch as vector `vector`.
pub(super) type TablesAmong =
    unsafe fn(x: &[f32], pre: Option<&[f16]>, step: Step, tables: &mut [Line], vector: usize);

/// Whose the integer tables of a kernel are.
#[derive(Clone, Copy)]
pub(super) enum IntTables {
    /// Each vector has its own.
    Each(TablesOf),
    /// All vectors of a batch share them. Sums start at 0.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Shared(TablesAmong),
}

/// Builds the f32 tables of `pre * x`.
pub(super) type F32Tables = unsafe fn(x: &[f32], pre: Option<&[f16]>, tables: &mut [Line]);

/// Some columns of signs and the tables that they are looked up in.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    /// Signs from the first row block and column of the run.
    pub tile: &'a [u8],
    /// Bytes from one row block to the next.
    pub stride: usize,
    /// From the first byte of `tile` to that of the run that will be read next, which has the same stride. There
    /// may be none; then the place does not belong to the signs.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub next: usize,
    /// Columns of signs over 8; even.
    pub byte_cols: usize,
    /// Tables of these columns, padded to [`TABLE_COLS`]: those of the first vector of activations, or of all if they
    /// are [`IntTables::Shared`].
    pub tables: &'a [Line],
    /// Lines from the tables of one vector to those of the next.
    pub table_stride: usize,
    /// Vectors of activations.
    pub vectors: usize,
    /// What [`Ops::index`] made of these signs, if it was called.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub index: Option<&'a [Line]>,
    /// Whether the signs have yet to come from memory: no vectors of the same batch met them before.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub cold: bool,
}

#[cfg(target_arch = "x86_64")]
impl Run<'_> {
    /// Lines from the indices of one row block to those of the next.
    #[inline]
    pub fn index_stride(&self) -> usize {
        INDEX_LINES * self.byte_cols.next_multiple_of(TABLE_COLS / 8)
    }

    /// The place of each row block's indices. Panics if there is too little.
    pub fn index_of_blocks<'i>(
        &self,
        blocks: usize,
        index: &'i mut [Line],
    ) -> std::slice::ChunksExactMut<'i, Line> {
        index[..blocks * self.index_stride()].chunks_exact_mut(self.index_stride())
    }

    /// Where row block `b` begins, for prefetches; those from `blocks`, the number of the run, on are the next run's.
    #[inline]
    pub fn row_block(&self, b: usize, blocks: usize) -> *const u8 {
        let at = if b < blocks { b * self.stride } else { self.next + (b - blocks) * self.stride };
        self.tile.as_ptr().wrapping_add(at)
    }
}

/// Signs and activations of a batch whose vectors lie side by side.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct LaneRun<'a> {
    /// Signs from the first row block on.
    pub tile: &'a [u8],
    /// Bytes from one row block to the next.
    pub stride: usize,
    /// Columns of signs over 8; even.
    pub byte_cols: usize,
    /// Quantized activations of at most [`LANES`] vectors; beyond the columns of the matrix they are 0.
    pub q: &'a [i16],
    /// Activations of each vector.
    pub q_stride: usize,
}

/// Quantizes `pre * x` with a usable step. Returns what is added to twice the raised sums.
pub(super) type LaneQuantize = unsafe fn(x: &[f32], pre: Option<&[f16]>, step: Step, q: &mut [i16]) -> i32;

/// Adds the products of all columns to the raised sums of each row block, whose form is the kernel's own matter.
pub(super) type LaneRows =
    unsafe fn(run: &LaneRun<'_>, tables: &mut [Line; LANE_TABLES], raised: &mut [[Line; LANE_SUMS]]);

/// The sums of a row block from the raised ones, for each lane.
pub(super) type LaneSums =
    unsafe fn(raised: &[Line; LANE_SUMS], start: &[i32; LANES], sums: &mut [IntSums; LANES]);

/// Integer products of [`LANES_FROM`] to [`LANES`] vectors of activations, these side by side in registers.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct Lanes {
    pub quantize: LaneQuantize,
    pub rows: LaneRows,
    pub sums: LaneSums,
}

/// Turns the signs of a run's row blocks into what an integer run looks up with, [`INDEX_LINES`] for each 8 columns,
/// these padded to [`TABLE_COLS`].
pub(super) type IndexOf = unsafe fn(run: &Run<'_>, blocks: usize, index: &mut [Line]);

/// Adds the products of a run to `sums`: those of all row blocks of the first vector, then of the next.
/// `Mode::F32` sums chunks of [`F32_CHUNK`] columns from the first of the run.
pub(super) type Rows<Sums> = unsafe fn(run: &Run<'_>, sums: &mut [Sums]);

/// `y = add + ((f32(sum) * step) * unshift) * post`.
pub(super) type Out<Sums> = unsafe fn(sums: &Sums, out: Output<'_>);

/// The primitives of one instruction set.
pub(super) struct Ops {
    /// Columns of an integer run, a multiple of [`TABLE_COLS`] and [`F32_CHUNK`].
    pub run_cols: usize,
    /// Most vectors of activations of an integer run; what is the same for all is computed once.
    pub vectors: usize,
    pub extent: ExtentOf,
    pub int_tables: IntTables,
    pub f32_tables: F32Tables,
    /// For kernels that gain by it when many vectors of activations meet the same signs.
    pub index: Option<IndexOf>,
    /// For kernels that have a faster way for larger batches.
    pub lanes: Option<Lanes>,
    pub int_rows: Rows<IntSums>,
    pub f32_rows: Rows<F32Sums>,
    pub int_out: Out<IntSums>,
    pub f32_out: Out<F32Sums>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::SignMatrix;
    use crate::kernel::{Mode, available};

    const UNIT: Step = Step { shift: 1.0, step: 1.0, unshift: 1.0 };

    /// Lookups of the integers `q` against naive sums, on every kernel that runs here.
    fn compare(q: &[i16], signs: &SignMatrix) {
        let (rows, cols) = (signs.rows(), signs.cols());
        assert!(rows.is_multiple_of(32) && cols.is_multiple_of(16) && q.len() == cols);
        let want: Vec<i32> = (0..rows)
            .map(|r| {
                q.iter()
                    .enumerate()
                    .map(|(c, q)| i32::from(*q) * if signs.is_plus(r, c) { 1 } else { -1 })
                    .sum()
            })
            .collect();
        let x: Vec<f32> = q.iter().map(|q| f32::from(*q)).collect();
        for kernel in available() {
            // Those of small batches are another kernel's, which is available too.
            let ops = kernel.ops(Mode::Int, 32);
            let mut tables = vec![Line::ZERO; cols.next_multiple_of(TABLE_COLS) / 8];
            let start = match ops.int_tables {
                // SAFETY: the kernel is available.
                IntTables::Each(make) => unsafe { make(&x, None, UNIT, &mut tables) },
                IntTables::Shared(make) => {
                    // Room for the tables of a few.
                    tables.resize(4 * tables.len(), Line::ZERO);
                    // SAFETY: as above.
                    unsafe { make(&x, None, UNIT, &mut tables, 0) };
                    0
                }
            };
            let ways = [Some((ops.run_cols, None)), ops.index.map(|index| (INDEX_COLS, Some(index)))];
            for (run_cols, index) in ways.into_iter().flatten() {
                let (mut sums, run_bytes) = (vec![[start; 32]; rows / 32], run_cols / 8);
                let mut indices = vec![Line::ZERO; rows / 32 * INDEX_LINES * run_bytes];
                for from in (0..cols / 8).step_by(run_bytes) {
                    let mut run = Run {
                        tile: &signs.as_bytes()[from * 32..],
                        stride: cols / 8 * 32,
                        next: 0,
                        byte_cols: run_bytes.min(cols / 8 - from),
                        tables: &tables[from..],
                        table_stride: tables.len(),
                        vectors: 1,
                        index: None,
                        cold: true,
                    };
                    // SAFETY: the kernel is available.
                    unsafe {
                        if let Some(index) = index {
                            index(&run, rows / 32, &mut indices);
                            run.index = Some(&indices);
                        }
                        (ops.int_rows)(&run, &mut sums);
                    }
                }
                assert_eq!(
                    sums.as_flattened(),
                    want,
                    "{kernel} {rows} x {cols}, indices: {}",
                    index.is_some()
                );
            }
            if let Some(lanes) = &ops.lanes {
                compare_lanes(lanes, &x, signs, &want);
            }
        }
    }

    /// `x` in all lanes but the last, with changing sign; it is not there in the last one.
    fn compare_lanes(lanes: &Lanes, x: &[f32], signs: &SignMatrix, want: &[i32]) {
        let (blocks, q_stride) = (signs.rows() / 32, x.len().next_multiple_of(LANE_COLS));
        let mut q = vec![0; (LANES - 1) * q_stride];
        let mut start = [0; LANES];
        let mut tables = [Line::ZERO; LANE_TABLES];
        let mut raised = vec![[Line::ZERO; LANE_SUMS]; blocks];
        let mut sums = [[0; 32]; LANES];
        // SAFETY: the kernel is available.
        unsafe {
            for (v, q) in q.chunks_exact_mut(q_stride).enumerate() {
                let x: Vec<f32> = x.iter().map(|x| if v % 2 == 0 { *x } else { -*x }).collect();
                start[v] = (lanes.quantize)(&x, None, UNIT, q);
            }
            let (tile, byte_cols) = (signs.as_bytes(), x.len() / 8);
            let run = LaneRun { tile, stride: 32 * byte_cols, byte_cols, q: &q, q_stride };
            (lanes.rows)(&run, &mut tables, &mut raised);
            for (raised, want) in raised.iter().zip(want.as_chunks().0) {
                (lanes.sums)(raised, &start, &mut sums);
                for (v, sums) in sums.iter().take(LANES - 1).enumerate() {
                    let want: [i32; 32] = want.map(|w| if v % 2 == 0 { w } else { -w });
                    assert_eq!(*sums, want, "lane {v}, {} columns", x.len());
                }
            }
        }
    }

    #[test]
    fn integer_sums_are_exact_at_the_limits_of_the_tables() {
        // Every split of 16383 that the group rule allows at its edges, in every combination of signs, for
        // rows that agree with all activations, with none, and with some: the 7-bit halves and the 16-bit
        // accumulators are then full.
        let groups = [
            [8191, 8191, 1, 0],
            [1, 8190, 8191, 1],
            [4096, 4096, 4096, 4095],
            [0, 0, 0, 8191],
            [8191, 0, 8191, 0],
        ];
        for cols in [16, 2032, 2048, 2064, 12304, 16400] {
            for (i, group) in groups.iter().enumerate() {
                let flip = |c: usize| (c / 4 * 7 + i) >> (c % 4) & 1 == 1;
                let q: Vec<i16> =
                    (0..cols).map(|c| if flip(c) { -group[c % 4] } else { group[c % 4] }).collect();
                let signs = SignMatrix::from_fn(64, cols, |r, c| match r % 4 {
                    0 => q[c] > 0,
                    1 => q[c] < 0,
                    2 => true,
                    _ => (r * 31 + c * 17 + c / 5) % 7 < 3,
                });
                compare(&q, &signs);
                compare(&vec![0; cols], &signs);
            }
        }
    }

    #[test]
    fn kernels_see_the_same_extent() {
        for len in [1usize, 3, 7, 8, 9, 17, 100] {
            let x: Vec<f32> = (0..len).map(|i| ((i * 37 % 19) as f32 - 9.3) * 1e-3).collect();
            let g: Vec<f16> = (0..len).map(|i| f16::from_bits((i * 977 % 0x7c00) as u16)).collect();
            for bad in [None, Some(f32::NAN), Some(f32::NEG_INFINITY), Some(f32::MAX)] {
                let mut x = x.clone();
                if let Some(bad) = bad {
                    x[len - 1] = bad;
                }
                for pre in [None, Some(&g[..])] {
                    let extents = available().into_iter().map(|kernel| {
                        // SAFETY: the kernel is available.
                        let e = unsafe { (kernel.ops(Mode::Int, 32).extent)(&x, pre) };
                        // Which NaN or how far beyond infinity is open.
                        Extent { value: e.value.min(0x7f80_0000), group: e.group.min(0x7f80_0000) }
                    });
                    let extents: Vec<_> = extents.collect();
                    assert!(extents.windows(2).all(|w| w[0] == w[1]), "{len} {bad:?}: {extents:?}");
                }
            }
        }
    }
}
