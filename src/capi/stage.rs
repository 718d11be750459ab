//! Half a product, for runtimes that own their threads: no allocation, no lock, no waiting.

use super::guard::*;
use super::model::{lb_matrix, mode_of};
use super::status::*;
use crate::kernel::{PathRef, Stage, active};
use half::f16;

/// Activations as 14-bit integers, sums exact: the fast way.
pub const LB_MODE_INT: u32 = 0;
/// Activations as 32-bit floats, about 1e-7 relative error; several times slower.
pub const LB_MODE_F32: u32 = 1;

/// y = post * (S (pre * x)), S a matrix of signs. The memory it points to is the caller's, or a model's if
/// lb_matrix_stage filled it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lb_stage {
    /// sizeof(lb_stage), set by the caller.
    pub struct_size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Rows of S: outputs.
    pub rows: u64,
    /// Columns of S: inputs, at most 2^18.
    pub cols: u64,
    /// S as a sign tile (specs/format.md), at any address.
    pub tile: *const u8,
    /// Bytes of the tile: rows rounded up to 32, times columns rounded up to 16, over 8.
    pub tile_size: usize,
    /// Input scales, IEEE half precision, one per column; NULL for none.
    pub pre: *const u16,
    /// Output scales, IEEE half precision, one per row; NULL for none.
    pub post: *const u16,
}

/// Fills out, whose struct_size the caller has set, with one half of a path of a matrix:
/// half 0: t = l * (V^T (g * x)), rank rows; half 1: y = h * (U t), d_out rows.
/// It points into the model and is valid until lb_model_free.
/// Errors: LB_ERROR_OUT_OF_RANGE for expert, path, half; what reading the factors gives at first use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_matrix_stage(
    matrix: *const lb_matrix,
    expert: u32,
    path: u32,
    half: u32,
    out: *mut lb_stage,
) -> lb_status {
    guard(|| {
        // SAFETY: of an open model by the caller's promise.
        let matrix = unsafe { reference("matrix", matrix) }?;
        pointer("out", out)?;
        // SAFETY: not NULL, aligned, set by the caller's promise; the rest of *out is not looked at.
        struct_size::<lb_stage>("lb_stage", unsafe { (&raw const (*out).struct_size).read() })?;
        let expert = index("expert", expert as usize, matrix.experts())?;
        let path = index("path", path as usize, matrix.paths())?;
        let half = index("half", half as usize, 2)?;
        let path = PathRef::from(&matrix.factors()?.slices[expert * matrix.paths() + path]);
        let stage = if half == 0 { path.v_stage() } else { path.u_stage() };
        let scales = |scales: Option<&[f16]>| scales.map_or(std::ptr::null(), |s| s.as_ptr().cast());
        let filled = lb_stage {
            struct_size: size_of::<lb_stage>() as u32,
            reserved: 0,
            rows: stage.rows as u64,
            cols: stage.cols as u64,
            tile: stage.tile.as_ptr(),
            tile_size: stage.tile.len(),
            pre: scales(stage.pre),
            post: scales(stage.post),
        };
        // SAFETY: writable, and of this size by its struct_size.
        unsafe { out.write(filled) };
        Ok(())
    })
}

/// A caller's stage with its rows and columns; what its pointers lead to is not looked at.
///
/// # Safety
/// If `stage` is neither NULL nor misaligned, its `struct_size` is set; if that is right, the struct is.
pub(super) unsafe fn given(stage: *const lb_stage) -> Outcome<(lb_stage, usize, usize)> {
    pointer("stage", stage)?;
    // SAFETY: not NULL, aligned, set by the caller's promise.
    struct_size::<lb_stage>("lb_stage", unsafe { (&raw const (*stage).struct_size).read() })?;
    // SAFETY: of this size by its struct_size.
    let given = unsafe { *stage };
    if given.reserved != 0 {
        return Err(Fault::new(LB_ERROR_INVALID_ARGUMENT, "reserved of lb_stage must be 0"));
    }
    Ok((given, size("rows", given.rows)?, size("cols", given.cols)?))
}

/// The Rust form of a caller's stage, checked.
///
/// # Safety
/// If `stage` is neither NULL nor misaligned, its `struct_size` is set; if that is right, the struct is, and
/// what it points to is live and not written during `'a`.
unsafe fn stage_of<'a>(stage: *const lb_stage) -> Outcome<Stage<'a>> {
    // SAFETY: the caller's promise is passed on.
    let (given, rows, cols) = unsafe { given(stage) }?;
    Span::new("tile", given.tile, given.tile_size)?;
    // SAFETY: live by the caller's promise, and its size was checked.
    let tile = unsafe { std::slice::from_raw_parts(given.tile, given.tile_size) };
    let mut checked = Stage { rows, cols, tile, pre: None, post: None };
    checked.check()?;
    // SAFETY: one scale per column and row by the caller's promise.
    unsafe {
        checked.pre = scales_of("pre", given.pre, cols)?;
        checked.post = scales_of("post", given.post, rows)?;
    }
    Ok(checked)
}

