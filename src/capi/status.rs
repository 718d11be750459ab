//! Status codes and the text of the last failure.

use std::cell::RefCell;
use std::ffi::{CString, c_char};

/// Outcome of a call. Numbers are stable; ranges group them.
pub type lb_status = u32;

/// Success.
pub const LB_OK: lb_status = 0;
/// A pointer that must not be NULL is NULL.
pub const LB_ERROR_NULL: lb_status = 10;
/// An argument makes no sense (unknown mode, misaligned pointer, wrong struct_size, ith >= nth).
pub const LB_ERROR_INVALID_ARGUMENT: lb_status = 11;
/// An index or name that does not exist.
pub const LB_ERROR_NOT_FOUND: lb_status = 12;
/// A buffer is too small, or a stride too short.
pub const LB_ERROR_BUFFER: lb_status = 13;
/// The operating system refused to open or read a file.
pub const LB_ERROR_IO: lb_status = 20;
/// A file breaks the rules of its format.
pub const LB_ERROR_MALFORMED: lb_status = 30;
/// A sound file that this library cannot use (no LittleBit file, unknown version).
pub const LB_ERROR_UNSUPPORTED: lb_status = 31;
/// A fault of the library itself was caught before it reached the caller.
pub const LB_ERROR_INTERNAL: lb_status = 90;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Remembers `text` for [`lb_last_error_message`].
pub(super) fn remember(text: String) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // A thread that is being torn down has nobody left to ask.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

/// What the last failed call on this thread said; never NULL, empty before the first failure. Valid until the next
/// failed call on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn lb_last_error_message() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// A short name for a status; never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn lb_status_text(status: lb_status) -> *const c_char {
    let text = match status {
        LB_OK => c"ok",
        LB_ERROR_NULL => c"null pointer",
        LB_ERROR_INVALID_ARGUMENT => c"invalid argument",
        LB_ERROR_NOT_FOUND => c"not found",
        LB_ERROR_BUFFER => c"buffer too small",
        LB_ERROR_IO => c"input/output error",
        LB_ERROR_MALFORMED => c"malformed file",
        LB_ERROR_UNSUPPORTED => c"unsupported file",
        LB_ERROR_INTERNAL => c"internal error",
        _ => c"unknown status",
    };
    text.as_ptr()
}
