//! Status numbers and the message of the last failure.

use crate::error::Error;
use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

/// Result of a call: LB_OK or one of LB_ERROR_*. Numbers never change their meaning; new ones fill the gaps.
/// 10..19: the call is wrong. 20..29: the system refused. 30..39: the file is wrong. 90..99: our fault.
pub type lb_status = u32;

/// Success.
pub const LB_OK: lb_status = 0;
/// A pointer that must not be NULL is NULL.
pub const LB_ERROR_NULL_POINTER: lb_status = 10;
/// An argument has a value that makes no sense, alone or beside the others.
pub const LB_ERROR_INVALID_ARGUMENT: lb_status = 11;
/// An index is not below its count.
pub const LB_ERROR_OUT_OF_RANGE: lb_status = 12;
/// The caller's memory is smaller than the call needs.
pub const LB_ERROR_BUFFER_TOO_SMALL: lb_status = 13;
/// A pointer is not aligned for its type.
pub const LB_ERROR_MISALIGNED: lb_status = 14;
/// Nothing has the name that was asked for.
pub const LB_ERROR_NOT_FOUND: lb_status = 15;
/// struct_size is not that of a version of the struct that this library knows.
pub const LB_ERROR_STRUCT_SIZE: lb_status = 16;
/// The operating system refused an operation on a file.
pub const LB_ERROR_IO: lb_status = 20;
/// There is no CUDA to use: not in this build, no driver, no device, or one that is too old.
pub const LB_ERROR_NO_CUDA: lb_status = 21;
/// The CUDA driver refused a call.
pub const LB_ERROR_CUDA: lb_status = 22;
/// The file breaks the rules of its format.
pub const LB_ERROR_MALFORMED: lb_status = 30;
/// The file is readable but not a LittleBit file of a version that this library knows.
pub const LB_ERROR_UNSUPPORTED: lb_status = 31;
/// A Rust panic was caught. Please report it. Handles involved should only be freed.
pub const LB_ERROR_PANIC: lb_status = 90;
/// An internal failure without a number of its own. Please report it.
pub const LB_ERROR_INTERNAL: lb_status = 91;

/// Why a call fails.
#[derive(Debug)]
pub(super) struct Fault {
    pub status: lb_status,
    pub message: Cow<'static, str>,
}

impl Fault {
    pub(super) fn new(status: lb_status, message: impl Into<Cow<'static, str>>) -> Self {
        Fault { status, message: message.into() }
    }
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        let status = match e {
            Error::Usage(_) => LB_ERROR_INVALID_ARGUMENT,
            Error::Io { .. } => LB_ERROR_IO,
            Error::Malformed { .. } | Error::Tensor { .. } => LB_ERROR_MALFORMED,
            Error::Unsupported { .. } | Error::Tokenizer { .. } => LB_ERROR_UNSUPPORTED,
            Error::Numeric { .. } | Error::Device(_) => LB_ERROR_INTERNAL,
        };
        Fault::new(status, e.to_string())
    }
}

/// What a status means, in a few words. Never NULL, static storage.
#[unsafe(no_mangle)]
pub extern "C" fn lb_status_text(status: lb_status) -> *const c_char {
    let text = match status {
        LB_OK => c"success",
        LB_ERROR_NULL_POINTER => c"NULL pointer",
        LB_ERROR_INVALID_ARGUMENT => c"invalid argument",
        LB_ERROR_OUT_OF_RANGE => c"index out of range",
        LB_ERROR_BUFFER_TOO_SMALL => c"buffer too small",
        LB_ERROR_MISALIGNED => c"misaligned pointer",
        LB_ERROR_NOT_FOUND => c"not found",
        LB_ERROR_STRUCT_SIZE => c"unknown struct size",
        LB_ERROR_IO => c"input/output error",
        LB_ERROR_NO_CUDA => c"no CUDA",
        LB_ERROR_CUDA => c"CUDA error",
        LB_ERROR_MALFORMED => c"malformed file",
        LB_ERROR_UNSUPPORTED => c"unsupported file",
        LB_ERROR_PANIC => c"internal panic",
        LB_ERROR_INTERNAL => c"internal error",
        _ => c"unknown status",
    };
    text.as_ptr()
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Remembers `message` for this thread. A thread that is being torn down keeps none.
pub(super) fn remember(message: &str) {
    let bytes: Vec<u8> = message.bytes().map(|b| if b == 0 { b'?' } else { b }).collect();
    if let Ok(text) = CString::new(bytes) {
        let _ = LAST.try_with(|last| last.try_borrow_mut().map(|mut last| *last = text));
    }
}

/// What the last failed call of this thread had to say: one UTF-8 line, empty before the first failure.
/// Never NULL. Valid until the next failing call of this thread; successful calls leave it alone.
#[unsafe(no_mangle)]
pub extern "C" fn lb_last_error_message() -> *const c_char {
    const NONE: &CStr = c"";
    LAST.try_with(|last| last.try_borrow().map_or(NONE.as_ptr(), |last| last.as_ptr()))
        .unwrap_or(NONE.as_ptr())
}
