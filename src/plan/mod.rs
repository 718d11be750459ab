//! From a bit budget to one rank per matrix, with the exact account of what the file will take.
//!
//! A matrix of `d_out x d_in` at rank r costs [`slice_bits`] per expert and path: signs with their padding and
//! three f16 scale vectors. Every rank is a multiple of [`RANK_STEP`], so a budget is met from below: first each
//! matrix takes the largest rank that fits its own share, then the bits left over in the whole model buy single
//! steps for the matrices that were rounded down the most (largest remainder).

mod account;
pub mod rules;

use crate::error::{Error, Result};
use crate::factorize::Method;
use crate::format::factors::RANK_STEP;
use account::{Account, Spectrum, between};
use serde::Serialize;

/// Largest budget that is accepted: above it plain f16 is smaller and exact.
pub const MAX_BPW: f64 = 16.0;

/// Largest rank that is accepted, beyond any matrix of a language model.
pub const MAX_RANK: usize = 1 << 16;

/// What the user fixes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Bits per factorized weight, averaged over the model; signs, padding and scales included.
    Bpw(f64),
    /// The same rank for every path of every matrix.
    Rank(usize),
}

/// One weight to be factorized.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixSpec {
    /// Name with its suffix `.weight`.
    pub name: String,
    /// Outputs.
    pub d_out: usize,
    /// Inputs.
    pub d_in: usize,
    /// Experts in the stack, 1 for an ordinary weight.
    pub experts: usize,
    /// What a rule of the user fixes for it.
    pub fixed: Option<Target>,
    /// Its singular values in the metric of the loss, falling, if they were measured
    /// ([`Sensitivity::spectrum`](crate::calibrate::sensitivity::Sensitivity::spectrum)).
    pub spectrum: Option<Vec<f32>>,
}

impl MatrixSpec {
    /// Weights of all experts.
    pub fn weights(&self) -> u64 {
        self.d_out as u64 * self.d_in as u64 * self.experts as u64
    }
}

/// The rank of one matrix and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanEntry {
    /// Name of the weight.
    pub name: String,
    /// Rank of each path.
    pub rank: usize,
    /// Bits of the five factor tensors, all experts and paths.
    pub bits: u64,
    /// Weights they stand for.
    pub weights: u64,
    /// `bits / weights`.
    pub bpw: f64,
    /// Even the lowest rank costs more than this matrix's share of the budget.
    pub floor_bound: bool,
}

/// Ranks of all matrices, in file order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// One entry for each matrix.
    pub entries: Vec<PlanEntry>,
    /// Bits of all factors.
    pub bits: u64,
    /// Factorized weights of the model.
    pub weights: u64,
    /// `bits / weights`.
    pub bpw: f64,
}

/// Fixes the rank of every matrix.
///
/// With [`Target::Bpw`] the total stays at or below the target, unless even the lowest rank of every matrix takes
/// more. A matrix that a rule fixes ([`MatrixSpec::fixed`]) gets what the rule says, and the others share what is left.
/// Matrices whose lowest rank exceeds their share ([`PlanEntry::floor_bound`]) take it from the others. [`Method::DualSvid`] caps ranks at `min(d_out, d_in)` rounded up
/// to [`RANK_STEP`], because a singular value decomposition has no more terms to give.
///
/// # Errors
/// [`Error::Usage`] for a target or a number of paths that makes no sense.
pub fn plan(specs: &[MatrixSpec], target: Target, paths: usize, method: Method) -> Result<Plan> {
    check_paths(paths)?;
    let mut accounts: Vec<Account> = specs.iter().map(|s| Account::new(s, paths, method)).collect();
    if let Target::Bpw(bpw) = target {
        weigh(specs, &mut accounts, bpw);
    }
    let ranks = match target {
        Target::Rank(rank) => {
            check_rank(rank)?;
            accounts.iter().map(|a| a.pinned.unwrap_or(rank.min(a.cap))).collect()
        }
        Target::Bpw(bpw) => {
            check_bpw(bpw)?;
            within_budget(specs, &accounts, bpw)
        }
    };
    let over = |a: &Account| {
        a.pinned.is_none() && matches!(target, Target::Bpw(bpw) if a.bits(RANK_STEP) as f64 > a.share(bpw))
    };
    let entries: Vec<PlanEntry> = specs
        .iter()
        .zip(&accounts)
        .zip(ranks)
        .map(|((spec, account), rank)| {
            let bits = account.bits(rank);
            PlanEntry {
                name: spec.name.clone(),
                rank,
                bits,
                weights: account.weights,
                bpw: bits as f64 / account.weights as f64,
                floor_bound: over(account),
            }
        })
        .collect();
    let (bits, weights) = entries.iter().fold((0, 0), |(b, w), e| (b + e.bits, w + e.weights));
    let bpw = if weights == 0 { 0.0 } else { bits as f64 / weights as f64 };
    Ok(Plan { entries, bits, weights, bpw })
}

