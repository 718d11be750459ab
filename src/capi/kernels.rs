//! Which implementation of the products runs.

use super::guard::*;
use super::status::*;
use crate::kernel::{Kernel, active, available, force};
use std::ffi::{CString, c_char};
use std::sync::OnceLock;

/// The available kernels and their names as C strings, slowest first.
fn names() -> &'static [(Kernel, CString)] {
    static NAMES: OnceLock<Vec<(Kernel, CString)>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let named = |kernel: Kernel| Some((kernel, CString::new(kernel.name()).ok()?));
        available().into_iter().filter_map(named).collect()
    })
}

/// Number of kernels that run on this machine, at least 1. All give the same results, bit for bit.
#[unsafe(no_mangle)]
pub extern "C" fn lb_kernel_count() -> usize {
    guard_or(0, || Ok(names().len()))
}

/// Name of a kernel, slowest first; NULL if index is not below lb_kernel_count(). Static storage.
#[unsafe(no_mangle)]
pub extern "C" fn lb_kernel_name(index: usize) -> *const c_char {
    guard_or(std::ptr::null(), || {
        let i = super::guard::index("kernel", index, names().len())?;
        Ok(names()[i].1.as_ptr())
    })
}

/// Name of the kernel in use: the one given to lb_kernel_force, else the one that the environment variable
/// LITTLEBIT_KERNEL names, else the fastest. A bad value of the variable is reported once on stderr.
/// Static storage.
#[unsafe(no_mangle)]
pub extern "C" fn lb_kernel_active() -> *const c_char {
    guard_or(std::ptr::null(), || {
        let kernel = active();
        let name = names().iter().find(|(k, _)| *k == kernel);
        Ok(name.map_or(std::ptr::null(), |(_, name)| name.as_ptr()))
    })
}

/// Makes the kernel of this name the one in use for the whole process; NULL chooses automatically again.
/// Calls that already run keep theirs.
/// Errors: LB_ERROR_INVALID_ARGUMENT for an unknown name or a kernel that does not run here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_kernel_force(name: *const c_char) -> lb_status {
    guard(|| {
        if name.is_null() {
            return Ok(force(None)?);
        }
        // SAFETY: a C string by the caller's promise.
        let name = unsafe { string("name", name) }?.to_string_lossy();
        Ok(force(Some(name.parse()?))?)
    })
}
