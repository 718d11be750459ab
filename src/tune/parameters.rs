//! The trained vectors of a model beside their gradients, in one fixed order.

use crate::decoder::{Block, BlockGrad, LinearGrad, Model, ModelGrad, Weight};

/// What a vector is; norms learn at a lower rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// h, l or g.
    Scale,
    /// Weights of an RMS norm.
    Norm,
}

/// Calls `f` with every trained vector of a model and its gradient.
pub fn visit(model: &mut Model, grad: &ModelGrad, mut f: impl FnMut(Kind, &mut [f32], &[f32])) {
    for (block, grad) in model.blocks.iter_mut().zip(&grad.blocks) {
        visit_block(block, grad, &mut f);
    }
    f(Kind::Norm, &mut model.norm, &grad.norm);
}

/// The same for one block.
pub fn visit_block(block: &mut Block, grad: &BlockGrad, mut f: impl FnMut(Kind, &mut [f32], &[f32])) {
    for (linear, grad) in block.linears.iter_mut().flatten().zip(grad.linears.iter().flatten()) {
        if let (Weight::Binary(paths), Some(LinearGrad::Factors(grads))) = (&mut linear.weight, grad) {
            for (p, g) in paths.iter_mut().zip(grads) {
                let [h, l, g] = &g.scales;
                f(Kind::Scale, &mut p.h, h);
                f(Kind::Scale, &mut p.l, l);
                f(Kind::Scale, &mut p.g, g);
            }
        }
    }
    for (norm, grad) in block.norm_list().into_iter().zip(&grad.norms) {
        f(Kind::Norm, norm, grad);
    }
}
