//! Signs in training: each is the sign of a real latent, which Adam moves by the straight-through gradient.

use super::adam::{MEAN, SQUARE};
use rayon::prelude::*;

const EPS: f32 = 1e-20;
/// Steps that only gather moments: the first ones know too little about their size.
const GATHER: i32 = 3;
/// Range of the latents' starting values, relative to the mean margin.
const RANGE: [f32; 2] = [0.02, 3.0];
/// Latents that one task handles.
const CHUNK: usize = 1 << 14;

/// Latents of one sign matrix.
#[derive(Clone, Debug)]
pub struct Latents {
    value: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Latents {
    /// Starts at `signs` times the size of their margins, in units of its mean: signs that are cheap to turn lie near zero. A negative margin
    /// belongs to a sign that the layer alone would turn. Without polish many are, and if all of them lay next to zero they would
    /// turn together in the first steps, each for a gradient that does not know of the others; the block's error grows then.
    pub fn new(signs: &[f32], margins: &[f32]) -> Self {
        let mean = margins.iter().map(|m| m.abs()).sum::<f32>() / margins.len().max(1) as f32;
        let unit = if mean.is_normal() { 1.0 / mean } else { 1.0 };
        let value =
            signs.iter().zip(margins).map(|(s, m)| s * (m.abs() * unit).clamp(RANGE[0], RANGE[1])).collect();
        Self { value, mean: vec![0.0; signs.len()], square: vec![0.0; signs.len()] }
    }

    /// Step `t` (from 1) with the gradient of the signs; returns the places of those that turn.
    pub fn step(&mut self, t: i32, rate: f32, gradient: &[f32]) -> Vec<usize> {
        let (m_bias, s_bias) = (1.0 - MEAN.powi(t), 1.0 - SQUARE.powi(t));
        let rate = if t <= GATHER { 0.0 } else { rate / m_bias };
        let parts = self.value.par_chunks_mut(CHUNK).zip(self.mean.par_chunks_mut(CHUNK));
        let parts = parts.zip(self.square.par_chunks_mut(CHUNK)).zip(gradient.par_chunks(CHUNK)).enumerate();
        let turned: Vec<Vec<usize>> = parts
            .map(|(c, (((value, mean), square), gradient))| {
                let mut turned = Vec::new();
                for i in 0..value.len() {
                    let g = gradient[i];
                    mean[i] = MEAN * mean[i] + (1.0 - MEAN) * g;
                    square[i] = SQUARE * square[i] + (1.0 - SQUARE) * g * g;
                    let next = value[i] - rate * mean[i] / ((square[i] / s_bias).sqrt() + EPS);
                    if (next < 0.0) != (value[i] < 0.0) {
                        turned.push(c * CHUNK + i);
                    }
                    value[i] = next;
                }
                turned
            })
            .collect();
        turned.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheap_signs_turn_first_and_only_those_that_are_pulled() {
        let signs = [1.0f32, 1.0, -1.0, -1.0];
        let mut latents = Latents::new(&signs, &[0.1, 2.0, 0.1, 1.8]);
        let mut turned = Vec::new();
        for t in 1..=30 {
            turned.extend(latents.step(t, 0.02, &[1.0, 1.0, 1.0, -1.0]));
        }
        // The first falls below zero after five steps of 0.02, the third is pulled away from zero, the others lie far.
        assert_eq!(turned, [0]);
        // A negative margin is as far from zero as a positive one of its size.
        assert_eq!(
            Latents::new(&signs, &[-0.1, 2.0, 0.1, -1.8]).value,
            Latents::new(&signs, &[0.1, 2.0, 0.1, 1.8]).value
        );
        let none = Latents::new(&signs, &[0.1; 4]).step(1, 1.0, &[1.0; 4]);
        assert!(none.is_empty(), "the first steps only gather");
    }
}
