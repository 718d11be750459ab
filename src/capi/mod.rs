//! The C ABI of liblittlebit: thin entry points over [`crate::format`] and [`crate::kernel`].
//!
//! Conventions (`specs/c-abi.md`): every call that can fail returns an [`lb_status`] and leaves its outputs alone unless it
//! returns [`LB_OK`]; the text of a thread's last failure is [`lb_last_error_message`]; nothing unwinds into the caller.

#![allow(non_camel_case_types)] // names of the C side

mod guard;
mod model;
mod stage;
mod status;

pub use model::*;
pub use stage::*;
pub use status::*;

use guard::{call, fail, out_ptr};
use std::ffi::{CStr, c_char};

/// Major version of the library.
pub const LB_VERSION_MAJOR: u32 = 0;
/// Minor version of the library.
pub const LB_VERSION_MINOR: u32 = 1;
/// Patch version of the library.
pub const LB_VERSION_PATCH: u32 = 0;
/// Version of this ABI; changes when a caller must be recompiled or changed.
pub const LB_ABI_VERSION: u32 = 1;

/// Version of the library that is loaded, "major.minor.patch".
#[unsafe(no_mangle)]
pub extern "C" fn lb_version() -> *const c_char {
    const TEXT: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => c"",
    };
    TEXT.as_ptr()
}

/// ABI version of the library that is loaded; compare it with LB_ABI_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn lb_abi_version() -> u32 {
    LB_ABI_VERSION
}

/// Number of kernels that run on this machine, at least 1.
#[unsafe(no_mangle)]
pub extern "C" fn lb_kernel_count() -> usize {
    crate::kernel::available().len()
}

fn kernel_text(kernel: crate::kernel::Kernel) -> *const c_char {
    use crate::kernel::Kernel;
    let name = match kernel {
        Kernel::Scalar => c"scalar",
        Kernel::Avx2 => c"avx2",
    };
    name.as_ptr()
}

/// Name of kernel `index`, slowest first; NULL beyond the last.
#[unsafe(no_mangle)]
pub extern "C" fn lb_kernel_name(index: usize) -> *const c_char {
    crate::kernel::available().get(index).map_or(std::ptr::null(), |k| kernel_text(*k))
}

/// Name of the kernel in force: the forced one, else the one that the environment variable LITTLEBIT_KERNEL
/// names, else the fastest.
#[unsafe(no_mangle)]
pub extern "C" fn lb_kernel_active() -> *const c_char {
    kernel_text(crate::kernel::active())
}

/// Makes one kernel the active one for the whole process; NULL lifts that again.
///
/// # Safety
/// `name` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_kernel_force(name: *const c_char) -> lb_status {
    call(|| {
        if name.is_null() {
            return Ok(crate::kernel::force(None)?);
        }
        // SAFETY: not NULL, and the caller promises a terminated string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        Ok(crate::kernel::force(Some(name.parse()?))?)
    })
}
