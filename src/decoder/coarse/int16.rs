//! Dense products by `vpmaddwd`: both sides in 12-bit integers, exact sums of up to [`DEPTH`] products.
//!
//! Every line of [`DEPTH`] values along the sum has one step. A multiply-add instruction takes two products of eight
//! sums, twice as many as one of f32 does, and nothing is packed again for the next rows.

use rayon::prelude::*;
use std::arch::x86_64::*;

/// Rows of B that are computed together.
const PANEL: usize = 16;
/// Rows of x in one register tile: with 2 x 8 columns, 12 accumulators.
const ROWS: usize = 6;
/// Rows of x that one task handles.
const TASK: usize = 10 * ROWS;
/// Up to so many rows tasks share out columns instead, [`STRIP`] each.
const FEW: usize = 4 * TASK;
const STRIP: usize = 8 * PANEL;
/// Largest integer: 512 of its squares are below 2^31.
const LARGEST: f32 = 2047.0;
/// Products in one integer sum.
const DEPTH: usize = 512;
/// Lines whose largest value is below this count as zero.
const LEAST: f32 = 1e-30;
/// Added to a number of small magnitude, it leaves the nearest integer in the low half of the sum's bits.
const TO_INTEGER: f32 = 12_582_912.0;

/// Whether this processor has the instructions.
pub fn available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// How the values of a line are rounded.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// From a value to its integer.
    inverse: f32,
    /// From an integer to its value; NaN if the line has values that are not finite.
    step: f32,
}

impl Step {
    /// For values whose magnitudes have bits of at most `largest`.
    fn of(largest: u32) -> Self {
        let largest = f32::from_bits(largest);
        if !largest.is_finite() {
            return Self { inverse: 0.0, step: f32::NAN };
        }
        if largest < LEAST {
            return Self { inverse: 0.0, step: 0.0 };
        }
        Self { inverse: LARGEST / largest, step: largest / LARGEST }
    }
}

/// Bits of the magnitude: they order as magnitudes do, and what is not finite comes last.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Integer of `x`, in the low half.
#[inline(always)]
fn integer(x: f32, step: Step) -> u32 {
    (x * step.inverse + TO_INTEGER).to_bits() & 0xffff
}

/// Neighbours `a`, `b` along the sum.
#[inline(always)]
fn pair([a, b]: [u32; 2]) -> i32 {
    (a | b << 16) as i32
}

/// A matrix B, `n x k`, for `x B^T`.
#[derive(Clone, Debug)]
pub struct Packed {
    n: usize,
    k: usize,
    /// `[k/512][n/16][256 or what is left][16]`: pairs of neighbouring columns, the left one in the lower half.
    words: Vec<i32>,
    /// `[k/512][n]`.
    steps: Vec<f32>,
}

/// Columns from `first` on that share integer sums.
fn depth(k: usize, first: usize) -> usize {
    DEPTH.min(k - first)
}

impl Packed {
    /// The matrix whose element (`row`, `column`) is `f(row, column)`.
    pub fn from_fn(n: usize, k: usize, f: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let (mut words, mut steps) = (Vec::new(), Vec::new());
        for first in (0..k).step_by(DEPTH) {
            let depth = depth(k, first);
            let pairs = depth.div_ceil(2);
            let line = |row: usize| {
                let values = (first..first + depth).map(|column| magnitude(f(row, column)));
                Step::of(values.max().unwrap_or(0))
            };
            let of_rows: Vec<Step> = (0..n).into_par_iter().map(line).collect();
            let mut part = vec![0i32; n.div_ceil(PANEL) * pairs * PANEL];
            part.par_chunks_mut(pairs * PANEL).enumerate().for_each(|(panel, part)| {
                for (at, word) in part.iter_mut().enumerate() {
                    let (row, column) = (panel * PANEL + at % PANEL, first + at / PANEL * 2);
                    let value = |column: usize| match of_rows.get(row) {
                        Some(&step) if column < first + depth => integer(f(row, column), step),
                        _ => 0,
                    };
                    *word = pair([value(column), value(column + 1)]);
                }
            });
            words.extend(part);
            steps.extend(of_rows.iter().map(|s| s.step));
        }
        Self { n, k, words, steps }
    }

