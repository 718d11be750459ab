//! Sums of outer products over windows on the device.

use super::account;
use crate::cuda::compute::{Kept, Matrix, Op};
use crate::factorize::Device;

/// `sum A^T B` for several A and one B, which is the first of them.
pub struct Sums<'a> {
    device: &'a Device,
    name: &'a str,
    /// Columns of every A.
    widths: &'a [usize],
    sums: Vec<Kept>,
    begun: bool,
}

impl<'a> Sums<'a> {
    /// Nothing seen yet. `None` if the CPU has to compute them.
    pub fn new(device: &'a Device, name: &'a str, widths: &'a [usize]) -> Option<Self> {
        let bytes = account::sums(widths);
        let sums = device.assist(name, bytes, |session| {
            widths.iter().map(|width| session.reuse(width * widths[0])).collect()
        })?;
        Some(Self { device, name, widths, sums, begun: false })
    }

    /// Adds a window: all A by row, B first.
    pub fn add(&mut self, window: &[Vec<f32>]) -> Option<()> {
        let (d, rows) = (self.widths[0], window[0].len() / self.widths[0]);
        let bytes = account::window(self.widths, rows);
        let beta = if self.begun { 1.0 } else { 0.0 };
        self.device.assist(self.name, bytes, |session| {
            let b = session.send(&window[0])?;
            for (i, &width) in self.widths.iter().enumerate() {
                let other = if i == 0 { None } else { Some(session.send(&window[i])?) };
                let a = Matrix::whole(other.as_ref().unwrap_or(&b), width, rows);
                let to = Matrix::whole(&self.sums[i], d, width);
                let b = (Matrix::whole(&b, d, rows), Op::Plain);
                session.gemm(to, 1.0, b, (a, Op::Transposed), beta)?;
            }
            Ok(())
        })?;
        self.begun = true;
        Some(())
    }

    /// The sums, row-major.
    pub fn finish(self) -> Option<Vec<Vec<f32>>> {
        if !self.begun {
            return Some(self.widths.iter().map(|width| vec![0.0; width * self.widths[0]]).collect());
        }
        self.device.assist(self.name, 0, |session| {
            self.sums.iter().map(|sum| session.download(sum, 0..sum.len())).collect()
        })
    }
}
