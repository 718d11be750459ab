//! Positive definite systems on the device: a blocked Cholesky decomposition of which the diagonal blocks are a kernel's and the
//! rest cuBLAS's.

use super::{Args, Buffer, DIAGONAL, Kernel, Matrix, Op, Session};
use crate::cuda::Failure;

impl Session<'_> {
    /// `out = m + ridge I` for `n x n` matrices; without `m`, out itself gets the ridge.
    ///
    /// # Errors
    /// [`Failure::Driver`].
    ///
    /// # Panics
    /// If a buffer is too small.
    pub fn add_ridge(
        &self,
        out: &mut Buffer,
        m: Option<&Buffer>,
        ridge: f32,
        n: usize,
    ) -> Result<(), Failure> {
        let m = m.unwrap_or(out);
        assert!(out.len() >= n * n && m.len() >= n * n);
        let (out, x) = (out.start(), m.start());
        let args = Args { out, x, r: n as u32, n: n as u32, value: ridge, ..Args::default() };
        // SAFETY: two matrices of n x n, or one.
        unsafe { self.launch_on_matrix(Kernel::Ridge, args) }
    }

    /// Replaces the lower triangle of `m` (`n x n`) by its Cholesky factor. `false` if m is not positive definite.
    ///
    /// # Errors
    /// [`Failure::Driver`].
    ///
    /// # Panics
    /// If the buffer is too small.
    pub fn cholesky(&self, m: &mut Buffer, n: usize) -> Result<bool, Failure> {
        assert!(m.len() >= n * n);
        let count = self.upload(&[0u32])?;
        for first in (0..n).step_by(DIAGONAL) {
            let width = DIAGONAL.min(n - first);
            let args = Args {
                out: m.at(first * n + first),
                count: count.start(),
                n: width as u32,
                stride: n as u32,
                ..Args::default()
            };
            // SAFETY: a block on the diagonal of the matrix, and one number.
            unsafe { self.launch(Kernel::Cholesky, (1, 1), args) }?;
            let rest = n - first - width;
            if rest == 0 {
                break;
            }
            let part = |row: usize, column: usize, rows, cols| Matrix {
                values: m,
                at: column * n + row,
                rows,
                cols,
                stride: n,
            };
            let (diagonal, below) =
                (part(first, first, width, width), part(first + width, first, rest, width));
            self.solve_right(diagonal, below)?;
            self.syrk(part(first + width, first + width, rest, rest), -1.0, below, 1.0)?;
        }
        Ok(self.download::<u32>(&count, 0..1)? == [0])
    }

    /// `rhs = (L L^T)^-1 rhs` with the factor L in the lower triangle of `l` (`n x n`); rhs has n rows.
    ///
    /// # Errors
    /// [`Failure::Driver`], [`Failure::Memory`].
    pub fn solve_factored(&self, l: &Buffer, rhs: &mut Buffer, n: usize) -> Result<(), Failure> {
        let (l, rhs) = (Matrix::whole(l, n, n), Matrix::whole(rhs, n, rhs.len() / n));
        self.solve_left(l, Op::Plain, rhs)?;
        self.solve_left(l, Op::Transposed, rhs)
    }
}
