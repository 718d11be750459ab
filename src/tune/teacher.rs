//! The source model's predictions on the training windows, kept as the rows that its head reads.

use crate::decoder::Model;
use half::f16;
use rayon::prelude::*;

/// Normalised last rows of the source for every window: 2 bytes a component instead of a vocabulary of logits.
#[derive(Debug)]
pub struct Teacher {
    rows: Vec<Vec<f16>>,
}

impl Teacher {
    /// Runs the source over `windows`; `progress` is called after each.
    pub fn new(source: &Model, windows: &[Vec<u32>], mut progress: impl FnMut(usize)) -> Self {
        let mut rows = Vec::with_capacity(windows.len());
        for (i, w) in windows.iter().enumerate() {
            let normed = source.normed(&source.stream(w, w.len()));
            rows.push(normed.par_iter().map(|&x| f16::from_f32(x)).collect());
            progress(i + 1);
        }
        Self { rows }
    }

    /// Rows of window `w` at `positions`.
    pub fn rows(&self, w: usize, positions: impl Iterator<Item = usize>, d: usize) -> Vec<f32> {
        positions.flat_map(|p| self.rows[w][p * d..(p + 1) * d].iter().map(|x| x.to_f32())).collect()
    }
}
