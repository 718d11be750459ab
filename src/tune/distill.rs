//! Distillation of the source's logits into scales and norms.

use super::adam::Relative;
use super::parameters::{Kind, visit};
use super::teacher::Teacher;
use crate::decoder::{Model, Precision, exp_sum};
use rayon::prelude::*;

/// How to distil.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Steps, one window each.
    pub steps: usize,
    /// Highest rate of relative scales.
    pub rate: f32,
    /// Steps over which the rate rises.
    pub warm_up: usize,
    /// Every how many positions a loss is taken; the offset alternates between passes over the text.
    pub stride: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { steps: 200, rate: 0.012, warm_up: 8, stride: 2 }
    }
}

/// One finished step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// From 1.
    pub step: usize,
    /// Of how many.
    pub steps: usize,
    /// Mean KL divergence of the step's positions, nats.
    pub kld: f64,
}

/// Minimises the mean KL divergence of `model`'s next-token distribution from the source's over `windows`, by Adam on
/// relative changes of all scales and norms. The rate rises linearly, then falls linearly to a twentieth.
pub fn distill(
    model: &mut Model,
    source_head: &Model,
    teacher: &Teacher,
    windows: &[Vec<u32>],
    settings: &Settings,
    mut progress: impl FnMut(Step),
) {
    let d = model.config.d_model;
    let mut states: Vec<Relative> = Vec::new();
    model.set_precision(Precision::Coarse);
    let zero = model.zero_grad(false);
    visit(model, &zero, |_, p, _| states.push(Relative::new(p)));
    for k in 0..settings.steps {
        let w = k % windows.len();
        let (tokens, length) = (&windows[w], windows[w].len());
        let first = (k / windows.len() + k) % settings.stride;
        let positions: Vec<usize> = (first..length).step_by(settings.stride).collect();
        let tape = model.forward(tokens, length);
        let rows: Vec<f32> = positions.iter().flat_map(|&p| &tape.x[p * d..(p + 1) * d]).copied().collect();
        let logits = model.logits(&model.normed(&rows));
        let wanted = source_head.logits(&teacher.rows(w, positions.iter().copied(), d));
        let (kld, mut d_logits) = kl(&logits, wanted, model.vocabulary());
        let mut grad = model.zero_grad(false);
        let d_rows = model.head_backward(&rows, &logits, &mut d_logits, &mut grad.norm);
        let mut dx = vec![0f32; tape.x.len()];
        for (row, &p) in d_rows.chunks_exact(d).zip(&positions) {
            dx[p * d..(p + 1) * d].copy_from_slice(row);
        }
        model.backward(&tape, dx, length, &mut grad);

        let progressed = k as f32 / settings.steps as f32;
        let rise = ((k + 1) as f32 / settings.warm_up.max(1) as f32).min(1.0);
        let rate = settings.rate * rise * (1.0 - 0.95 * progressed);
        let mut square = 0.0;
        let mut i = 0;
        visit(model, &grad, |_, _, g| {
            square += states[i].gradient_square(g);
            i += 1;
        });
        // A gradient longer than 1 (bad windows, first steps) must not fill the squares' memory.
        let factor = if square.is_finite() { (1.0 / square.sqrt()).min(1.0) as f32 } else { 0.0 };
        i = 0;
        visit(model, &grad, |kind, p, g| {
            let rate = if kind == Kind::Norm { 0.5 * rate } else { rate };
            if factor > 0.0 {
                states[i].step(k as i32 + 1, rate, factor, g, p);
            }
            i += 1;
        });
        progress(Step { step: k + 1, steps: settings.steps, kld });
    }
    model.set_precision(Precision::Fine);
}

/// Mean KL divergence of rows of `logits` from those of `wanted`, and its gradient with respect to `logits`.
fn kl(logits: &[f32], mut wanted: Vec<f32>, vocabulary: usize) -> (f64, Vec<f32>) {
    let rows = logits.len() / vocabulary;
    let mut gradient = logits.to_vec();
    let sum: f64 = gradient
        .par_chunks_mut(vocabulary)
        .zip(wanted.par_chunks_mut(vocabulary))
        .map(|(q, p)| {
            // KL = sum p (x_p - x_q) + log Zq - log Zp, and its gradient is (q - p) / rows.
            let max = |x: &[f32]| x.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
            let (top_p, top_q) = (max(p), max(q));
            let difference: Vec<f32> = p.iter().zip(&*q).map(|(p, q)| p - q).collect();
            let (sum_p, sum_q) = (exp_sum(p, top_p), exp_sum(q, top_q));
            let (by_p, by_q) = (1.0 / sum_p, 1.0 / sum_q);
            let mean: f64 = p.iter().zip(&difference).map(|(p, d)| f64::from(p * by_p * d)).sum();
            let each = 1.0 / rows as f32;
            q.iter_mut().zip(&*p).for_each(|(q, p)| *q = (*q * by_q - p * by_p) * each);
            let log = |sum: f32, top: f32| f64::from(sum).ln() + f64::from(top);
            mean + log(sum_q, top_q) - log(sum_p, top_p)
        })
        .collect::<Vec<f64>>()
        .iter()
        .sum();
    (sum / rows as f64, gradient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_and_its_gradient() {
        let wanted = vec![0.3f32, -1.0, 2.0, 0.5, 0.1, 0.0];
        let logits = vec![1.0f32, 0.2, -0.5, 0.5, 0.1, 0.0];
        let (value, gradient) = kl(&logits, wanted.clone(), 3);
        assert!(gradient[3..].iter().all(|g| g.abs() < 1e-7), "equal rows have no gradient");
        assert!(kl(&wanted, wanted.clone(), 3).0.abs() < 1e-7);
        for i in 0..3 {
            let mut moved = logits.clone();
            moved[i] += 1e-2;
            let up = kl(&moved, wanted.clone(), 3).0;
            moved[i] -= 2e-2;
            let numeric = (up - kl(&moved, wanted.clone(), 3).0) / 2e-2;
            assert!((numeric - f64::from(gradient[i])).abs() < 1e-4, "{numeric} against {}", gradient[i]);
        }
        assert!(value > 0.0);
    }
}
