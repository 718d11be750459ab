//! Products with dense matrices in little precision, for training steps and moments.
//!
//! In bfloat16 where the processor multiplies that, in 12-bit integers on other x86-64 ones, in f32 elsewhere.

#[cfg(target_arch = "x86_64")]
mod int16;

use super::device::Place;
#[cfg(feature = "cuda")]
use super::device::Rounded;
use super::product;
#[cfg(target_arch = "x86_64")]
use super::signs::bf16;
use rayon::prelude::*;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Rows of B that are computed together in bfloat16.
#[cfg(target_arch = "x86_64")]
const PANEL: usize = 32;

/// A way to multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    #[cfg(target_arch = "x86_64")]
    Bf16,
    #[cfg(target_arch = "x86_64")]
    Int16,
    F32,
}

impl Way {
    /// Those that this processor has, the best one first.
    fn available() -> impl Iterator<Item = Way> {
        let ways = [
            #[cfg(target_arch = "x86_64")]
            (Way::Bf16, bf16::available()),
            #[cfg(target_arch = "x86_64")]
            (Way::Int16, int16::available()),
            (Way::F32, true),
        ];
        ways.into_iter().filter(|w| w.1).map(|w| w.0)
    }

    fn best() -> Self {
        Self::available().next().expect("f32 is always there")
    }
}

/// A matrix B, `n x k`, for `x B^T`.
#[derive(Clone, Debug)]
pub struct Coarse {
    n: usize,
    k: usize,
    content: Content,
    /// On a device, too.
    #[cfg(feature = "cuda")]
    rounded: Option<Arc<Rounded>>,
}

#[derive(Clone, Debug)]
enum Content {
    /// Row-major.
    Full(Vec<f32>),
    /// `[n/32][k/2][32]`: pairs of neighbouring columns, the left one in the lower half.
    #[cfg(target_arch = "x86_64")]
    Pairs(Vec<u32>),
    #[cfg(target_arch = "x86_64")]
    Integers(int16::Packed),
}

impl Coarse {
    /// The matrix whose element (`row`, `column`) is `f(row, column)`.
    pub fn from_fn(n: usize, k: usize, f: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        Self::in_way(Way::best(), n, k, f)
    }

    /// The same, in the memory of the place's device as well if there is room. `name` is for messages.
    pub fn on(
        place: &Place,
        name: &str,
        n: usize,
        k: usize,
        f: impl Fn(usize, usize) -> f32 + Sync + Copy,
    ) -> Self {
        let coarse = Self::from_fn(n, k, f);
        #[cfg(feature = "cuda")]
        let coarse = Self { rounded: Rounded::new(place, name, [n, k], f).map(Arc::new), ..coarse };
        #[cfg(not(feature = "cuda"))]
        debug_assert!(place.device().is_none(), "{name}");
        coarse
    }

    /// On the device, if it is there.
    #[cfg(feature = "cuda")]
    pub(super) fn rounded(&self) -> Option<&Rounded> {
        self.rounded.as_deref()
    }

    fn in_way(way: Way, n: usize, k: usize, f: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let content = match way {
            #[cfg(target_arch = "x86_64")]
            Way::Bf16 => Content::Pairs(pairs(n, k, f)),
            #[cfg(target_arch = "x86_64")]
            Way::Int16 => Content::Integers(int16::Packed::from_fn(n, k, f)),
            Way::F32 => {
                let mut full = vec![0f32; n * k];
                full.par_chunks_mut(k).enumerate().for_each(|(row, out)| {
                    out.iter_mut().enumerate().for_each(|(column, out)| *out = f(row, column));
                });
                Content::Full(full)
            }
        };
        Self {
            n,
            k,
            content,
            #[cfg(feature = "cuda")]
            rounded: None,
        }
    }

