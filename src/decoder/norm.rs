//! RMS normalisation `y = w * x / sqrt(mean(x^2) + eps)` over rows.

use rayon::prelude::*;

/// Rows that one task handles.
const ROWS: usize = 32;

/// Normalises every row of `x` (rows x w.len()).
pub fn forward(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let d = w.len();
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * d)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let s = inverse_rms(x, eps);
            y.iter_mut().zip(x).zip(w).for_each(|((y, x), w)| *y = x * s * w);
        }
    });
    y
}

/// Gradient with respect to `x`, given `dy`; adds that of the weights to `dw`.
///
/// With `s = 1/rms` and `u = w dy`: `dx = s u - x s^3 mean(u x)`.
pub fn backward(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dw: &mut [f32]) -> Vec<f32> {
    let d = w.len();
    let mut dx = vec![0.0; x.len()];
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(ROWS * d)
        .zip(x.par_chunks(ROWS * d))
        .zip(dy.par_chunks(ROWS * d))
        .map(|((dx, x), dy)| {
            let mut part = vec![0f32; d];
            for ((dx, x), dy) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)) {
                let s = inverse_rms(x, eps);
                let mut dot = 0.0;
                for i in 0..d {
                    dot += w[i] * dy[i] * x[i];
                    part[i] += dy[i] * x[i] * s;
                }
                let k = s * s * s * dot / d as f32;
                for i in 0..d {
                    dx[i] = s * w[i] * dy[i] - x[i] * k;
                }
            }
            part
        })
        .collect();
    for part in parts {
        dw.iter_mut().zip(part).for_each(|(a, b)| *a += b);
    }
    dx
}

fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let sum: f64 = x.iter().map(|v| f64::from(v * v)).sum();
    ((sum / x.len() as f64) as f32 + eps).sqrt().recip()
}
