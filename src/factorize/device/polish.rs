//! The products, sums and the descent on rows of the polish on a GPU. Row-major matrices are their own transposes for cuBLAS.

use crate::cuda::compute::{Args, Buffer, Kernel, Matrix, Op, Session, THREADS};
use crate::factorize::algebra::Computed;
use crate::factorize::polish::Products;
use std::ops::Range;

/// Arguments for a matrix with rows of length n.
fn on(x: &Buffer, n: usize) -> Args {
    Args { x: x.start(), r: n as u32, n: (x.len() / n) as u32, ..Args::default() }
}

/// The transpose of a row-major matrix with rows of length n.
fn turned(x: &Buffer, n: usize) -> Matrix<'_> {
    Matrix::whole(x, n, x.len() / n)
}

impl<'a> Products<'a> for Session<'_> {
    fn times(&self, a: &Buffer, rows: Range<usize>, b: &Buffer, n: usize, k: usize) -> Computed<Buffer> {
        let out = self.blank(rows.len() * n)?;
        let a = Matrix { values: a, at: rows.start * k, rows: k, cols: rows.len(), stride: k };
        self.gemm(turned(&out, n), 1.0, (turned(b, n), Op::Plain), (a, Op::Plain), 0.0)?;
        Ok(out)
    }

    fn times_transposed(&self, a: &Buffer, b: &Buffer, n: usize, k: usize) -> Computed<Buffer> {
        let out = self.blank(a.len() / k * n)?;
        self.gemm(turned(&out, n), 1.0, (turned(b, k), Op::Transposed), (turned(a, k), Op::Plain), 0.0)?;
        Ok(out)
    }

    fn transposed_times(&self, a: &Buffer, b: &Buffer, n: usize, m: usize) -> Computed<Buffer> {
        let out = self.blank(m * n)?;
        self.gemm(turned(&out, n), 1.0, (turned(b, n), Op::Plain), (turned(a, m), Op::Transposed), 0.0)?;
        Ok(out)
    }

    fn scaled(
        &self,
        x: &Buffer,
        rows: Option<&[f32]>,
        columns: Option<&[f32]>,
        n: usize,
    ) -> Computed<Buffer> {
        assert!(rows.is_none_or(|a| a.len() * n == x.len()) && columns.is_none_or(|b| b.len() == n));
        let out = self.blank(x.len())?;
        let a = rows.map(|a| self.upload(a)).transpose()?;
        let b = columns.map(|b| self.upload(b)).transpose()?;
        let start = |v: &Option<Buffer>| v.as_ref().map_or(0, Buffer::start);
        let args = Args { out: out.start(), a: start(&a), b: start(&b), ..on(x, n) };
        // SAFETY: two matrices of one shape, a scale for each row and each column, or none.
        unsafe { self.launch_on_matrix(Kernel::Scaled, args) }?;
        Ok(out)
    }

    fn multiply(&self, out: &mut Buffer, by: &Buffer, n: usize) -> Computed<()> {
        assert_eq!(out.len(), by.len());
        // SAFETY: two matrices of one shape.
        unsafe { self.launch_on_matrix(Kernel::Multiply, Args { out: out.start(), ..on(by, n) }) }
    }

    fn dot(&self, a: &Buffer, b: &Buffer, n: usize) -> Computed<f64> {
        Ok(self.row_dots(a, b, n)?.iter().sum())
    }

    fn row_dots(&self, a: &Buffer, b: &Buffer, n: usize) -> Computed<Vec<f64>> {
        assert_eq!(a.len(), b.len());
        let rows = a.len() / n;
        let sums = self.blank(2 * rows)?;
        let args = Args { y: b.start(), sums: sums.start(), ..on(a, n) };
        // SAFETY: two matrices of one shape, a sum in f64 for each row.
        unsafe { self.launch(Kernel::RowDots, (rows, 1), args) }?;
        self.download(&sums, 0..2 * rows)
    }

    fn column_dots(&self, a: &Buffer, b: &Buffer, n: usize) -> Computed<Vec<f32>> {
        assert_eq!(a.len(), b.len());
        let out = self.blank(n)?;
        let args = Args { out: out.start(), y: b.start(), ..on(a, n) };
        // SAFETY: two matrices of one shape, a number for each column.
        unsafe { self.launch(Kernel::ColumnDots, (n.div_ceil(THREADS as usize), 1), args) }?;
        self.download(&out, 0..n)
    }

    fn diagonal(&self, m: &Buffer, n: usize) -> Computed<Vec<f32>> {
        self.download(&diagonal(self, m, n)?, 0..n)
    }

    fn solve(&self, mut m: Buffer, ridge: f32, rhs: Vec<f32>) -> Computed<Option<Vec<f32>>> {
        let n = rhs.len();
        self.add_ridge(&mut m, None, ridge, n)?;
        if !self.cholesky(&mut m, n)? {
            return Ok(None);
        }
        let mut x = self.upload(&rhs)?;
        self.solve_factored(&m, &mut x, n)?;
        Ok(Some(self.download(&x, 0..n)?))
    }

    fn descend_rows(
        &self,
        u: &mut Buffer,
        gu: Buffer,
        c: Buffer,
        gram: &Buffer,
        h: &[f32],
        r: usize,
    ) -> Computed<usize> {
        let rows = h.len();
        assert!([&*u, &gu, &c].iter().all(|x| x.len() == rows * r) && gram.len() == r * r);
        let (h, own, flips) = (self.upload(h)?, diagonal(self, gram, r)?, self.blank(rows)?);
        let args = Args {
            out: u.start(),
            more: gu.start(),
            y: gram.start(),
            a: h.start(),
            b: own.start(),
            count: flips.start(),
            ..on(&c, r)
        };
        // SAFETY: three matrices with `rows` rows of r values, one of r x r and its diagonal, a scale and a number for each row.
        unsafe { self.launch(Kernel::Descend, (rows, 1), args) }?;
        Ok(self.download::<u32>(&flips, 0..rows)?.iter().map(|&n| n as usize).sum())
    }
}

/// Of an `n x n` matrix.
fn diagonal(session: &Session, m: &Buffer, n: usize) -> Computed<Buffer> {
    assert_eq!(m.len(), n * n);
    let out = session.blank(n)?;
    // SAFETY: a matrix of n x n, n numbers.
    unsafe {
        let grid = (n.div_ceil(THREADS as usize), 1);
        session.launch(Kernel::Diagonal, grid, Args { out: out.start(), ..on(m, n) })?;
    }
    Ok(out)
}
