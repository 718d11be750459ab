//! A linear layer `y = scale x W^T + b`, dense or factorized.

use super::coarse::{Coarse, add_outer};
use super::dense::Dense;
use super::device::Place;
use super::fisher::Fisher;
use super::product::{times, times_transposed, transposed_times};
use super::signs::{Precision, Signs};
use crate::format::FactorPath;
use rayon::prelude::*;

/// Rows that one task of an elementwise pass handles.
const ROWS: usize = 64;

/// One path `diag(h) U diag(l) V^T diag(g)`; both sign matrices and their transposes, as the two passes need them.
#[derive(Clone, Debug)]
pub struct Binary {
    /// Output scales.
    pub h: Vec<f32>,
    /// Latent scales.
    pub l: Vec<f32>,
    /// Input scales.
    pub g: Vec<f32>,
    /// U, `d_out x r`.
    u: Signs,
    ut: Signs,
    /// V^T, `r x d_in`.
    vt: Signs,
    v: Signs,
    /// Of the products with both.
    pub precision: Precision,
}

impl Binary {
    /// A path of the given signs: U `d_out x r` and V^T `r x d_in` by position, `true` for +1.
    pub fn new(
        [h, l, g]: [Vec<f32>; 3],
        u: impl Fn(usize, usize) -> bool + Sync,
        vt: impl Fn(usize, usize) -> bool + Sync,
    ) -> Self {
        let (d_out, r, d_in) = (h.len(), l.len(), g.len());
        let ut = Signs::from_fn(r, d_out, |i, j| u(j, i));
        let v = Signs::from_fn(d_in, r, |i, j| vt(j, i));
        let (u, vt) = (Signs::from_fn(d_out, r, u), Signs::from_fn(r, d_in, vt));
        Self { h, l, g, u, ut, vt, v, precision: Precision::Fine }
    }

    /// U and V^T.
    #[cfg(feature = "cuda")]
    pub(super) fn factors(&self) -> [&Signs; 2] {
        [&self.u, &self.vt]
    }

    /// The same path with its signs in the layout of other processors.
    #[cfg(feature = "cuda")]
    pub(super) fn in_other_layout(&self) -> Self {
        let [u, ut, vt, v] = [&self.u, &self.ut, &self.vt, &self.v].map(Signs::in_other_layout);
        Self { u, ut, vt, v, ..self.clone() }
    }

    /// Signs of U, row-major `d_out x r`, and of V^T, `r x d_in`: 1 or -1.
    pub fn signs(&self) -> [Vec<f32>; 2] {
        [self.u.to_row_major(), self.vt.to_row_major()]
    }

    /// Turns the sign of U at (`i`, `k`).
    pub fn turn_u(&mut self, i: usize, k: usize) {
        self.u.turn(i, k);
        self.ut.turn(k, i);
    }

    /// Turns the sign of V^T at (`k`, `j`).
    pub fn turn_vt(&mut self, k: usize, j: usize) {
        self.vt.turn(k, j);
        self.v.turn(j, k);
    }

    /// Takes the scales of `p`, a path of the same signs or one whose product is zero.
    pub fn set_scales(&mut self, p: &FactorPath) {
        [self.h, self.l, self.g] = scales_of(p);
    }
}

fn scales_of(p: &FactorPath) -> [Vec<f32>; 3] {
    [&p.h, &p.l, &p.g].map(|x| x.iter().map(|x| x.to_f32()).collect())
}

impl From<&FactorPath> for Binary {
    fn from(p: &FactorPath) -> Self {
        Self::new(scales_of(p), |i, k| p.u.is_plus(i, k), |k, j| p.vt.is_plus(k, j))
    }
}

/// The weight of a linear layer.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Row-major `d_out x d_in`.
    Dense(Dense),
    /// Sum of paths.
    Binary(Vec<Binary>),
    /// Dense in little precision, for forward passes only.
    Coarse(Coarse),
}

/// A linear layer `y = scale x W^T + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Name of the weight in the GGUF.
    pub name: String,
    /// Outputs.
    pub d_out: usize,
    /// Inputs.
    pub d_in: usize,
    /// The weight.
    pub weight: Weight,
    /// Factor of the product, 1 for nearly all models (`*.scale` of the GGUF).
    pub scale: f32,
    /// Added to every output row.
    pub bias: Option<Vec<f32>>,
    /// Where the products of both passes are formed, if the layers beside it are there, too.
    pub place: Place,
}

