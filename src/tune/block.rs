//! Tuning of one factorized block towards the block of the source: its outputs on the compressed stream are to be those
//! of the source's block on the source's stream.

use super::adam::Relative;
use super::descent::Descent;
use super::latent::Latents;
use super::parameters::{Kind, visit_block};
use crate::decoder::{
    Binary, Block, BlockGrad, Config, LinearGrad, Rotation, Trained, Weight, token_weights,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How to tune.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockSettings {
    /// Passes over the windows; none leaves the block as it is.
    pub passes: usize,
    /// Highest rate of relative scales; norms learn at half of it.
    pub rate: f32,
    /// Highest rate of the latents of signs, in units of the mean margin.
    pub sign_rate: f32,
    /// How far a latent may move in all steps together, in the same units. Adam's steps do not tell a weak gradient from a
    /// strong one, so whatever lies within this distance turns in the end if its gradient only keeps its direction.
    pub sign_travel: f32,
    /// Steps over which the rates rise.
    pub warm_up: usize,
    /// Windows a step; they run beside each other.
    pub batch: usize,
}

impl Default for BlockSettings {
    fn default() -> Self {
        Self { passes: 2, rate: 0.012, sign_rate: 0.02, sign_travel: 0.7, warm_up: 4, batch: 2 }
    }
}

/// What a block is tuned on.
#[derive(Clone, Copy)]
pub struct BlockTask<'a> {
    /// Graph of the model.
    pub config: &'a Config,
    /// Of this block.
    pub rotation: &'a Rotation,
    /// Compressed stream before the block, by window: `length x d_model`.
    pub inputs: &'a [Vec<f32>],
    /// Source's stream after the block.
    pub targets: &'a [Vec<f32>],
    /// Weight of every window.
    pub shares: &'a [f32],
    /// Weight of every channel of the residual stream.
    pub channels: &'a [f32],
    /// Tokens of a window.
    pub length: usize,
}

/// What of a block's tuning was kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// Signs, scales and norms.
    #[default]
    All,
    /// Scales and norms, tuned once more without the signs: with them the error had grown.
    Scales,
    /// Nothing: the error grew either way.
    Nothing,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockOutcome {
    /// Mean relative error of the block's outputs in the first eighth of the steps and in the last.
    pub errors: [f64; 2],
    /// Share of the signs that turned, counted again if they turn back.
    pub flips: f64,
    /// What was kept.
    pub kept: Kept,
}

/// Every so many windows tell whether tuning was of use.
const SAMPLE: usize = 8;

/// The parameters' states in the order of [`visit_block`].
struct States {
    scales: Vec<Relative>,
    latents: Vec<[Latents; 2]>,
}

