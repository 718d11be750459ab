//! Truncated singular value decomposition that ends with an answer.
//!
//! faer's decomposition has been seen not to converge on ordinary input, rarely. So there is a ladder: single
//! precision, double precision, and the eigenvectors of the smaller Gram matrix. Every rung runs on one thread,
//! because the library's own splitting depends on the number of threads.
//!
//! All of these find every singular value. Where only a few of a large matrix are wanted that is hours of work and several
//! copies of the matrix, so [`leading`] stands before the ladder there.

use super::{gemm, start};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::matmul::matmul;
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::traits::RealField;
use faer::{Accum, Mat, MatRef, Par};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// `W ~ P diag(s) Q^T` with the k largest singular values, descending.
pub(super) struct Svd {
    /// Left singular vectors, `m x k`.
    pub p: Mat<f32>,
    /// Singular values.
    pub s: Vec<f32>,
    /// Right singular vectors, `n x k`.
    pub q: Mat<f32>,
}

/// A way to get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rung {
    Single,
    Double,
    Gram,
}

/// From the cheapest to the one that cannot fail.
pub(super) const LADDER: [Rung; 3] = [Rung::Single, Rung::Double, Rung::Gram];

/// Largest relative difference between the squared singular values and the squared entries of a matrix: far
/// above the rounding of f32, far below what a decomposition that went wrong leaves out.
const ENERGY_TOLERANCE: f64 = 1e-3;

/// The `min(rank, m, n)` leading terms of `w`, from the first of `rungs` that delivers; `None` if none does.
pub(super) fn truncated(w: MatRef<f32>, rank: usize, rungs: &[Rung]) -> Option<Svd> {
    // Squares of very small or large entries leave the range of f32.
    let largest =
        (0..w.ncols()).flat_map(|j| (0..w.nrows()).map(move |i| w[(i, j)].abs())).fold(0f32, f32::max);
    let scale = if largest > 0.0 && largest.is_finite() { f64::from(largest) } else { 1.0 };
    let k = rank.min(w.nrows()).min(w.ncols());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let energy = squares(&mut (0..w.ncols()).flat_map(|j| w.col(j).iter()).map(|&x| f64::from(x) / scale));
    if is_small_part(k, w.nrows().min(w.ncols()))
        && (PLAIN.0..PLAIN.1).contains(&largest)
        && let Some(svd) = leading(w, k, energy * scale * scale)
    {
        return Some(svd);
    }
    rungs.iter().find_map(|rung| {
        let (p, s, q) = match rung {
            Rung::Single => {
                thin(Mat::from_fn(w.nrows(), w.ncols(), |i, j| (f64::from(w[(i, j)]) / scale) as f32))?
            }
            Rung::Double => single(thin(double(w, scale))?),
            Rung::Gram => single(through_gram(double(w, scale))?),
        };
        let finite = |m: &Mat<f32>| (0..m.ncols()).all(|j| (0..m.nrows()).all(|i| m[(i, j)].is_finite()));
        let found = squares(&mut s.iter().map(|&x| f64::from(x)));
        // A sum that is not a number fails the comparison too.
        let whole = (found - energy).abs() <= ENERGY_TOLERANCE * energy;
        if !whole || !finite(&p) || !finite(&q) {
            return None;
        }
        let first = |m: Mat<f32>| Mat::from_fn(m.nrows(), k, |i, j| m[(i, j)]);
        let s = s[..k].iter().map(|&x| (f64::from(x) * scale) as f32).collect();
        Some(Svd { p: first(p), s, q: first(q) })
    })
}

/// Largest entries that need no scaling before their squares are summed.
const PLAIN: (f32, f32) = (1e-6, 1e6);
/// Smaller side of a matrix from which on few of its singular values are found by themselves.
const LARGE: usize = 1024;
/// What part of all singular values few are.
const FEW: usize = 8;
/// Columns of a block beyond those that are wanted.
const OVERSAMPLING: usize = 16;
/// Blocks of the Krylov space after the first. On a flat spectrum, the hardest, the terms found hold more than 99 % of what the
/// leading ones hold.
const BLOCKS: usize = 5;

/// Part of a block's norm below which a direction is noise of single precision.
const EXHAUSTED: f32 = 1e-5;

/// Whether the `k` leading terms of a matrix with this smaller side are found by themselves.
pub(crate) fn is_small_part(k: usize, smaller: usize) -> bool {
    smaller >= LARGE && k * FEW <= smaller
}

