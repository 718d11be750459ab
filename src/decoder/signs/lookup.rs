//! Sign products by the run time's kernel: activations in 14 bits with one step a row, exact sums.

use crate::bits::SignMatrix;
use crate::kernel::{self, Kernel, MAX_COLS, Mode, Stage};
use rayon::prelude::*;

/// Rows of x that one task handles.
const TASK: usize = 32;

/// The kernel for matrices of `k` columns. `None` where expanding the signs is faster: portable code looks up slowly.
pub fn kernel(k: usize) -> Option<Kernel> {
    Some(kernel::active()).filter(|&kernel| kernel != Kernel::Scalar && k <= MAX_COLS)
}

/// `out = (x diag(scale)) S^T`.
pub fn product(kernel: Kernel, s: &SignMatrix, x: &[f32], scale: &[f32], out: &mut [f32]) {
    let (n, k) = (s.rows(), s.cols());
    assert!(k == scale.len() && x.len().is_multiple_of(k) && out.len() == x.len() / k * n);
    let stage = Stage { rows: n, cols: k, tile: s.as_bytes(), pre: None, post: None };
    let scratch = || (vec![0f32; TASK * k], vec![0u8; stage.work_size(TASK, Mode::Int)]);
    let tasks = out.par_chunks_mut(TASK * n).zip(x.par_chunks(TASK * k));
    tasks.for_each_init(scratch, |(scaled, work), (out, x)| {
        for (scaled, x) in scaled.chunks_exact_mut(k).zip(x.chunks_exact(k)) {
            scaled.iter_mut().zip(x).zip(scale).for_each(|((v, x), s)| *v = x * s);
        }
        let (x, y) = (scaled.as_ptr(), out.as_mut_ptr());
        // SAFETY: `scaled` and `out` hold as many rows of k and n floats as `out` is long, and nobody else has them.
        unsafe { stage.run(kernel, Mode::Int, x, k, out.len() / n, None, y, n, work, 0, 1) };
    });
}
