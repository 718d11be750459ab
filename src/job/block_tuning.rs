//! Tuning of the blocks of a sequential factorization, and what the journal keeps of it.

use super::sequential::{Made, Stage};
use super::site::row_weights;
use crate::decoder::{Block, Precision, Weight};
use crate::error::Result;
use crate::factorize;
use crate::format::Factors;
use crate::tune::{BlockOutcome, BlockTask};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Norms of a block, in the order of [`Block::norm_list`].
pub(super) type Norms = Vec<Vec<f32>>;

/// A block that an earlier run has tuned.
pub(super) struct Tuned {
    pub norms: Norms,
    pub outcome: BlockOutcome,
}

/// A tuned block in the journal.
#[derive(Serialize, Deserialize)]
struct Record {
    /// By weight name.
    factors: Vec<(String, Factors)>,
    norms: Norms,
    outcome: BlockOutcome,
}

fn name(b: usize) -> String {
    format!("block-{b}")
}

impl Stage<'_> {
    /// Whether block `b` is tuned once it is factorized: nothing is where all of its layers stay.
    pub(super) fn tunes(&self, b: usize) -> bool {
        let prefix = format!("blk.{b}.");
        self.tuning.passes > 0 && self.ranks.keys().any(|name| name.starts_with(&prefix))
    }

    /// Norms and outcome of every block that is tuned already, whose factors take the place of those in `made`.
    pub(super) fn tuned(&self, made: &mut HashMap<String, Made>) -> Result<Vec<Option<Tuned>>> {
        (0..self.loader.blocks())
            .map(|b| {
                if !self.tunes(b) {
                    return Ok(None);
                }
                let record: Option<Record> = self.journal.get(&name(b))?;
                let fits = |r: &Record| {
                    let same = |(name, f): &(String, Factors)| {
                        made.get(name).is_some_and(|m| m.factors.slices[0].rank() == f.slices[0].rank())
                    };
                    r.factors.iter().all(same)
                };
                Ok(record.filter(fits).map(|r| {
                    for (name, factors) in r.factors {
                        made.get_mut(&name).expect("checked above").factors = factors;
                    }
                    Tuned { norms: r.norms, outcome: r.outcome }
                }))
            })
            .collect()
    }

    /// What the loss feels of errors in each channel of the residual stream after `block`, from the layer that writes it last.
    pub(super) fn channels(&self, block: &Block) -> Vec<f32> {
        let last = block.linears[3].last().and_then(|l| self.measured.get(&l.name));
        match last {
            Some(s) => row_weights(&s.output).iter().map(|w| w * w).collect(),
            None => vec![1.0; block.norms[0].len()],
        }
    }

    /// Tunes block `b` from the compressed stream before it to the source's stream after it; its factors take the place
    /// of those in `made`.
    pub(super) fn tune(
        &self,
        b: usize,
        task: &BlockTask,
        block: &mut Block,
        margins: &[[Vec<f32>; 2]],
        made: &mut HashMap<String, Made>,
    ) -> Result<BlockOutcome> {
        block.set_precision(Precision::Coarse);
        let outcome = task.tune(block, margins, &self.tuning);
        self.device.check()?;
        block.set_precision(Precision::Fine);
        let mut factors = Vec::new();
        for l in block.linears.iter_mut().flatten() {
            let (Weight::Binary(paths), Some(m)) = (&mut l.weight, made.get_mut(&l.name)) else {
                continue;
            };
            for (p, stored) in paths.iter_mut().zip(&mut m.factors.slices) {
                let signs = p.signs();
                *stored = factorize::with_signs(&l.name, &signs, [&p.h, &p.l, &p.g])?;
                p.set_scales(stored);
            }
            factors.push((l.name.clone(), m.factors.clone()));
        }
        let norms = block.norm_list().into_iter().map(|n| n.clone()).collect();
        let record = Record { factors, norms, outcome };
        self.journal.put(&name(b), &format!("block {b}"), &record)?;
        Ok(outcome)
    }
}