/// The `k` leading terms by a block Krylov method: the best ones in the space of `W X, (W W^T) W X, ...` for a random X.
/// `energy` is the sum of all squares of `w`; terms that hold more are not orthogonal, and nothing is returned.
fn leading(w: MatRef<f32>, k: usize, energy: f64) -> Option<Svd> {
    let (m, n, b) = (w.nrows(), w.ncols(), k + OVERSAMPLING);
    // The same start for every matrix of a shape: it only must not be orthogonal to what is looked for.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut random = start::uniform(&mut rng, n * b).into_iter();
    let mut x = Mat::from_fn(n, b, |_, _| random.next().expect("one for each entry"));
    // Orthonormal basis and, beside each block, what the transposed matrix makes of it.
    let (mut basis, mut image): (Vec<Mat<f32>>, Vec<Mat<f32>>) = (Vec::new(), Vec::new());
    for _ in 0..=BLOCKS {
        let mut y = Mat::zeros(m, x.ncols());
        gemm::product(y.as_mut(), w, x.as_ref());
        let before = y.norm_l2();
        // Twice is enough.
        for pass in 0..2 {
            for q in &basis {
                let mut part = Mat::zeros(q.ncols(), y.ncols());
                gemm::product(part.as_mut(), q.transpose(), y.as_ref());
                let mut along = Mat::zeros(m, y.ncols());
                gemm::product(along.as_mut(), q.as_ref(), part.as_ref());
                y -= along;
            }
            let (p, s, _) = thin(y)?;
            // What is left of directions that are there already is noise.
            let least = if pass == 0 { EXHAUSTED * before } else { 0.5 };
            let new = s.iter().take_while(|&&s| s > least).count();
            y = Mat::from_fn(m, new, |i, j| p[(i, j)]);
            if new == 0 {
                break;
            }
        }
        if y.ncols() == 0 {
            break;
        }
        let mut z = Mat::zeros(n, y.ncols());
        gemm::product(z.as_mut(), w.transpose(), y.as_ref());
        x = z.clone();
        basis.push(y);
        image.push(z);
    }
    let joined = |blocks: &[Mat<f32>]| {
        let columns: Vec<(usize, usize)> =
            blocks.iter().enumerate().flat_map(|(b, x)| (0..x.ncols()).map(move |j| (b, j))).collect();
        Mat::from_fn(blocks[0].nrows(), columns.len(), |i, j| blocks[columns[j].0][(i, columns[j].1)])
    };
    // A matrix of lower rank has fewer terms.
    let k = k.min(image.iter().map(|z| z.ncols()).sum());
    if k == 0 {
        return None;
    }
    // W ~ Q (W^T Q)^T with W^T Q = A S B^T, so W ~ (Q B) S A^T.
    let (a, s, right) = thin(joined(&image))?;
    let found: f64 = s.iter().map(|&s| f64::from(s).powi(2)).sum();
    if found.is_nan() || found > (1.0 + ENERGY_TOLERANCE) * energy {
        return None;
    }
    let mut p = Mat::zeros(m, k);
    gemm::product(p.as_mut(), joined(&basis).as_ref(), right.subcols(0, k));
    let q = Mat::from_fn(n, k, |i, j| a[(i, j)]);
    let finite = |x: &Mat<f32>| (0..k).all(|j| x.col(j).iter().all(|x| x.is_finite()));
    (finite(&p) && finite(&q)).then(|| Svd { p, s: s[..k].to_vec(), q })
}

/// The orthogonal matrix nearest to the transpose of a square `m = P S Q^T`: `Q P^T`.
pub(super) fn transposed_polar(m: MatRef<f32>) -> Option<Mat<f32>> {
    // The Gram rung is left out: its vectors of vanishing singular values are not orthogonal.
    let svd = truncated(m, m.nrows(), &[Rung::Single, Rung::Double])?;
    let mut r = Mat::zeros(m.nrows(), m.ncols());
    super::gemm::product(r.as_mut(), svd.q.as_ref(), svd.p.as_ref().transpose());
    Some(r)
}

type Thin<T> = (Mat<T>, Vec<T>, Mat<T>);

