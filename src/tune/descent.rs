//! Passes of gradient descent over the windows of a block's task.

use super::block::BlockTask;
use super::over_windows;
use crate::decoder::{Block, BlockGrad};

/// How many steps, of how many windows, at which rates.
pub(super) struct Descent {
    pub steps: usize,
    batch: usize,
    warm_up: usize,
}

impl Descent {
    /// `passes` over `count` windows, `batch` a step; rates rise over `warm_up` steps.
    pub fn new(passes: usize, count: usize, batch: usize, warm_up: usize) -> Self {
        Self { steps: passes * count.div_ceil(batch), batch, warm_up }
    }

    /// Share of the highest rate at step `k` (from 0): a linear rise, and a linear fall to a twentieth.
    pub fn level(&self, k: usize) -> f32 {
        let rise = ((k + 1) as f32 / self.warm_up.max(1) as f32).min(1.0);
        rise * (1.0 - 0.95 * k as f32 / self.steps as f32)
    }
}

impl BlockTask<'_> {
    /// Runs all steps: `zero` makes the gradient that the windows add to, `apply` moves the parameters at step `k`. Returns
    /// the mean relative error in the first eighth of the steps and in the last.
    pub(super) fn descend(
        &self,
        block: &mut Block,
        descent: &Descent,
        zero: impl Fn(&Block) -> BlockGrad + Sync,
        mut apply: impl FnMut(&mut Block, &BlockGrad, usize),
    ) -> [f64; 2] {
        let (count, edge) = (self.inputs.len(), (descent.steps / 8).max(1));
        let mut errors = [0.0; 2];
        for k in 0..descent.steps {
            let windows: Vec<usize> = (0..descent.batch).map(|j| (k * descent.batch + j) % count).collect();
            let run = |&w: &usize| {
                let mut grad = zero(block);
                (self.window(block, w, &mut grad), grad)
            };
            let (error, grad) = over_windows(&windows, run, BlockGrad::add);
            if k < edge {
                errors[0] += error / edge as f64;
            }
            if k >= descent.steps - edge {
                errors[1] += error / edge as f64;
            }
            apply(block, &grad, k);
        }
        errors
    }
}
