//! Products and triangular systems by cuBLAS, in f32 without TF32, column-major.

use super::Session;
use super::memory::Buffer;
use crate::cuda::Failure;
use cudarc::cublas::sys;
use std::ffi::c_int;

/// A part of a buffer as a column-major matrix.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'b> {
    /// Where it lies.
    pub values: &'b Buffer,
    /// Its first number there.
    pub at: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Numbers from a column to the next.
    pub stride: usize,
}

impl<'b> Matrix<'b> {
    /// The whole buffer as `rows x cols`.
    pub fn whole(values: &'b Buffer, rows: usize, cols: usize) -> Self {
        Self { values, at: 0, rows, cols, stride: rows }
    }

    /// Address, once the numbers are seen to lie in the buffer.
    fn pointer(&self) -> *mut f32 {
        let last = if self.rows * self.cols == 0 { 0 } else { (self.cols - 1) * self.stride + self.rows };
        assert!(self.rows <= self.stride && self.at + last <= self.values.len(), "{self:?}");
        self.values.at(self.at) as *mut f32
    }
}

/// What a product does with an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Takes it as it is.
    Plain,
    /// Takes its transpose.
    Transposed,
}

impl Op {
    fn raw(self) -> sys::cublasOperation_t {
        match self {
            Op::Plain => sys::cublasOperation_t::CUBLAS_OP_N,
            Op::Transposed => sys::cublasOperation_t::CUBLAS_OP_T,
        }
    }

    /// Rows and columns of the operand.
    fn shape(self, m: &Matrix) -> (usize, usize) {
        if self == Op::Plain { (m.rows, m.cols) } else { (m.cols, m.rows) }
    }
}

pub(super) fn checked(call: &'static str, status: sys::cublasStatus_t) -> Result<(), Failure> {
    match status {
        sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        // cuBLAS allocates working memory of its own.
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Err(Failure::Memory(0)),
        other => Err(Failure::Driver { call, reason: format!("{other:?}") }),
    }
}

/// Dimensions of matrices that are factorized fit, those of anything else are refused.
fn int(n: usize) -> Result<c_int, Failure> {
    c_int::try_from(n).map_err(|_| Failure::Driver {
        call: "cuBLAS",
        reason: format!("{n} does not fit into its integers"),
    })
}

impl Session<'_> {
    /// `c = alpha op(a) op(b) + beta c`.
    ///
    /// # Errors
    /// [`Failure::Driver`], [`Failure::Memory`].
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn gemm(
        &self,
        c: Matrix,
        alpha: f32,
        (a, op_a): (Matrix, Op),
        (b, op_b): (Matrix, Op),
        beta: f32,
    ) -> Result<(), Failure> {
        let ((m, k), (l, n)) = (op_a.shape(&a), op_b.shape(&b));
        assert!((m, n, k) == (c.rows, c.cols, l), "{c:?} = {a:?} {b:?}");
        // SAFETY: three matrices in memory of the device, of the shapes that the numbers give.
        checked("cublasSgemm", unsafe {
            sys::cublasSgemm_v2(
                self.gpu.blas,
                op_a.raw(),
                op_b.raw(),
                int(m)?,
                int(n)?,
                int(k)?,
                &alpha,
                a.pointer(),
                int(a.stride)?,
                b.pointer(),
                int(b.stride)?,
                &beta,
                c.pointer(),
                int(c.stride)?,
            )
        })
    }

    /// The lower triangle of `c = alpha a a^T + beta c`.
    ///
    /// # Errors
    /// As [`Session::gemm`].
    ///
    /// # Panics
    /// As [`Session::gemm`].
    pub fn syrk(&self, c: Matrix, alpha: f32, a: Matrix, beta: f32) -> Result<(), Failure> {
        assert!((c.rows, c.cols) == (a.rows, a.rows), "{c:?} = {a:?}");
        // SAFETY: as above.
        checked("cublasSsyrk", unsafe {
            sys::cublasSsyrk_v2(
                self.gpu.blas,
                sys::cublasFillMode_t::CUBLAS_FILL_MODE_LOWER,
                sys::cublasOperation_t::CUBLAS_OP_N,
                int(a.rows)?,
                int(a.cols)?,
                &alpha,
                a.pointer(),
                int(a.stride)?,
                &beta,
                c.pointer(),
                int(c.stride)?,
            )
        })
    }

    /// `b = op(l)^-1 b` for a lower triangular l.
    ///
    /// # Errors
    /// As [`Session::gemm`].
    ///
    /// # Panics
    /// As [`Session::gemm`].
    pub fn solve_left(&self, l: Matrix, op: Op, b: Matrix) -> Result<(), Failure> {
        assert_eq!((l.rows, l.cols), (b.rows, b.rows));
        self.trsm(sys::cublasSideMode_t::CUBLAS_SIDE_LEFT, op, l, b)
    }

    /// `b = b (l^T)^-1` for a lower triangular l.
    ///
    /// # Errors
    /// As [`Session::gemm`].
    ///
    /// # Panics
    /// As [`Session::gemm`].
    pub fn solve_right(&self, l: Matrix, b: Matrix) -> Result<(), Failure> {
        assert_eq!((l.rows, l.cols), (b.cols, b.cols));
        self.trsm(sys::cublasSideMode_t::CUBLAS_SIDE_RIGHT, Op::Transposed, l, b)
    }

    fn trsm(&self, side: sys::cublasSideMode_t, op: Op, l: Matrix, b: Matrix) -> Result<(), Failure> {
        let alpha = 1.0f32;
        // SAFETY: as above.
        checked("cublasStrsm", unsafe {
            sys::cublasStrsm_v2(
                self.gpu.blas,
                side,
                sys::cublasFillMode_t::CUBLAS_FILL_MODE_LOWER,
                op.raw(),
                sys::cublasDiagType_t::CUBLAS_DIAG_NON_UNIT,
                int(b.rows)?,
                int(b.cols)?,
                &alpha,
                l.pointer(),
                int(l.stride)?,
                b.pointer(),
                int(b.stride)?,
            )
        })
    }
}
