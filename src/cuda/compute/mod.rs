//! A GPU as the compressor uses it: memory, products by cuBLAS, kernels of its own. All work goes to the default stream, in order.
//!
//! | file | job |
//! |---|---|
//! | `memory` | device memory |
//! | `blas` | products and triangular systems |
//! | `kernels` | names and arguments of the kernels |
//! | `cholesky` | positive definite systems |

mod blas;
mod cholesky;
mod kernels;
mod memory;

pub use blas::{Matrix, Op};
pub use kernels::{Args, CHUNK, DIAGONAL, Kernel, THREADS};
use memory::Idle;
pub use memory::{Buffer, Kept};

use super::Failure;
use super::driver::{self, Image, check_capability, checked};
use cudarc::cublas::sys as blas_sys;
use cudarc::driver::sys;
use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static IMAGE: &Image<[u8]> = &Image(*include_bytes!(concat!(env!("OUT_DIR"), "/factorize.fatbin")));

/// Functions of the driver's library that are called.
const DRIVER: [&CStr; 18] = [
    c"cuInit",
    c"cuGetErrorString",
    c"cuDeviceGetCount",
    c"cuDeviceGet",
    c"cuDeviceGetName",
    c"cuDeviceGetAttribute",
    c"cuDevicePrimaryCtxRetain",
    c"cuDevicePrimaryCtxRelease_v2",
    c"cuCtxSetCurrent",
    c"cuMemGetInfo_v2",
    c"cuMemAlloc_v2",
    c"cuMemFree_v2",
    c"cuMemcpyHtoD_v2",
    c"cuMemcpyDtoH_v2",
    c"cuModuleLoadData",
    c"cuModuleGetFunction",
    c"cuModuleUnload",
    c"cuLaunchKernel",
];
/// And of cuBLAS.
const BLAS: [&CStr; 6] = [
    c"cublasCreate_v2",
    c"cublasDestroy_v2",
    c"cublasSetMathMode",
    c"cublasSgemm_v2",
    c"cublasSsyrk_v2",
    c"cublasStrsm_v2",
];

/// The first GPU of the machine, its kernels loaded. One thread at a time works on it.
#[derive(Debug)]
pub struct Gpu {
    device: sys::CUdevice,
    name: String,
    context: sys::CUcontext,
    module: sys::CUmodule,
    functions: [sys::CUfunction; Kernel::NAMES.len()],
    blas: blas_sys::cublasHandle_t,
    idle: Arc<Idle>,
    turn: Mutex<()>,
}

