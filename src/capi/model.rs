//! Opening a LittleBit GGUF and multiplying by its matrices.

use super::*;
use crate::format::{Factors, LittleBitFile, factors::slice_bits};
use crate::kernel::{self, Mode, PathRef};
use guard::{check_ptr, span};
use std::ffi::CString;
use std::path::Path;

/// The factorized matrices of a file, in memory. Immutable: any number of threads may use it at once.
pub struct lb_model {
    matrices: Vec<lb_matrix>,
}

/// One factorized matrix; belongs to its model and lives as long.
pub struct lb_matrix {
    name: CString,
    pub(super) factors: Factors,
    pub(super) d_out: usize,
    pub(super) d_in: usize,
    pub(super) rank: usize,
}

/// What a matrix is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct lb_matrix_info {
    /// Size of this struct in bytes; set by the caller.
    pub struct_size: u32,
    /// Experts in the stack, 1 for an ordinary matrix.
    pub experts: u32,
    /// Paths per expert, 1 or 2.
    pub paths: u32,
    /// Zero.
    pub reserved: u32,
    /// Outputs.
    pub d_out: u64,
    /// Inputs.
    pub d_in: u64,
    /// Rank of each path.
    pub rank: u64,
    /// Bits per weight, scales and padding included.
    pub bpw: f64,
}

/// Activations in exact integers of 12 bits: the fast mode.
pub const LB_MODE_INT: u32 = 0;
/// Activations in f32: slow, for checking.
pub const LB_MODE_F32: u32 = 1;

pub(super) fn mode_of(mode: u32) -> Result<Mode, guard::Failure> {
    match mode {
        LB_MODE_INT => Ok(Mode::Int),
        LB_MODE_F32 => Ok(Mode::F32),
        other => Err(fail(LB_ERROR_INVALID_ARGUMENT, format!("unknown mode {other}"))),
    }
}

/// Opens a LittleBit GGUF and reads all its factors. `path` is the system's bytes (UTF-8 on most).
///
/// # Safety
/// `path` is NULL or NUL-terminated; `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_model_open(path: *const c_char, out: *mut *mut lb_model) -> lb_status {
    call(|| {
        check_ptr("path", path)?;
        out_ptr("out", out)?;
        // SAFETY: not NULL, and the caller promises a terminated string.
        let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
        let path = path_of(bytes)?;
        let file = LittleBitFile::open(path)?;
        let mut matrices = Vec::new();
        for m in file.matrices() {
            matrices.push(lb_matrix {
                name: CString::new(m.name.as_str())
                    .map_err(|_| fail(LB_ERROR_MALFORMED, "a tensor name contains a NUL byte"))?,
                factors: file.read_factors(m)?,
                d_out: m.shape.d_out,
                d_in: m.shape.d_in,
                rank: m.shape.rank,
            });
        }
        let model = Box::new(lb_model { matrices });
        // SAFETY: `out` was checked and is valid for a write by the caller's promise.
        unsafe { out.write(Box::into_raw(model)) };
        Ok(())
    })
}

#[cfg(unix)]
fn path_of(bytes: &[u8]) -> Result<&Path, guard::Failure> {
    use std::os::unix::ffi::OsStrExt;
    Ok(Path::new(std::ffi::OsStr::from_bytes(bytes)))
}

#[cfg(not(unix))]
fn path_of(bytes: &[u8]) -> Result<&Path, guard::Failure> {
    std::str::from_utf8(bytes)
        .map(Path::new)
        .map_err(|_| fail(LB_ERROR_INVALID_ARGUMENT, "path is not UTF-8"))
}

/// Frees a model and all its matrices. NULL is fine.
///
/// # Safety
/// `model` is NULL or came from [`lb_model_open`], is not freed twice, and nobody uses it or its matrices any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_model_free(model: *mut lb_model) {
    if !model.is_null() {
        call(|| {
            // SAFETY: the pointer came from Box::into_raw and is given up by the caller.
            drop(unsafe { Box::from_raw(model) });
            Ok(())
        });
    }
}

/// Number of factorized matrices; 0 for NULL.
///
/// # Safety
/// `model` is NULL or a live model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_model_matrix_count(model: *const lb_model) -> usize {
    // SAFETY: NULL or live by the caller's promise.
    unsafe { model.as_ref() }.map_or(0, |m| m.matrices.len())
}

/// Matrix `index` in file order.
///
/// # Safety
/// `model` is NULL or a live model; `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_model_matrix(
    model: *const lb_model,
    index: usize,
    out: *mut *const lb_matrix,
) -> lb_status {
    call(|| {
        check_ptr("model", model)?;
        out_ptr("out", out)?;
        // SAFETY: checked, live by the caller's promise.
        let matrices = unsafe { &(*model).matrices };
        let found = matrices.get(index).ok_or_else(|| {
            fail(LB_ERROR_NOT_FOUND, format!("matrix {index} of {} does not exist", matrices.len()))
        })?;
        // SAFETY: checked, valid for a write by the caller's promise.
        unsafe { out.write(found) };
        Ok(())
    })
}

