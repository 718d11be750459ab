//! Second moments of the inputs of a linear layer, in the source model and in the compressed one.

use crate::decoder::{add_gram, add_outer, token_weights, weighed};
use crate::error::{Error, Result};
use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, Side};
use half::bf16;
use rayon::prelude::*;

/// Windows that are prepared together.
const AT_ONCE: usize = 16;

/// `E[xq xq^T]` of the compressed stream and `E[xf xq^T]` across both, row-major `d x d`.
#[derive(Debug)]
pub struct Moments {
    d: usize,
    tokens: f64,
    compressed: Vec<f32>,
    cross: Vec<f32>,
}

impl Moments {
    /// Nothing seen yet of inputs of width `d`.
    pub fn new(d: usize) -> Self {
        Self { d, tokens: 0.0, compressed: vec![0.0; d * d], cross: vec![0.0; d * d] }
    }

    /// Adds windows: rows of the source's stream, of the compressed one, and the weight of the window. A token counts with
    /// weight `min(1, median / norm)` of its source norm besides, so that a few massive tokens do not rule.
    pub fn add<S: AsRef<[bf16]> + Sync>(&mut self, windows: &[(S, &[f32], f32)]) {
        let d = self.d;
        let ones = vec![1f32; d];
        for windows in windows.chunks(AT_ONCE) {
            let weigh = |(source, compressed, weight): &(S, &[f32], f32)| {
                let source: Vec<f32> = source.as_ref().iter().map(|x| x.to_f32()).collect();
                let mut weights = token_weights(&source, d);
                weights.iter_mut().for_each(|w| *w *= weight.sqrt());
                let tokens = weights.len() as f64 * f64::from(*weight);
                (weighed(&source, &weights), weighed(compressed, &weights), tokens)
            };
            let weighed: Vec<(Vec<f32>, Vec<f32>, f64)> = windows.par_iter().map(weigh).collect();
            for (f, q, tokens) in weighed {
                // Rounding to bfloat16 is far below what another text would change; both factors of the first product
                // are the same numbers, so it stays positive semidefinite.
                add_gram(&mut self.compressed, &q, &ones);
                add_outer(&mut self.cross, [&f, &q], [&ones, &ones]);
                self.tokens += tokens;
            }
        }
    }

    /// Mean square of each input of the compressed stream.
    pub fn importance(&self) -> Vec<f32> {
        (0..self.d).map(|i| self.compressed[i * self.d + i] / self.tokens.max(1.0) as f32).collect()
    }

    /// Element of the sums of `xq xq^T`, of which only the lower half is kept.
    fn sum(&self, i: usize, j: usize) -> f32 {
        self.compressed[i.max(j) * self.d + i.min(j)]
    }

    /// `E[xq xq^T]`, row-major.
    pub fn compressed(&self) -> Vec<f32> {
        let n = self.tokens.max(1.0) as f32;
        let mut all = vec![0f32; self.d * self.d];
        all.par_chunks_mut(self.d).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, x)| *x = self.sum(i, j) / n);
        });
        all
    }

    /// What the targets of the layers that read these inputs share. `None` if all of them are zero.
    ///
    /// # Errors
    /// [`Error::Numeric`], for `name`, if the moments are not finite.
    pub fn correction(&self, name: &str, alpha: f64, damp: f64) -> Result<Option<Correction>> {
        let d = self.d;
        let n = self.tokens.max(1.0);
        let own = |i: usize, j: usize| f64::from(self.sum(i, j)) / n;
        let cross = |i: usize, j: usize| f64::from(self.cross[i * d + j]) / n;
        let mean = (0..d).map(|i| own(i, i)).sum::<f64>() / d as f64;
        if mean == 0.0 {
            return Ok(None);
        }
        let h = Mat::from_fn(d, d, |i, j| own(i, j) + if i == j { damp * mean } else { 0.0 });
        let difference = Mat::from_fn(d, d, |i, j| alpha * (cross(i, j) - own(i, j)));
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
    fn streams(d: usize, map: impl Fn(&[f32]) -> Vec<f32>) -> (Vec<bf16>, Vec<f32>) {
        let rows: Vec<Vec<f32>> =
            (0..40).map(|t| (0..d).map(|i| ((t * 7 + i * i * 3) % 11) as f32 - 5.0).collect()).collect();
        (rows.concat().into_iter().map(bf16::from_f32).collect(), rows.iter().flat_map(|r| map(r)).collect())
    }

    #[test]
    fn equal_streams_leave_the_weight() {
        let (f, q) = streams(4, <[f32]>::to_vec);
        let mut m = Moments::new(4);
        m.add(&[(f, &q, 1.0)]);
        let w: Vec<f32> = (0..12).map(|i| i as f32 * 0.3 - 1.0).collect();
        let t = m.correction("w", 1.0, 0.01).unwrap().unwrap().target("w", &w).unwrap();
        assert!(t.iter().zip(&w).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn weights_are_as_good_as_repetition() {
        let (f, q) = streams(4, |r| r.iter().enumerate().map(|(i, x)| x * (0.5 + i as f32)).collect());
        let (f2, q2) = streams(4, |r| r.iter().map(|x| 3.0 * x).collect());
        let mut weighed = Moments::new(4);
        weighed.add(&[(&f, &q, 1.5), (&f2, &q2, 0.5)]);
        let mut repeated = Moments::new(4);
        repeated.add(&[(&f, &q, 1.0), (&f, &q, 1.0), (&f, &q, 1.0), (&f2, &q2, 1.0)]);
        let (a, b) = (weighed.compressed(), repeated.compressed());
        let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() < 1e-2 * largest, "{a} {b} of {largest}");
        }
    }

    #[test]
    fn a_scaled_stream_is_undone() {
        let (f, q) = streams(4, |r| r.iter().enumerate().map(|(i, x)| x * (0.5 + i as f32)).collect());
        let mut m = Moments::new(4);
        m.add(&[(f, &q, 1.0)]);
        let w: Vec<f32> = (0..8).map(|i| i as f32 * 0.3 - 1.0).collect();
        let t = m.correction("w", 1.0, 1e-9).unwrap().unwrap().target("w", &w).unwrap();
        for (k, (t, w)) in t.iter().zip(&w).enumerate() {
            let scale = 0.5 + (k % 4) as f32;
            assert!((t * scale - w).abs() < 2e-2, "{t} {w}");
        }
    }
}