/// What the backward pass of a factorized layer needs of the forward pass, one entry for each path:
/// latents `V^T (g x)` (`tokens x r`) and outputs before h (`tokens x d_out`).
#[derive(Clone, Debug, Default)]
pub struct LinearTape(Vec<(Vec<f32>, Vec<f32>)>);

impl LinearTape {
    /// Whether it has what a backward pass of `l` on the CPU needs.
    pub(super) fn serves(&self, l: &Linear) -> bool {
        !matches!(l.weight, Weight::Binary(_)) || !self.0.is_empty()
    }
}

/// Gradients of one path.
#[derive(Clone, Debug)]
pub struct FactorGrad {
    /// Of h, l and g.
    pub scales: [Vec<f32>; 3],
    /// Of U (`d_out x r`) and V^T (`r x d_in`), as if their elements were real numbers; `None` if they are fixed.
    pub signs: Option<[Vec<f32>; 2]>,
}

/// What gradients are taken of, beside all norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// Scales of factorized layers.
    Scales,
    /// Scales and signs of factorized layers.
    Factors,
    /// All of these and dense weights.
    Everything,
}

/// Gradients of the trained parameters of a layer.
#[derive(Clone, Debug)]
pub enum LinearGrad {
    /// Of a dense weight, `d_out x d_in`.
    Dense(Vec<f32>),
    /// Of the factors of every path.
    Factors(Vec<FactorGrad>),
    /// No gradient, but what the loss feels of errors in a dense weight.
    Fisher(Fisher),
}

impl LinearGrad {
    /// Adds the gradient of the same parameters.
    pub fn add(&mut self, other: &LinearGrad) {
        let add = |to: &mut [f32], from: &[f32]| to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        match (self, other) {
            (LinearGrad::Dense(to), LinearGrad::Dense(from)) => add(to, from),
            (LinearGrad::Factors(to), LinearGrad::Factors(from)) => {
                for (to, from) in to.iter_mut().zip(from) {
                    to.scales.iter_mut().zip(&from.scales).for_each(|(a, b)| add(a, b));
                    let signs = to.signs.iter_mut().flatten().zip(from.signs.iter().flatten());
                    signs.for_each(|(a, b)| add(a, b));
                }
            }
            (LinearGrad::Fisher(to), LinearGrad::Fisher(from)) => to.add_sums(from),
            _ => unreachable!("gradients of different parameters"),
        }
    }
}

impl Linear {
    /// The same layer with a dense weight in little precision.
    pub fn coarse(&self) -> Linear {
        let weight = match &self.weight {
            Weight::Dense(w) => {
                let value = |i: usize, j: usize| w[i * self.d_in + j];
                Weight::Coarse(Coarse::on(&self.place, &self.name, self.d_out, self.d_in, value))
            }
            other => other.clone(),
        };
        let (name, bias, place) = (self.name.clone(), self.bias.clone(), self.place.clone());
        Linear { weight, name, bias, place, ..*self }
    }

    /// Sets the precision of products with factors.
    pub fn set_precision(&mut self, precision: Precision) {
        if let Weight::Binary(paths) = &mut self.weight {
            paths.iter_mut().for_each(|p| p.precision = precision);
        }
    }

    /// `x W^T + b` for `tokens` rows, and the tape.
    pub fn forward(&self, x: &[f32]) -> (Vec<f32>, LinearTape) {
        let tokens = x.len() / self.d_in;
        let mut y = match &self.weight {
            Weight::Coarse(w) => w.product(x),
            _ => vec![0f32; tokens * self.d_out],
        };
        let mut tape = Vec::new();
        match &self.weight {
            Weight::Dense(w) => times_transposed(&mut y, x, w, self.d_out, self.d_in, false),
            Weight::Coarse(_) => {}
            Weight::Binary(paths) => {
                for p in paths {
                    let latent = p.vt.product(x, &p.g, p.precision);
                    let raw = p.u.product(&latent, &p.l, p.precision);
                    y.par_chunks_mut(self.d_out).zip(raw.par_chunks(self.d_out)).for_each(|(y, raw)| {
                        y.iter_mut().zip(raw).zip(&p.h).for_each(|((y, r), h)| *y += r * h);
                    });
                    tape.push((latent, raw));
                }
            }
        }
        if self.scale != 1.0 {
            y.iter_mut().for_each(|y| *y *= self.scale);
        }
        if let Some(b) = &self.bias {
            y.par_chunks_mut(self.d_out).for_each(|y| y.iter_mut().zip(b).for_each(|(y, b)| *y += b));
        }
        (y, LinearTape(tape))
    }

