//! Half a product on an NVIDIA GPU, or several together, on the caller's stream.

use super::guard::*;
use super::stage::{given, lb_stage};
use super::status::*;
use crate::bits::tile_bytes;
use crate::cuda::{Args, Failure, MAX_N, Module, STAGES, work_bytes};
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
    if rows == 0 || cols == 0 || rows > i32::MAX as usize || cols > MAX_COLS || n > MAX_N {
        return fault(format!("{rows} x {cols} signs and {n} columns: empty or too large"));
    }
    let want = tile_bytes(rows, cols);
    if stage.tile_size != want {
        return fault(format!("{rows} x {cols} signs: the tile has {} bytes, not {want}", stage.tile_size));
    }
    Ok(Shape { stage, rows: rows as u32, cols: cols as u32, n: n as u32 })
}

/// Bytes of device memory that lb_cuda_stage_run needs for n columns; 0 where it needs none. Only the sizes in
/// stage are looked at. Needs no CUDA. n is at most 2097120, which is so for every lb_cuda call.
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
        // SAFETY: a handle and a stage by the caller's promise.
        unsafe {
            let cuda = reference("cuda", cuda)?;
            let call = Call::new(stage, n, (x, x_stride), (add, add_stride), (y, y_stride))?;
            launch(cuda, &[call], work, work_size, stream)
        }
    })
}

/// Most calls of a group.
pub const LB_CUDA_GROUP_MAX: usize = 6;
const _: () = assert!(LB_CUDA_GROUP_MAX == STAGES);

/// One stage of a group: y = add + post * (S (pre * x)). All pointers are the device's, those in stage too.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lb_cuda_call {
    /// sizeof(lb_cuda_call), set by the caller.
    pub struct_size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// The stage; its struct_size is set, too.
    pub stage: lb_stage,
    /// Activations.
    pub x: *const f32,
    /// Floats from a column of x to the next.
    pub x_stride: usize,
    /// Addend, or NULL.
    pub add: *const f32,
    /// Floats from a column of add to the next.
    pub add_stride: usize,
    /// Results.
    pub y: *mut f32,
    /// Floats from a column of y to the next.
    pub y_stride: usize,
}

/// Bytes of device memory that lb_cuda_group_run needs for count calls of n columns. Only the sizes in their stages
/// are looked at. Needs no CUDA.
/// Errors: LB_ERROR_INVALID_ARGUMENT for more than LB_CUDA_GROUP_MAX calls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_cuda_group_work_size(
    calls: *const lb_cuda_call,
    count: usize,
    n: usize,
    out: *mut usize,
) -> lb_status {
    guard(|| {
        // SAFETY: calls by the caller's promise.
        let calls = unsafe { calls_of(calls, count) }?;
        pointer("out", out)?;
        let mut size = 0;
        for call in calls {
            // SAFETY: a stage by the caller's promise.
            let shape = unsafe { shape(&call.stage, n) }?;
            size += work_bytes(shape.rows, shape.cols, shape.n);
        }
        // SAFETY: not NULL, aligned, writable by the caller's promise.
        unsafe { out.write(size) };
        Ok(())
    })
}

/// Does count calls of n columns as lb_cuda_stage_run would one after the other, with the same bits, but in as few
/// launches as can be: the first halves of the matrices that multiply one input, such as q, k and v, and then their
/// second halves. Calls may have different rows and columns; they share launches if the kernels would cut all of them
/// the same way, which those of one n and of at most 8192 columns do.
/// A call whose add is its y and the y of the call before it, with the same stride and rows, is a further path of that one
/// and follows it. Beside that, no call reads or writes what another one writes; calls may share x.
/// Errors: as lb_cuda_stage_run; LB_ERROR_INVALID_ARGUMENT for more than LB_CUDA_GROUP_MAX calls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_cuda_group_run(
    cuda: *const lb_cuda,
    calls: *const lb_cuda_call,
    count: usize,
    n: usize,
    work: *mut c_void,
    work_size: usize,
    stream: *mut c_void,
) -> lb_status {
    guard(|| {
        // SAFETY: a handle and calls by the caller's promise.
        unsafe {
            let cuda = reference("cuda", cuda)?;
            let calls = calls_of(calls, count)?;
            let mut checked = [None; STAGES];
            for (to, c) in checked.iter_mut().zip(calls) {
                let (x, add, y) = ((c.x, c.x_stride), (c.add, c.add_stride), (c.y, c.y_stride));
                *to = Some(Call::new(&c.stage, n, x, add, y)?);
            }
            // The first is there wherever another one is, and its copies fill the places behind the last.
            let Some(first) = checked[0] else { return Ok(()) };
            let checked = checked.map(|c| c.unwrap_or(first));
            launch(cuda, &checked[..count], work, work_size, stream)
        }
    })
}

