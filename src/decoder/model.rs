//! A whole decoder: embeddings, blocks, final norm and head.

use super::block::{Block, BlockGrad, BlockTape};
use super::coarse::Coarse;
use super::config::Config;
use super::dense::Dense;
use super::device::{self, Place, Side};
use super::linear::Trained;
use super::norm;
use super::product::{times, times_transposed};
use super::rope::Rotation;
use super::signs::Precision;
use rayon::prelude::*;
use std::sync::Arc;

/// A decoder with its weights.
#[derive(Clone, Debug)]
pub struct Model {
    /// Graph.
    pub config: Config,
    /// Token embeddings, `vocabulary x d_model`.
    pub embeddings: Arc<Dense>,
    /// Head, likewise; the embeddings themselves if they are tied.
    pub head: Arc<Dense>,
    /// Added to the logits.
    pub head_bias: Option<Vec<f32>>,
    /// Final RMS norm.
    pub norm: Vec<f32>,
    /// Blocks in order.
    pub blocks: Vec<Block>,
    /// Divisors of the rotation's frequencies, `rope_dims / 2`.
    pub rope_factors: Option<Vec<f32>>,
    /// Where products with the head are formed.
    pub place: Place,
}

/// Name of the head in messages.
const HEAD: &str = "output.weight";

/// Gradients of a model.
#[derive(Clone, Debug)]
pub struct ModelGrad {
    /// One for each block.
    pub blocks: Vec<BlockGrad>,
    /// Of the final norm.
    pub norm: Vec<f32>,
}

impl ModelGrad {
    /// Adds the gradients of the same parameters.
    pub fn add(&mut self, other: &ModelGrad) {
        self.norm.iter_mut().zip(&other.norm).for_each(|(a, b)| *a += b);
        self.blocks.iter_mut().zip(&other.blocks).for_each(|(to, from)| to.add(from));
    }
}

/// Tape of a forward pass.
#[derive(Debug)]
pub struct ModelTape {
    /// One for each block.
    pub blocks: Vec<BlockTape>,
    /// Residual stream after the last block.
    pub x: Vec<f32>,
    rotations: [Rotation; 2],
}

/// The head of a model for training steps, both passes.
#[derive(Debug)]
pub struct CoarseHead {
    /// For [`Model::coarse_logits`].
    pub head: Coarse,
    transposed: Coarse,
}

impl Model {
    /// The head in the precision of training steps.
    pub fn coarse_head(&self) -> Coarse {
        let (d, v) = (self.config.d_model, self.vocabulary());
        Coarse::on(&self.place, HEAD, v, d, |i, j| self.head[i * d + j])
    }

    /// The same for both passes.
    pub fn trained_head(&self) -> CoarseHead {
        let (d, v) = (self.config.d_model, self.vocabulary());
        let transposed = Coarse::on(&self.place, HEAD, d, v, |i, j| self.head[j * d + i]);
        CoarseHead { head: self.coarse_head(), transposed }
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.embeddings.len() / self.config.d_model
    }

    /// Sets the precision of all factorized layers.
    pub fn set_precision(&mut self, precision: Precision) {
        self.blocks.iter_mut().for_each(|b| b.set_precision(precision));
    }

    /// Embedded tokens, `tokens x d_model`.
    pub fn embed(&self, tokens: &[u32]) -> Vec<f32> {
        let (d, scale) = (self.config.d_model, self.config.embedding_scale);
        let row = |&t: &u32| &self.embeddings[t as usize * d..(t as usize + 1) * d];
        tokens.iter().flat_map(row).map(|x| x * scale).collect()
    }

    /// Rotations for windows of `length` tokens: of full-attention blocks and of sliding-window ones.
    pub fn rotations(&self, length: usize) -> [Rotation; 2] {
        let c = &self.config;
        [0, 1].map(|i| {
            let factors = self.rope_factors.as_deref();
            let (base, scale) = (c.rope_base[i], c.rope_scale[i]);
            Rotation::new(length, c.rope_dims, base, scale, c.rope_magnitude, factors, c.rope_style)
        })
    }

    /// Residual stream after all blocks; tapes are dropped at once.
    pub fn stream(&self, tokens: &[u32], length: usize) -> Vec<f32> {
        let rotations = self.rotations(length);
        let mut x = self.embed(tokens);
        for b in &self.blocks {
            x = b.forward(&self.config, b.rotation(&rotations), x, length).0;
        }
        x
    }