    /// Gradient with respect to `x`, added to `dx`; those of the parameters are added to `grad` if given.
    pub fn backward(
        &self,
        x: &[f32],
        tape: &LinearTape,
        dy: &[f32],
        dx: &mut [f32],
        grad: Option<&mut LinearGrad>,
    ) {
        let scaled: Vec<f32>;
        let dy = if self.scale == 1.0 {
            dy
        } else {
            scaled = dy.iter().map(|d| d * self.scale).collect();
            &scaled
        };
        match (&self.weight, grad) {
            (Weight::Dense(w), grad) => {
                times(dx, dy, w, self.d_in, self.d_out, true);
                match grad {
                    Some(LinearGrad::Dense(dw)) => transposed_times(dw, dy, x, self.d_in, self.d_out, true),
                    Some(LinearGrad::Fisher(f)) => f.add([self.d_out, self.d_in], w, x, dy),
                    _ => {}
                }
            }
            (Weight::Coarse(_), _) => unreachable!("coarse weights are for forward passes"),
            (Weight::Binary(paths), mut grad) => {
                for (i, (p, (latent, raw))) in paths.iter().zip(&tape.0).enumerate() {
                    let d_latent = p.ut.product(dy, &p.h, p.precision);
                    let d_input = p.v.product(&d_latent, &p.l, p.precision);
                    if let Some(LinearGrad::Factors(grads)) = grad.as_deref_mut() {
                        let [dh, dl, dg] = &mut grads[i].scales;
                        add_column_dots(dh, dy, raw);
                        add_column_dots(dl, &d_latent, latent);
                        add_column_dots(dg, &d_input, x);
                        if let Some([du, dvt]) = &mut grads[i].signs {
                            add_outer(du, [dy, latent], [&p.h, &p.l]);
                            add_outer(dvt, [&d_latent, x], [&p.l, &p.g]);
                        }
                    }
                    dx.par_chunks_mut(self.d_in).zip(d_input.par_chunks(self.d_in)).for_each(|(dx, d)| {
                        dx.iter_mut().zip(d).zip(&p.g).for_each(|((dx, d), g)| *dx += d * g);
                    });
                }
            }
        }
    }

    /// A gradient of zeros, `None` if nothing of the layer is trained.
    pub fn zero_grad(&self, trained: Trained) -> Option<LinearGrad> {
        match &self.weight {
            Weight::Dense(w) => {
                (trained == Trained::Everything).then(|| LinearGrad::Dense(vec![0.0; w.len()]))
            }
            Weight::Coarse(_) => None,
            Weight::Binary(paths) => {
                let zeros = |p: &Binary| {
                    let (m, r, n) = (p.h.len(), p.l.len(), p.g.len());
                    let signs = (trained != Trained::Scales).then(|| [vec![0.0; m * r], vec![0.0; r * n]]);
                    FactorGrad { scales: [m, r, n].map(|n| vec![0.0; n]), signs }
                };
                Some(LinearGrad::Factors(paths.iter().map(zeros).collect()))
            }
        }
    }
}

/// `x` with column j times `scale[j]`.
pub(super) fn columns(x: &[f32], scale: &[f32]) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    let n = scale.len();
    y.par_chunks_mut(n).zip(x.par_chunks(n)).with_min_len(16).for_each(|(y, x)| {
        y.iter_mut().zip(x).zip(scale).for_each(|((y, x), s)| *y = x * s);
    });
    y
}

/// `out[j] += sum_t a[t, j] b[t, j]`.
fn add_column_dots(out: &mut [f32], a: &[f32], b: &[f32]) {
    let n = out.len();
    let parts: Vec<Vec<f32>> = a
        .par_chunks(ROWS * n)
        .zip(b.par_chunks(ROWS * n))
        .map(|(a, b)| {
            let mut part = vec![0f32; n];
            for (a, b) in a.chunks_exact(n).zip(b.chunks_exact(n)) {
                part.iter_mut().zip(a).zip(b).for_each(|((o, a), b)| *o += a * b);
            }
            part
        })
        .collect();
    parts.iter().for_each(|part| out.iter_mut().zip(part).for_each(|(o, p)| *o += p));
}