/// The matrix called `name`, with or without ".weight".
///
/// # Safety
/// `model` is NULL or a live model; `name` is NULL or NUL-terminated; `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_model_find_matrix(
    model: *const lb_model,
    name: *const c_char,
    out: *mut *const lb_matrix,
) -> lb_status {
    call(|| {
        check_ptr("model", model)?;
        check_ptr("name", name)?;
        out_ptr("out", out)?;
        // SAFETY: not NULL, and the caller promises a terminated string.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes();
        let base = name.strip_suffix(b".weight").unwrap_or(name);
        // SAFETY: checked, live by the caller's promise.
        let matrices = unsafe { &(*model).matrices };
        let found = matrices.iter().find(|m| m.name.to_bytes() == base).ok_or_else(|| {
            fail(LB_ERROR_NOT_FOUND, format!("no factorized matrix '{}'", String::from_utf8_lossy(base)))
        })?;
        // SAFETY: checked, valid for a write by the caller's promise.
        unsafe { out.write(found) };
        Ok(())
    })
}

/// Base name of a matrix, as "blk.0.attn_q"; NULL for NULL. Lives as long as the model.
///
/// # Safety
/// `matrix` is NULL or belongs to a live model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_matrix_name(matrix: *const lb_matrix) -> *const c_char {
    // SAFETY: NULL or live by the caller's promise.
    unsafe { matrix.as_ref() }.map_or(std::ptr::null(), |m| m.name.as_ptr())
}

/// Fills `out`, whose struct_size the caller has set.
///
/// # Safety
/// `matrix` is NULL or belongs to a live model; `out` is NULL or valid for reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_matrix_get_info(matrix: *const lb_matrix, out: *mut lb_matrix_info) -> lb_status {
    call(|| {
        check_ptr("matrix", matrix)?;
        out_ptr("out", out)?;
        // SAFETY: checked, valid by the caller's promise.
        let (m, size) = unsafe { (&*matrix, (*out).struct_size) };
        if size as usize != size_of::<lb_matrix_info>() {
            return Err(fail(
                LB_ERROR_INVALID_ARGUMENT,
                format!("struct_size is {size}, this library wants {}", size_of::<lb_matrix_info>()),
            ));
        }
        let bits = slice_bits(m.d_out, m.d_in, m.rank) * m.factors.paths as u64;
        let info = lb_matrix_info {
            struct_size: size,
            experts: m.factors.experts() as u32,
            paths: m.factors.paths as u32,
            reserved: 0,
            d_out: m.d_out as u64,
            d_in: m.d_in as u64,
            rank: m.rank as u64,
            bpw: bits as f64 / (m.d_out as f64 * m.d_in as f64),
        };
        // SAFETY: checked, valid for a write by the caller's promise.
        unsafe { out.write(info) };
        Ok(())
    })
}

/// Slices of one expert; refuses an expert that does not exist.
pub(super) fn expert_slices(
    m: &lb_matrix,
    expert: u32,
) -> Result<&[crate::format::FactorPath], guard::Failure> {
    let paths = m.factors.paths;
    let at = (expert as usize).checked_mul(paths);
    at.and_then(|at| m.factors.slices.get(at..at.checked_add(paths)?)).ok_or_else(|| {
        fail(LB_ERROR_NOT_FOUND, format!("expert {expert} of {} does not exist", m.factors.experts()))
    })
}

/// y = W x for n columns: column t of `x` is d_in floats from `x + t * x_stride`, of `y` d_out floats from
/// `y + t * y_stride`. Works on at most `n_threads` threads of its own (0: as many as the process may use).
///
/// # Safety
/// `matrix` is NULL or belongs to a live model; `x` and `y` are NULL or valid for the columns; `y` overlaps neither
/// itself nor `x`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_matrix_mul(
    matrix: *const lb_matrix,
    expert: u32,
    mode: u32,
    x: *const f32,
    x_stride: usize,
    n: usize,
    y: *mut f32,
    y_stride: usize,
    n_threads: u32,
) -> lb_status {
    call(|| {
        check_ptr("matrix", matrix)?;
        // SAFETY: checked, live by the caller's promise.
        let m = unsafe { &*matrix };
        let mode = mode_of(mode)?;
        let slices = expert_slices(m, expert)?;
        if n == 0 {
            return Ok(());
        }
        check_ptr("x", x)?;
        out_ptr("y", y)?;
        let (x_len, y_len) = (span("x", m.d_in, x_stride, n)?, span("y", m.d_out, y_stride, n)?);
        // SAFETY: x and y are aligned, not NULL, valid for these columns and apart by the caller's promise.
        let (x, y) =
            unsafe { (std::slice::from_raw_parts(x, x_len), std::slice::from_raw_parts_mut(y, y_len)) };
        let threads = match n_threads {
            0 => std::thread::available_parallelism().map_or(1, |p| p.get()),
            some => some as usize,
        };
        let paths: Vec<PathRef> = slices.iter().map(PathRef::from).collect();
        Ok(kernel::matmul(&paths, mode, kernel::active(), x, x_stride, n, y, y_stride, threads)?)
    })
}