/// Gives matrices whose spectra are known their shares: at the level `bpw` these together take `bpw` bits per weight.
fn weigh(specs: &[MatrixSpec], accounts: &mut [Account], bpw: f64) {
    for (spec, account) in specs.iter().zip(&mut *accounts).filter(|(_, a)| a.pinned.is_none()) {
        account.spectrum = spec.spectrum.as_ref().map(|s| Spectrum::new(s, spec)).filter(|s| s.top() > 0.0);
    }
    let known = || accounts.iter().filter_map(|a| Some((a.weights as f64, a.spectrum.as_ref()?)));
    let wanted = bpw * known().map(|(n, _)| n).sum::<f64>();
    let top = known().map(|(_, s)| s.top()).fold(0.0, f64::max);
    let bits = |halvings: f64| -> f64 {
        known().map(|(n, s)| between(s.bits_at(top * (-halvings).exp2()), bpw * n)).sum()
    };
    let (mut low, mut high) = (0.0, 200.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if bits(middle) <= wanted { low = middle } else { high = middle }
    }
    accounts
        .iter_mut()
        .filter_map(|a| a.spectrum.as_mut())
        .for_each(|s| s.set_reference(top * (-low).exp2(), bpw));
}

/// Bits per weight, in a manner of speaking, at which no matrix takes more than its lowest rank.
const LOWEST_LEVEL: f64 = -64.0;

/// Ranks whose total stays within `bpw` times the number of weights, as far as the lowest rank allows.
fn within_budget(specs: &[MatrixSpec], accounts: &[Account], bpw: f64) -> Vec<usize> {
    let at_level =
        |level: f64| -> Vec<usize> { accounts.iter().map(|a| a.largest_rank(a.share(level))).collect() };
    let spent = |ranks: &[usize]| -> u64 { accounts.iter().zip(ranks).map(|(a, &r)| a.bits(r)).sum() };
    let weights: u64 = accounts.iter().map(|a| a.weights).sum();
    let budget = (bpw * weights as f64).floor() as u64;

    // What matrices at the lowest rank take beyond their share is missing from the others: these get the highest
    // common level that fits. Bisection down to neighbouring floats finds the same one on every machine.
    let (mut level, mut ranks) = (bpw, at_level(bpw));
    // Where matrices take shares of their own, the common level may lie above the mean as well.
    let own = accounts.iter().any(|a| a.spectrum.is_some());
    if own || spent(&ranks) > budget {
        // A share of one's own may be large at level 0.
        let (mut fits, mut exceeds) = if own { (LOWEST_LEVEL, 4.0 * bpw) } else { (0.0, bpw) };
        ranks = at_level(fits);
        if spent(&ranks) > budget {
            return ranks;
        }
        loop {
            level = f64::midpoint(fits, exceeds);
            if level <= fits || level >= exceeds {
                break;
            }
            let trial = at_level(level);
            if spent(&trial) <= budget {
                (fits, ranks) = (level, trial);
            } else {
                exceeds = level;
            }
        }
        level = fits;
    }
    let mut left = budget - spent(&ranks);

    // Largest remainder: the fraction of a step that rounding down took away; ties go by name, so that the order of tensors does
    // not matter.
    let remainder =
        |i: usize| (accounts[i].share(level) - accounts[i].bits(ranks[i]) as f64) / accounts[i].step as f64;
    let mut order: Vec<usize> =
        (0..accounts.len()).filter(|&i| accounts[i].pinned.is_none() && remainder(i) > 0.0).collect();
    order.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)).then(specs[a].name.cmp(&specs[b].name)));
    for i in order {
        if ranks[i] < accounts[i].cap && accounts[i].step <= left {
            ranks[i] += RANK_STEP;
            left -= accounts[i].step;
        }
    }
    ranks
}

pub(crate) fn check_paths(paths: usize) -> Result<()> {
    match paths {
        1 | 2 => Ok(()),
        _ => Err(Error::usage(format!("paths must be 1 or 2, not {paths}"))),
    }
}

/// Checks a rank that the user gave.
pub(crate) fn check_rank(rank: usize) -> Result<()> {
    if rank == 0 || !rank.is_multiple_of(RANK_STEP) || rank > MAX_RANK {
        let nearest = (rank.saturating_add(RANK_STEP / 2) / RANK_STEP * RANK_STEP).clamp(RANK_STEP, MAX_RANK);
        return Err(Error::usage(format!(
            "rank {rank} is not a positive multiple of {RANK_STEP} up to {MAX_RANK}; the nearest is {nearest}"
        )));
    }
    Ok(())
}

fn check_bpw(bpw: f64) -> Result<()> {
    if !bpw.is_finite() || bpw <= 0.0 || bpw > MAX_BPW {
        return Err(Error::usage(format!("bpw must be above 0 and at most {MAX_BPW}, not {bpw}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
