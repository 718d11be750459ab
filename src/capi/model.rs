//! Models and matrices: handles to an open LittleBit GGUF, and whole products on threads of their own.

use super::guard::*;
use super::stage::{LB_MODE_F32, LB_MODE_INT};
use super::status::*;
use crate::format::schema::Part;
use crate::format::{Factors, LittleBitFile, MatrixEntry};
use crate::kernel::{Mode, PathRef, active, matmul};
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// An open LittleBit GGUF.
pub struct lb_model {
    matrices: Vec<lb_matrix>,
    file: Arc<LittleBitFile>,
}

/// A factorized weight of a model: W = sum over paths of diag(h) U diag(l) V^T diag(g), d_out x d_in, once per
/// expert. Lives as long as its model and is freed with it.
pub struct lb_matrix {
    name: CString,
    entry: MatrixEntry,
    bits: u64,
    file: Arc<LittleBitFile>,
    /// Read at first use, by one thread; kept until the model is freed.
    factors: OnceLock<Factors>,
    reading: Mutex<()>,
}

const _: () = {
    const fn shared_by_threads<T: Send + Sync>() {}
    shared_by_threads::<lb_model>();
};

impl lb_matrix {
    fn new(file: &Arc<LittleBitFile>, entry: &MatrixEntry) -> Outcome<Self> {
        let name = CString::new(entry.name.as_str()).map_err(|_| {
            let path = file.gguf.path.display();
            Fault::new(LB_ERROR_MALFORMED, format!("{path}: a tensor name contains a NUL character"))
        })?;
        Ok(lb_matrix {
            name,
            entry: entry.clone(),
            bits: Part::ALL.iter().map(|part| file.part(entry, *part).nbytes.saturating_mul(8)).sum(),
            file: Arc::clone(file),
            factors: OnceLock::new(),
            reading: Mutex::new(()),
        })
    }

    pub(super) fn factors(&self) -> Outcome<&Factors> {
        if let Some(factors) = self.factors.get() {
            return Ok(factors);
        }
        // A thread that panicked here left the cell empty, so its mark does not matter.
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(factors) = self.factors.get() {
            return Ok(factors);
        }
        let factors = self.file.read_factors(&self.entry)?;
        Ok(self.factors.get_or_init(|| factors))
    }

    pub(super) fn experts(&self) -> usize {
        self.entry.experts()
    }

    pub(super) fn paths(&self) -> usize {
        self.entry.paths
    }
}

/// Opens a LittleBit GGUF and checks that its factor tensors fit together. Factors are read when a matrix is
/// first used. The file must not change while the model is open.
/// path: UTF-8; on Unix any bytes. Free the model with lb_model_free.
/// Errors: LB_ERROR_IO, LB_ERROR_MALFORMED, LB_ERROR_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_model_open(path: *const c_char, out: *mut *mut lb_model) -> lb_status {
    guard(|| {
        // SAFETY: a C string by the caller's promise.
        let path = file_path(unsafe { string("path", path) }?)?;
        pointer("out", out)?;
        let file = Arc::new(LittleBitFile::open(&path)?);
        let matrices = file.matrices().iter().map(|m| lb_matrix::new(&file, m)).collect::<Outcome<_>>()?;
        let model = Box::into_raw(Box::new(lb_model { matrices, file }));
        // SAFETY: not NULL, aligned, writable by the caller's promise.
        unsafe { out.write(model) };
        Ok(())
    })
}

#[cfg(unix)]
fn file_path(path: &CStr) -> Outcome<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    Ok(Path::new(std::ffi::OsStr::from_bytes(path.to_bytes())).to_owned())
}

#[cfg(not(unix))]
fn file_path(path: &CStr) -> Outcome<PathBuf> {
    let text = path.to_str().map_err(|_| Fault::new(LB_ERROR_INVALID_ARGUMENT, "path is not UTF-8"))?;
    Ok(Path::new(text).to_owned())
}

/// Closes a model and frees its matrices. NULL is allowed. No other call may use the model or its matrices
/// during or after this one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_model_free(model: *mut lb_model) {
    guard(|| {
        if !model.is_null() {
            pointer("model", model)?;
            // SAFETY: made by Box::into_raw in lb_model_open and given back once.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

/// Number of factorized matrices, 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_model_matrix_count(model: *const lb_model) -> usize {
    guard_or(0, || {
        // SAFETY: an open model by the caller's promise.
        let model = unsafe { reference("model", model) }?;
        Ok(model.matrices.len())
    })
}

/// The matrix at index, in the order of the file.
/// Errors: LB_ERROR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_model_matrix(
    model: *const lb_model,
    index: usize,
    out: *mut *const lb_matrix,
) -> lb_status {
    guard(|| {
        // SAFETY: an open model by the caller's promise.
        let model = unsafe { reference("model", model) }?;
        pointer("out", out)?;
        let i = super::guard::index("matrix", index, model.matrices.len())?;
        // SAFETY: not NULL, aligned, writable by the caller's promise.
        unsafe { out.write(&model.matrices[i]) };
        Ok(())
    })
}

/// The matrix called name, "blk.0.attn_q" or "blk.0.attn_q.weight".
/// Errors: LB_ERROR_NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_model_find_matrix(
    model: *const lb_model,
    name: *const c_char,
    out: *mut *const lb_matrix,
) -> lb_status {
    guard(|| {
        // SAFETY: an open model and a C string by the caller's promise.
        let (model, name) = unsafe { (reference("model", model)?, string("name", name)?) };
        pointer("out", out)?;
        let found = name
            .to_str()
            .ok()
            .and_then(|name| model.file.find(name))
            .and_then(|entry| model.matrices.iter().find(|m| m.entry.name == entry.name));
        let Some(matrix) = found else {
            let (path, name) = (model.file.gguf.path.display(), name.to_string_lossy());
            return Err(Fault::new(LB_ERROR_NOT_FOUND, format!("{path}: no factorized matrix '{name}'")));
        };
        // SAFETY: not NULL, aligned, writable by the caller's promise.
        unsafe { out.write(matrix) };
        Ok(())
    })
}

