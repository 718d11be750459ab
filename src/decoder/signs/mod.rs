//! Products with fixed sign matrices for the forward and backward pass: `out = (x diag(s)) S^T`.
//!
//! The signs stay bits, and there are three ways to multiply by them. AVX-512 BF16 turns 32 of them at a time into an
//! operand of `vdpbf16ps`; x is split into as many bfloat16 terms as the [`Precision`] asks for, which is exact in the
//! signs and accumulates in f32. Other x86-64 processors take the run time's own kernel, so that training sees
//! activations as they will be, in 14 bits. Everywhere else, and for [`Precision::Full`] there, the matrix is expanded
//! and multiplied in f32.

#[cfg(target_arch = "x86_64")]
pub(super) mod bf16;
mod lookup;

use super::product::times_transposed;
use crate::bits::SignMatrix;
use rayon::prelude::*;

/// Rows of S that are computed together.
#[cfg(target_arch = "x86_64")]
const PANEL: usize = 32;

/// How much of the activations a product keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 8 bits or more, for training steps: the noise is far below that of a window of text.
    Coarse,
    /// 14 bits or more, as much as the run time keeps.
    Fine,
    /// 24 bits, all that f32 has.
    Full,
}

impl Precision {
    /// Terms of bfloat16.
    #[cfg(target_arch = "x86_64")]
    fn terms(self) -> usize {
        match self {
            Precision::Coarse => 1,
            Precision::Fine => 2,
            Precision::Full => 3,
        }
    }
}

/// A sign matrix S, `n x k`.
#[derive(Clone, Debug)]
pub struct Signs {
    n: usize,
    k: usize,
    bits: Bits,
}

#[derive(Clone, Debug)]
enum Bits {
    /// Panels of 32 rows for [`bf16`]. Word `[n/32][k/2]` holds the signs of two columns: bit `2 (row % 32) + column
    /// % 2`, 1 = +1.
    #[cfg(target_arch = "x86_64")]
    Pairs(Vec<u64>),
    /// As the file has them, for [`lookup`].
    Tile(SignMatrix),
}

/// Where the bits of signs lie.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// 64 bits for every 32 rows and two columns.
    Pairs,
    /// As in a file.
    Tile,
}

#[cfg(feature = "cuda")]
impl Signs {
    /// Rows and columns, layout, and the bits.
    pub fn words(&self) -> ([usize; 2], Layout, &[u32]) {
        let shape = [self.n, self.k];
        match &self.bits {
            #[cfg(target_arch = "x86_64")]
            Bits::Pairs(words) => (shape, Layout::Pairs, bytemuck::cast_slice(words)),
            Bits::Tile(tile) => (shape, Layout::Tile, bytemuck::cast_slice(tile.as_bytes())),
        }
    }

    /// The same signs in the layout of other processors, if there is one here.
    pub fn in_other_layout(&self) -> Self {
        match &self.bits {
            #[cfg(target_arch = "x86_64")]
            Bits::Tile(_) => Self::pairs(self.n, self.k, |i, j| self.is_plus(i, j)),
            _ => Self::tile(self.n, self.k, |i, j| self.is_plus(i, j)),
        }
    }
}

impl Signs {
    /// Signs of `f(row, column)`: `true` is +1.
    pub fn from_fn(n: usize, k: usize, f: impl Fn(usize, usize) -> bool + Sync) -> Self {
        #[cfg(target_arch = "x86_64")]
        if bf16::available() {
            return Self::pairs(n, k, f);
        }
        Self::tile(n, k, f)
    }

    #[cfg(target_arch = "x86_64")]
    fn pairs(n: usize, k: usize, f: impl Fn(usize, usize) -> bool + Sync) -> Self {
        let pairs = k.div_ceil(2);
        let mut words = vec![0u64; n.div_ceil(PANEL) * pairs];
        words.par_chunks_mut(pairs.max(1)).enumerate().for_each(|(panel, words)| {
            let rows = PANEL.min(n - panel * PANEL);
            for (pair, word) in words.iter_mut().enumerate() {
                for row in 0..rows {
                    for half in 0..2.min(k - 2 * pair) {
                        *word |= u64::from(f(panel * PANEL + row, 2 * pair + half)) << (2 * row + half);
                    }
                }
            }
        });
        Self { n, k, bits: Bits::Pairs(words) }
    }

    fn tile(n: usize, k: usize, f: impl Fn(usize, usize) -> bool) -> Self {
        Self { n, k, bits: Bits::Tile(SignMatrix::from_fn(n, k, f)) }
    }

