//! The products of linear layers on a GPU; the rest of the decoder stays on the CPU.
//!
//! The layers of a site go there together: their input once, all outputs side by side back. What the backward pass needs of the
//! forward pass is computed again, which takes a GPU less time than bringing it back twice. Signs travel as bits with every product, dense
//! weights stay there as long as a quarter of its memory is free.
//!
//! | file | job |
//! |---|---|
//! | `layers` | both passes of a site, and products with the head |
//! | `operand` | weights of all forms in the GPU's memory |
//! | `sums` | moments of activations |
//! | `account` | memory that these take |
//! | `check` | whether a GPU computes what the CPU computes |

#[cfg(feature = "cuda")]
mod account;
#[cfg(feature = "cuda")]
pub(crate) mod check;
#[cfg(feature = "cuda")]
mod layers;
#[cfg(feature = "cuda")]
mod operand;
#[cfg(feature = "cuda")]
mod sums;

#[cfg(feature = "cuda")]
pub(super) use operand::Rounded;

use super::dense::Dense;
#[cfg(feature = "cuda")]
use super::fisher::{token_weights, weighed};
use super::linear::{Linear, LinearGrad};
use crate::factorize::Device;
use crate::factorize::device::Choice;
#[cfg(feature = "cuda")]
use rayon::prelude::*;
use std::sync::Arc;

/// Where products are formed: on the CPU, or on a device as far as they fit there.
#[derive(Clone, Debug, Default)]
pub struct Place(Option<Arc<Device>>);

impl From<&Arc<Device>> for Place {
    fn from(device: &Arc<Device>) -> Self {
        Self((device.kind() == Choice::Cuda).then(|| device.clone()))
    }
}

impl Place {
    /// The device, if it is not the CPU.
    pub(super) fn device(&self) -> Option<&Arc<Device>> {
        self.0.as_ref()
    }
}

/// What a product does with its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// `x W^T`.
    Forward,
    /// `x W`.
    Backward,
}

/// Outputs of the layers of a site side by side, `tokens x width`. `None` if the CPU has to compute them.
#[cfg(feature = "cuda")]
pub(super) fn forward(site: &[Linear], x: &[f32]) -> Option<Vec<f32>> {
    let device = site[0].place.device()?;
    if !site.iter().all(layers::runs) {
        return None;
    }
    let bytes = account::forward(site, x.len() / site[0].d_in);
    let mut y = device.assist(&site[0].name, bytes, |session| layers::forward(session, site, x))?;
    if site.iter().any(|l| l.bias.is_some()) {
        let biases = site.iter().flat_map(|l| l.bias.clone().unwrap_or_else(|| vec![0.0; l.d_out]));
        let biases: Vec<f32> = biases.collect();
        y.par_chunks_mut(biases.len()).for_each(|y| y.iter_mut().zip(&biases).for_each(|(y, b)| *y += b));
    }
    Some(y)
}

/// Gradient with respect to the input `x` of a site whose outputs have the gradient `dy`; those of parameters are added to
/// `grads`. `None`, and `grads` as they were, if the CPU has to compute them.
#[cfg(feature = "cuda")]
pub(super) fn backward(
    site: &[Linear],
    x: &[f32],
    dy: &[f32],
    grads: &mut [Option<LinearGrad>],
) -> Option<Vec<f32>> {
    let device = site[0].place.device()?;
    if !site.iter().all(layers::runs) {
        return None;
    }
    let fisher = grads.iter().any(|g| matches!(g, Some(LinearGrad::Fisher(_))));
    let weighed = fisher.then(|| weighed(x, &token_weights(x, site[0].d_in)));
    let bytes = account::backward(site, x.len() / site[0].d_in, grads);
    let (dx, found) = device.assist(&site[0].name, bytes, |session| {
        layers::backward(session, site, [x, dy], weighed.as_deref(), grads)
    })?;
    let width: usize = site.iter().map(|l| l.d_out).sum();
    let mut at = 0;
    for ((l, grad), found) in site.iter().zip(grads).zip(found) {
        if let (Some(grad), Some(found)) = (grad, found) {
            grad.add(&found);
            if let (LinearGrad::Fisher(f), Some(x)) = (grad, &weighed) {
                let own = dy.chunks_exact(width).flat_map(|dy| &dy[at..at + l.d_out]).map(|d| d * l.scale);
                f.add_gradients(x, l.d_in, &own.collect::<Vec<f32>>(), l.d_out);
            }
        }
        at += l.d_out;
    }
    Some(dx)
}

/// A product with a dense weight `n x k`. `None` if the CPU has to compute it.
#[cfg(feature = "cuda")]
pub(super) fn product(
    place: &Place,
    name: &str,
    w: &Dense,
    [n, k]: [usize; 2],
    x: &[f32],
    side: Side,
) -> Option<Vec<f32>> {
    let bytes = account::product([n, k], x.len() / if side == Side::Forward { k } else { n });
    place.device()?.assist(name, bytes, |session| {
        layers::product(session, &*operand::dense(session, w)?, [n, k], x, side)
    })
}

/// `sum_w [a b ..]^T b` over windows w of row-major matrices `a, b, ..` with as many rows as b: each is the sum for one of them.
/// Windows are made by `next` as long as there are any. `None` if the CPU has to compute them.
#[cfg(feature = "cuda")]
pub(crate) fn outer_sums(
    place: &Place,
    name: &str,
    widths: &[usize],
    mut next: impl FnMut() -> Option<Vec<Vec<f32>>>,
) -> Option<Vec<Vec<f32>>> {
    let device = place.device()?;
    let mut sums = sums::Sums::new(device, name, widths)?;
    while let Some(window) = next() {
        sums.add(&window)?;
    }
    sums.finish()
}

#[cfg(not(feature = "cuda"))]
pub(super) fn forward(site: &[Linear], _: &[f32]) -> Option<Vec<f32>> {
    debug_assert!(site[0].place.device().is_none());
    None
}

#[cfg(not(feature = "cuda"))]
pub(super) fn backward(
    site: &[Linear],
    _: &[f32],
    _: &[f32],
    _: &mut [Option<LinearGrad>],
) -> Option<Vec<f32>> {
    debug_assert!(site[0].place.device().is_none());
    None
}

#[cfg(not(feature = "cuda"))]
pub(super) fn product(
    place: &Place,
    _: &str,
    _: &Dense,
    _: [usize; 2],
    _: &[f32],
    _: Side,
) -> Option<Vec<f32>> {
    debug_assert!(place.device().is_none());
    None
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn outer_sums(
    place: &Place,
    _: &str,
    _: &[usize],
    _: impl FnMut() -> Option<Vec<Vec<f32>>>,
) -> Option<Vec<Vec<f32>>> {
    debug_assert!(place.device().is_none());
    None
}
