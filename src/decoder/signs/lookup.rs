//! Sign products by the run time's kernel: activations in 14 bits with one step a row, exact sums.

use crate::bits::SignMatrix;
use crate::kernel::{self, Kernel, MAX_COLS, Mode, Stage};
use rayon::prelude::*;
use std::cell::RefCell;

/// Rows of x that one task handles.
const TASK: usize = 32;

/// The kernel for matrices of `k` columns. `None` where expanding the signs is faster: portable code looks up slowly.
pub fn kernel(k: usize) -> Option<Kernel> {
    Some(kernel::active()).filter(|&kernel| kernel != Kernel::Scalar && k <= MAX_COLS)
}

/// Space that a thread's tasks use one after the other; clearing it for every product took a twelfth of the time.
#[derive(Default)]
struct Scratch {
    scaled: Vec<f32>,
    work: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `out = (x diag(scale)) S^T`.
pub fn product(kernel: Kernel, s: &SignMatrix, x: &[f32], scale: &[f32], out: &mut [f32]) {
    let (n, k) = (s.rows(), s.cols());
    assert!(k == scale.len() && x.len().is_multiple_of(k) && out.len() == x.len() / k * n);
    let stage = Stage { rows: n, cols: k, tile: s.as_bytes(), pre: None, post: None };
    let tasks = out.par_chunks_mut(TASK * n).zip(x.par_chunks(TASK * k));
    let run = |out: &mut [f32], x: &[f32], scratch: &mut Scratch| {
        scratch.scaled.clear();
        for x in x.chunks_exact(k) {
            scratch.scaled.extend(x.iter().zip(scale).map(|(x, s)| x * s));
        }
        let size = stage.work_size(TASK, Mode::Int);
        if scratch.work.len() < size {
            scratch.work.resize(size, 0);
        }
        let (x, y, work) = (scratch.scaled.as_ptr(), out.as_mut_ptr(), &mut scratch.work[..size]);
        // SAFETY: `scaled` and `out` hold as many rows of k and n floats as `out` is long, and nobody else has them.
        unsafe { stage.run(kernel, Mode::Int, x, k, out.len() / n, None, y, n, work, 0, 1) };
    };
    tasks.for_each(|(out, x)| SCRATCH.with_borrow_mut(|scratch| run(out, x, scratch)));
}
