//! Joint-ITQ: a rotation of the latent space that makes signs a better stand-in for the latent factors.
//!
//! `A B^T = (A R)(B R)^T` for every orthogonal R. Singular vectors are a bad basis for signs, because a few large
//! entries carry most of their length. With `X = [A; B]`, alternate between the nearest vertices `S = sign(X R)`
//! and the rotation that brings X nearest to them, `R = Q P^T` for `S^T X = P D Q^T`; each step can only raise
//! `sum |X R|`, which is to lower the error of the signs.

use super::svid::Latent;
use super::{gemm, start, svd};
use faer::{Mat, MatRef};
use rand_chacha::ChaCha8Rng;

/// Steps unless the user says otherwise, as in the LittleBit-2 paper.
pub const DEFAULT_ITERATIONS: usize = 50;

/// Rotates both factors from a random start; `None` if a decomposition fails.
pub(super) fn joint_itq(latent: &mut Latent, iterations: usize, rng: &mut ChaCha8Rng) -> Option<()> {
    let k = latent.k;
    // Columns of the transposed factors side by side: X transposed, k x (m + n).
    let mut x = std::mem::take(&mut latent.a);
    let m = x.len();
    x.append(&mut latent.b);
    let r = rotation(MatRef::from_column_major_slice(&x, k, x.len() / k), iterations, rng)?;
    let mut rotated = Mat::zeros(k, x.len() / k);
    let xt = MatRef::from_column_major_slice(&x, k, x.len() / k);
    gemm::product(rotated.as_mut(), r.as_ref().transpose(), xt);
    for (j, column) in x.chunks_exact_mut(k).enumerate() {
        column.iter_mut().enumerate().for_each(|(t, x)| *x = rotated[(t, j)]);
    }
    latent.b = x.split_off(m);
    latent.a = x;
    Some(())
}

/// The rotation R (`k x k`) for `xt`, which is X transposed.
pub(super) fn rotation(xt: MatRef<f32>, iterations: usize, rng: &mut ChaCha8Rng) -> Option<Mat<f32>> {
    let (k, count) = xt.shape();
    let random = start::uniform(rng, k * k);
    let mut r = svd::transposed_polar(MatRef::from_column_major_slice(&random, k, k))?;
    let mut signs = Mat::zeros(k, count);
    let mut correlation = Mat::zeros(k, k);
    for _ in 0..iterations {
        gemm::product(signs.as_mut(), r.as_ref().transpose(), xt);
        for j in 0..count {
            for t in 0..k {
                signs[(t, j)] = if signs[(t, j)] >= 0.0 { 1.0 } else { -1.0 };
            }
        }
        gemm::product(correlation.as_mut(), signs.as_ref(), xt.transpose());
        r = svd::transposed_polar(correlation.as_ref())?;
    }
    Some(r)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `||X R - c sign(X R)|| / ||X||` for the best c.
    fn sign_error(xt: &Mat<f32>, r: &Mat<f32>) -> f64 {
        let y = r.transpose() * xt;
        let (mut sum, mut square) = (0f64, 0f64);
        for j in 0..y.ncols() {
            for t in 0..y.nrows() {
                sum += f64::from(y[(t, j)]).abs();
                square += f64::from(y[(t, j)]).powi(2);
            }
        }
        (1.0 - sum * sum / ((y.nrows() * y.ncols()) as f64 * square)).sqrt()
    }

    #[test]
    fn the_rotation_is_orthogonal_and_lowers_the_error_of_signs() {
        let (k, count) = (24, 200);
        let mut rng = start::rng(5, "x", 0);
        let values = start::uniform(&mut rng, k * count);
        // Latent factors as an SVD gives them: dimensions of falling length, a few spikes.
        let xt = Mat::from_fn(k, count, |t, j| {
            values[j * k + t].powi(5) * if (j + t) % 29 == 0 { 9.0 } else { 1.0 } / (1.0 + t as f32)
        });
        let identity = Mat::from_fn(k, k, |i, j| if i == j { 1.0 } else { 0.0 });
        let error = |n| {
            let r = rotation(xt.as_ref(), n, &mut start::rng(1, "r", 0)).unwrap();
            let unit = r.transpose() * &r;
            for i in 0..k {
                for j in 0..k {
                    assert!((unit[(i, j)] - identity[(i, j)]).abs() < 1e-4);
                }
            }
            sign_error(&xt, &r)
        };
        let errors = [sign_error(&xt, &identity), error(0), error(1), error(10), error(50)];
        assert!(errors.is_sorted_by(|a, b| a >= b), "{errors:?}");
        assert!(errors[4] < 0.97 * errors[1] && errors[4] < 0.9 * errors[0], "{errors:?}");
    }

    #[test]
    fn the_product_stays() {
        let (k, m, n) = (8, 20, 30);
        let mut rng = start::rng(2, "x", 0);
        let mut latent = Latent { k, a: start::uniform(&mut rng, k * m), b: start::uniform(&mut rng, k * n) };
        let product = |l: &Latent| -> Vec<f32> {
            (0..m * n)
                .map(|t| (0..k).map(|s| l.a[(t / n) * k + s] * l.b[(t % n) * k + s]).sum::<f32>())
                .collect()
        };
        let before = product(&latent);
        joint_itq(&mut latent, 5, &mut rng).unwrap();
        assert_eq!((latent.a.len(), latent.b.len()), (k * m, k * n));
        assert!(before.iter().zip(product(&latent)).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}
