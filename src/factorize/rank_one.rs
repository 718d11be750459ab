//! The rank-one matrix nearest to the magnitudes of a latent factor.
//!
//! Latent factors are `r x n`, column-major: the r values of one output or input lie together.

use rayon::prelude::*;

/// Columns whose partial sums are formed by one thread; fixed, so that sums are the same for any number of threads.
const CHUNK: usize = 256;

/// `|X| ~ a b^T`.
#[derive(Clone, Debug)]
pub(super) struct RankOne {
    /// One value for each latent dimension, Euclidean norm 1 (or all 0).
    pub a: Vec<f32>,
    /// One value for each column; carries the magnitude.
    pub b: Vec<f32>,
}

/// Leading singular pair of `|X|` by power iteration from `start` (length r, not negative, not all 0).
///
/// All entries of `|X|` are non-negative, so the leading pair is too and a positive start cannot miss it. Each
/// iteration reads X once: column by column `b_j = |x_j| . a`, and at the same time `|X| b` for the next `a`.
pub(super) fn rank_one(x: &[f32], start: &[f32], iterations: usize) -> RankOne {
    let r = start.len();
    let mut a = start.to_vec();
    normalize(&mut a);
    for _ in 0..iterations {
        let partial: Vec<Vec<f32>> = x
            .par_chunks(r * CHUNK)
            .map(|columns| {
                let mut sum = vec![0f32; r];
                for column in columns.chunks_exact(r) {
                    let b = dot_abs(column, &a);
                    sum.iter_mut().zip(column).for_each(|(s, x)| *s += x.abs() * b);
                }
                sum
            })
            .collect();
        let mut next = vec![0f64; r];
        for sum in &partial {
            next.iter_mut().zip(sum).for_each(|(n, s)| *n += f64::from(*s));
        }
        let norm = next.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm == 0.0 {
            break;
        }
        a.iter_mut().zip(&next).for_each(|(a, n)| *a = (n / norm) as f32);
    }
    let b = x.par_chunks(r).map(|column| dot_abs(column, &a)).collect();
    RankOne { a, b }
}

fn normalize(a: &mut [f32]) {
    let norm = a.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        a.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

/// `sum |x_i| a_i` in eight interleaved sums, which the compiler can keep in one register.
fn dot_abs(x: &[f32], a: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (xs, as_) = (x.chunks_exact(8), a.chunks_exact(8));
    let tail: f32 = xs.remainder().iter().zip(as_.remainder()).map(|(x, a)| x.abs() * a).sum();
    for (x, a) in xs.zip(as_) {
        for k in 0..8 {
            sums[k] += x[k].abs() * a[k];
        }
    }
    sums.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_product_comes_back() {
        let (r, n) = (11, 600);
        let (a, b): (Vec<f32>, Vec<f32>) =
            ((0..r).map(|i| 1.0 + i as f32 / 3.0).collect(), (0..n).map(|j| 0.1 + (j % 7) as f32).collect());
        let x: Vec<f32> =
            (0..n * r).map(|t| a[t % r] * b[t / r] * if t % 3 == 0 { -1.0 } else { 1.0 }).collect();
        let got = rank_one(&x, &vec![1.0; r], 1);
        for (t, x) in x.iter().enumerate() {
            assert!((got.a[t % r] * got.b[t / r] - x.abs()).abs() < 1e-4 * x.abs());
        }
        assert!((got.a.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn zeros_give_zeros() {
        let got = rank_one(&[0.0; 32], &[1.0; 8], 3);
        assert!(got.b.iter().all(|&b| b == 0.0) && got.a.iter().all(|a| a.is_finite()));
    }
}