    /// Forward pass that keeps what [`backward`](Self::backward) needs.
    pub fn forward(&self, tokens: &[u32], length: usize) -> ModelTape {
        let rotations = self.rotations(length);
        let mut x = self.embed(tokens);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for b in &self.blocks {
            let (y, tape) = b.forward(&self.config, b.rotation(&rotations), x, length);
            blocks.push(tape);
            x = y;
        }
        ModelTape { blocks, x, rotations }
    }

    /// Normalised rows of the residual stream, what the head reads.
    pub fn normed(&self, x: &[f32]) -> Vec<f32> {
        norm::forward(x, &self.norm, self.config.eps)
    }

    /// Logits of normalised rows, `rows x vocabulary`.
    pub fn logits(&self, normed: &[f32]) -> Vec<f32> {
        let (d, v) = (self.config.d_model, self.vocabulary());
        let on_device = device::product(&self.place, HEAD, &self.head, [v, d], normed, Side::Forward);
        let mut out = on_device.unwrap_or_else(|| {
            let mut out = vec![0f32; normed.len() / d * v];
            times_transposed(&mut out, normed, &self.head, v, d, false);
            out
        });
        self.bias_and_cap(&mut out);
        out
    }

    /// The same through `head`.
    pub fn coarse_logits(&self, head: &Coarse, normed: &[f32]) -> Vec<f32> {
        let mut out = head.product(normed);
        self.bias_and_cap(&mut out);
        out
    }

    pub(super) fn bias_and_cap(&self, logits: &mut [f32]) {
        if let Some(b) = &self.head_bias {
            let rows = logits.par_chunks_mut(b.len());
            rows.for_each(|y| y.iter_mut().zip(b).for_each(|(y, b)| *y += b));
        }
        if let Some(cap) = self.config.logit_softcap {
            logits.par_iter_mut().with_min_len(1 << 14).for_each(|x| *x = cap * (*x / cap).tanh());
        }
    }

    /// Gradient of the residual rows `x` from that of their `logits`, which is overwritten.
    pub fn head_backward(
        &self,
        x: &[f32],
        logits: &[f32],
        d_logits: &mut [f32],
        d_norm: &mut [f32],
    ) -> Vec<f32> {
        let (d, v) = (self.config.d_model, self.vocabulary());
        self.cap_backward(logits, d_logits);
        let on_device = device::product(&self.place, HEAD, &self.head, [v, d], d_logits, Side::Backward);
        let d_normed = on_device.unwrap_or_else(|| {
            let mut d_normed = vec![0f32; x.len()];
            times(&mut d_normed, d_logits, &self.head, d, v, false);
            d_normed
        });
        norm::backward(x, &self.norm, self.config.eps, &d_normed, d_norm)
    }

    /// The same through `head`.
    pub fn coarse_head_backward(
        &self,
        head: &CoarseHead,
        x: &[f32],
        logits: &[f32],
        d_logits: &mut [f32],
        d_norm: &mut [f32],
    ) -> Vec<f32> {
        self.cap_backward(logits, d_logits);
        let d_normed = head.transposed.product(d_logits);
        norm::backward(x, &self.norm, self.config.eps, &d_normed, d_norm)
    }

    fn cap_backward(&self, logits: &[f32], d_logits: &mut [f32]) {
        if let Some(cap) = self.config.logit_softcap {
            d_logits.iter_mut().zip(logits).for_each(|(d, y)| *d *= 1.0 - (y / cap) * (y / cap));
        }
    }

    /// Zero gradients, see [`Block::zero_grad`].
    pub fn zero_grad(&self, trained: Trained) -> ModelGrad {
        ModelGrad {
            blocks: self.blocks.iter().map(|b| b.zero_grad(trained)).collect(),
            norm: vec![0.0; self.norm.len()],
        }
    }

    /// Runs the blocks backward from `dx`, the gradient of the residual stream; returns that of the embeddings.
    pub fn backward(&self, tape: &ModelTape, dx: Vec<f32>, length: usize, grad: &mut ModelGrad) -> Vec<f32> {
        let mut dx = dx;
        for (i, b) in self.blocks.iter().enumerate().rev() {
            let rotation = b.rotation(&tape.rotations);
            dx = b.backward(&self.config, rotation, &tape.blocks[i], dx, length, &mut grad.blocks[i]);
        }
        dx
    }
}
