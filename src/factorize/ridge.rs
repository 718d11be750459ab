//! The ridge problem inside ADMM: solve `(G + ridge I) X = B` for a Gram matrix G.

use super::gemm::BLOCK;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::{Auto, Mat, MatMut, Par, Spec};
use rayon::prelude::*;

/// How often the ridge may grow tenfold before the matrix counts as hopeless.
pub(super) const ATTEMPTS: usize = 6;

/// Overwrites `rhs` (`r x n`) with `(G + ridge I)^-1 rhs`; only the lower triangle of `gram` (`r x r`) is read.
///
/// If rounding has made the matrix indefinite, the ridge grows tenfold until the Cholesky decomposition exists.
/// `false` means that it never did: the input is not finite. `factor` is working memory of the same shape.
#[must_use]
pub(super) fn solve(gram: &Mat<f32>, ridge: f32, factor: &mut Mat<f32>, rhs: MatMut<f32>) -> bool {
    let mut ridge = ridge;
    for _ in 0..ATTEMPTS {
        factor.copy_from(gram);
        for i in 0..gram.nrows() {
            factor[(i, i)] += ridge;
        }
        if decompose(factor) {
            let l = factor.as_ref();
            rhs.par_col_chunks_mut(BLOCK).for_each(|rhs| {
                // Needs no working memory (its scratch request is empty).
                llt::solve::solve_in_place(l, rhs, Par::Seq, MemStack::new(&mut []));
            });
            return true;
        }
        ridge *= 10.0;
    }
    false
}

/// Lower Cholesky factor in place.
fn decompose(a: &mut Mat<f32>) -> bool {
    let params = Spec::<llt::factor::LltParams, f32>::new(Auto::<f32>::auto());
    let scratch = llt::factor::cholesky_in_place_scratch::<f32>(a.nrows(), Par::Seq, params);
    let mut memory = MemBuffer::new(scratch);
    llt::factor::cholesky_in_place(
        a.as_mut(),
        Default::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        params,
    )
    .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_a_regular_system() {
        let gram = Mat::from_fn(3, 3, |i, j| if i == j { 2.0 } else { 1.0 });
        let x = Mat::from_fn(3, 2, |i, j| (i + 2 * j) as f32 - 1.0);
        let mut rhs = Mat::from_fn(3, 2, |i, j| {
            (0..3).map(|k| (gram[(i, k)] + if i == k { 0.5 } else { 0.0 }) * x[(k, j)]).sum::<f32>()
        });
        assert!(solve(&gram, 0.5, &mut Mat::zeros(3, 3), rhs.as_mut()));
        for j in 0..2 {
            for i in 0..3 {
                assert!((rhs[(i, j)] - x[(i, j)]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn an_indefinite_matrix_gets_a_larger_ridge() {
        let gram = Mat::from_fn(2, 2, |i, j| if i == j { -0.5 } else { 0.0 });
        let mut rhs = Mat::full(2, 1, 1.0);
        assert!(solve(&gram, 0.1, &mut Mat::zeros(2, 2), rhs.as_mut()));
        assert!((rhs[(0, 0)] - 2.0).abs() < 1e-5, "ridge 1.0 is the first that works");
    }

    #[test]
    fn what_is_not_finite_is_given_up() {
        let gram = Mat::full(2, 2, f32::NAN);
        assert!(!solve(&gram, 0.1, &mut Mat::zeros(2, 2), Mat::full(2, 1, 1.0).as_mut()));
    }
}
