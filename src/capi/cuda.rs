//! Half a product on an NVIDIA GPU, on the caller's stream.

use super::guard::*;
use super::stage::{given, lb_stage};
use super::status::*;
use crate::bits::tile_bytes;
use crate::cuda::{Args, Failure, Module, work_bytes};
use crate::kernel::MAX_COLS;
use std::ffi::c_void;

/// The kernels in a CUDA context.
pub struct lb_cuda {
    module: Module,
}

const _: () = {
    const fn shared_by_threads<T: Send + Sync>() {}
    shared_by_threads::<lb_cuda>();
};

impl From<Failure> for Fault {
    fn from(e: Failure) -> Self {
        let status = match e {
            Failure::Absent(_) => LB_ERROR_NO_CUDA,
            Failure::Context(_) => LB_ERROR_INVALID_ARGUMENT,
            Failure::Memory(_) | Failure::Driver { .. } => LB_ERROR_CUDA,
        };
        Fault::new(status, e.to_string())
    }
}

/// Loads the kernels into the CUDA context of the calling thread (the runtime's, after cudaSetDevice). Every
/// build of the library has the lb_cuda calls; where there is no CUDA, this one says so.
/// Free it with lb_cuda_free, before the context ends.
/// Errors: LB_ERROR_NO_CUDA for a build without CUDA, no driver, no device, or one below compute capability
/// 8.0; LB_ERROR_INVALID_ARGUMENT if the thread has no context; LB_ERROR_CUDA.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_cuda_open(out: *mut *mut lb_cuda) -> lb_status {
    guard(|| {
        pointer("out", out)?;
        let cuda = Box::into_raw(Box::new(lb_cuda { module: Module::open()? }));
        // SAFETY: not NULL, aligned, writable by the caller's promise.
        unsafe { out.write(cuda) };
        Ok(())
    })
}

/// Unloads the kernels. NULL is allowed. No launch may be under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_cuda_free(cuda: *mut lb_cuda) {
    guard(|| {
        if !cuda.is_null() {
            pointer("cuda", cuda)?;
            // SAFETY: made by Box::into_raw in lb_cuda_open and given back once.
            drop(unsafe { Box::from_raw(cuda) });
        }
        Ok(())
    });
}

/// The checked numbers of a stage whose pointers are the device's.
struct Shape {
    stage: lb_stage,
    rows: u32,
    cols: u32,
    n: u32,
}

/// # Safety
/// If `stage` is neither NULL nor misaligned, its `struct_size` is set; if that is right, the struct is.
unsafe fn shape(stage: *const lb_stage, n: usize) -> Outcome<Shape> {
    let fault = |what: String| Err(Fault::new(LB_ERROR_INVALID_ARGUMENT, what));
    // SAFETY: the caller's promise is passed on.
    let (stage, rows, cols) = unsafe { given(stage) }?;
    if rows == 0 || cols == 0 || rows > i32::MAX as usize || cols > MAX_COLS || n > i32::MAX as usize {
        return fault(format!("{rows} x {cols} signs and {n} columns: empty or too large"));
    }
    let want = tile_bytes(rows, cols);
    if stage.tile_size != want {
        return fault(format!("{rows} x {cols} signs: the tile has {} bytes, not {want}", stage.tile_size));
    }
    Ok(Shape { stage, rows: rows as u32, cols: cols as u32, n: n as u32 })
}

/// Bytes of device memory that lb_cuda_stage_run needs for n columns; 0 where it needs none. Only the sizes in
/// stage are looked at. Needs no CUDA.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_cuda_stage_work_size(
    stage: *const lb_stage,
    n: usize,
    out: *mut usize,
) -> lb_status {
    guard(|| {
        // SAFETY: a stage by the caller's promise.
        let shape = unsafe { shape(stage, n) }?;
        pointer("out", out)?;
        // SAFETY: not NULL, aligned, writable by the caller's promise.
        unsafe { out.write(work_bytes(shape.rows, shape.cols, shape.n)) };
        Ok(())
    })
}

/// Launches y = add + post * (S (pre * x)) for n columns on stream, a CUstream or cudaStream_t; NULL is the
/// default stream. Every pointer but cuda and stage is one of the device, those in stage too: tile aligned to
/// 4, work to 16. LB_MODE_INT's integers: the results have the bits of lb_stage_run.
/// add may be NULL, y itself with the same stride, or memory apart from y. work is not used by other launches
/// that may run at the same time; it may be NULL if its size is 0.
/// The call neither waits nor allocates and may be captured into a CUDA graph. The calling thread has the
/// context of lb_cuda_open. With n = 0 nothing happens.
/// Errors: LB_ERROR_MISALIGNED, LB_ERROR_BUFFER_TOO_SMALL, LB_ERROR_CUDA if a launch is refused. Faults on the
/// device show in the caller's next synchronization.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn lb_cuda_stage_run(
    cuda: *const lb_cuda,
    stage: *const lb_stage,
    x: *const f32,
    x_stride: usize,
    n: usize,
    add: *const f32,
    add_stride: usize,
    y: *mut f32,
    y_stride: usize,
    work: *mut c_void,
    work_size: usize,
    stream: *mut c_void,
) -> lb_status {
    guard(|| {
        // SAFETY: a handle by the caller's promise.
        let cuda = unsafe { reference("cuda", cuda) }?;
        // SAFETY: a stage by the caller's promise.
        let Shape { stage, rows, cols, n: count } = unsafe { shape(stage, n) }?;
        pointer("tile", stage.tile.cast::<u32>())?;
        for (name, scales) in [("pre", stage.pre), ("post", stage.post)] {
            if !scales.is_null() {
                pointer(name, scales)?;
            }
        }
        if n == 0 {
            return Ok(());
        }
        let x_span = Span::columns("x", x, cols as usize, x_stride, n)?;
        let y_span = Span::columns("y", y, rows as usize, y_stride, n)?;
        x_span.apart_from(y_span)?;
        if !add.is_null() {
            let add_span = Span::columns("add", add, rows as usize, add_stride, n)?;
            if add.addr() != y.addr() || (add_stride != y_stride && n > 1) {
                add_span.apart_from(y_span)?;
            }
        }
        let want = work_bytes(rows, cols, count);
        if work_size < want {
            return Err(Fault::new(
                LB_ERROR_BUFFER_TOO_SMALL,
                format!("work has {work_size} bytes, {n} columns of this stage need {want}"),
            ));
        }
        if want > 0 {
            // 16 bytes at 16, like the state of a column
            let work_span = Span::new("work", work.cast::<u128>(), want / 16)?;
            work_span.apart_from(x_span)?;
            work_span.apart_from(y_span)?;
        }
        let args = Args {
            x: x.addr() as u64,
            pre: stage.pre.addr() as u64,
            tile: stage.tile.addr() as u64,
            post: stage.post.addr() as u64,
            add: add.addr() as u64,
            y: y.addr() as u64,
            columns: 0,
            planes: 0,
            split: 0,
            x_stride: x_stride as u64,
            add_stride: add_stride as u64,
            y_stride: y_stride as u64,
            rows,
            cols,
            n: count,
            plane: 0,
        };
        // SAFETY: checked for alignment and sizes; memory of the device by the caller's promise.
        unsafe { cuda.module.run(args, work.addr() as u64, stream.addr() as u64) }?;
        Ok(())
    })
}