    /// `x B^T` for rows of `x` (`rows x k`): `rows x n`. The same bits for any number of threads.
    pub fn product(&self, x: &[f32]) -> Vec<f32> {
        assert_eq!(x.len() % self.k, 0);
        #[cfg(feature = "cuda")]
        if let Some(y) = self.rounded().and_then(|r| r.product(x)) {
            return y;
        }
        let zeros = || vec![0f32; x.len() / self.k * self.n];
        match &self.content {
            Content::Full(b) => {
                let mut out = zeros();
                product::times_transposed(&mut out, x, b, self.n, self.k, false);
                out
            }
            #[cfg(target_arch = "x86_64")]
            Content::Pairs(words) => {
                let mut out = zeros();
                bf16::dense_product(words, self.n, self.k, x, &mut out);
                out
            }
            #[cfg(target_arch = "x86_64")]
            Content::Integers(packed) => packed.product(x),
        }
    }
}

/// The content of [`Content::Pairs`].
#[cfg(target_arch = "x86_64")]
fn pairs(n: usize, k: usize, f: impl Fn(usize, usize) -> f32 + Sync) -> Vec<u32> {
    let pairs = k.div_ceil(2);
    let mut words = vec![0u32; n.div_ceil(PANEL) * pairs * PANEL];
    words.par_chunks_mut(pairs * PANEL).enumerate().for_each(|(panel, words)| {
        for (at, word) in words.iter_mut().enumerate() {
            let (row, column) = (panel * PANEL + at % PANEL, at / PANEL * 2);
            let value = |column| if row < n && column < k { f(row, column) } else { 0.0 };
            *word = bf16::round(value(column)) >> 16 | bf16::round(value(column + 1));
        }
    });
    words
}

/// Adds `diag(sa) A^T B diag(sb)` to `out` (`m x n`) for rows of A (`tokens x m`) and B (`tokens x n`): the gradient of
/// a weight that lies between scales, in the precision of training steps. The same bits for any number of threads.
pub fn add_outer(out: &mut [f32], both: [&[f32]; 2], scales: [&[f32]; 2]) {
    outer(Way::best(), out, both, scales, false);
}

/// Adds `diag(s) X^T X diag(s)` to `out` (`n x n`) for rows of X (`tokens x n`), on and below the diagonal; what is above
/// it means nothing.
pub fn add_gram(out: &mut [f32], x: &[f32], s: &[f32]) {
    outer(Way::best(), out, [x, x], [s, s], true);
}

