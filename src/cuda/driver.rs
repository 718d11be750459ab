//! The kernels in a CUDA context. Only the driver's library is needed at run time, and it is looked for when a module is
//! opened: without it there is an error, not a program that does not start.

use super::Failure;
use super::plan::{Args, Kernel, STAGES, group, join};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CStr, CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

/// Aligned, as the driver wants images.
#[repr(C, align(64))]
pub(super) struct Image<T: ?Sized>(pub(super) T);
static IMAGE: &Image<[u8]> = &Image(*include_bytes!(concat!(env!("OUT_DIR"), "/littlebit.fatbin")));

const OLDEST: (i32, i32) = (8, 0);

/// The kernels, loaded into the context that was current in [`Module::open`].
#[derive(Debug)]
pub struct Module {
    context: sys::CUcontext,
    module: sys::CUmodule,
    functions: [sys::CUfunction; Kernel::ALL.len()],
}

// SAFETY: handles of the driver, which takes them from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

pub(super) fn checked(call: &'static str, result: CUresult) -> Result<(), Failure> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: writes a pointer to a static string, or NULL for a number it does not know.
    let known =
        unsafe { sys::cuGetErrorString(result, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    let reason = if known {
        // SAFETY: a static C string.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    } else {
        format!("error {}", result as u32)
    };
    Err(Failure::Driver { call, reason })
}

fn current() -> Result<sys::CUcontext, Failure> {
    let mut context = null_mut();
    // SAFETY: writes a handle.
    checked("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut context) })?;
    if context.is_null() {
        return Err(Failure::Context(
            "the calling thread has no CUDA context; cudaSetDevice or cuCtxSetCurrent gives it one".into(),
        ));
    }
    Ok(context)
}

/// Refuses a device that is older than the kernels want.
pub(super) fn check_capability(device: sys::CUdevice) -> Result<(), Failure> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: writes a number.
        checked("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
        Ok::<i32, Failure>(value)
    };
    let capability = (attribute(MAJOR)?, attribute(MINOR)?);
    if capability < OLDEST {
        let (major, minor) = capability;
        return Err(Failure::Absent(format!(
            "the device has compute capability {major}.{minor}, 8.0 is needed"
        )));
    }
    Ok(())
}

/// Loads a module into the current context and finds its functions.
pub(super) fn load<const N: usize>(
    image: &Image<[u8]>,
    names: [&str; N],
) -> Result<(sys::CUmodule, [sys::CUfunction; N]), Failure> {
    let mut module = null_mut();
    // SAFETY: a fatbin with its length inside, aligned.
    checked("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, image.0.as_ptr().cast()) })?;
    let mut functions = [null_mut(); N];
    for (slot, name) in functions.iter_mut().zip(names) {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: a loaded module and a C string.
        let found = unsafe { sys::cuModuleGetFunction(slot, module, name.as_ptr()) };
        if let Err(e) = checked("cuModuleGetFunction", found) {
            // SAFETY: loaded above, and nobody else has it.
            unsafe { sys::cuModuleUnload(module) };
            return Err(e);
        }
    }
    Ok((module, functions))
}

/// Launches `function` on `(x, y)` blocks of so many threads with so many bytes of shared memory; `call` names it in a failure.
///
/// # Safety
/// A function of a module in the current context that takes one `A` by value, whose pointers lead where it says.
pub(super) unsafe fn launch<A>(
    call: &'static str,
    function: sys::CUfunction,
    (x, y): (u32, u32),
    (block, shared): (u32, u32),
    stream: sys::CUstream,
    mut args: A,
) -> Result<(), Failure> {
    let mut params = [(&raw mut args).cast::<c_void>()];
    // SAFETY: the caller's promise.
    let result = unsafe {
        sys::cuLaunchKernel(function, x, y, 1, block, 1, 1, shared, stream, params.as_mut_ptr(), null_mut())
    };
    checked(call, result)
}

impl Module {
    /// Loads the kernels into the context of the calling thread.
    /// Errors: [`Failure::Absent`] without a driver, a device, or one of capability 8.0; [`Failure::Context`].
    pub fn open() -> Result<Self, Failure> {
        // A library that lacks a function makes cudarc panic at the call; that is a driver we cannot use.
        catch_unwind(AssertUnwindSafe(Self::load))
            .unwrap_or_else(|_| Err(Failure::Absent("the driver's library lacks functions".into())))
    }

    fn load() -> Result<Self, Failure> {
        // SAFETY: opens the driver's library, whose initializers are trusted as in any CUDA program.
        if !unsafe { sys::is_culib_present() } {
            return Err(Failure::Absent(
                "the NVIDIA driver's library (libcuda) is not on this machine".into(),
            ));
        }
        // SAFETY: may be called any number of times.
        let result = unsafe { sys::cuInit(0) };
        checked("cuInit", result).map_err(|e| Failure::Absent(e.to_string()))?;
        let context = current()?;
        let mut device = 0;
        // SAFETY: writes a number.
        checked("cuCtxGetDevice", unsafe { sys::cuCtxGetDevice(&mut device) })?;
        check_capability(device)?;
        let (module, functions) = load(IMAGE, Kernel::ALL.map(Kernel::name))?;
        Ok(Module { context, module, functions })
    }

    /// Launches chains of `chain` stages on `stream`: together where [`join`] can, else one after the other, with the same
    /// results. `stages` have all but `columns`, `planes`, `split` and `plane`; `work` is the sum of their
    /// [`Args::work_bytes`] of device memory, aligned to 16. Does not wait or allocate; may be captured into a graph.
    /// Errors: [`Failure::Context`], [`Failure::Driver`].
    ///
    /// # Panics
    /// For more than [`STAGES`] stages.
    ///
    /// # Safety
    /// All pointers of `stages` lead to memory of the device, of the sizes that its numbers give, which the stream
    /// may use until the launches are done; `tile` is aligned to 4, `0 < n <=` [`MAX_N`](super::MAX_N), `cols <= 2^18`. No stage reads what another
    /// writes, but for what later ones of a chain add.
    pub unsafe fn run(&self, stages: &[Args], chain: usize, work: u64, stream: u64) -> Result<(), Failure> {
        if current()? != self.context {
            return Err(Failure::Context(
                "the calling thread has another CUDA context than lb_cuda_open saw".into(),
            ));
        }
        let Some(first) = stages.first() else { return Ok(()) };
        let mut placed = [*first; STAGES];
        let placed = &mut placed[..stages.len()];
        let mut at = work;
        for (to, stage) in placed.iter_mut().zip(stages) {
            debug_assert!(stage.work_bytes() == 0 || at.is_multiple_of(16));
            *to = stage.with_work(at);
            at += stage.work_bytes() as u64;
        }
        // SAFETY: the caller's promise.
        unsafe {
            if self.run_together(placed, chain, stream)? {
                return Ok(());
            }
            for stage in placed.chunks(1) {
                self.run_together(stage, 1, stream)?;
            }
        }
        Ok(())
    }

    /// False, and nothing was launched, if the stages cannot share launches.
    ///
    /// # Safety
    /// As [`Module::run`]; the stages have their work memory.
    unsafe fn run_together(&self, stages: &[Args], chain: usize, stream: u64) -> Result<bool, Failure> {
        let Some(plan) = join(stages, chain) else { return Ok(false) };
        for (k, launch) in plan.iter().enumerate() {
            let function = self.functions[launch.kernel as usize];
            let (grid, block) = ((launch.grid_x, launch.grid_y), (launch.block, launch.shared));
            let group = group(stages, chain, k);
            // SAFETY: a function of the module, which takes one Group by value; the rest is the caller's promise.
            unsafe { self::launch("cuLaunchKernel", function, grid, block, stream as sys::CUstream, group)? };
        }
        Ok(true)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded once, in its context. Where the context is gone, so is the module.
        unsafe {
            if sys::cuCtxPushCurrent_v2(self.context) == CUresult::CUDA_SUCCESS {
                sys::cuModuleUnload(self.module);
                sys::cuCtxPopCurrent_v2(&mut null_mut());
            }
        }
    }
}
