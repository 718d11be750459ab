//! What one matrix costs at a given rank.

use super::{MAX_RANK, MatrixSpec, Target};
use crate::factorize::Method;
use crate::format::factors::{RANK_STEP, slice_bits};

/// Bits of one matrix as a function of its rank: `fixed + step * rank / RANK_STEP`.
pub(super) struct Account {
    /// Weights of all experts.
    pub weights: u64,
    /// Bits that [`RANK_STEP`] more ranks cost.
    pub step: u64,
    /// Highest rank worth having.
    pub cap: usize,
    /// Rank that a rule asks for.
    pub pinned: Option<usize>,
    /// Bits at rank 0: the scales g and h.
    fixed: u64,
    /// What errors cost, if that was measured.
    pub spectrum: Option<Spectrum>,
}

impl Account {
    pub fn new(spec: &MatrixSpec, paths: usize, method: Method) -> Self {
        let slices = (spec.experts * paths) as u64;
        let fixed = slices * slice_bits(spec.d_out, spec.d_in, 0);
        let step = slices * slice_bits(spec.d_out, spec.d_in, RANK_STEP) - fixed;
        let cap = match method {
            Method::DualSvid => spec.d_out.min(spec.d_in).next_multiple_of(RANK_STEP),
            Method::Admm => MAX_RANK,
        };
        let cap = cap.clamp(RANK_STEP, MAX_RANK);
        let mut account = Self { weights: spec.weights(), step, cap, pinned: None, fixed, spectrum: None };
        account.pinned = spec.fixed.map(|target| match target {
            Target::Rank(rank) => rank.min(cap),
            Target::Bpw(bpw) => account.largest_rank(account.share(bpw)),
        });
        account
    }

    /// Bits at `rank`, a multiple of [`RANK_STEP`].
    pub fn bits(&self, rank: usize) -> u64 {
        (rank / RANK_STEP) as u64 * self.step + self.fixed
    }

    /// This matrix's share in bits of a budget whose common level is `bpw`.
    pub fn share(&self, bpw: f64) -> f64 {
        let even = bpw * self.weights as f64;
        self.spectrum.as_ref().map_or(even, |s| between(s.bits(bpw), even))
    }

    /// Largest rank within `budget` bits, at least [`RANK_STEP`] and at most the cap; the pinned one if there is one.
    pub fn largest_rank(&self, budget: f64) -> usize {
        if let Some(rank) = self.pinned {
            return rank;
        }
        let steps = ((budget - self.fixed as f64) / self.step as f64).floor();
        // A float that is negative or too large saturates in the cast.
        (steps as usize).saturating_mul(RANK_STEP).clamp(RANK_STEP, self.cap)
    }
}

/// Share of the rate that information theory asks for which LB-ADMM's bits are worth: from 0.3 to 2 bits per weight a
/// Gaussian matrix comes out with a relative squared error of 2^(-1.5 b) where 2^(-2 b) is the bound.
const EFFICIENCY: f64 = 0.755;
/// Bits per weight that no matrix exceeds: beyond, other formats do better.
const MOST: f64 = 6.0;

/// Bits between those that measurement asks for and an even share: their geometric mean.
///
/// A few windows say much about their own kind of text and less about others. At 1.0 bpw a model with even shares does worse on
/// calibration's domain and better on others than one with measured shares; this does better than both on the first, and
/// keeps most of what the even one gains on the second (specs/results.md).
pub(super) fn between(measured: f64, even: f64) -> f64 {
    // Below level 0 an even share is none.
    (measured * even.max(0.0)).sqrt()
}

/// The singular values of a matrix in the metric of the loss, by which it takes its share.
///
/// A component `lambda_i` of a `m x n` matrix has `m + n - 2 i - 1` degrees of freedom. With all components coded down to
/// the same error theta (reverse water-filling), each takes `1/2 log2(lambda_i / theta)` bits for each of them, and no
/// exchange of bits between matrices lowers the sum of errors.
pub(super) struct Spectrum {
    lambda: Vec<f64>,
    dims: (usize, usize),
    slices: f64,
    /// theta of the level at which the budget is met, and that level.
    reference: (f64, f64),
}

impl Spectrum {
    pub fn new(lambda: &[f32], spec: &MatrixSpec) -> Self {
        let lambda = lambda.iter().map(|&l| f64::from(l)).collect();
        Self { lambda, dims: (spec.d_out, spec.d_in), slices: spec.experts as f64, reference: (1.0, 0.0) }
    }

    /// Largest component.
    pub fn top(&self) -> f64 {
        self.lambda.first().copied().unwrap_or(0.0)
    }

    /// The level `bpw` is to mean `theta`.
    pub fn set_reference(&mut self, theta: f64, bpw: f64) {
        self.reference = (theta, bpw);
    }

    /// Bits at the error `theta`.
    pub fn bits_at(&self, theta: f64) -> f64 {
        let (m, n) = self.dims;
        let free = |i: usize| (m + n).saturating_sub(2 * i + 1) as f64;
        let above = self.lambda.iter().enumerate().take_while(|(_, l)| **l > theta);
        let rate: f64 = above.map(|(i, l)| free(i) * 0.5 * (l / theta).log2()).sum();
        (rate / EFFICIENCY * self.slices).min(MOST * self.slices * (m * n) as f64)
    }

    /// Bits at a common level: one more bit per weight lowers theta as it lowers a flat matrix's error.
    fn bits(&self, bpw: f64) -> f64 {
        let (theta, level) = self.reference;
        self.bits_at(theta * (-2.0 * EFFICIENCY * (bpw - level)).exp2())
    }
}
