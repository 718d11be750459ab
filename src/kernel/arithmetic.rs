//! The two ways to add up activations behind one interface, so that the loops over tiles exist once.

use super::ops::{F32_LINES, F32Sums, INT_LINES, IndexOf, IntSums, IntTables, Ops, Output, Run};
use super::quantize::Step;
use super::scratch::{LINE, Line};
use bytemuck::Pod;
use half::f16;

/// What happens to the activations before they meet the signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// 14-bit integers, exact sums: the fast way.
    Int,
    /// f32 as they are, about 1e-7 relative error; several times slower.
    F32,
}

impl Mode {
    /// Lines of tables per 8 columns.
    pub(super) const fn table_lines(self) -> usize {
        match self {
            Mode::Int => INT_LINES,
            Mode::F32 => F32_LINES,
        }
    }

    /// Lines that the sums of a row block take.
    pub(super) const fn sum_lines(self) -> usize {
        match self {
            Mode::Int => size_of::<IntSums>() / LINE,
            Mode::F32 => size_of::<F32Sums>() / LINE,
        }
    }
}

/// Where the tables of one vector of activations go.
pub(super) struct Place<'a> {
    /// The tables of its batch.
    pub tables: &'a mut [Line],
    /// Which of the batch it is.
    pub vector: usize,
    /// Lines for each vector.
    pub stride: usize,
}

impl<'a> Place<'a> {
    /// The lines of this vector alone, for kernels whose vectors share none.
    fn own(self) -> &'a mut [Line] {
        &mut self.tables[self.vector * self.stride..][..self.stride]
    }
}

/// The primitives of one [`Mode`].
///
/// # Safety
/// of all functions: this CPU has what `ops` needs; `out` as [`Output`] says.
pub(super) trait Arithmetic {
    const MODE: Mode;
    /// Sums of a row block.
    type Sums: Pod;
    /// What every row's sum of a column starts at.
    type Start: Copy + Default;

    unsafe fn tables(ops: &Ops, x: &[f32], pre: Option<&[f16]>, place: Place<'_>) -> (Step, Self::Start);
    /// A row block's sums before the first run.
    fn begin(start: Self::Start) -> Self::Sums;
    /// Most vectors of activations of a run.
    fn vectors(ops: &Ops) -> usize;
    /// What may turn the signs of a run into indices.
    fn index(ops: &Ops) -> Option<IndexOf>;
    unsafe fn rows(ops: &Ops, run: &Run<'_>, sums: &mut [Self::Sums]);
    unsafe fn out(ops: &Ops, sums: &Self::Sums, out: Output<'_>);
}

pub(super) struct Int;
pub(super) struct F32;

impl Arithmetic for Int {
    const MODE: Mode = Mode::Int;
    type Sums = IntSums;
    type Start = i32;

    unsafe fn tables(ops: &Ops, x: &[f32], pre: Option<&[f16]>, place: Place<'_>) -> (Step, i32) {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            let step = Step::of((ops.extent)(x, pre));
            let start = match ops.int_tables {
                IntTables::Each(make) => {
                    let tables = place.own();
                    if step.is_usable() {
                        make(x, pre, step, tables)
                    } else {
                        tables.fill(Line::ZERO);
                        0
                    }
                }
                IntTables::Shared(make) => {
                    make(x, pre, step, place.tables, place.vector);
                    0
                }
            };
            (step, start)
        }
    }

    fn begin(start: i32) -> IntSums {
        [start; 32]
    }

    fn vectors(ops: &Ops) -> usize {
        ops.vectors
    }

    fn index(ops: &Ops) -> Option<IndexOf> {
        ops.index
    }

    unsafe fn rows(ops: &Ops, run: &Run<'_>, sums: &mut [IntSums]) {
        // SAFETY: the caller's promise is passed on.
        unsafe { (ops.int_rows)(run, sums) }
    }

    unsafe fn out(ops: &Ops, sums: &IntSums, out: Output<'_>) {
        // SAFETY: the caller's promise is passed on.
        unsafe { (ops.int_out)(sums, out) }
    }
}

impl Arithmetic for F32 {
    const MODE: Mode = Mode::F32;
    type Sums = F32Sums;
    type Start = f64;

    unsafe fn tables(ops: &Ops, x: &[f32], pre: Option<&[f16]>, place: Place<'_>) -> (Step, f64) {
        let tables = place.own();
        // SAFETY: the caller's promise is passed on.
        unsafe {
            let step = Step::exact((ops.extent)(x, pre));
            if step.is_usable() {
                (ops.f32_tables)(x, pre, tables);
            } else {
                tables.fill(Line::ZERO);
            }
            (step, 0.0)
        }
    }

    fn begin(start: f64) -> F32Sums {
        [start; 32]
    }

    fn vectors(_: &Ops) -> usize {
        1
    }

    fn index(_: &Ops) -> Option<IndexOf> {
        None
    }

    unsafe fn rows(ops: &Ops, run: &Run<'_>, sums: &mut [F32Sums]) {
        // SAFETY: the caller's promise is passed on.
        unsafe { (ops.f32_rows)(run, sums) }
    }

    unsafe fn out(ops: &Ops, sums: &F32Sums, out: Output<'_>) {
        // SAFETY: the caller's promise is passed on.
        unsafe { (ops.f32_out)(sums, out) }
    }
}
