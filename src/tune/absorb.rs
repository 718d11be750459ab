//! Dense weights of a block make up for errors of what is factorized already, in the block and before it.

use super::adam::Plain;
use super::block::BlockTask;
use super::descent::Descent;
use crate::decoder::{Block, BlockGrad, Linear, LinearGrad, Trained, Weight};

/// How to absorb.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Absorption {
    /// Passes over the windows before every site; none leaves the weights as they are.
    pub passes: usize,
    /// Highest rate, in units of the matrix's root mean square.
    pub rate: f32,
    /// Steps over which the rate rises.
    pub warm_up: usize,
    /// Windows a step; they run beside each other.
    pub batch: usize,
}

impl Default for Absorption {
    fn default() -> Self {
        Self { passes: 0, rate: 0.003, warm_up: 4, batch: 2 }
    }
}

impl BlockTask<'_> {
    /// Tunes the dense weights that `open` picks by Adam, until `block` comes nearest to the task's targets. Returns the mean
    /// relative error in the first eighth of the steps and in the last.
    pub fn absorb(
        &self,
        block: &mut Block,
        open: impl Fn(&Linear) -> bool + Sync,
        settings: &Absorption,
    ) -> [f64; 2] {
        let descent = Descent::new(settings.passes, self.inputs.len(), settings.batch, settings.warm_up);
        let mut states: Vec<Option<Plain>> = block.linears.iter().flatten().map(|_| None).collect();
        self.descend(
            block,
            &descent,
            |block| dense_grad(block, &open),
            |block, grad, k| {
                let rate = settings.rate * descent.level(k);
                let grads = grad.linears.iter().flatten();
                for ((l, grad), state) in block.linears.iter_mut().flatten().zip(grads).zip(&mut states) {
                    if let (Weight::Dense(w), Some(LinearGrad::Dense(g))) = (&mut l.weight, grad) {
                        state.get_or_insert_with(|| Plain::new(w)).step(k as i32 + 1, rate, g, w);
                    }
                }
            },
        )
    }
}

/// Zero gradients of the dense weights that `open` picks.
fn dense_grad(block: &Block, open: impl Fn(&Linear) -> bool) -> BlockGrad {
    let mut grad = block.zero_grad(Trained::Scales);
    for (l, grad) in block.linears.iter().flatten().zip(grad.linears.iter_mut().flatten()) {
        *grad = match &l.weight {
            Weight::Dense(_) if open(l) => l.zero_grad(Trained::Everything),
            _ => None,
        };
    }
    grad
}
