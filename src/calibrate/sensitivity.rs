//! What the loss of the source model feels of errors in each of its weights.
//!
//! For small errors the divergence of the predictions is half their square in the Fisher metric. With labels drawn from
//! the model's own predictions, one backward pass estimates it: an error D of the weight W costs
//!
//! ```text
//! 1/2 tr(A D H D^T),   A = diag_i( sum_t g_ti^2 |x_t|^2 / sum_t |x_t|^2 ),   H = 1/T sum_t x_t x_t^T
//! ```
//!
//! nats a token, where tokens count by the energy of their input. The squared singular values of `A^1/2 W H^1/2` say
//! how much of this a weight stands for and into how few dimensions it is packed: what they sum up to is the
//! cost of leaving W out, and those below a level theta cost least if they are left out.

use crate::decoder::{Block, BlockGrad, Fisher, Linear, LinearGrad, Model, Weight, exp_below_max};
use crate::error::{Error, Result};
use faer::{Mat, Side};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Ridges of a moment matrix, relative to its mean, of which the first that makes it definite is taken.
const RIDGES: [f64; 6] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];

/// Of one weight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sensitivity {
    /// Name of the weight.
    pub name: String,
    /// Half the squared singular values of `A^1/2 W H^1/2`, falling: nats a token.
    pub spectrum: Vec<f32>,
    /// The diagonal of A.
    pub output: Vec<f32>,
}

/// Those of all weights, by name.
pub fn by_name(all: &[Sensitivity]) -> HashMap<String, Sensitivity> {
    all.iter().map(|s| (s.name.clone(), s.clone())).collect()
}

