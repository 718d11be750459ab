//! What stands between C and Rust: no panic gets out, no pointer gets in that Rust could not use.
//!
//! Pointers can be checked for NULL and alignment and ranges for wrapping and overlap; that they lead to live
//! memory of the promised size stays the caller's word.

use super::status::*;
use std::ffi::{CStr, c_char};
use std::mem::align_of;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(super) type Outcome<T> = Result<T, Fault>;

/// Runs the body of an entry. Failures are remembered for `lb_last_error_message`, panics end here.
pub(super) fn guard(body: impl FnOnce() -> Outcome<()>) -> lb_status {
    // Unwind safety: handles are only written through locks, and a panic leaves those marked.
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Err(Fault::new(LB_ERROR_PANIC, format!("internal panic: {what}")))
    });
    match outcome {
        Ok(()) => LB_OK,
        Err(fault) => {
            remember(&fault.message);
            fault.status
        }
    }
}

/// As [`guard`] for entries without a status: they return `otherwise` on failure.
pub(super) fn guard_or<T>(otherwise: T, body: impl FnOnce() -> Outcome<T>) -> T {
    let mut value = otherwise;
    let slot = &mut value;
    guard(move || {
        *slot = body()?;
        Ok(())
    });
    value
}

/// Refuses NULL and misaligned pointers.
pub(super) fn pointer<T>(name: &'static str, p: *const T) -> Outcome<()> {
    if p.is_null() {
        return Err(Fault::new(LB_ERROR_NULL_POINTER, format!("{name} is NULL")));
    }
    if !p.is_aligned() {
        let align = align_of::<T>();
        return Err(Fault::new(LB_ERROR_MISALIGNED, format!("{name} is not aligned to {align} bytes")));
    }
    Ok(())
}

/// What `p` points to.
///
/// # Safety
/// If `p` is neither NULL nor misaligned it points to a `T` that nobody writes during `'a`.
pub(super) unsafe fn reference<'a, T>(name: &'static str, p: *const T) -> Outcome<&'a T> {
    pointer(name, p)?;
    // SAFETY: not NULL, aligned, and live by the caller's promise.
    Ok(unsafe { &*p })
}

/// The bytes of a C string, without its end.
///
/// # Safety
/// If `p` is not NULL it points to a string that ends with NUL and that nobody writes during `'a`.
pub(super) unsafe fn string<'a>(name: &'static str, p: *const c_char) -> Outcome<&'a CStr> {
    pointer(name, p)?;
    // SAFETY: not NULL, and a C string by the caller's promise.
    Ok(unsafe { CStr::from_ptr(p) })
}

/// A range of the caller's memory.
#[derive(Clone, Copy)]
pub(super) struct Span {
    name: &'static str,
    start: usize,
    bytes: usize,
}

impl Span {
    /// `len` values from `p` on, an aligned range that Rust can hold a slice of.
    pub(super) fn new<T>(name: &'static str, p: *const T, len: usize) -> Outcome<Self> {
        pointer(name, p)?;
        let bytes = len.checked_mul(size_of::<T>()).filter(|b| *b <= isize::MAX as usize);
        match bytes {
            Some(bytes) if p.addr().checked_add(bytes).is_some() => Ok(Span { name, start: p.addr(), bytes }),
            _ => Err(Fault::new(
                LB_ERROR_INVALID_ARGUMENT,
                format!("{name}: {len} values do not fit the address space"),
            )),
        }
    }

    /// `n` columns of `width` floats, `stride` apart; `n > 0`.
    pub(super) fn columns(
        name: &'static str,
        p: *const f32,
        width: usize,
        stride: usize,
        n: usize,
    ) -> Outcome<Self> {
        if n > 1 && stride < width {
            return Err(Fault::new(
                LB_ERROR_INVALID_ARGUMENT,
                format!("{name}: columns of {width} floats overlap at a stride of {stride}"),
            ));
        }
        let len = n.saturating_sub(1).checked_mul(stride).and_then(|at| at.checked_add(width));
        Span::new(name, p, len.unwrap_or(usize::MAX))
    }