fn thin<T: RealField + Copy>(w: Mat<T>) -> Option<Thin<T>> {
    let (m, n) = w.shape();
    let k = m.min(n);
    let (mut p, mut q) = (Mat::<T>::zeros(m, k), Mat::<T>::zeros(n, k));
    let mut s = Diag::<T>::zeros(k);
    let vectors = ComputeSvdVectors::Thin;
    let mut memory =
        MemBuffer::new(svd::svd_scratch::<T>(m, n, vectors, vectors, Par::Seq, Default::default()));
    svd::svd(
        w.as_ref(),
        s.as_mut(),
        Some(p.as_mut()),
        Some(q.as_mut()),
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    )
    .ok()?;
    let s = s.column_vector().iter().copied().collect();
    Some((p, s, q))
}

/// Eigenvectors of `W^T W` or `W W^T`, whichever is smaller, are one set of singular vectors; W maps them to the
/// other. Vectors of vanishing singular values come out as 0 on that side.
fn through_gram(w: Mat<f64>) -> Option<Thin<f64>> {
    let wide = w.nrows() < w.ncols();
    let w = if wide { w.transpose() } else { w.as_ref() };
    let k = w.ncols();
    // The operator would split the product by the number of threads.
    let product = |a: MatRef<f64>, b: MatRef<f64>| {
        let mut out = Mat::zeros(a.nrows(), b.ncols());
        matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
        out
    };
    let gram = product(w.transpose(), w);
    let mut vectors = Mat::<f64>::zeros(k, k);
    let mut values = Diag::<f64>::zeros(k);
    let scratch =
        evd::self_adjoint_evd_scratch::<f64>(k, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    evd::self_adjoint_evd(
        gram.as_ref(),
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    )
    .ok()?;
    // Ascending order turned round.
    let q = Mat::from_fn(k, k, |i, j| vectors[(i, k - 1 - j)]);
    let s: Vec<f64> = values.column_vector().iter().rev().map(|x| x.max(0.0).sqrt()).collect();
    let floor = s.first().copied().unwrap_or(0.0) * f64::EPSILON.sqrt();
    let mut p = product(w, q.as_ref());
    for (j, &s) in s.iter().enumerate() {
        for i in 0..p.nrows() {
            p[(i, j)] = if s > floor { p[(i, j)] / s } else { 0.0 };
        }
    }
    Some(if wide { (q, s, p) } else { (p, s, q) })
}

fn double(w: MatRef<f32>, scale: f64) -> Mat<f64> {
    Mat::from_fn(w.nrows(), w.ncols(), |i, j| f64::from(w[(i, j)]) / scale)
}

fn single((p, s, q): Thin<f64>) -> Thin<f32> {
    let narrow = |m: Mat<f64>| Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] as f32);
    (narrow(p), s.iter().map(|&x| x as f32).collect(), narrow(q))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sum_k s_k p_k q_k^T` with orthogonal cosine vectors.
    fn known(m: usize, n: usize, s: &[f32]) -> Mat<f32> {
        let vector = |len: usize, k: usize, i: usize| {
            let x = std::f64::consts::PI * (i as f64 + 0.5) * (k + 1) as f64 / len as f64;
            (x.cos() * (2.0 / len as f64).sqrt()) as f32
        };
        Mat::from_fn(m, n, |i, j| {
            s.iter().enumerate().map(|(k, s)| s * vector(m, k, i) * vector(n, k, j)).sum::<f32>()
        })
    }

    fn distance(a: &Mat<f32>, svd: &Svd) -> f64 {
        let mut square = 0f64;
        for j in 0..a.ncols() {
            for i in 0..a.nrows() {
                let b: f64 = (0..svd.s.len())
                    .map(|k| f64::from(svd.p[(i, k)]) * f64::from(svd.s[k]) * f64::from(svd.q[(j, k)]))
                    .sum();
                square += (f64::from(a[(i, j)]) - b).powi(2);
            }
        }
        square.sqrt()
    }

    #[test]
    fn every_rung_finds_known_singular_values() {
        for (m, n) in [(40, 24), (24, 40), (33, 33)] {
            let w = known(m, n, &[8.0, 4.0, 2.0, 1.0]);
            for rung in LADDER {
                let svd = truncated(w.as_ref(), 2, &[rung]).unwrap();
                assert_eq!((svd.p.ncols(), svd.q.ncols(), svd.s.len()), (2, 2, 2));
                assert!((svd.s[0] - 8.0).abs() < 1e-4 && (svd.s[1] - 4.0).abs() < 1e-4, "{rung:?}");
                // What is cut off is known as well.
                assert!((distance(&w, &svd) - 5f64.sqrt()).abs() < 1e-3, "{rung:?}");
            }
        }
    }

    #[test]
    fn scale_does_not_matter() {
        for scale in [1e-30f32, 1e30] {
            let w = known(20, 30, &[3.0, 1.0]);
            let w = Mat::from_fn(20, 30, |i, j| w[(i, j)] * scale);
            for rung in LADDER {
                let svd = truncated(w.as_ref(), 20, &[rung]).unwrap();
                assert!((svd.s[0] / scale - 3.0).abs() < 1e-4, "{rung:?}");
            }
        }
    }

    #[test]
    fn degenerate_matrices_have_an_answer() {
        for w in [Mat::zeros(5, 9), Mat::full(1, 12, 2.0), Mat::full(12, 1, -2.0), Mat::full(7, 7, 1.0)] {
            for rung in LADDER {
                let svd = truncated(w.as_ref(), 32, &[rung]).unwrap();
                assert_eq!(svd.s.len(), w.nrows().min(w.ncols()));
                assert!(distance(&w, &svd) < 1e-5, "{rung:?}");
            }
        }
    }

    #[test]
    fn few_terms_of_a_large_matrix_are_found_by_themselves() {
        assert!(is_small_part(32, 1024) && !is_small_part(160, 1024) && !is_small_part(32, 1023));
        let all = |w: &Mat<f32>| {
            (0..w.ncols()).flat_map(|j| w.col(j).iter()).map(|&x| f64::from(x).powi(2)).sum::<f64>()
        };
        let leading = |w: &Mat<f32>, k: usize| leading(w.as_ref(), k, all(w));
        // Known terms come back, although the matrix has no more than them.
        let w = known(200, 300, &[8.0, 4.0, 2.0, 1.0]);
        let svd = leading(&w, 2).unwrap();
        assert!((svd.s[0] - 8.0).abs() < 1e-4 && (svd.s[1] - 4.0).abs() < 1e-4, "{:?}", svd.s);
        assert!((distance(&w, &svd) - 5f64.sqrt()).abs() < 1e-3);
        // Random entries have the flattest spectrum there is.
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (m, n) = (600, 400);
        let entries = start::uniform(&mut rng, m * n);
        let w = Mat::from_fn(m, n, |i, j| entries[i * n + j]);
        let (found, exact) = (leading(&w, 32).unwrap(), truncated(w.as_ref(), 32, &LADDER).unwrap());
        let energy = |svd: &Svd| svd.s.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>();
        assert!(energy(&found) > 0.99 * energy(&exact), "{} of {}", energy(&found), energy(&exact));
        let off = [&found, &exact].map(|svd| distance(&w, svd));
        assert!(off[0] < 1.001 * off[1], "{off:?}");
        // The other way round, too.
        let turned = leading(&w.transpose().to_owned(), 32).unwrap();
        assert!((energy(&turned) / energy(&found) - 1.0).abs() < 0.01);
        assert!(leading(&Mat::full(200, 200, f32::NAN), 4).is_none());
        let one = Mat::full(200, 200, 1.0);
        assert!(
            leading(&one, 4)
                .is_some_and(|svd| (svd.s[0] - 200.0).abs() < 1e-2 && svd.s[1..].iter().all(|&s| s < 0.1))
        );
        // More columns than the matrix has rows cannot be orthogonal, and that is noticed.
        let small = known(40, 40, &[4.0, 2.0, 1.0]);
        assert!(leading(&small, 4).is_none_or(|svd| (svd.s[0] - 4.0).abs() < 1e-3));
    }

    #[test]
    fn the_next_rung_takes_over() {
        let bad = Mat::full(4, 4, f32::NAN);
        assert!(truncated(bad.as_ref(), 4, &LADDER).is_none());
        assert!(truncated(known(4, 4, &[1.0]).as_ref(), 4, &[]).is_none());
    }

    #[test]
    fn the_polar_factor_is_orthogonal() {
        let m = Mat::from_fn(9, 9, |i, j| ((i * 7 + j * 5) % 11) as f32 - 5.0);
        let r = transposed_polar(m.as_ref()).unwrap();
        let unit = r.transpose() * &r;
        for i in 0..9 {
            for j in 0..9 {
                assert!((unit[(i, j)] - if i == j { 1.0 } else { 0.0 }).abs() < 1e-5);
            }
        }
    }
}