    /// `x B^T`. Call only if [`available`].
    pub fn product(&self, x: &[f32]) -> Vec<f32> {
        assert!(available());
        let (n, k) = (self.n, self.k);
        let rows = x.len() / k;
        assert_eq!(x.len(), rows * k);
        let mut out = vec![0f32; rows * n];
        if rows > FEW {
            out.par_chunks_mut(TASK * n).zip(x.par_chunks(TASK * k)).for_each(|(out, x)| {
                self.add_panels(&Rows::new(x, k), 0, out, n);
            });
            return out;
        }
        // So few rows that tasks share out the panels.
        let x = Rows::new(x, k);
        let parts: Vec<Vec<f32>> = (0..n)
            .into_par_iter()
            .step_by(STRIP)
            .map(|first| {
                let width = STRIP.min(n - first);
                let mut part = vec![0f32; rows * width];
                self.add_panels(&x, first, &mut part, width);
                part
            })
            .collect();
        out.par_chunks_mut(n.max(1)).enumerate().for_each(|(row, out)| {
            for (out, part) in out.chunks_mut(STRIP).zip(&parts) {
                out.copy_from_slice(&part[row * out.len()..(row + 1) * out.len()]);
            }
        });
        out
    }

    /// Adds columns `first .. first + width` of the product to `out`, which is as wide.
    fn add_panels(&self, x: &Rows, first: usize, out: &mut [f32], width: usize) {
        let (n, panels) = (self.n, first / PANEL..(first + width).div_ceil(PANEL));
        let mut words = &self.words[..];
        for (packed, of_rows) in x.parts.iter().zip(self.steps.chunks_exact(n)) {
            let pairs = packed.pairs;
            let (part, rest) = words.split_at(n.div_ceil(PANEL) * pairs * PANEL);
            words = rest;
            for panel in panels.clone() {
                let columns = panel * PANEL..n.min((panel + 1) * PANEL);
                let part = &part[panel * pairs * PANEL..(panel + 1) * pairs * PANEL];
                for (row, count) in blocks(packed.steps.len()) {
                    let x = &packed.words[row * pairs..(row + count) * pairs];
                    let steps = [&packed.steps[row..row + count], &of_rows[columns.clone()]];
                    let out = &mut out[row * width + columns.start - first..];
                    // SAFETY: the instructions are there.
                    unsafe { add_tile(x, part, steps, out, width) };
                }
            }
        }
    }
}

/// Rows of x as the tiles want them.
struct Rows {
    parts: Vec<Part>,
}

/// Their columns that share integer sums.
struct Part {
    pairs: usize,
    /// `[row/6][pair][6 or what is left]`.
    words: Vec<i32>,
    /// Of every row.
    steps: Vec<f32>,
}

impl Rows {
    fn new(x: &[f32], k: usize) -> Self {
        let rows = x.len() / k;
        let part = |first: usize| {
            let depth = depth(k, first);
            let pairs = depth.div_ceil(2);
            let (mut words, mut steps) = (vec![0i32; rows * pairs], vec![0f32; rows]);
            for (row, count) in blocks(rows) {
                let to = &mut words[row * pairs..(row + count) * pairs];
                for i in 0..count {
                    let x = &x[(row + i) * k + first..][..depth];
                    // SAFETY: the instructions are there.
                    steps[row + i] = unsafe { pack_row(x, &mut to[i..], count) };
                }
            }
            Part { pairs, words, steps }
        };
        Self { parts: (0..k).step_by(DEPTH).map(part).collect() }
    }
}

/// Adds `diag(sa) A^T B diag(sb)` to `out`, as [`super::add_outer`] has it; with `lower` only what is not above the
/// diagonal is sure to be added. Call only if [`available`].
pub fn add_outer(out: &mut [f32], [a, b]: [&[f32]; 2], [sa, sb]: [&[f32]; 2], lower: bool) {
    assert!(available());
    let (m, n) = (sa.len(), sb.len());
    // A sum goes along the tokens.
    for (a, b) in a.chunks(DEPTH * m).zip(b.chunks(DEPTH * n)) {
        let pairs = (a.len() / m).div_ceil(2);
        let mut right = vec![0i32; n.div_ceil(PANEL) * pairs * PANEL];
        let mut steps = vec![0f32; n];
        right.par_chunks_mut(pairs * PANEL).zip(steps.par_chunks_mut(PANEL)).enumerate().for_each(
            |(panel, (to, steps))| {
                // SAFETY: the instructions are there.
                unsafe { pack_columns(b, sb, panel * PANEL, steps, to, PANEL) };
            },
        );
        out.par_chunks_mut(TASK * n).enumerate().for_each(|(task, out)| {
            let (first, rows) = (task * TASK, out.len() / n);
            let mut left = vec![0i32; rows * pairs];
            let mut of_rows = vec![0f32; rows];
            for (row, count) in blocks(rows) {
                let to = &mut left[row * pairs..(row + count) * pairs];
                // SAFETY: the instructions are there.
                unsafe { pack_columns(a, sa, first + row, &mut of_rows[row..row + count], to, count) };
            }
            let panels = if lower { (first + rows).div_ceil(PANEL) } else { usize::MAX };
            for (panel, right) in right.chunks_exact(pairs * PANEL).enumerate().take(panels) {
                let columns = panel * PANEL..n.min((panel + 1) * PANEL);
                for (row, count) in blocks(rows) {
                    let left = &left[row * pairs..(row + count) * pairs];
                    let both = [&of_rows[row..row + count], &steps[columns.clone()]];
                    // SAFETY: the instructions are there.
                    unsafe { add_tile(left, right, both, &mut out[row * n + columns.start..], n) };
                }
            }
        });
    }
}