/// `len` scales, or none.
///
/// # Safety
/// If `p` is neither NULL nor misaligned, it points to `len` values that nobody writes during `'a`.
unsafe fn scales_of<'a>(name: &'static str, p: *const u16, len: usize) -> Outcome<Option<&'a [f16]>> {
    if p.is_null() {
        return Ok(None);
    }
    Span::new(name, p, len)?;
    // SAFETY: live by the caller's promise; f16 is a transparent u16.
    Ok(Some(unsafe { std::slice::from_raw_parts(p.cast(), len) }))
}

/// Bytes of scratch memory that one thread needs in lb_stage_run for n columns. Stops growing at 32 columns.
/// The first call in a process also chooses the kernel, so that lb_stage_run need not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_stage_work_size(
    stage: *const lb_stage,
    mode: u32,
    n: usize,
    out: *mut usize,
) -> lb_status {
    guard(|| {
        // SAFETY: a stage by the caller's promise.
        let stage = unsafe { stage_of(stage) }?;
        let mode = mode_of(mode)?;
        pointer("out", out)?;
        active();
        // SAFETY: not NULL, aligned, writable by the caller's promise.
        unsafe { out.write(stage.work_size(n, mode)) };
        Ok(())
    })
}

/// Thread ith's share (of nth) of n columns: y = add + post * (S (pre * x)). x has cols floats a column, y
/// and add have rows floats.
/// add may be NULL, y itself with the same stride, or memory apart from y.
/// Call it for every ith, in any order or at once, with the same arguments but ith and work: each thread has
/// its own work, work_size bytes at any alignment. Shares are disjoint. For stages of equal rows, n and nth
/// they are the same, so summing paths needs no barrier between their second halves; the first half of a path
/// must be complete before its second starts.
/// On success: no allocation, lock, thread or waiting inside (after a first lb_stage_work_size).
/// Memory between the columns of y is left alone. With n = 0 nothing happens and x, y and work may be NULL.
/// A column of x with a value that is not finite gives a column of NaN.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn lb_stage_run(
    stage: *const lb_stage,
    mode: u32,
    x: *const f32,
    x_stride: usize,
    n: usize,
    add: *const f32,
    add_stride: usize,
    y: *mut f32,
    y_stride: usize,
    work: *mut std::ffi::c_void,
    work_size: usize,
    ith: u32,
    nth: u32,
) -> lb_status {
    guard(|| {
        // SAFETY: a stage by the caller's promise.
        let stage = unsafe { stage_of(stage) }?;
        let mode = mode_of(mode)?;
        let ith = index("thread", ith as usize, nth as usize)?;
        if n == 0 {
            return Ok(());
        }
        let x_span = Span::columns("x", x, stage.cols, x_stride, n)?;
        let y_span = Span::columns("y", y, stage.rows, y_stride, n)?;
        let work = work.cast::<u8>();
        let work_span = Span::new("work", work, work_size)?;
        let want = stage.work_size(n, mode);
        if work_size < want {
            return Err(Fault::new(
                LB_ERROR_BUFFER_TOO_SMALL,
                format!("work has {work_size} bytes, {n} columns of this stage need {want}"),
            ));
        }
        x_span.apart_from(y_span)?;
        work_span.apart_from(x_span)?;
        work_span.apart_from(y_span)?;
        let add = if add.is_null() {
            None
        } else {
            let add_span = Span::columns("add", add, stage.rows, add_stride, n)?;
            work_span.apart_from(add_span)?;
            let in_place = add.addr() == y.addr() && (add_stride == y_stride || n == 1);
            if !in_place {
                add_span.apart_from(y_span)?;
            }
            Some((add, add_stride))
        };
        // SAFETY: checked for NULL and size and apart from the rest; unshared by the caller's promise.
        let work = unsafe { std::slice::from_raw_parts_mut(work, work_size) };
        // SAFETY: the columns were checked for NULL, alignment, size and overlap; live by the caller's promise.
        unsafe { stage.run(active(), mode, x, x_stride, n, add, y, y_stride, work, ith, nth as usize) };
        Ok(())
    })
}
