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
        let mut account = Self { weights: spec.weights(), step, cap, pinned: None, fixed };
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

    /// This matrix's share of the budget in bits.
    pub fn share(&self, bpw: f64) -> f64 {
        bpw * self.weights as f64
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