/// First rows and numbers of rows of the register tiles.
fn blocks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(ROWS).map(move |row| (row, ROWS.min(rows - row)))
}

/// Pairs of neighbours in `x`, `stride` apart; returns their step.
#[target_feature(enable = "avx2")]
fn pack_row(x: &[f32], to: &mut [i32], stride: usize) -> f32 {
    let step = Step::of(x.iter().fold(0, |largest, &x| largest.max(magnitude(x))));
    let (pairs, rest) = x.as_chunks::<2>();
    let mut to = to.iter_mut().step_by(stride);
    for (x, to) in pairs.iter().zip(&mut to) {
        *to = pair(x.map(|x| integer(x, step)));
    }
    if let ([x], Some(to)) = (rest, to.next()) {
        *to = pair([integer(*x, step), 0]);
    }
    step.step
}

/// Columns `first ..` of `x` (`tokens x scale.len()`), as many as `steps`: pairs of tokens as `[pair][stride]`, the
/// earlier one in the lower half, and the columns' steps times their scales.
#[target_feature(enable = "avx2")]
fn pack_columns(x: &[f32], scale: &[f32], first: usize, steps: &mut [f32], to: &mut [i32], stride: usize) {
    let (n, width) = (scale.len(), steps.len());
    assert!(width <= PANEL);
    let mut largest = [0u32; PANEL];
    for row in x.chunks_exact(n) {
        let row = &row[first..first + width];
        largest.iter_mut().zip(row).for_each(|(l, &x)| *l = (*l).max(magnitude(x)));
    }
    let of_columns = largest.map(Step::of);
    for (to, rows) in to.chunks_exact_mut(stride).zip(x.chunks(2 * n)) {
        let to = to.iter_mut().zip(&of_columns).zip(&rows[first..first + width]);
        match rows.get(n + first..n + first + width) {
            Some(next) => {
                to.zip(next).for_each(|(((to, &s), &a), &b)| *to = pair([integer(a, s), integer(b, s)]));
            }
            None => to.for_each(|((to, &s), &a)| *to = pair([integer(a, s), 0])),
        }
    }
    for ((to, step), scale) in steps.iter_mut().zip(&of_columns).zip(&scale[first..]) {
        *to = step.step * scale;
    }
}

/// Adds a tile to `out`, whose rows are `stride` apart. `x` is `[pair][rows]`, `b` `[pair][16]`; `left` and `right` are
/// the steps of rows and columns.
#[inline]
#[target_feature(enable = "avx2")]
fn add_tile(x: &[i32], b: &[i32], [left, right]: [&[f32]; 2], out: &mut [f32], stride: usize) {
    let sums = match left.len() {
        1 => tile::<1>(x, b),
        2 => tile::<2>(x, b),
        3 => tile::<3>(x, b),
        4 => tile::<4>(x, b),
        5 => tile::<5>(x, b),
        _ => tile::<6>(x, b),
    };
    for ((out, sums), left) in out.chunks_mut(stride).zip(&sums).zip(left) {
        for ((out, &sum), right) in out.iter_mut().zip(sums).zip(right) {
            *out += sum as f32 * (left * right);
        }
    }
}

/// `R` rows of x, `[pair][R]`, times 16 rows of B, `[pair][16]`.
#[target_feature(enable = "avx2")]
fn tile<const R: usize>(x: &[i32], b: &[i32]) -> [[i32; PANEL]; ROWS] {
    assert_eq!(x.len() / R, b.len() / PANEL);
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for (x, b) in x.chunks_exact(R).zip(b.chunks_exact(PANEL)) {
        // SAFETY: a chunk of b holds sixteen integers.
        let b =
            unsafe { [_mm256_loadu_si256(b.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().add(8).cast())] };
        for (sums, &x) in sums.iter_mut().zip(x) {
            let x = _mm256_set1_epi32(x);
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(x, b[0]));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(x, b[1]));
        }
    }
    let mut out = [[0i32; PANEL]; ROWS];
    for (out, sums) in out.iter_mut().zip(&sums) {
        // SAFETY: a row holds sixteen integers.
        unsafe {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), sums[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), sums[1]);
        }
    }
    out
}
