//! What this library is, at compile time (macros of the header) and at run time.

use std::ffi::c_char;

/// Version of this header, first number.
pub const LB_VERSION_MAJOR: u32 = 0;
/// Version of this header, second number.
pub const LB_VERSION_MINOR: u32 = 1;
/// Version of this header, third number.
pub const LB_VERSION_PATCH: u32 = 0;

/// Counts incompatible changes of this interface; part of the shared library's name.
pub const LB_ABI_VERSION: u32 = 0;

/// The library's version, for example "0.1.0". Static storage.
#[unsafe(no_mangle)]
pub extern "C" fn lb_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// LB_ABI_VERSION of the library in use. If it is not the header's, no other call is safe.
#[unsafe(no_mangle)]
pub extern "C" fn lb_abi_version() -> u32 {
    LB_ABI_VERSION
}
