//! What stands between an entry point and its caller: panics stop here, errors become statuses, pointers are checked.

use super::status::*;
use crate::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A failure on its way out.
pub(super) struct Failure {
    status: lb_status,
    text: String,
}

/// A failure with its text.
pub(super) fn fail(status: lb_status, text: impl Into<String>) -> Failure {
    Failure { status, text: text.into() }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let status = match e {
            Error::Io { .. } => LB_ERROR_IO,
            Error::Malformed { .. } | Error::Tensor { .. } => LB_ERROR_MALFORMED,
            Error::Unsupported { .. } => LB_ERROR_UNSUPPORTED,
            Error::Usage(_) => LB_ERROR_INVALID_ARGUMENT,
            Error::Numeric { .. } => LB_ERROR_INTERNAL,
        };
        fail(status, e.to_string())
    }
}

/// Runs an entry point's body.
pub(super) fn call(body: impl FnOnce() -> Result<(), Failure>) -> lb_status {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return LB_OK,
        Ok(Err(failure)) => failure,
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("no text");
            fail(LB_ERROR_INTERNAL, format!("caught a panic: {text}"))
        }
    };
    remember(failure.text);
    failure.status
}

/// Refuses a pointer that is NULL or not aligned for `T`.
pub(super) fn check_ptr<T>(name: &str, p: *const T) -> Result<(), Failure> {
    if p.is_null() {
        return Err(fail(LB_ERROR_NULL, format!("{name} is NULL")));
    }
    if !p.is_aligned() {
        return Err(fail(
            LB_ERROR_INVALID_ARGUMENT,
            format!("{name} is not aligned to {} bytes", align_of::<T>()),
        ));
    }
    Ok(())
}

/// As [`check_ptr`] for an output.
pub(super) fn out_ptr<T>(name: &str, p: *mut T) -> Result<(), Failure> {
    check_ptr(name, p.cast_const())
}

/// Floats that `n` columns of `width` at `stride` span; refuses columns that overlap and sizes beyond the address space.
pub(super) fn span(name: &str, width: usize, stride: usize, n: usize) -> Result<usize, Failure> {
    if n > 1 && stride < width {
        return Err(fail(
            LB_ERROR_BUFFER,
            format!("{name}: columns of {width} floats overlap at a stride of {stride}"),
        ));
    }
    let floats = n.checked_sub(1).map_or(Some(0), |last| last.checked_mul(stride)?.checked_add(width));
    floats.filter(|f| *f <= isize::MAX as usize / size_of::<f32>()).ok_or_else(|| {
        fail(LB_ERROR_BUFFER, format!("{name}: {n} columns at a stride of {stride} exceed the address space"))
    })
}
