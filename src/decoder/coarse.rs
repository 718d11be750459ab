//! Products with a dense matrix in bfloat16, for training steps: the head's are a third of a step in f32.

use super::product;
#[cfg(target_arch = "x86_64")]
use super::signs::bf16;
use rayon::prelude::*;

/// Rows of B that are computed together.
const PANEL: usize = 32;

/// A matrix B, `n x k`, for `x B^T`. Rounded to bfloat16 where the processor multiplies that, f32 elsewhere.
#[derive(Clone, Debug)]
pub struct Coarse {
    n: usize,
    k: usize,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    /// Row-major.
    Full(Vec<f32>),
    /// `[n/32][k/2][32]`: pairs of neighbouring columns, the left one in the lower half.
    #[cfg(target_arch = "x86_64")]
    Pairs(Vec<u32>),
}

impl Coarse {
    /// The matrix whose element (`row`, `column`) is `f(row, column)`.
    pub fn from_fn(n: usize, k: usize, f: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        #[cfg(target_arch = "x86_64")]
        if bf16::available() {
            let pairs = k.div_ceil(2);
            let mut words = vec![0u32; n.div_ceil(PANEL) * pairs * PANEL];
            words.par_chunks_mut(pairs * PANEL).enumerate().for_each(|(panel, words)| {
                for (at, word) in words.iter_mut().enumerate() {
                    let (row, column) = (panel * PANEL + at % PANEL, at / PANEL * 2);
                    let value = |column| if row < n && column < k { f(row, column) } else { 0.0 };
                    *word = bf16::round(value(column)) >> 16 | bf16::round(value(column + 1));
                }
            });
            return Self { n, k, content: Content::Pairs(words) };
        }
        let mut full = vec![0f32; n * k];
        full.par_chunks_mut(k).enumerate().for_each(|(row, out)| {
            out.iter_mut().enumerate().for_each(|(column, out)| *out = f(row, column));
        });
        Self { n, k, content: Content::Full(full) }
    }

    /// `x B^T` for rows of `x` (`rows x k`): `rows x n`. The same bits for any number of threads.
    pub fn product(&self, x: &[f32]) -> Vec<f32> {
        assert_eq!(x.len() % self.k, 0);
        let mut out = vec![0f32; x.len() / self.k * self.n];
        self.add_product(x, &mut out);
        out
    }

    /// Adds `x B^T` to `out`.
    pub fn add_product(&self, x: &[f32], out: &mut [f32]) {
        match &self.content {
            Content::Full(b) => product::times_transposed(out, x, b, self.n, self.k, true),
            #[cfg(target_arch = "x86_64")]
            Content::Pairs(words) => bf16::dense_product(words, self.n, self.k, x, out),
        }
    }
}

/// Adds `diag(sa) A^T B diag(sb)` to `out` (`m x n`) for rows of A (`tokens x m`) and B (`tokens x n`): the gradient of
/// a weight that lies between scales, in the precision of training steps. The same bits for any number of threads.
pub fn add_outer(out: &mut [f32], [a, b]: [&[f32]; 2], [sa, sb]: [&[f32]; 2]) {
    assert_eq!((out.len(), a.len() / sa.len()), (sa.len() * sb.len(), b.len() / sb.len()));
    #[cfg(target_arch = "x86_64")]
    if bf16::available() {
        bf16::add_outer(out, [a, b], [sa, sb], false);
        return;
    }
    let (a, b) = (super::linear::columns(a, sa), super::linear::columns(b, sb));
    product::transposed_times(out, &a, &b, sb.len(), sa.len(), true);
}

/// Adds `diag(s) X^T X diag(s)` to `out` (`n x n`) for rows of X (`tokens x n`), on and below the diagonal; what is above
/// it means nothing.
pub fn add_gram(out: &mut [f32], x: &[f32], s: &[f32]) {
    assert_eq!((out.len(), x.len() % s.len()), (s.len() * s.len(), 0));
    #[cfg(target_arch = "x86_64")]
    if bf16::available() {
        bf16::add_outer(out, [x, x], [s, s], true);
        return;
    }
    let x = super::linear::columns(x, s);
    product::transposed_times(out, &x, &x, s.len(), s.len(), true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_products_are_those_of_the_definition() {
        for (tokens, m, n) in [(1, 1, 1), (3, 13, 33), (130, 70, 64), (64, 100, 5)] {
            let value = |i: usize, by: f32| (i as f32 * by).sin();
            let a: Vec<f32> = (0..tokens * m).map(|i| value(i, 0.37)).collect();
            let b: Vec<f32> = (0..tokens * n).map(|i| value(i, 0.73)).collect();
            let sa: Vec<f32> = (0..m).map(|i| value(i + 1, 1.1)).collect();
            let sb: Vec<f32> = (0..n).map(|i| value(i + 1, 1.7)).collect();
            let mut got: Vec<f32> = (0..m * n).map(|i| i as f32).collect();
            add_outer(&mut got, [&a, &b], [&sa, &sb]);
            for i in 0..m {
                for j in 0..n {
                    let scale = f64::from(sa[i]) * f64::from(sb[j]);
                    let terms =
                        (0..tokens).map(|t| f64::from(a[t * m + i]) * f64::from(b[t * n + j]) * scale);
                    let (want, size) =
                        terms.fold(((i * n + j) as f64, 0.0), |(s, a), v: f64| (s + v, a + v.abs()));
                    let error = (f64::from(got[i * n + j]) - want).abs();
                    assert!(error <= 8e-3 * size + 1e-3, "{tokens}x{m}x{n} at {i},{j}: off by {error}");
                }
            }
            let (mut gram, mut whole) = (vec![1f32; m * m], vec![1f32; m * m]);
            add_gram(&mut gram, &a, &sa);
            add_outer(&mut whole, [&a, &a], [&sa, &sa]);
            for i in 0..m {
                assert_eq!(gram[i * m..=i * m + i], whole[i * m..=i * m + i], "{tokens}x{m} row {i}");
            }
        }
    }

    #[test]
    fn products_are_those_of_the_definition() {
        let f = |i: usize, j: usize| ((i * 31 + j * 17) % 23) as f32 / 7.0 - 1.5;
        for (rows, n, k) in [(1, 1, 1), (13, 33, 7), (70, 64, 2100), (65, 5, 1025)] {
            let b = Coarse::from_fn(n, k, f);
            let x: Vec<f32> = (0..rows * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let got = b.product(&x);
            for t in 0..rows {
                for i in 0..n {
                    let terms = (0..k).map(|j| f64::from(x[t * k + j]) * f64::from(f(i, j)));
                    let (want, size) = terms.fold((0.0, 0.0), |(s, a), v: f64| (s + v, a + v.abs()));
                    let error = (f64::from(got[t * n + i]) - want).abs();
                    assert!(error <= 8e-3 * size, "{rows}x{n}x{k} at {t},{i}: off by {error} of {size}");
                }
            }
        }
    }
}
