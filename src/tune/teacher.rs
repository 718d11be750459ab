//! The source model's predictions on the training windows, kept as the rows that its head reads.

use half::f16;
use serde::{Deserialize, Serialize};

/// Normalised last rows of the source for every window: 2 bytes a component instead of a vocabulary of logits.
#[derive(Debug, Serialize, Deserialize)]
pub struct Teacher {
    rows: Vec<Vec<f16>>,
}

impl Teacher {
    /// From the rows of every window.
    pub fn new(rows: impl Iterator<Item = Vec<f32>>) -> Self {
        Self { rows: rows.map(|r| r.iter().map(|&x| f16::from_f32(x)).collect()).collect() }
    }

    /// Rows of window `w` at `positions`.
    pub fn rows(&self, w: usize, positions: impl Iterator<Item = usize>, d: usize) -> Vec<f32> {
        positions.flat_map(|p| self.rows[w][p * d..(p + 1) * d].iter().map(|x| x.to_f32())).collect()
    }
}