impl BlockTask<'_> {
    /// Tunes signs, scales and norms of `block` by Adam. `margins` are those of [`crate::factorize::polish::margins`]
    /// for every path of the factorized layers in the order of the graph; without any, signs stay. A token counts with weight
    /// `min(1, median norm / norm)` besides the window's. What leaves the block with a larger error than it had is undone ([`Kept`]).
    pub fn tune(
        &self,
        block: &mut Block,
        margins: &[[Vec<f32>; 2]],
        settings: &BlockSettings,
    ) -> BlockOutcome {
        let (start, before) = (block.clone(), self.error_of(block, SAMPLE));
        let gained = |block: &Block| self.error_of(block, SAMPLE) <= before; // not so for NaN
        let outcome = self.tune_from(block, margins, settings);
        if gained(block) {
            return outcome;
        }
        if !margins.is_empty() {
            *block = start.clone();
            let outcome = self.tune_from(block, &[], settings);
            if gained(block) {
                return BlockOutcome { kept: Kept::Scales, ..outcome };
            }
        }
        *block = start;
        BlockOutcome { errors: [before; 2], flips: 0.0, kept: Kept::Nothing }
    }

    fn tune_from(
        &self,
        block: &mut Block,
        margins: &[[Vec<f32>; 2]],
        settings: &BlockSettings,
    ) -> BlockOutcome {
        let descent = Descent::new(settings.passes, self.inputs.len(), settings.batch, settings.warm_up);
        let mut states = States { scales: Vec::new(), latents: Vec::new() };
        let zero = block.zero_grad(Trained::Scales);
        visit_block(block, &zero, |_, p, _| states.scales.push(Relative::new(p)));
        let mut all = 0usize;
        for (path, margins) in paths(block).into_iter().zip(margins) {
            let [u, vt] = path.signs();
            all += u.len() + vt.len();
            states.latents.push([Latents::new(&u, &margins[0]), Latents::new(&vt, &margins[1])]);
        }
        let distance: f32 = (0..descent.steps).map(|k| descent.level(k)).sum();
        let sign_rate = settings.sign_rate.min(settings.sign_travel / distance.max(f32::MIN_POSITIVE));
        let mut turned = 0usize;
        let zero = |block: &Block| block.zero_grad(Trained::Factors);
        let errors = self.descend(block, &descent, zero, |block, grad, k| {
            let (level, t) = (descent.level(k), k as i32 + 1);
            let mut scales = states.scales.iter_mut();
            visit_block(block, grad, |kind, p, g| {
                let rate = settings.rate * level * if kind == Kind::Norm { 0.5 } else { 1.0 };
                scales.next().expect("one state a vector").step(t, rate, 1.0, g, p);
            });
            if !states.latents.is_empty() && sign_rate > 0.0 {
                turned += turn(block, grad, &mut states.latents, t, sign_rate * level);
            }
        });
        BlockOutcome { errors, flips: turned as f64 / all.max(1) as f64, kept: Kept::All }
    }

    /// Mean relative error over the windows as the block is.
    pub fn error(&self, block: &Block) -> f64 {
        self.error_of(block, 1)
    }

    /// The same over each `every`-th window.
    fn error_of(&self, block: &Block, every: usize) -> f64 {
        let one = |w: usize| {
            let x = self.inputs[w].clone();
            let y = block.forward(self.config, self.rotation, x, self.length).0;
            self.loss(&y, w).0
        };
        let all: Vec<f64> =
            (0..self.inputs.len().div_ceil(every)).into_par_iter().map(|w| one(w * every)).collect();
        all.iter().sum::<f64>() / all.len().max(1) as f64
    }

    /// Error of one window, whose gradient is added to `grad`.
    pub(super) fn window(&self, block: &Block, w: usize, grad: &mut BlockGrad) -> f64 {
        let (y, tape) = block.forward(self.config, self.rotation, self.inputs[w].clone(), self.length);
        let (error, dy) = self.loss(&y, w);
        block.backward(self.config, self.rotation, &tape, dy, self.length, grad);
        error
    }

    /// Weighed squared distance of `y` from the target relative to the target, and its gradient.
    fn loss(&self, y: &[f32], w: usize) -> (f64, Vec<f32>) {
        let (d, target) = (self.config.d_model, &self.targets[w]);
        let weights = token_weights(target, d);
        let (mut error, mut size) = (0f64, 0f64);
        let mut dy = vec![0f32; y.len()];
        let rows = dy.chunks_exact_mut(d).zip(y.chunks_exact(d)).zip(target.chunks_exact(d)).zip(&weights);
        for (((dy, y), target), weight) in rows {
            let weight = weight * weight;
            let (mut e2, mut t2) = (0f32, 0f32);
            for i in 0..d {
                let (c, e) = (weight * self.channels[i], y[i] - target[i]);
                dy[i] = c * e;
                e2 += c * e * e;
                t2 += c * target[i] * target[i];
            }
            error += f64::from(e2);
            size += f64::from(t2);
        }
        let factor = 2.0 * self.shares[w] / (size as f32).max(f32::MIN_POSITIVE);
        dy.iter_mut().for_each(|x| *x *= factor);
        (error / size.max(f64::MIN_POSITIVE), dy)
    }
}

/// Factorized paths in the order of the graph.
fn paths(block: &mut Block) -> Vec<&mut Binary> {
    let mut out = Vec::new();
    for l in block.linears.iter_mut().flatten() {
        if let Weight::Binary(paths) = &mut l.weight {
            out.extend(paths);
        }
    }
    out
}