/// [`add_outer`] in one way, of which `lower` needs only what is not above the diagonal.
fn outer(way: Way, out: &mut [f32], [a, b]: [&[f32]; 2], [sa, sb]: [&[f32]; 2], lower: bool) {
    assert_eq!((out.len(), a.len() / sa.len()), (sa.len() * sb.len(), b.len() / sb.len()));
    match way {
        #[cfg(target_arch = "x86_64")]
        Way::Bf16 => bf16::add_outer(out, [a, b], [sa, sb], lower),
        #[cfg(target_arch = "x86_64")]
        Way::Int16 => int16::add_outer(out, [a, b], [sa, sb], lower),
        Way::F32 => {
            let (a, b) = (super::linear::columns(a, sa), super::linear::columns(b, sb));
            product::transposed_times(out, &a, &b, sb.len(), sa.len(), true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_products_are_those_of_the_definition() {
        let shapes = [(1, 1, 1), (3, 13, 33), (130, 70, 64), (64, 100, 5), (1027, 20, 17)];
        let cases = shapes.iter().flat_map(|&s| Way::available().map(move |w| (w, s)));
        for (way, (tokens, m, n)) in cases {
            let value = |i: usize, by: f32| (i as f32 * by).sin();
            let a: Vec<f32> = (0..tokens * m).map(|i| value(i, 0.37)).collect();
            let b: Vec<f32> = (0..tokens * n).map(|i| value(i, 0.73)).collect();
            let sa: Vec<f32> = (0..m).map(|i| value(i + 1, 1.1)).collect();
            let sb: Vec<f32> = (0..n).map(|i| value(i + 1, 1.7)).collect();
            let mut got: Vec<f32> = (0..m * n).map(|i| i as f32).collect();
            outer(way, &mut got, [&a, &b], [&sa, &sb], false);
            for i in 0..m {
                for j in 0..n {
                    let scale = f64::from(sa[i]) * f64::from(sb[j]);
                    let terms =
                        (0..tokens).map(|t| f64::from(a[t * m + i]) * f64::from(b[t * n + j]) * scale);
                    let (want, size) =
                        terms.fold(((i * n + j) as f64, 0.0), |(s, a), v: f64| (s + v, a + v.abs()));
                    let error = (f64::from(got[i * n + j]) - want).abs();
                    assert!(
                        error <= 8e-3 * size + 1e-3,
                        "{way:?} {tokens}x{m}x{n} at {i},{j}: off by {error}"
                    );
                }
            }
            let (mut gram, mut whole) = (vec![1f32; m * m], vec![1f32; m * m]);
            outer(way, &mut gram, [&a, &a], [&sa, &sa], true);
            outer(way, &mut whole, [&a, &a], [&sa, &sa], false);
            for i in 0..m {
                assert_eq!(gram[i * m..=i * m + i], whole[i * m..=i * m + i], "{tokens}x{m} row {i}");
            }
        }
    }

    #[test]
    fn products_are_those_of_the_definition() {
        let f = |i: usize, j: usize| ((i * 31 + j * 17) % 23) as f32 / 7.0 - 1.5;
        let shapes = [(1, 1, 1), (13, 33, 7), (70, 64, 2100), (65, 5, 1025)];
        for (way, (rows, n, k)) in shapes.iter().flat_map(|&s| Way::available().map(move |w| (w, s))) {
            let b = Coarse::in_way(way, n, k, f);
            let x: Vec<f32> = (0..rows * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let got = b.product(&x);
            for t in 0..rows {
                for i in 0..n {
                    let terms = (0..k).map(|j| f64::from(x[t * k + j]) * f64::from(f(i, j)));
                    let (want, size) = terms.fold((0.0, 0.0), |(s, a), v: f64| (s + v, a + v.abs()));
                    let error = (f64::from(got[t * n + i]) - want).abs();
                    assert!(
                        error <= 8e-3 * size,
                        "{way:?} {rows}x{n}x{k} at {t},{i}: off by {error} of {size}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for (way, bad) in Way::available().flat_map(|w| [(w, f32::NAN), (w, f32::INFINITY)]) {
            let b = Coarse::in_way(way, 3, 5, |i, j| (i + j) as f32);
            let mut x = vec![1f32; 10];
            x[7] = bad;
            let y = b.product(&x);
            assert!(y[..3].iter().all(|y| y.is_finite()), "{way:?}: {y:?}");
            assert!(y[3..].iter().all(|y| !y.is_finite()), "{way:?}: {y:?}");
            let mut out = vec![0f32; 15];
            outer(way, &mut out, [&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &x], [&[1.0; 3], &[1.0; 5]], false);
            for (at, out) in out.iter().enumerate() {
                assert_eq!(out.is_finite(), at % 5 != 2, "{way:?} at {at}: {out}");
            }
        }
    }

    #[test]
    fn the_largest_values_do_not_overflow() {
        let (tokens, k) = (512, 512);
        for way in Way::available() {
            let b = Coarse::in_way(way, 1, k, |_, _| 3.0);
            assert!((b.product(&vec![2f32; k])[0] / (6 * k) as f32 - 1.0).abs() < 1e-6, "{way:?}");
            let mut out = [0f32];
            outer(way, &mut out, [&vec![-3f32; tokens], &vec![2f32; tokens]], [&[1.0], &[0.5]], false);
            assert!((out[0] / (-3.0 * tokens as f32) - 1.0).abs() < 1e-6, "{way:?}");
        }
    }
}