/// Measures all dense weights of the blocks of `model` on `windows`. Its blocks are read by `read`, each twice, one at a
/// time; the inputs of all of them are kept. `progress` is called after each of the steps (twice the number of blocks).
///
/// # Errors
/// Those of `read`, and [`Error::Numeric`] if the model's predictions are not finite.
pub fn measure(
    model: &Model,
    read: impl Fn(usize) -> Result<Block>,
    windows: &[&[u32]],
    seed: u64,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Sensitivity>> {
    let (c, length) = (&model.config, windows[0].len());
    let rotations = model.rotations(length);
    let mut inputs: Vec<Vec<Vec<f32>>> = vec![windows.iter().map(|w| model.embed(w)).collect()];
    for b in 0..c.blocks {
        let block = read(b)?;
        let run = |x: &Vec<f32>| block.forward(c, block.rotation(&rotations), x.clone(), length).0;
        let next = inputs[b].iter().map(run).collect();
        inputs.push(next);
        progress(b + 1);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let last = inputs.pop().expect("there are inputs of the head");
    let mut gradients: Vec<Vec<f32>> = last.iter().map(|x| head(model, x, &mut rng)).collect();
    let mut all = Vec::new();
    for b in (0..c.blocks).rev() {
        let block = read(b)?;
        let mut sums = block.zero_fisher();
        let rotation = block.rotation(&rotations);
        for (x, g) in inputs.pop().expect("one entry a block").into_iter().zip(&mut gradients) {
            let tape = block.forward(c, rotation, x, length).1;
            *g = block.backward(c, rotation, &tape, std::mem::take(g), length, &mut sums);
        }
        all.extend(of_block(&block, &sums, windows.len() * length)?);
        progress(2 * c.blocks - b);
    }
    Ok(all)
}

fn of_block(block: &Block, sums: &BlockGrad, tokens: usize) -> Result<Vec<Sensitivity>> {
    let all = block.linears.iter().flatten().zip(sums.linears.iter().flatten());
    all.filter_map(|(l, sums)| match (&l.weight, sums) {
        (Weight::Dense(w), Some(LinearGrad::Fisher(f))) => Some(of_layer(l, w, f, tokens)),
        _ => None,
    })
    .collect()
}

fn of_layer(l: &Linear, w: &[f32], f: &Fisher, tokens: usize) -> Result<Sensitivity> {
    let output: Vec<f32> = f.gradient.iter().map(|g| (f64::from(*g) / f.energy.max(1e-300)) as f32).collect();
    let d = l.d_out.min(l.d_in);
    let moment = |i: usize, j: usize| 0.5 * f64::from(f.moments[i * d + j]) / tokens as f64;
    let roots: Vec<f64> = output.iter().map(|&a| f64::from(a).sqrt()).collect();
    let failed = || Error::Numeric { matrix: l.name.clone(), what: "its sensitivity is not finite".into() };
    let gram = if l.d_out <= l.d_in {
        // A^1/2 (W H W^T) A^1/2, and the bracket is E[y y^T].
        Mat::from_fn(d, d, |i, j| roots[i] * moment(i, j) * roots[j])
    } else {
        // L^T (W^T A W) L with H = L L^T.
        let weighed = Mat::from_fn(l.d_out, d, |i, j| roots[i] * f64::from(w[i * d + j]));
        let mean = (0..d).map(|i| moment(i, i)).sum::<f64>() / d as f64;
        // Sums in f32 of fewer tokens than inputs, some of them massive, can be indefinite by more than the first ridge.
        let factors = RIDGES.iter().map(|ridge| {
            let ridge = ridge * mean + f64::MIN_POSITIVE;
            Mat::from_fn(d, d, |i, j| moment(i, j) + if i == j { ridge } else { 0.0 }).llt(Side::Lower)
        });
        let factor = factors.flatten().next().ok_or_else(failed)?;
        let product = &weighed * factor.L();
        product.transpose() * &product
    };
    let mut spectrum: Vec<f32> = match gram.self_adjoint_eigenvalues(Side::Lower) {
        Ok(values) => values.iter().map(|&v| v.max(0.0) as f32).collect(),
        Err(_) => return Err(failed()),
    };
    if spectrum.iter().any(|v| !v.is_finite()) {
        return Err(failed());
    }
    spectrum.sort_by(|a, b| b.total_cmp(a));
    Ok(Sensitivity { name: l.name.clone(), spectrum, output })
}

/// Gradient of the summed loss of labels drawn from the predictions, with respect to the rows before the last norm.
fn head(model: &Model, x: &[f32], rng: &mut ChaCha8Rng) -> Vec<f32> {
    let v = model.vocabulary();
    let logits = model.logits(&model.normed(x));
    let mut gradient = logits.clone();
    let draws: Vec<f32> = (0..gradient.len() / v).map(|_| rng.random()).collect();
    gradient.par_chunks_mut(v).zip(draws).for_each(|(q, draw)| {
        let by = 1.0 / exp_below_max(q).1;
        let mut left = draw;
        let mut label = None;
        for (i, q) in q.iter_mut().enumerate() {
            *q *= by;
            left -= *q;
            if left < 0.0 && label.is_none() {
                label = Some(i);
            }
        }
        q[label.unwrap_or(v - 1)] -= 1.0;
    });
    let mut norm = vec![0f32; model.norm.len()];
    model.head_backward(x, &logits, &mut gradient, &mut norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Place;
    use crate::decoder::tests::small;

    #[test]
    fn moments_that_rounding_made_indefinite_are_measured() {
        let (d_out, d, tokens) = (40, 24, 3);
        let x = |t: usize, j: usize| ((t * 31 + j * 17) as f32 * 0.37).sin();
        // Fewer tokens than inputs, and off by more than the first ridge.
        let moment = |i: usize, j: usize| {
            (0..tokens).map(|t| x(t, i) * x(t, j)).sum::<f32>() - if i == j { 3e-5 } else { 0.0 }
        };
        let moments = (0..d * d).map(|at| moment(at / d, at % d)).collect();
        let w: Vec<f32> = (0..d_out * d).map(|i| (i as f32 * 0.73).cos()).collect();
        let linear = Linear {
            name: "w".to_owned(),
            d_out,
            d_in: d,
            weight: Weight::Dense(w.clone().into()),
            place: Place::default(),
            bias: None,
            scale: 1.0,
        };
        let fisher = Fisher { gradient: vec![1.0; d_out], energy: 1.0, moments };
        let s = of_layer(&linear, &w, &fisher, tokens).unwrap();
        assert!(s.spectrum[0] > 0.0 && s.spectrum.iter().all(|v| v.is_finite()));
    }

    /// Mean divergence of the predictions of `b` from those of `a`.
    fn divergence(a: &Model, b: &Model, windows: &[&[u32]]) -> f64 {
        let mut sum = 0.0;
        let mut count = 0;
        for w in windows {
            let [p, q] = [a, b].map(|m| m.logits(&m.normed(&m.stream(w, w.len()))));
            for (p, q) in p.chunks_exact(a.vocabulary()).zip(q.chunks_exact(a.vocabulary())) {
                let log = |x: &[f32]| x.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
                let (zp, zq) = (log(p), log(q));
                let term = |(p, q): (&f32, &f32)| {
                    let (p, q) = (f64::from(*p) - zp, f64::from(*q) - zq);
                    p.exp() * (p - q)
                };
                sum += p.iter().zip(q).map(term).sum::<f64>();
                count += 1;
            }
        }
        sum / f64::from(count)
    }

    #[test]
    fn predicts_what_small_errors_cost() {
        let model = small();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let v = model.vocabulary() as u32;
        let windows: Vec<Vec<u32>> =
            (0..400).map(|_| (0..7).map(|_| rng.random_range(0..v)).collect()).collect();
        let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let all = measure(&model, |b| Ok(model.blocks[b].clone()), &windows, 3, |_| {}).unwrap();
        let dense = model.blocks.iter().flat_map(|b| b.linears.iter().flatten());
        assert_eq!(all.len(), dense.filter(|l| matches!(l.weight, Weight::Dense(_))).count());
        for s in &all {
            let d = s.spectrum.len();
            assert!(s.spectrum.is_sorted_by(|a, b| a >= b) && d > 0, "{}: {:?}", s.name, s.spectrum);
            // Errors of a thousandth of the energy, in proportion to the weights.
            let share = 1e-3f64;
            let cost: f64 = (0..8)
                .map(|_| {
                    let mut other = model.clone();
                    let all = other.blocks.iter_mut().flat_map(|b| b.linears.iter_mut().flatten());
                    let Weight::Dense(w) = &mut all.into_iter().find(|l| l.name == s.name).unwrap().weight
                    else {
                        panic!("{} is not dense", s.name)
                    };
                    let off = share.sqrt() as f32;
                    w.iter_mut().for_each(|w| *w *= 1.0 + if rng.random() { off } else { -off });
                    divergence(&model, &other, &windows[..100])
                })
                .sum::<f64>()
                / 8.0;
            let predicted = share * s.spectrum.iter().map(|&l| f64::from(l)).sum::<f64>();
            assert!((0.4..2.5).contains(&(cost / predicted)), "{}: {cost:e} against {predicted:e}", s.name);
        }
    }
}
