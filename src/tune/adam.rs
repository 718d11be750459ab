//! Adam on relative changes: parameter i is `base_i (1 + a_i)`, so one rate fits scales of every size. And on matrices, in
//! units of their size.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Decay of the mean gradient.
pub const MEAN: f32 = 0.9;
/// Decay of the mean squared gradient; short, for runs of some hundred steps.
pub const SQUARE: f32 = 0.95;
const EPS: f32 = 1e-10;
/// Elements that one task handles.
const CHUNK: usize = 1 << 14;

/// State of one vector of parameters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Relative {
    base: Vec<f32>,
    change: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Relative {
    /// Starts at `base` with no change.
    pub fn new(base: &[f32]) -> Self {
        let zeros = vec![0.0; base.len()];
        Self { base: base.to_vec(), change: zeros.clone(), mean: zeros.clone(), square: zeros }
    }

    /// Whether both have set out from the same parameters.
    pub fn starts_like(&self, other: &Self) -> bool {
        let sizes = [&self.change, &self.mean, &self.square].map(Vec::len);
        self.base == other.base && sizes == [self.base.len(); 3]
    }

    /// Writes the parameters.
    pub fn write(&self, parameters: &mut [f32]) {
        for (p, (b, c)) in parameters.iter_mut().zip(self.base.iter().zip(&self.change)) {
            *p = b * (1.0 + c);
        }
    }

    /// Sum of squares of the gradient with respect to the changes, for clipping.
    pub fn gradient_square(&self, gradient: &[f32]) -> f64 {
        self.base.iter().zip(gradient).map(|(b, g)| f64::from(b * g).powi(2)).sum()
    }

    /// Step `t` (from 1) with the gradient of the parameters times `factor`; writes the new parameters.
    pub fn step(&mut self, t: i32, rate: f32, factor: f32, gradient: &[f32], parameters: &mut [f32]) {
        let (m_bias, s_bias) = (1.0 - MEAN.powi(t), 1.0 - SQUARE.powi(t));
        for (i, (base, gradient)) in self.base.iter().zip(gradient).enumerate() {
            let g = gradient * base * factor;
            self.mean[i] = MEAN * self.mean[i] + (1.0 - MEAN) * g;
            self.square[i] = SQUARE * self.square[i] + (1.0 - SQUARE) * g * g;
            self.change[i] -= rate * (self.mean[i] / m_bias) / ((self.square[i] / s_bias).sqrt() + EPS);
        }
        self.write(parameters);
    }
}

/// Adam on a matrix in units of its root mean square at the start.
#[derive(Clone, Debug)]
pub struct Plain {
    unit: f32,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Plain {
    /// For `parameters` as they are now.
    pub fn new(parameters: &[f32]) -> Self {
        let square: f64 = parameters.iter().map(|x| f64::from(*x).powi(2)).sum();
        let zeros = vec![0.0; parameters.len()];
        let unit = (square / parameters.len().max(1) as f64).sqrt() as f32;
        Self { unit, mean: zeros.clone(), square: zeros }
    }

    /// Step `t` (from 1).
    pub fn step(&mut self, t: i32, rate: f32, gradient: &[f32], parameters: &mut [f32]) {
        let (m_bias, s_bias) = (1.0 - MEAN.powi(t), 1.0 - SQUARE.powi(t));
        let rate = rate * self.unit / m_bias;
        let states = self.mean.par_chunks_mut(CHUNK).zip(self.square.par_chunks_mut(CHUNK));
        let all = states.zip(parameters.par_chunks_mut(CHUNK)).zip(gradient.par_chunks(CHUNK));
        all.for_each(|(((mean, square), p), g)| {
            for i in 0..p.len() {
                mean[i] = MEAN * mean[i] + (1.0 - MEAN) * g[i];
                square[i] = SQUARE * square[i] + (1.0 - SQUARE) * g[i] * g[i];
                p[i] -= rate * mean[i] / ((square[i] / s_bias).sqrt() + f32::MIN_POSITIVE);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_minimum_of_a_quadratic() {
        let target = [1.3f32, -0.02, 150.0];
        let mut p = [1.0f32, -0.03, 100.0];
        let mut adam = Relative::new(&p);
        for t in 1..=400 {
            let g: Vec<f32> = p.iter().zip(&target).map(|(p, t)| (p - t) / (t * t)).collect();
            adam.step(t, 0.02 * (1.0 - t as f32 / 401.0), 1.0, &g, &mut p);
        }
        for (p, t) in p.iter().zip(&target) {
            assert!((p / t - 1.0).abs() < 1e-2, "{p} against {t}");
        }
    }
}