/// Moves the latents and turns the signs that follow; returns how many.
fn turn(block: &mut Block, grad: &BlockGrad, latents: &mut [[Latents; 2]], t: i32, rate: f32) -> usize {
    let grads = grad.linears.iter().flatten().filter_map(|g| match g {
        Some(LinearGrad::Factors(g)) => Some(g),
        _ => None,
    });
    let mut turned = 0;
    for ((path, grad), [u, vt]) in paths(block).into_iter().zip(grads.flatten()).zip(latents) {
        let Some([du, dvt]) = &grad.signs else { continue };
        let (r, d_in) = (path.l.len(), path.g.len());
        let places = u.step(t, rate, du);
        places.iter().for_each(|at| path.turn_u(at / r, at % r));
        turned += places.len();
        let places = vt.step(t, rate, dvt);
        places.iter().for_each(|at| path.turn_vt(at / d_in, at % d_in));
        turned += places.len();
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::small;
    use crate::decoder::{Model, Precision};
    use crate::tune::Absorption;

    const LENGTH: usize = 7;

    /// Residual stream before the blocks, of window `w`.
    fn stream(model: &Model, w: usize) -> Vec<f32> {
        model.embed(&(0..LENGTH).map(|t| ((t * t + 3 * w) % 11) as u32).collect::<Vec<u32>>())
    }

    fn task<'a>(
        model: &'a Model,
        rotation: &'a Rotation,
        inputs: &'a [Vec<f32>],
        targets: &'a [Vec<f32>],
    ) -> BlockTask<'a> {
        let (config, shares, channels) = (&model.config, &[1.0; 8], &[1.0; 12]);
        BlockTask { config, rotation, inputs, targets, shares, channels, length: LENGTH }
    }

    /// Tunes the factorized block of a small model towards the same block with other scales and signs.
    fn run(threads: usize, sign_travel: f32) -> (f64, f64, BlockOutcome, Vec<[Vec<f32>; 2]>) {
        let model = small();
        let rotations = model.rotations(LENGTH);
        let source = &model.blocks[1];
        let rotation = source.rotation(&rotations);
        let inputs: Vec<Vec<f32>> = (0..8).map(|w| stream(&model, w)).collect();
        let forward = |x: &Vec<f32>| source.forward(&model.config, rotation, x.clone(), LENGTH).0;
        let targets: Vec<Vec<f32>> = inputs.iter().map(forward).collect();
        let mut block = source.clone();
        for p in paths(&mut block) {
            p.precision = Precision::Full;
            p.l.iter_mut().for_each(|l| *l *= 1.3);
            (0..6).for_each(|k| p.turn_u(k, k));
        }
        // All signs are equally cheap to turn, so the wrong ones can come back.
        let flat = |p: &mut Binary| p.signs().map(|s| vec![1.0; s.len()]);
        let margins: Vec<[Vec<f32>; 2]> = paths(&mut block).into_iter().map(flat).collect();
        let task = task(&model, rotation, &inputs, &targets);
        let settings = BlockSettings { passes: 40, sign_rate: 0.05, sign_travel, ..BlockSettings::default() };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let before = task.error(&block);
            let outcome = task.tune(&mut block, &margins, &settings);
            let after = task.error(&block);
            (before, after, outcome, paths(&mut block).into_iter().map(|p| p.signs()).collect())
        })
    }

    #[test]
    fn the_error_falls_and_signs_turn() {
        let (before, after, outcome, signs) = run(1, 5.0);
        assert!(after < 0.3 * before, "{after} after {before}");
        assert!(outcome.flips > 0.0);
        assert!(outcome.errors[1] < outcome.errors[0]);
        let (_, other, _, others) = run(3, 5.0);
        assert_eq!((after, signs), (other, others), "threads change the result");
    }

    /// Signs that turn for nothing are taken back and the scales are tuned alone; where that does not help either, the block stays as it was.
    #[test]
    fn what_makes_a_block_worse_is_undone() {
        let model = small();
        let rotations = model.rotations(LENGTH);
        let source = &model.blocks[1];
        let rotation = source.rotation(&rotations);
        let inputs: Vec<Vec<f32>> = (0..8).map(|w| stream(&model, w)).collect();
        let mut exact = source.clone();
        paths(&mut exact).into_iter().for_each(|p| p.precision = Precision::Full);
        let forward = |x: &Vec<f32>| exact.forward(&model.config, rotation, x.clone(), LENGTH).0;
        let targets: Vec<Vec<f32>> = inputs.iter().map(forward).collect();
        let task = task(&model, rotation, &inputs, &targets);
        let flat = |p: &mut Binary| p.signs().map(|s| vec![1.0; s.len()]);
        let margins: Vec<[Vec<f32>; 2]> = paths(&mut exact.clone()).into_iter().map(flat).collect();
        let wild =
            BlockSettings { passes: 20, sign_rate: 50.0, sign_travel: 1e6, ..BlockSettings::default() };
        let signs = |block: &mut Block| -> Vec<_> { paths(block).into_iter().map(|p| p.signs()).collect() };

        let off_by = |factor: f32| {
            let mut block = exact.clone();
            paths(&mut block).into_iter().for_each(|p| p.l.iter_mut().for_each(|l| *l *= factor));
            block
        };
        let mut block = off_by(1.0001);
        let before = task.error(&block);
        let outcome = task.tune(&mut block, &margins, &BlockSettings { rate: 3.0, ..wild });
        assert_eq!((outcome.kept, outcome.flips, task.error(&block)), (Kept::Nothing, 0.0, before));

        let mut block = off_by(1.3);
        let before = task.error(&block);
        let outcome = task.tune(&mut block, &margins, &wild);
        let after = task.error(&block);
        assert_eq!(outcome.kept, Kept::Scales);
        assert!(after < before, "{after} after {before}");
        assert_eq!(signs(&mut block), signs(&mut exact));
    }

    /// The gradient of every trained vector along a random direction, against differences of the loss itself.
    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let model = small();
        let rotations = model.rotations(LENGTH);
        // Weights of windows and channels that are not all alike, and a token that counts less.
        let (shares, window) = ([0.5, 1.7], 1);
        let channels: Vec<f32> = (0..12).map(|c| 0.4 + 0.1 * c as f32).collect();
        for (b, trained) in [(0, Trained::Everything), (1, Trained::Factors)] {
            let source = &model.blocks[b];
            let rotation = source.rotation(&rotations);
            let inputs: Vec<Vec<f32>> = (0..2).map(|w| stream(&model, w)).collect();
            let target = |x: &Vec<f32>| {
                let mut y = source.forward(&model.config, rotation, x.clone(), LENGTH).0;
                y.iter_mut().enumerate().for_each(|(i, y)| *y += 0.3 * (i as f32).sin());
                y[..12].iter_mut().for_each(|y| *y *= 4.0);
                y
            };
            let targets: Vec<Vec<f32>> = inputs.iter().map(target).collect();
            let (shares, channels) = (&shares[..], &channels[..]);
            let config = &model.config;
            let task = BlockTask {
                config,
                rotation,
                inputs: &inputs,
                targets: &targets,
                shares,
                channels,
                length: LENGTH,
            };
            let mut grad = source.zero_grad(trained);
            task.window(source, window, &mut grad);
            // By its definition.
            let loss = |block: &Block| {
                let y = block.forward(config, rotation, inputs[window].clone(), LENGTH).0;
                let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                let mut norms: Vec<f64> = targets[window].chunks(12).map(norm).collect();
                let tokens = norms.clone();
                norms.sort_by(f64::total_cmp);
                let (mut error, mut size) = (0.0, 0.0);
                for (i, (y, target)) in y.iter().zip(&targets[window]).enumerate() {
                    let weight =
                        (norms[LENGTH / 2] / tokens[i / 12]).min(1.0).powi(2) * f64::from(channels[i % 12]);
                    error += weight * f64::from(y - target).powi(2);
                    size += weight * f64::from(*target).powi(2);
                }
                f64::from(shares[window]) * error / size
            };
            let mut vectors = 0;
            let mut check = |what: &str, grad: &[f32], pick: &dyn Fn(&mut Block) -> &mut [f32]| {
                let along: Vec<f32> =
                    (0..grad.len()).map(|i| ((7 * i + vectors) as f32 * 0.9).sin()).collect();
                let at = |t: f32| {
                    let mut block = source.clone();
                    pick(&mut block).iter_mut().zip(&along).for_each(|(p, a)| *p += t * a);
                    loss(&block)
                };
                let e = 4e-3f32;
                let numeric = (8.0 * (at(e) - at(-e)) - (at(2.0 * e) - at(-2.0 * e))) / (12.0 * f64::from(e));
                let exact: f64 = grad.iter().zip(&along).map(|(g, a)| f64::from(g * a)).sum();
                let norm = grad.iter().map(|g| g * g).sum::<f32>().sqrt();
                assert!(norm > 1e-4, "{b} {what}: the gradient vanishes");
                let off = (numeric - exact).abs();
                assert!(
                    off < 5e-3 * f64::from(norm) + 2e-4,
                    "{b} {what}: {numeric} against {exact}, norm {norm}"
                );
                vectors += 1;
            };
            for (n, g) in grad.norms.iter().enumerate() {
                check(&format!("norm {n}"), g, &|b| b.norm_list().swap_remove(n));
            }
            for (s, grads) in grad.linears.iter().enumerate() {
                for (j, g) in grads.iter().enumerate() {
                    let what = format!("site {s} layer {j}");
                    match g.as_ref().unwrap() {
                        LinearGrad::Dense(g) => check(&what, g, &|b| match &mut b.linears[s][j].weight {
                            Weight::Dense(w) => &mut w[..],
                            _ => unreachable!(),
                        }),
                        LinearGrad::Factors(paths) => {
                            for (p, k) in (0..paths.len()).flat_map(|p| [(p, 0), (p, 1), (p, 2)]) {
                                check(&what, &paths[p].scales[k], &|b| match &mut b.linears[s][j].weight {
                                    Weight::Binary(all) => {
                                        let Binary { h, l, g, .. } = &mut all[p];
                                        let scales: [&mut [f32]; 3] = [h, l, g];
                                        scales.into_iter().nth(k).expect("three vectors")
                                    }
                                    _ => unreachable!(),
                                });
                            }
                        }
                        LinearGrad::Fisher(_) => unreachable!("gradients were asked for"),
                    }
                }
            }
            // Norms; 5 dense layers and 3 paths, or 5 paths.
            assert_eq!(vectors, 6 + if b == 0 { 5 + 3 * 3 } else { 3 * 5 });
        }
    }

    #[test]
    fn dense_weights_absorb_what_factors_have_lost() {
        let model = small();
        let rotations = model.rotations(LENGTH);
        let source = &model.blocks[0];
        let rotation = source.rotation(&rotations);
        let forward = |w| source.forward(&model.config, rotation, stream(&model, w), LENGTH).0;
        let targets: Vec<Vec<f32>> = (0..8).map(forward).collect();
        // The stream before the block has drifted.
        let inputs = (0..8).map(|w| stream(&model, w).iter().map(|x| x * 1.2 + 0.02).collect());
        let inputs: Vec<Vec<f32>> = inputs.collect();
        let task = task(&model, rotation, &inputs, &targets);
        let mut block = source.clone();
        let dense = |block: &Block| -> Vec<Option<Vec<f32>>> {
            let weights = block.linears.iter().flatten().map(|l| match &l.weight {
                Weight::Dense(w) => Some(w.to_vec()),
                _ => None,
            });
            weights.collect()
        };
        let before = (task.error(&block), dense(&block));
        let settings = Absorption { passes: 20, rate: 0.02, ..Absorption::default() };
        let kept = block.linears[3][0].name.clone();
        let errors = task.absorb(&mut block, |l| l.name != kept, &settings);
        let after = (task.error(&block), dense(&block));
        assert!(after.0 < 0.7 * before.0 && errors[1] < errors[0], "{} after {}", after.0, before.0);
        let names = block.linears.iter().flatten().map(|l| &l.name);
        for (name, (a, b)) in names.zip(before.1.iter().zip(&after.1)) {
            assert_eq!(a == b, *name == kept || a.is_none(), "{name}");
        }
    }

    #[test]
    fn latents_move_no_further_than_they_may() {
        // All lie at the mean margin: within the first distance of zero, out of the second.
        assert!(run(2, 1.5).2.flips > 0.0);
        assert_eq!(run(2, 0.7).2.flips, 0.0);
    }
}