/// A group's calls.
///
/// # Safety
/// If `calls` is neither NULL nor misaligned, `count` structs follow whose sizes are set.
unsafe fn calls_of<'a>(calls: *const lb_cuda_call, count: usize) -> Outcome<&'a [lb_cuda_call]> {
    let fault = |what: String| Err(Fault::new(LB_ERROR_INVALID_ARGUMENT, what));
    if count > STAGES {
        return fault(format!("{count} calls, a group has at most {STAGES}"));
    }
    pointer("calls", calls)?;
    // The size first: an array of another version has its elements elsewhere.
    if count > 0 {
        // SAFETY: not NULL, aligned, set by the caller's promise.
        struct_size::<lb_cuda_call>("lb_cuda_call", unsafe { (&raw const (*calls).struct_size).read() })?;
    }
    // SAFETY: of this size by the first one's struct_size.
    let calls = unsafe { std::slice::from_raw_parts(calls, count) };
    for call in calls {
        struct_size::<lb_cuda_call>("lb_cuda_call", call.struct_size)?;
        if call.reserved != 0 {
            return fault("reserved of lb_cuda_call must be 0".into());
        }
    }
    Ok(calls)
}

/// A checked stage with its operands.
#[derive(Clone, Copy)]
struct Call {
    /// Without work memory; `n` may be 0.
    args: Args,
    /// `None` for no columns.
    spans: Option<Spans>,
}

#[derive(Clone, Copy)]
struct Spans {
    x: Span,
    add: Option<Span>,
    y: Span,
}

