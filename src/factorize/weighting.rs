//! Importance of input channels, and the magnitude of a matrix, taken out before and put back after.

use super::Job;
use super::export::RealPath;
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Share of the uniform weight that is mixed into the importance: `(1 - SHRINKAGE) imp / mean(imp) + SHRINKAGE`.
///
/// Importance is measured on little text; unmixed, channels that it hardly used would count for nothing and a
/// few massive ones for everything. 0.2 is what NanoQuant uses for Llama and Qwen models.
pub const SHRINKAGE: f64 = 0.2;

/// Square roots of the columns' weights. Minimising `||(W - W') diag(s)||` is factorizing `W diag(s)` and dividing
/// g by s.
pub(super) struct Weighting {
    /// `None` weighs all columns alike.
    s: Option<Vec<f64>>,
}

/// A matrix ready to be factorized.
pub(super) struct Scaled {
    /// `w diag(s) / magnitude`, row-major, mean square 1.
    pub w: Vec<f32>,
    /// What it was divided by.
    pub magnitude: f64,
}

impl Weighting {
    pub fn new(job: &Job) -> Result<Self> {
        let Some(importance) = job.importance else { return Ok(Self { s: None }) };
        if let Some(j) = importance.iter().position(|x| !x.is_finite() || *x < 0.0) {
            return Err(numeric(job, format!("importance of input {j} is {}", importance[j])));
        }
        let mean = importance.iter().map(|&x| f64::from(x)).sum::<f64>() / importance.len() as f64;
        if mean == 0.0 {
            return Ok(Self { s: None });
        }
        let s = |&x: &f32| ((1.0 - SHRINKAGE) * f64::from(x) / mean + SHRINKAGE).sqrt();
        Ok(Self { s: Some(importance.iter().map(s).collect()) })
    }

    /// Weighs and normalises `w`; `None` if all of it is zero.
    pub fn apply(&self, job: &Job, w: &[f32]) -> Result<Option<Scaled>> {
        let s = |j: usize| self.s.as_ref().map_or(1.0, |s| s[j]);
        let mut square = 0f64;
        for (i, row) in w.chunks_exact(job.d_in).enumerate() {
            for (j, &x) in row.iter().enumerate() {
                if !x.is_finite() {
                    return Err(numeric(job, format!("the weight of row {i}, column {j} is {x}")));
                }
                square += (f64::from(x) * s(j)).powi(2);
            }
        }
        let magnitude = (square / w.len() as f64).sqrt();
        if magnitude == 0.0 {
            return Ok(None);
        }
        let factors: Vec<f64> = (0..job.d_in).map(|j| s(j) / magnitude).collect();
        let mut scaled = vec![0f32; w.len()];
        let rows = scaled.par_chunks_exact_mut(job.d_in).zip(w.par_chunks_exact(job.d_in));
        rows.for_each(|(to, from)| {
            for ((to, &x), f) in to.iter_mut().zip(from).zip(&factors) {
                *to = (f64::from(x) * f) as f32;
            }
        });
        Ok(Some(Scaled { w: scaled, magnitude }))
    }

    /// Turns factors of the scaled matrix into factors of the original one.
    pub fn undo(&self, path: &mut RealPath, magnitude: f64) {
        if let Some(s) = &self.s {
            path.g.iter_mut().zip(s).for_each(|(g, s)| *g /= s);
        }
        path.l.iter_mut().for_each(|l| *l *= magnitude);
    }
}

fn numeric(job: &Job, what: String) -> Error {
    Error::Numeric { matrix: job.name.to_owned(), what }
}