    /// Number of values of `T` in the range.
    pub(super) fn len<T>(self) -> usize {
        self.bytes / size_of::<T>()
    }

    /// Refuses ranges that share a byte with `other`.
    pub(super) fn apart_from(self, other: Span) -> Outcome<()> {
        let apart = self.start >= other.start + other.bytes || other.start >= self.start + self.bytes;
        if apart || self.bytes == 0 || other.bytes == 0 {
            return Ok(());
        }
        Err(Fault::new(
            LB_ERROR_INVALID_ARGUMENT,
            format!("{} and {} overlap in memory", self.name, other.name),
        ))
    }
}

/// A count or dimension of the caller as a `usize`.
pub(super) fn size(name: &'static str, value: u64) -> Outcome<usize> {
    usize::try_from(value).map_err(|_| {
        Fault::new(LB_ERROR_INVALID_ARGUMENT, format!("{name} {value} is too large for this system"))
    })
}

/// Refuses an index that is not below `count`.
pub(super) fn index(name: &'static str, index: usize, count: usize) -> Outcome<usize> {
    if index < count {
        return Ok(index);
    }
    Err(Fault::new(LB_ERROR_OUT_OF_RANGE, format!("{name} {index} of {count}")))
}

/// Checks the `struct_size` at the head of a caller's struct. Every version of a struct has its own size, so
/// another number is another version, or memory that nobody set.
pub(super) fn struct_size<T>(name: &'static str, given: u32) -> Outcome<()> {
    let known = size_of::<T>();
    if given as usize == known {
        return Ok(());
    }
    Err(Fault::new(
        LB_ERROR_STRUCT_SIZE,
        format!("struct_size of {name} is {given}, this library knows {known}: set it to sizeof({name})"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        // SAFETY: a C string of this thread, copied before the next call.
        unsafe { CStr::from_ptr(lb_last_error_message()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn panics_become_a_status_with_their_message() {
        assert_eq!(guard(|| panic!("no {}", "luck")), LB_ERROR_PANIC);
        assert_eq!(message(), "internal panic: no luck");
        assert_eq!(guard(|| panic!("plain")), LB_ERROR_PANIC);
        assert_eq!(message(), "internal panic: plain");
        assert_eq!(guard_or(7, || panic!("again")), 7);
        assert_eq!(guard(|| Ok(())), LB_OK);
        assert_eq!(message(), "internal panic: again");
    }

    #[test]
    fn messages_survive_a_nul_inside() {
        assert_eq!(guard(|| Err(Fault::new(LB_ERROR_IO, "a\0b"))), LB_ERROR_IO);
        assert_eq!(message(), "a?b");
    }

    #[test]
    fn spans_refuse_what_wraps_or_overlaps() {
        let status = |r: Outcome<Span>| r.map(|_| ()).map_err(|f| f.status);
        let memory = [0f32; 8];
        let p = memory.as_ptr();
        assert_eq!(status(Span::new("x", p, usize::MAX)), Err(LB_ERROR_INVALID_ARGUMENT));
        assert_eq!(status(Span::new("x", p, usize::MAX / 8 + 1)), Err(LB_ERROR_INVALID_ARGUMENT));
        assert_eq!(status(Span::columns("x", p, 4, usize::MAX, 3)), Err(LB_ERROR_INVALID_ARGUMENT));
        assert_eq!(status(Span::columns("x", p, 4, 3, 2)), Err(LB_ERROR_INVALID_ARGUMENT));
        assert_eq!(status(Span::new("x", p.wrapping_byte_add(2), 1)), Err(LB_ERROR_MISALIGNED));
        let span =
            |at: usize, len| Span::new("x", p.wrapping_add(at), len).unwrap_or_else(|f| panic!("{f:?}"));
        assert!(span(0, 4).apart_from(span(4, 4)).is_ok());
        assert!(span(4, 4).apart_from(span(0, 4)).is_ok());
        assert!(span(0, 5).apart_from(span(4, 4)).is_err());
        assert!(span(1, 1).apart_from(span(0, 8)).is_err());
    }
}