impl Call {
    /// # Safety
    /// If `stage` is neither NULL nor misaligned, its `struct_size` is set; if that is right, the struct is.
    unsafe fn new(
        stage: *const lb_stage,
        n: usize,
        (x, x_stride): (*const f32, usize),
        (add, add_stride): (*const f32, usize),
        (y, y_stride): (*mut f32, usize),
    ) -> Outcome<Self> {
        // SAFETY: the caller's promise is passed on.
        let Shape { stage, rows, cols, n: count } = unsafe { shape(stage, n) }?;
        pointer("tile", stage.tile.cast::<u32>())?;
        for (name, scales) in [("pre", stage.pre), ("post", stage.post)] {
            if !scales.is_null() {
                pointer(name, scales)?;
            }
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
        if n == 0 {
            return Ok(Call { args, spans: None });
        }
        let x = Span::columns("x", x, cols as usize, x_stride, n)?;
        let y = Span::columns("y", y, rows as usize, y_stride, n)?;
        x.apart_from(y)?;
        let mut spans = Spans { x, add: None, y };
        if !add.is_null() {
            let add = Span::columns("add", add, rows as usize, add_stride, n)?;
            if args.add != args.y || (add_stride != y_stride && n > 1) {
                add.apart_from(y)?;
            }
            spans.add = Some(add);
        }
        Ok(Call { args, spans: Some(spans) })
    }

    /// Whether it adds to what `before` writes, column for column.
    fn continues(&self, before: &Call) -> bool {
        let (a, b) = (&self.args, &before.args);
        let in_place = a.add == a.y && a.add_stride == a.y_stride;
        in_place && (a.y, a.y_stride, a.rows) == (b.y, b.y_stride, b.rows)
    }
}

/// Checks calls of one `n > 0` against each other and the work memory. The length of the chains that they form, whose later
/// calls are further paths; `None` if those differ in length.
fn chains(calls: &[Call], work: *mut c_void, size: usize) -> Outcome<Option<usize>> {
    let want: usize = calls.iter().map(|c| c.args.work_bytes()).sum();
    if size < want {
        let (n, what) = (calls[0].args.n, if calls.len() == 1 { "this stage" } else { "these stages" });
        return Err(Fault::new(
            LB_ERROR_BUFFER_TOO_SMALL,
            format!("work has {size} bytes, {n} columns of {what} need {want}"),
        ));
    }
    // 16 bytes at 16, like the state of a column
    let work_span = if want > 0 { Some(Span::new("work", work.cast::<u128>(), want / 16)?) } else { None };
    // The first call of each call's chain.
    let mut head = [0; STAGES];
    for i in 1..calls.len() {
        head[i] = if calls[i].continues(&calls[i - 1]) { head[i - 1] } else { i };
    }
    for (j, own) in calls.iter().enumerate() {
        let Some(own) = own.spans else { continue };
        if let Some(work) = work_span {
            work.apart_from(own.x)?;
            work.apart_from(own.y)?;
        }
        for (i, other) in calls.iter().enumerate().filter(|(i, _)| *i != j) {
            let Some(other) = other.spans else { continue };
            own.x.apart_from(other.y)?;
            if head[i] != head[j] {
                own.y.apart_from(other.y)?;
                own.add.map_or(Ok(()), |add| add.apart_from(other.y))?;
            }
        }
    }
    let length = (1..calls.len()).find(|i| head[*i] == *i).unwrap_or(calls.len());
    let even = calls.len().is_multiple_of(length) && (0..calls.len()).all(|i| head[i] == i - i % length);
    Ok(even.then_some(length))
}

/// # Safety
/// Memory of the device by the caller's promise; at most [`STAGES`] calls of one `n`, at least one.
unsafe fn launch(
    cuda: &lb_cuda,
    calls: &[Call],
    work: *mut c_void,
    size: usize,
    stream: *mut c_void,
) -> Outcome<()> {
    if calls[0].spans.is_none() {
        return Ok(()); // no columns
    }
    let chain = chains(calls, work, size)?;
    let mut args = [calls[0].args; STAGES];
    for (to, call) in args.iter_mut().zip(calls) {
        *to = call.args;
    }
    // Chains of different lengths follow each other stage by stage.
    let (together, chain) = chain.map_or((1, 1), |chain| (calls.len(), chain));
    let mut at = work.addr() as u64;
    for stages in args[..calls.len()].chunks(together) {
        // SAFETY: checked for alignment and sizes; memory of the device by the caller's promise.
        unsafe { cuda.module.run(stages, chain, at, stream.addr() as u64) }?;
        at += stages.iter().map(|a| a.work_bytes() as u64).sum::<u64>();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::{null, null_mut};

    /// Numbers for addresses: nothing is read.
    fn call(rows: u64, x: usize, add: usize, y: usize, n: usize) -> Outcome<Call> {
        let stage = lb_stage {
            struct_size: size_of::<lb_stage>() as u32,
            reserved: 0,
            rows,
            cols: 64,
            tile: 0x1000 as *const u8,
            tile_size: rows.next_multiple_of(32) as usize * 8,
            pre: null(),
            post: null(),
        };
        let rows = rows as usize;
        // SAFETY: a stage; its pointers are only looked at.
        unsafe {
            Call::new(&stage, n, (x as *const f32, 64), (add as *const f32, rows), (y as *mut f32, rows))
        }
    }

    fn length(calls: &[Outcome<Call>]) -> Result<Option<usize>, lb_status> {
        let calls: Vec<Call> =
            calls.iter().map(|c| *c.as_ref().unwrap_or_else(|e| panic!("{e:?}"))).collect();
        chains(&calls, null_mut(), 0).map_err(|e| e.status)
    }

    #[test]
    fn paths_are_found_and_overlaps_refused() {
        let (x, y, z) = (0x10000, 0x20000, 0x30000);
        assert_eq!(length(&[call(32, x, 0, y, 1)]), Ok(Some(1)));
        assert_eq!(length(&[call(32, x, y, y, 1)]), Ok(Some(1)));
        assert_eq!(length(&[call(32, x, 0, y, 1), call(40, x, 0, z, 1)]), Ok(Some(1)));
        let two = |y, rows| [call(rows, x, 0, y, 1), call(rows, x + 256, y, y, 1)];
        assert_eq!(length(&two(y, 32)), Ok(Some(2)));
        let four: Vec<_> = two(y, 32).into_iter().chain(two(z, 40)).collect();
        assert_eq!(length(&four), Ok(Some(2)));
        let uneven: Vec<_> = two(y, 32).into_iter().chain([call(40, x, 0, z, 1)]).collect();
        assert_eq!(length(&uneven), Ok(None));
        let single_first: Vec<_> = [call(40, x, 0, z, 1)].into_iter().chain(two(y, 32)).collect();
        assert_eq!(length(&single_first), Ok(None));
        let bad = Err(LB_ERROR_INVALID_ARGUMENT);
        // one result twice; an input that is a result; an addend that is another's result; other rows
        assert_eq!(length(&[call(32, x, 0, y, 1), call(32, x, 0, y, 1)]), bad);
        assert_eq!(length(&[call(32, x, 0, y, 1), call(32, y, 0, z, 1)]), bad);
        assert_eq!(length(&[call(32, x, 0, y, 1), call(32, x, y, z, 1)]), bad);
        assert_eq!(length(&[call(32, x, z, y, 1), call(32, x, 0, z, 1)]), bad);
        assert_eq!(length(&[call(32, x, 0, y, 1), call(64, x, y, y, 1)]), bad);
        assert_eq!(length(&[call(32, x, 0, y, 2), call(40, x, 0, z, 2)]), Err(LB_ERROR_BUFFER_TOO_SMALL));
    }

    #[test]
    fn work_memory_is_apart_from_operands() {
        let calls =
            [(0x20000), 0x30000].map(|y| call(32, 0x10000, 0, y, 2).unwrap_or_else(|e| panic!("{e:?}")));
        let want: usize = calls.iter().map(|c| c.args.work_bytes()).sum();
        let status = |at: usize| chains(&calls, at as *mut c_void, want).map_err(|e| e.status);
        assert_eq!(status(0x40000), Ok(Some(1)));
        assert_eq!(status(0x30000), Err(LB_ERROR_INVALID_ARGUMENT));
        assert_eq!(status(0x10000), Err(LB_ERROR_INVALID_ARGUMENT));
        assert_eq!(status(0x40008), Err(LB_ERROR_MISALIGNED));
    }
}