    /// Whether (`row`, `column`) is +1.
    fn is_plus(&self, row: usize, column: usize) -> bool {
        match &self.bits {
            #[cfg(target_arch = "x86_64")]
            Bits::Pairs(words) => {
                let word = words[row / PANEL * self.k.div_ceil(2) + column / 2];
                word >> (2 * (row % PANEL) + column % 2) & 1 == 1
            }
            Bits::Tile(tile) => tile.is_plus(row, column),
        }
    }

    /// Turns the sign at (`row`, `column`).
    pub fn turn(&mut self, row: usize, column: usize) {
        match &mut self.bits {
            #[cfg(target_arch = "x86_64")]
            Bits::Pairs(words) => {
                words[row / PANEL * self.k.div_ceil(2) + column / 2] ^= 1 << (2 * (row % PANEL) + column % 2);
            }
            Bits::Tile(tile) => tile.turn(row, column),
        }
    }

    /// S in f32, row-major.
    pub fn to_row_major(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.n * self.k];
        out.par_chunks_mut(self.k.max(1)).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, x)| *x = if self.is_plus(i, j) { 1.0 } else { -1.0 });
        });
        out
    }

    /// `(x diag(scale)) S^T` for the rows of `x` (`tokens x k`): `tokens x n`. The same bits for any number of threads.
    pub fn product(&self, x: &[f32], scale: &[f32], precision: Precision) -> Vec<f32> {
        assert_eq!(scale.len(), self.k);
        assert_eq!(x.len() % self.k, 0);
        let mut out = vec![0f32; x.len() / self.k * self.n];
        match &self.bits {
            #[cfg(target_arch = "x86_64")]
            Bits::Pairs(words) => {
                bf16::product(words, [self.n, self.k], x, scale, precision.terms(), &mut out);
            }
            Bits::Tile(tile) => match lookup::kernel(self.k).filter(|_| precision != Precision::Full) {
                Some(kernel) => lookup::product(kernel, tile, x, scale, &mut out),
                None => {
                    let scaled = super::linear::columns(x, scale);
                    times_transposed(&mut out, &scaled, &self.to_row_major(), self.n, self.k, false);
                }
            },
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    /// The matrix in every layout that this processor can multiply.
    fn layouts(n: usize, k: usize, f: impl Fn(usize, usize) -> bool + Sync) -> Vec<Signs> {
        #[cfg(target_arch = "x86_64")]
        if bf16::available() {
            return vec![Signs::pairs(n, k, &f), Signs::tile(n, k, &f)];
        }
        vec![Signs::tile(n, k, f)]
    }

    #[test]
    fn products_are_those_of_the_definition() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        for (tokens, n, k) in [(1, 1, 1), (3, 32, 2), (13, 70, 33), (130, 64, 96), (97, 31, 101)] {
            let pattern: Vec<bool> = (0..n * k).map(|_| rng.random()).collect();
            let x: Vec<f32> = (0..tokens * k).map(|_| rng.random_range(-1.0f32..1.0)).collect();
            let scale: Vec<f32> = (0..k).map(|_| rng.random_range(-2.0f32..2.0)).collect();
            let f = |i: usize, j: usize| pattern[i * k + j];
            let bounds = [(Precision::Coarse, 4e-3), (Precision::Fine, 2e-4), (Precision::Full, 5e-7)];
            for (s, (precision, bound)) in layouts(n, k, f).iter().flat_map(|s| bounds.map(|b| (s, b))) {
                let got = s.product(&x, &scale, precision);
                for t in 0..tokens {
                    for i in 0..n {
                        let terms = (0..k).map(|j| {
                            let v = f64::from(x[t * k + j]) * f64::from(scale[j]);
                            if pattern[i * k + j] { v } else { -v }
                        });
                        let (want, size) = terms.fold((0.0, 0.0), |(s, a), v| (s + v, a + v.abs()));
                        let error = (f64::from(got[t * n + i]) - want).abs();
                        assert!(error <= bound * size, "{precision:?} {tokens}x{n}x{k}: off by {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn turning_a_sign_turns_only_that_one() {
        let plus = |i: usize, j: usize| (i * 7 + j * j) % 5 < 2;
        let places = [(0, 0), (31, 32), (32, 1), (69, 31)];
        for mut s in layouts(70, 33, plus) {
            places.iter().for_each(|&(i, j)| s.turn(i, j));
            let turned = |i, j| plus(i, j) != places.contains(&(i, j));
            assert!((0..70 * 33).all(|at| s.is_plus(at / 33, at % 33) == turned(at / 33, at % 33)));
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let x: Vec<f32> = (0..300 * 300).map(|i| (i as f32 * 0.37).sin()).collect();
        let scale = vec![0.5f32; 300];
        for s in layouts(200, 300, |i, j| (i * 7 + j * j) % 3 == 0) {
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| s.product(&x, &scale, Precision::Fine))
            };
            assert_eq!(on(1), on(3));
        }
    }
}
