//! The steps of LB-ADMM on a GPU.

use crate::cuda::compute::{Args, Buffer, CHUNK, Kernel, Matrix, Op, Session, THREADS};
use crate::factorize::admm::{Magnitudes, POWER_ITERATIONS, Shape, Steps, Weights};
use crate::factorize::algebra::{Algebra, Computed};
use crate::factorize::ridge::ATTEMPTS;
use std::borrow::Cow;
use std::ops::Range;

impl<'a> Algebra<'a> for Session<'_> {
    type Values = Buffer;

    fn borrow(&self, values: &'a [f32]) -> Computed<Buffer> {
        self.upload(values)
    }

    fn own(&self, values: Vec<f32>) -> Computed<Buffer> {
        self.upload(&values)
    }

    fn blank(&self, n: usize) -> Computed<Buffer> {
        Session::blank(self, n)
    }

    fn read<'v>(&self, values: &'v Buffer, part: Range<usize>) -> Computed<Cow<'v, [f32]>> {
        Ok(Cow::Owned(self.download(values, part)?))
    }

    fn take(&self, values: Buffer) -> Computed<Vec<f32>> {
        self.download(&values, 0..values.len())
    }

    fn write(&self, values: &mut Buffer, at: usize, from: &[f32]) -> Computed<()> {
        Session::write(self, values, at, from)
    }
}

/// Arguments for a factor of this shape, which `t` is at least.
fn on(t: &Buffer, Shape { r, n }: Shape) -> Args {
    assert!(t.len() >= r * n);
    Args { x: t.start(), r: r as u32, n: n as u32, ..Args::default() }
}

/// The same with Z's magnitudes.
fn with(t: &Buffer, z: &Magnitudes<Buffer>, shape: Shape) -> Args {
    assert!(z.a.len() >= shape.r && z.b.len() >= shape.n);
    Args { a: z.a.start(), b: z.b.start(), ..on(t, shape) }
}

impl<'a> Steps<'a> for Session<'_> {
    type Square = Buffer;

    fn square(&self, r: usize) -> Computed<Buffer> {
        Session::blank(self, r * r)
    }

    fn project(&self, z: &mut Magnitudes<Buffer>, t: &Buffer, shape: Shape) -> Computed<()> {
        let Shape { r, n } = shape;
        let chunks = n.div_ceil(CHUNK);
        let (partial, sums) = (Session::blank(self, chunks * r)?, Session::blank(self, 2 * r)?);
        let all = with(t, z, shape);
        let columns = |kernel_out: u64| -> Computed<()> {
            let grid = (n.div_ceil(THREADS as usize / 32), 1);
            // SAFETY: n columns of r values, r magnitudes, n results.
            unsafe { self.launch(Kernel::Columns, grid, Args { out: kernel_out, ..all }) }
        };
        // SAFETY: r magnitudes.
        unsafe { self.launch(Kernel::Start, (1, 1), Args { out: all.a, r: all.r, ..Args::default() }) }?;
        for _ in 0..POWER_ITERATIONS {
            columns(all.b)?;
            let grid = (r.div_ceil(THREADS as usize), chunks);
            // SAFETY: n columns of r values, n magnitudes, r sums for each chunk.
            unsafe { self.launch(Kernel::Rows, grid, Args { out: partial.start(), ..all }) }?;
            let sum = Args {
                out: all.a,
                x: partial.start(),
                sums: sums.start(),
                r: all.r,
                n: chunks as u32,
                ..Args::default()
            };
            // SAFETY: r sums for each chunk, r magnitudes, r totals in f64.
            unsafe { self.launch(Kernel::Direction, (1, 1), sum) }?;
        }
        columns(all.b)
    }

    fn unit_rows(&self, out: &mut Buffer, t: &Buffer, z: &Magnitudes<Buffer>, shape: Shape) -> Computed<()> {
        assert!(out.len() >= shape.r * shape.n);
        let inverse = Session::blank(self, 1)?;
        let args = Args { out: out.start(), more: inverse.start(), ..with(t, z, shape) };
        // SAFETY: n magnitudes and a number.
        unsafe { self.launch(Kernel::InverseLength, (1, 1), args) }?;
        // SAFETY: two matrices of the shape, magnitudes of its columns, a number.
        unsafe { self.launch_on_matrix(Kernel::UnitRows, args) }
    }

    fn gram(&self, out: &mut Buffer, unit: &Buffer, Shape { r, n }: Shape) -> Computed<()> {
        self.syrk(Matrix::whole(out, r, r), 1.0, Matrix::whole(unit, r, n), 0.0)
    }

    fn product(&self, out: &mut Buffer, unit: &Buffer, w: &Weights<Buffer>, r: usize) -> Computed<()> {
        // Row-major weights are their own transpose here.
        let stored = Matrix::whole(w.values, w.d_in, w.d_out);
        let (n, columns, op) =
            if w.transposed { (w.d_in, w.d_out, Op::Plain) } else { (w.d_out, w.d_in, Op::Transposed) };
        let unit = Matrix::whole(unit, r, n);
        self.gemm(Matrix::whole(out, r, columns), 1.0, (unit, Op::Plain), (stored, op), 0.0)
    }

    fn add_pull(
        &self,
        rhs: &mut Buffer,
        rho: f32,
        t: &Buffer,
        z: &Magnitudes<Buffer>,
        shape: Shape,
    ) -> Computed<()> {
        assert!(rhs.len() >= shape.r * shape.n);
        let args = Args { out: rhs.start(), value: rho, ..with(t, z, shape) };
        // SAFETY: two matrices of the shape, magnitudes for its rows and columns.
        unsafe { self.launch_on_matrix(Kernel::Pull, args) }
    }

    fn solve(
        &self,
        gram: &Buffer,
        mut ridge: f32,
        factor: &mut Buffer,
        rhs: &mut Buffer,
        Shape { r, .. }: Shape,
    ) -> Computed<bool> {
        for _ in 0..ATTEMPTS {
            self.add_ridge(factor, Some(gram), ridge, r)?;
            if self.cholesky(factor, r)? {
                self.solve_factored(factor, rhs, r)?;
                return Ok(true);
            }
            ridge *= 10.0;
        }
        Ok(false)
    }

    fn advance(&self, t: &mut Buffer, rhs: &Buffer, z: &Magnitudes<Buffer>, shape: Shape) -> Computed<()> {
        assert!(rhs.len() >= shape.r * shape.n);
        let args = Args { out: t.start(), y: rhs.start(), ..with(t, z, shape) };
        // SAFETY: two matrices of the shape, magnitudes for its rows and columns; a value is read before it is written.
        unsafe { self.launch_on_matrix(Kernel::Advance, args) }
    }
}
