//! The portable kernel: table lookups without vector instructions, the reference of the others.

use super::ops::{F32_CHUNK, F32_LINES, F32Sums, IntSums, IntTables, Ops, Output, Run};
use super::quantize::{Step, eight, extent};
use super::scratch::Line;
use half::f16;

pub(super) const OPS: Ops = Ops {
    run_cols: 2048,
    vectors: 1,
    extent,
    int_tables: IntTables::Each(int_tables),
    f32_tables,
    index: None,
    lanes: None,
    int_rows,
    f32_rows,
    int_out,
    f32_out,
};

/// All 16 signed sums of four values: entry `i` adds `v_j` where bit `j` is set and subtracts it elsewhere.
fn signed_sums<T>(v: [T; 4]) -> [T; 16]
where
    T: Copy + std::ops::Add<Output = T> + std::ops::Neg<Output = T>,
{
    std::array::from_fn(|i| {
        let s = |j: usize| if i >> j & 1 == 1 { v[j] } else { -v[j] };
        (s(0) + s(1)) + (s(2) + s(3))
    })
}

/// Tables of 16 signed i16 sums per group of four columns. Rows start at 0.
fn int_tables(x: &[f32], pre: Option<&[f16]>, step: Step, tables: &mut [Line]) -> i32 {
    for (i, line) in tables.iter_mut().enumerate() {
        let q = eight(x, pre, 8 * i).map(|v| step.quantize(v));
        let halves: &mut [[i16; 16]; 2] = bytemuck::cast_mut(&mut line.0);
        *halves = [signed_sums([q[0], q[1], q[2], q[3]]), signed_sums([q[4], q[5], q[6], q[7]])];
    }
    0
}

pub(super) fn f32_tables(x: &[f32], pre: Option<&[f16]>, tables: &mut [Line]) {
    for (i, lines) in tables.chunks_exact_mut(F32_LINES).enumerate() {
        let v = eight(x, pre, 8 * i);
        let halves: &mut [[f32; 16]] = bytemuck::cast_slice_mut(lines);
        halves[0] = signed_sums([v[0], v[1], v[2], v[3]]);
        halves[1] = signed_sums([v[4], v[5], v[6], v[7]]);
    }
}

fn int_rows(run: &Run<'_>, sums: &mut [IntSums]) {
    let tables: &[[[i16; 16]; 2]] = bytemuck::cast_slice(&run.tables[..run.byte_cols]);
    for (b, sums) in sums.iter_mut().enumerate() {
        let block = &run.tile[b * run.stride..][..32 * run.byte_cols];
        for (bytes, [low, high]) in block.chunks_exact(32).zip(tables) {
            for (sum, byte) in sums.iter_mut().zip(bytes) {
                *sum += i32::from(low[usize::from(byte & 15)]) + i32::from(high[usize::from(byte >> 4)]);
            }
        }
    }
}

pub(super) fn f32_rows(run: &Run<'_>, sums: &mut [F32Sums]) {
    let tables: &[[[f32; 16]; 2]] = bytemuck::cast_slice(&run.tables[..F32_LINES * run.byte_cols]);
    for (b, sums) in sums.iter_mut().enumerate() {
        let block = &run.tile[b * run.stride..][..32 * run.byte_cols];
        for (bytes, tables) in block.chunks(32 * F32_CHUNK / 8).zip(tables.chunks(F32_CHUNK / 8)) {
            let mut chunk = [0f32; 32];
            for (bytes, [low, high]) in bytes.chunks_exact(32).zip(tables) {
                for (sum, byte) in chunk.iter_mut().zip(bytes) {
                    *sum += low[usize::from(byte & 15)];
                    *sum += high[usize::from(byte >> 4)];
                }
            }
            sums.iter_mut().zip(chunk).for_each(|(sum, c)| *sum += f64::from(c));
        }
    }
}

/// One result. The order of operations is part of the kernels' contract.
#[inline]
fn finish(sum: f32, row: usize, out: Output<'_>) -> f32 {
    let v = (sum * out.step.step) * out.step.unshift;
    match out.post {
        Some(post) => v * post[row].to_f32(),
        None => v,
    }
}

/// Writes rows of `out` from the f32 values of their sums.
///
/// # Safety
/// `out.y` (and `out.add`) are valid for the rows from `first_row` to `out.rows`.
pub(super) unsafe fn write_rows(sums: impl Iterator<Item = f32>, first_row: usize, out: Output<'_>) {
    for (row, sum) in (first_row..out.rows).zip(sums) {
        let v = finish(sum, row, out);
        // SAFETY: `row < out.rows`, and the caller vouches for that many floats.
        unsafe { out.y.add(row).write(out.add.map_or(v, |add| add.add(row).read() + v)) };
    }
}

unsafe fn int_out(sums: &IntSums, out: Output<'_>) {
    // SAFETY: the caller's promise about `out` is passed on.
    unsafe { write_rows(sums.iter().map(|&i| i as f32), 0, out) }
}

pub(super) unsafe fn f32_out(sums: &F32Sums, out: Output<'_>) {
    // SAFETY: the caller's promise about `out` is passed on.
    unsafe { write_rows(sums.iter().map(|&s| s as f32), 0, out) }
}