/// The matrix's name without ".weight", NULL for NULL. Lives as long as the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_matrix_name(matrix: *const lb_matrix) -> *const c_char {
    guard_or(std::ptr::null(), || {
        // SAFETY: of an open model by the caller's promise.
        let matrix = unsafe { reference("matrix", matrix) }?;
        Ok(matrix.name.as_ptr())
    })
}

/// Shape and size of a matrix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct lb_matrix_info {
    /// sizeof(lb_matrix_info), set by the caller.
    pub struct_size: u32,
    /// Experts in the stack, 1 for an ordinary weight.
    pub experts: u32,
    /// Paths that are summed for an expert, 1 or 2.
    pub paths: u32,
    /// Set to 0.
    pub reserved: u32,
    /// Outputs of an expert.
    pub d_out: u64,
    /// Inputs of an expert.
    pub d_in: u64,
    /// Rank of a path.
    pub rank: u64,
    /// Bits of the factors in the file, padding and scales included, per weight that they replace. Parts that
    /// the matrix shares with others count in full.
    pub bpw: f64,
}

/// Fills out, whose struct_size the caller has set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lb_matrix_get_info(matrix: *const lb_matrix, out: *mut lb_matrix_info) -> lb_status {
    guard(|| {
        // SAFETY: of an open model by the caller's promise.
        let matrix = unsafe { reference("matrix", matrix) }?;
        pointer("out", out)?;
        // SAFETY: not NULL, aligned, set by the caller's promise; the rest of *out is not looked at.
        struct_size::<lb_matrix_info>("lb_matrix_info", unsafe { (&raw const (*out).struct_size).read() })?;
        let count = |n: usize| {
            u32::try_from(n).map_err(|_| Fault::new(LB_ERROR_UNSUPPORTED, format!("{n} slices are too many")))
        };
        let entry = &matrix.entry;
        let info = lb_matrix_info {
            struct_size: size_of::<lb_matrix_info>() as u32,
            experts: count(entry.experts())?,
            paths: count(entry.paths)?,
            reserved: 0,
            d_out: entry.shape.d_out as u64,
            d_in: entry.shape.d_in as u64,
            rank: entry.shape.rank as u64,
            bpw: matrix.bits as f64 / entry.weights() as f64,
        };
        // SAFETY: writable, and of this size by its struct_size.
        unsafe { out.write(info) };
        Ok(())
    })
}

/// Most threads that one product starts. More would cost more to start than they save, and a caller's garbage
/// should not exhaust the system.
const MAX_THREADS: u32 = 256;

/// The Rust name of a mode number.
pub(super) fn mode_of(mode: u32) -> Outcome<Mode> {
    match mode {
        LB_MODE_INT => Ok(Mode::Int),
        LB_MODE_F32 => Ok(Mode::F32),
        _ => Err(Fault::new(
            LB_ERROR_INVALID_ARGUMENT,
            format!("mode is {mode}, not LB_MODE_INT or LB_MODE_F32"),
        )),
    }
}

/// y = W x for n columns: x has d_in floats a column, y d_out floats. The call starts and joins up to
/// n_threads threads of its own (0 counts as 1, at most 256, fewer for small products) and allocates. The result does not
/// depend on n_threads or n. Memory between the columns of y is left alone, but nobody else may touch it
/// during the call. x and y must not overlap. With n = 0 nothing happens and x and y may be NULL.
/// A column of x with a value that is not finite gives a column of NaN.
/// Errors: LB_ERROR_OUT_OF_RANGE for expert; what reading the factors gives at first use.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
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
    guard(|| {
        // SAFETY: of an open model by the caller's promise.
        let matrix = unsafe { reference("matrix", matrix) }?;
        let mode = mode_of(mode)?;
        let expert = index("expert", expert as usize, matrix.experts())?;
        if n == 0 {
            return Ok(());
        }
        let shape = matrix.entry.shape;
        let x_span = Span::columns("x", x, shape.d_in, x_stride, n)?;
        let y_span = Span::columns("y", y, shape.d_out, y_stride, n)?;
        x_span.apart_from(y_span)?;
        let slices = &matrix.factors()?.slices;
        let first = expert * matrix.paths();
        let paths: Vec<PathRef<'_>> =
            slices[first..first + matrix.paths()].iter().map(PathRef::from).collect();
        // SAFETY: checked for NULL, alignment, size and overlap; live and unshared by the caller's promise.
        let (x, y) = unsafe {
            (
                std::slice::from_raw_parts(x, x_span.len::<f32>()),
                std::slice::from_raw_parts_mut(y, y_span.len::<f32>()),
            )
        };
        Ok(matmul(&paths, mode, active(), x, x_stride, n, y, y_stride, n_threads.min(MAX_THREADS) as usize)?)
    })
}