// SAFETY: handles of libraries that take them from any thread; sessions take turns.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens the GPU.
    ///
    /// # Errors
    /// [`Failure::Absent`] in words for the user where there is no driver, no device of capability 8.0, or no cuBLAS.
    pub fn open() -> Result<Self, Failure> {
        // Functions that are missing are looked for before; should cudarc still panic, the library is of no use.
        catch_unwind(AssertUnwindSafe(Self::load))
            .unwrap_or_else(|_| Err(Failure::Absent("the driver's library or cuBLAS lacks functions".into())))
    }

    fn load() -> Result<Self, Failure> {
        let absent = |what: String| Err(Failure::Absent(what));
        // SAFETY: opens the driver's library, whose initializers are trusted as in any CUDA program.
        if !unsafe { sys::is_culib_present() } {
            return absent(
                "the NVIDIA driver's library (libcuda.so.1) is not on this machine; install the driver, or work on the CPU"
                    .into(),
            );
        }
        // SAFETY: as above, for cuBLAS.
        if !unsafe { blas_sys::is_culib_present() } {
            return absent(
                "cuBLAS (libcublas.so.13) is not on this machine; install it with the CUDA toolkit or from the wheel \
                 nvidia-cublas, and name its folder in LD_LIBRARY_PATH"
                    .into(),
            );
        }
        // SAFETY: the libraries are there; they are opened once and stay.
        let libraries = unsafe { [(sys::culib(), &DRIVER[..]), (blas_sys::culib(), &BLAS[..])] };
        for (library, functions) in libraries {
            for name in functions {
                // SAFETY: the symbol is looked for, not used.
                if unsafe { library.get::<unsafe extern "C" fn()>(name.to_bytes_with_nul()) }.is_err() {
                    return absent(format!(
                        "{} is missing in its library: too old a driver or cuBLAS",
                        name.to_string_lossy()
                    ));
                }
            }
        }
        // SAFETY: may be called any number of times.
        let result = unsafe { sys::cuInit(0) };
        checked("cuInit", result).map_err(|e| Failure::Absent(e.to_string()))?;
        let (mut count, mut device) = (0, 0);
        // SAFETY: writes a number.
        checked("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        if count < 1 {
            return absent("the driver sees no GPU (nvidia-smi, CUDA_VISIBLE_DEVICES)".into());
        }
        // SAFETY: writes a number.
        checked("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, 0) })?;
        check_capability(device)?;
        let mut text = [0; 128];
        // SAFETY: writes at most so many bytes, a zero among them.
        checked("cuDeviceGetName", unsafe {
            sys::cuDeviceGetName(text.as_mut_ptr(), text.len() as i32, device)
        })?;
        // SAFETY: a C string.
        let name = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
        let mut context = null_mut();
        // SAFETY: writes a handle, given back in Drop.
        checked("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })?;
        let mut gpu = Gpu {
            device,
            name,
            context,
            module: null_mut(),
            functions: [null_mut(); Kernel::NAMES.len()],
            blas: null_mut(),
            idle: Arc::default(),
            turn: Mutex::new(()),
        };
        gpu.make_current()?;
        (gpu.module, gpu.functions) = driver::load(IMAGE, Kernel::NAMES)?;
        // SAFETY: writes a handle, given back in Drop.
        blas::checked("cublasCreate", unsafe { blas_sys::cublasCreate_v2(&mut gpu.blas) })?;
        // SAFETY: a handle. Plain f32: results are to be those of the CPU.
        blas::checked("cublasSetMathMode", unsafe {
            blas_sys::cublasSetMathMode(gpu.blas, blas_sys::cublasMath_t::CUBLAS_DEFAULT_MATH)
        })?;
        Ok(gpu)
    }

    /// What the driver calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The right to use it on this thread; waits for others.
    ///
    /// # Errors
    /// [`Failure::Driver`].
    pub fn session(&self) -> Result<Session<'_>, Failure> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.make_current()?;
        Ok(Session { gpu: self, _turn: turn })
    }

    fn make_current(&self) -> Result<(), Failure> {
        // SAFETY: a context that lives as long as self.
        checked("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: made once, given back once, on a thread that has the context; what was not made is null.
        unsafe {
            if sys::cuCtxSetCurrent(self.context) == sys::CUresult::CUDA_SUCCESS {
                self.idle.free();
                if !self.blas.is_null() {
                    blas_sys::cublasDestroy_v2(self.blas);
                }
                if !self.module.is_null() {
                    sys::cuModuleUnload(self.module);
                }
                sys::cuCtxSetCurrent(null_mut());
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// The GPU in the hands of this thread.
#[derive(Debug)]
pub struct Session<'g> {
    gpu: &'g Gpu,
    _turn: MutexGuard<'g, ()>,
}

impl Session<'_> {
    /// Launches `kernel` on `grid` blocks. Does not wait.
    ///
    /// # Errors
    /// [`Failure::Driver`].
    ///
    /// # Safety
    /// The pointers of `args` lead to memory of the device, of the sizes that the kernel's source says for its numbers.
    pub unsafe fn launch(&self, kernel: Kernel, (x, y): (usize, usize), args: Args) -> Result<(), Failure> {
        let function = self.gpu.functions[kernel as usize];
        let call = Kernel::NAMES[kernel as usize];
        // SAFETY: a function of the module, which takes one Args by value; the rest is the caller's promise.
        unsafe { driver::launch(call, function, (x as u32, y as u32), kernel.block(), null_mut(), args) }
    }

    /// Launches a kernel on the whole of a matrix, `r` values in each of `n` columns (or rows, where it is row-major).
    ///
    /// # Errors
    /// [`Failure::Driver`].
    ///
    /// # Safety
    /// As [`Session::launch`].
    pub unsafe fn launch_on_matrix(&self, kernel: Kernel, args: Args) -> Result<(), Failure> {
        let grid = ((args.r as usize).div_ceil(THREADS as usize), (args.n as usize).clamp(1, 65535));
        // SAFETY: the caller's promise.
        unsafe { self.launch(kernel, grid, args) }
    }
}
