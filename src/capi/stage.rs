//! One half of a product, for runtimes that own their threads.

use super::model::{expert_slices, lb_matrix, mode_of};
use super::*;
use crate::bits::tile_bytes;
use crate::kernel::{self, Stage};
use guard::{Failure, check_ptr, span};
use half::f16;

/// One half of a product: y = add + post * (S (pre * x)), S a sign matrix in the tile layout of `specs/format.md`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lb_stage {
    /// Size of this struct in bytes; set by the caller.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Rows of S: outputs.
    pub rows: u64,
    /// Columns of S: inputs.
    pub cols: u64,
    /// The sign tile, at any address.
    pub tile: *const u8,
    /// Bytes of the tile.
    pub tile_size: usize,
    /// `cols` input scales as bits of f16, or NULL.
    pub pre: *const u16,
    /// `rows` output scales as bits of f16, or NULL.
    pub post: *const u16,
}

/// The half that multiplies by V transposed.
pub const LB_HALF_V: u32 = 0;
/// The half that multiplies by U.
pub const LB_HALF_U: u32 = 1;

/// # Safety
/// `stage` is NULL or readable, and what it points to is readable for `'a`.
unsafe fn stage_of<'a>(stage: *const lb_stage) -> Result<Stage<'a>, Failure> {
    check_ptr("stage", stage)?;
    // SAFETY: checked, readable by the caller's promise.
    let s = unsafe { &*stage };
    if s.struct_size as usize != size_of::<lb_stage>() {
        return Err(fail(
            LB_ERROR_INVALID_ARGUMENT,
            format!("struct_size is {}, this library wants {}", s.struct_size, size_of::<lb_stage>()),
        ));
    }
    // Bounds that keep every size below far from overflow.
    let limit = 1u64 << 31;
    if s.rows > limit || s.cols > kernel::MAX_COLS as u64 {
        return Err(fail(LB_ERROR_INVALID_ARGUMENT, format!("{} x {} signs are too many", s.rows, s.cols)));
    }
    let (rows, cols) = (s.rows as usize, s.cols as usize);
    let want = tile_bytes(rows, cols);
    if s.tile_size != want {
        return Err(fail(
            LB_ERROR_BUFFER,
            format!("the tile has {} bytes, {rows} x {cols} signs take {want}", s.tile_size),
        ));
    }
    let tile = if want == 0 {
        &[][..]
    } else {
        check_ptr("tile", s.tile)?;
        // SAFETY: not NULL, and readable for its size by the caller's promise.
        unsafe { std::slice::from_raw_parts(s.tile, want) }
    };
    let scales = |name: &str, p: *const u16, n: usize| -> Result<Option<&'a [f16]>, Failure> {
        if p.is_null() {
            return Ok(None);
        }
        check_ptr(name, p)?;
        // SAFETY: aligned, readable for n values by the caller's promise; f16 has the layout of u16.
        Ok(Some(unsafe { std::slice::from_raw_parts(p.cast::<f16>(), n) }))
    };
    let stage =
        Stage { rows, cols, tile, pre: scales("pre", s.pre, cols)?, post: scales("post", s.post, rows)? };
    stage.check()?;
    Ok(stage)
}

/// Fills `out` with one half of one path of a matrix: `half` LB_HALF_V has pre = g and post = l, LB_HALF_U has post = h.
/// The struct points into the model.
///
/// # Safety
/// `matrix` is NULL or belongs to a live model; `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_matrix_stage(
    matrix: *const lb_matrix,
    expert: u32,
    path: u32,
    half: u32,
    out: *mut lb_stage,
) -> lb_status {
    call(|| {
        check_ptr("matrix", matrix)?;
        out_ptr("out", out)?;
        // SAFETY: checked, live by the caller's promise.
        let m = unsafe { &*matrix };
        let slices = expert_slices(m, expert)?;
        let p = slices.get(path as usize).ok_or_else(|| {
            fail(LB_ERROR_NOT_FOUND, format!("path {path} of {} does not exist", slices.len()))
        })?;
        let bits = |v: &[f16]| v.as_ptr().cast::<u16>();
        let (rows, cols, signs, pre, post) = match half {
            LB_HALF_V => (m.rank, m.d_in, &p.vt, bits(&p.g), bits(&p.l)),
            LB_HALF_U => (m.d_out, m.rank, &p.u, std::ptr::null(), bits(&p.h)),
            other => return Err(fail(LB_ERROR_INVALID_ARGUMENT, format!("unknown half {other}"))),
        };
        let stage = lb_stage {
            struct_size: size_of::<lb_stage>() as u32,
            reserved: 0,
            rows: rows as u64,
            cols: cols as u64,
            tile: signs.as_bytes().as_ptr(),
            tile_size: signs.as_bytes().len(),
            pre,
            post,
        };
        // SAFETY: checked, valid for a write by the caller's promise.
        unsafe { out.write(stage) };
        Ok(())
    })
}

/// Bytes of scratch memory that each thread must bring to [`lb_stage_run`] for `n` columns. Bounded as n grows.
///
/// # Safety
/// `stage` is NULL or readable with all it points to; `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_stage_work_size(
    stage: *const lb_stage,
    mode: u32,
    n: usize,
    out: *mut usize,
) -> lb_status {
    call(|| {
        out_ptr("out", out)?;
        // SAFETY: the caller's promise.
        let stage = unsafe { stage_of(stage) }?;
        let size = stage.work_size(n, mode_of(mode)?);
        // SAFETY: checked, valid for a write by the caller's promise.
        unsafe { out.write(size) };
        Ok(())
    })
}

/// Computes thread `ith`'s share of `n` columns, of `nth` threads that all make this call with the same arguments but
/// `ith` and `work`. No allocation, lock, thread or barrier inside; the caller waits for all shares before it reads y.
///
/// # Safety
/// `stage` is NULL or readable with all it points to. Column t of `x` is cols floats from `x + t * x_stride`, of `y`
/// (and `add`, NULL or e.g. `y` itself) rows floats from `y + t * y_stride`: valid, y's columns apart from each other and
/// from x. `work` is `work_size` bytes that only this thread uses.
#[unsafe(no_mangle)]
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
    call(|| {
        // SAFETY: the caller's promise.
        let stage = unsafe { stage_of(stage) }?;
        let mode = mode_of(mode)?;
        if ith >= nth {
            return Err(fail(LB_ERROR_INVALID_ARGUMENT, format!("thread {ith} of {nth}")));
        }
        let need = stage.work_size(n, mode);
        if work_size < need {
            return Err(fail(LB_ERROR_BUFFER, format!("work has {work_size} bytes, {need} are needed")));
        }
        if n == 0 {
            return Ok(());
        }
        check_ptr("x", x)?;
        out_ptr("y", y)?;
        check_ptr("work", work.cast::<u8>())?;
        span("x", stage.cols, x_stride, n)?;
        span("y", stage.rows, y_stride, n)?;
        let add = if add.is_null() {
            None
        } else {
            check_ptr("add", add)?;
            span("add", stage.rows, add_stride, n)?;
            Some((add, add_stride))
        };
        // SAFETY: not NULL, need <= work_size, this thread's alone by the caller's promise.
        let work = unsafe { std::slice::from_raw_parts_mut(work.cast::<u8>(), need) };
        // SAFETY: pointers and strides were checked as far as can be; validity is the caller's promise.
        unsafe {
            stage.run(
                kernel::active(),
                mode,
                x,
                x_stride,
                n,
                add,
                y,
                y_stride,
                work,
                ith as usize,
                nth as usize,
            );
        }
        Ok(())
    })
}
