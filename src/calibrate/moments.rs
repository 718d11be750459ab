//! Second moments of the inputs of a linear layer, in the source model and in the compressed one.

use crate::decoder::{Coarse, token_weights, transposed, weighed};
use crate::error::{Error, Result};
use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, Side};

/// `E[xq xq^T]` of the compressed stream and `E[xf xq^T]` across both, row-major `d x d`.
#[derive(Debug)]
pub struct Moments {
    d: usize,
    tokens: usize,
    compressed: Vec<f32>,
    cross: Vec<f32>,
}

impl Moments {
    /// Nothing seen yet of inputs of width `d`.
    pub fn new(d: usize) -> Self {
        Self { d, tokens: 0, compressed: vec![0.0; d * d], cross: vec![0.0; d * d] }
    }

    /// Adds rows of both streams. A token counts with weight `min(1, median / norm)` of its source norm, so that a few
    /// massive tokens do not rule.
    pub fn add(&mut self, source: &[f32], compressed: &[f32]) {
        let d = self.d;
        let weights = token_weights(source, d);
        let (f, q) = (weighed(source, &weights), weighed(compressed, &weights));
        // Rounding to bfloat16 is far below what another text would change; both factors of the first product are
        // the same numbers, so it stays positive semidefinite.
        let q = transposed(&q, d);
        let right = Coarse::from_fn(d, weights.len(), |i, t| q[i * weights.len() + t]);
        right.add_product(&q, &mut self.compressed);
        right.add_product(&transposed(&f, d), &mut self.cross);
        self.tokens += weights.len();
    }

    /// Mean square of each input of the compressed stream.
    pub fn importance(&self) -> Vec<f32> {
        (0..self.d).map(|i| self.compressed[i * self.d + i] / self.tokens.max(1) as f32).collect()
    }

    /// `E[xq xq^T]`, row-major.
    pub fn compressed(&self) -> Vec<f32> {
        let n = self.tokens.max(1) as f32;
        self.compressed.iter().map(|x| x / n).collect()
    }

    /// What the targets of the layers that read these inputs share. `None` if all of them are zero.
    ///
    /// # Errors
    /// [`Error::Numeric`], for `name`, if the moments are not finite.
    pub fn correction(&self, name: &str, alpha: f64, damp: f64) -> Result<Option<Correction>> {
        let d = self.d;
        let n = self.tokens.max(1) as f64;
        let at = |x: &[f32], i: usize, j: usize| f64::from(x[i * d + j]) / n;
        let mean = (0..d).map(|i| at(&self.compressed, i, i)).sum::<f64>() / d as f64;
        if mean == 0.0 {
            return Ok(None);
        }
        let h =
            Mat::from_fn(d, d, |i, j| at(&self.compressed, i, j) + if i == j { damp * mean } else { 0.0 });
        let difference =
            Mat::from_fn(d, d, |i, j| alpha * (at(&self.cross, i, j) - at(&self.compressed, i, j)));
        let factor = h.llt(Side::Lower).map_err(|_| not_finite(name))?;
        Ok(Some(Correction { difference, factor }))
    }
}

fn not_finite(name: &str) -> Error {
    Error::Numeric { matrix: name.to_owned(), what: "its inputs' moments are not finite".into() }
}

/// The drift of a compressed stream that the weights which read it can make up for.
#[derive(Debug)]
pub struct Correction {
    /// `alpha (C - H)`.
    difference: Mat<f64>,
    /// Of `H + damp mean(diag H) I`.
    factor: Llt<f64>,
}

impl Correction {
    /// The asymmetric target `T = W + alpha W (C - H) (H + damp mean(diag H) I)^-1` for a weight `w` (row-major
    /// `d_out x d`): what W would have to be on the compressed stream to give what it gives on the source's, the
    /// error feedback of GPTQ put before a factorization.
    ///
    /// # Errors
    /// [`Error::Numeric`], for `name`, if it is not finite.
    pub fn target(&self, name: &str, w: &[f32]) -> Result<Vec<f32>> {
        let d = self.difference.nrows();
        let rows = w.len() / d;
        let weight = Mat::from_fn(rows, d, |i, j| f64::from(w[i * d + j]));
        let moved = &weight * &self.difference;
        let solved = self.factor.solve(moved.transpose());
        let target: Vec<f32> = (0..rows)
            .flat_map(|i| (0..d).map(move |j| (i, j)))
            .map(|(i, j)| (weight[(i, j)] + solved[(j, i)]) as f32)
            .collect();
        if target.iter().any(|x| !x.is_finite()) {
            return Err(not_finite(name));
        }
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that span the space, and the same through an invertible map.
    fn streams(d: usize, map: impl Fn(&[f32]) -> Vec<f32>) -> (Vec<f32>, Vec<f32>) {
        let rows: Vec<Vec<f32>> =
            (0..40).map(|t| (0..d).map(|i| ((t * 7 + i * i * 3) % 11) as f32 - 5.0).collect()).collect();
        (rows.concat(), rows.iter().flat_map(|r| map(r)).collect())
    }

    #[test]
    fn equal_streams_leave_the_weight() {
        let (f, q) = streams(4, <[f32]>::to_vec);
        let mut m = Moments::new(4);
        m.add(&f, &q);
        let w: Vec<f32> = (0..12).map(|i| i as f32 * 0.3 - 1.0).collect();
        let t = m.correction("w", 1.0, 0.01).unwrap().unwrap().target("w", &w).unwrap();
        assert!(t.iter().zip(&w).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn a_scaled_stream_is_undone() {
        let (f, q) = streams(4, |r| r.iter().enumerate().map(|(i, x)| x * (0.5 + i as f32)).collect());
        let mut m = Moments::new(4);
        m.add(&f, &q);
        let w: Vec<f32> = (0..8).map(|i| i as f32 * 0.3 - 1.0).collect();
        let t = m.correction("w", 1.0, 1e-9).unwrap().unwrap().target("w", &w).unwrap();
        for (k, (t, w)) in t.iter().zip(&w).enumerate() {
            let scale = 0.5 + (k % 4) as f32;
            assert!((t * scale - w).abs() < 2e-2, "{t} {w}");
        }
    }
}
