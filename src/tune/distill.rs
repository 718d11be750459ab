//! Distillation of the source's logits into scales and norms.

use super::adam::Relative;
use super::over_windows;
use super::parameters::{Kind, visit};
use super::teacher::Teacher;
use crate::calibrate::text::Mixture;
use crate::decoder::{Coarse, CoarseHead, Model, ModelGrad, Precision, Trained, exp_below_max};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When to end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Length {
    /// After this many steps.
    Steps(usize),
    /// After this time; the result depends on the speed of the machine.
    Time(Duration),
}

/// How to distil.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// How long.
    pub length: Length,
    /// Highest rate of relative scales.
    pub rate: f32,
    /// Steps over which the rate rises.
    pub warm_up: usize,
    /// Windows a step; they run beside each other.
    pub batch: usize,
    /// Every how many positions a loss is taken; the offset alternates between passes over the text.
    pub stride: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { length: Length::Steps(200), rate: 0.012, warm_up: 8, batch: 2, stride: 2 }
    }
}

/// One finished step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// From 1.
    pub step: usize,
    /// Of how many; an estimate if the time is what ends it.
    pub steps: usize,
    /// Mean KL divergence of the step's positions, nats.
    pub kld: f64,
}

/// All that a distillation has come to; goes on from it with the same bits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    settings: Settings,
    step: usize,
    spent: Duration,
    states: Vec<Relative>,
}

impl Checkpoint {
    /// When the run ends.
    pub fn length(&self) -> Length {
        self.settings.length
    }
}

/// Minimises the mean KL divergence of a model's next-token distribution from the source's, by Adam on relative
/// changes of all scales and norms. The rate rises linearly, then falls linearly to a twentieth.
pub struct Distillation<'a> {
    model: &'a mut Model,
    head: CoarseHead,
    /// Of the source, where it is another one.
    source_head: Option<Coarse>,
    teacher: &'a Teacher,
    text: &'a Mixture,
    state: Checkpoint,
}

impl<'a> Distillation<'a> {
    /// Begins with `model`; `source` has the source's head, and the windows of `text` are those of `teacher`.
    pub fn new(
        model: &'a mut Model,
        source: &Model,
        teacher: &'a Teacher,
        text: &'a Mixture,
        settings: Settings,
    ) -> Self {
        let mut states = Vec::new();
        model.set_precision(Precision::Coarse);
        let zero = model.zero_grad(Trained::Scales);
        visit(model, &zero, |_, p, _| states.push(Relative::new(p)));
        let state = Checkpoint { settings, step: 0, spent: Duration::ZERO, states };
        let source_head = (!Arc::ptr_eq(&model.head, &source.head)).then(|| source.coarse_head());
        Self { head: model.trained_head(), source_head, model, teacher, text, state }
    }

    /// Goes on from `checkpoint`, if it is one of a run with the same model and settings.
    pub fn resume(&mut self, checkpoint: Checkpoint) -> bool {
        let same = |(a, b): (&Relative, &Relative)| a.starts_like(b);
        let fits = checkpoint.settings == self.state.settings
            && checkpoint.states.len() == self.state.states.len()
            && checkpoint.states.iter().zip(&self.state.states).all(same);
        if fits {
            self.state = checkpoint;
            let zero = self.model.zero_grad(Trained::Scales);
            let mut states = self.state.states.iter();
            visit(self.model, &zero, |_, p, _| states.next().expect("one state a vector").write(p));
        }
        fits
    }

    /// What [`resume`](Self::resume) takes.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.state
    }

    /// Steps done.
    pub fn steps(&self) -> usize {
        self.state.step
    }

    /// Share of the run that is done: all of it where there is nothing to do.
    fn progressed(&self) -> f64 {
        let (done, all) = match self.state.settings.length {
            Length::Steps(n) => (self.state.step as f64, n as f64),
            Length::Time(all) => (self.state.spent.as_secs_f64(), all.as_secs_f64()),
        };
        if all > 0.0 { done / all } else { 1.0 }
    }

    /// One step; `None` at the end.
    pub fn step(&mut self) -> Option<Step> {
        let progressed = self.progressed();
        if progressed >= 1.0 {
            return None;
        }
        let started = Instant::now();
        let (k, settings) = (self.state.step, self.state.settings.clone());
        let windows: Vec<(usize, usize)> =
            (0..settings.batch).map(|j| self.text.at(k * settings.batch + j)).collect();
        let (kld, grad) = self.gradient(&windows);
        let count = windows.len() as f64;
        let rise = ((k + 1) as f32 / settings.warm_up.max(1) as f32).min(1.0);
        let rate = settings.rate * rise * (1.0 - 0.95 * progressed as f32);
        let mut square = 0.0;
        let mut states = self.state.states.iter_mut();
        visit(self.model, &grad, |_, _, g| {
            square += states.next().expect("one state a vector").gradient_square(g);
        });
        // A gradient longer than 1 (bad windows, first steps) must not fill the squares' memory.
        let length = square.sqrt() / count;
        let factor = if length.is_finite() { ((1.0 / length).min(1.0) / count) as f32 } else { 0.0 };
        let mut states = self.state.states.iter_mut();
        visit(self.model, &grad, |kind, p, g| {
            let rate = if kind == Kind::Norm { 0.5 * rate } else { rate };
            let state = states.next().expect("one state a vector");
            if factor > 0.0 {
                state.step(k as i32 + 1, rate, factor, g, p);
            }
        });
        self.state.step += 1;
        self.state.spent += started.elapsed();
        let steps = match settings.length {
            Length::Steps(n) => n,
            Length::Time(_) => (self.state.step as f64 / self.progressed()).ceil() as usize,
        };
        Some(Step { step: self.state.step, steps: steps.max(self.state.step), kld })
    }

    /// Mean divergence of `windows` and the sum of their gradients.
    fn gradient(&self, windows: &[(usize, usize)]) -> (f64, ModelGrad) {
        let run = |&w: &(usize, usize)| {
            let mut grad = self.model.zero_grad(Trained::Scales);
            (self.window(w, &mut grad), grad)
        };
        over_windows(windows, run, ModelGrad::add)
    }

    /// Divergence of one window, whose gradient is added to `grad`.
    fn window(&self, (w, pass): (usize, usize), grad: &mut ModelGrad) -> f64 {
        let (d, stride) = (self.model.config.d_model, self.state.settings.stride);
        let tokens = &self.text.windows[w];
        let length = tokens.len();
        // Every pass scores the positions that the one before left out.
        let positions: Vec<usize> = ((pass + w) % stride..length).step_by(stride).collect();
        let tape = self.model.forward(tokens, length);
        let rows: Vec<f32> = positions.iter().flat_map(|&p| &tape.x[p * d..(p + 1) * d]).copied().collect();
        let logits = self.model.coarse_logits(&self.head.head, &self.model.normed(&rows));
        let wanted = self.teacher.rows(w, positions.iter().copied(), d);
        let wanted = self.model.coarse_logits(self.source_head.as_ref().unwrap_or(&self.head.head), &wanted);
        let (kld, mut d_logits) = kl(&logits, wanted, self.model.vocabulary());
        let norm = &mut grad.norm;
        let d_rows = self.model.coarse_head_backward(&self.head, &rows, &logits, &mut d_logits, norm);
        let mut dx = vec![0f32; tape.x.len()];
        for (row, &p) in d_rows.chunks_exact(d).zip(&positions) {
            dx[p * d..(p + 1) * d].copy_from_slice(row);
        }
        self.model.backward(&tape, dx, length, grad);
        kld
    }
}

impl Drop for Distillation<'_> {
    fn drop(&mut self) {
        self.model.set_precision(Precision::Fine);
    }
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
            let difference: Vec<f32> = p.iter().zip(&*q).map(|(p, q)| p - q).collect();
            let ((top_p, sum_p), (top_q, sum_q)) = (exp_below_max(p), exp_below_max(q));
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

    use crate::decoder::Dense;
    use crate::decoder::tests::small;

    const LENGTH: usize = 7;
    const TEXT: [[u32; LENGTH]; 2] = [[1, 5, 3, 3, 9, 10, 0], [2, 7, 7, 4, 8, 1, 6]];

    /// A source that predicts other things than the small model.
    fn source(own_head: bool) -> Model {
        let mut source = small();
        source.norm.iter_mut().enumerate().for_each(|(i, x)| *x *= 1.0 + 0.5 * (i as f32).sin());
        if own_head {
            let moved = source.head.iter().enumerate().map(|(i, x)| x + 0.4 * (i as f32 * 1.7).cos());
            source.head = Arc::new(Dense::from(moved.collect::<Vec<f32>>()));
        }
        source
    }

    /// Mean divergence at `positions` of window `w` by its definition, in full precision.
    fn divergence(model: &Model, source: &Model, w: usize, positions: &[usize]) -> f64 {
        let probabilities = |m: &Model| -> Vec<Vec<f64>> {
            let logits = m.logits(&m.normed(&m.stream(&TEXT[w], LENGTH)));
            let rows = logits.chunks(m.vocabulary()).map(|row| {
                let all: Vec<f64> = row.iter().map(|x| f64::from(*x).exp()).collect();
                let sum: f64 = all.iter().sum();
                all.iter().map(|x| x / sum).collect()
            });
            rows.collect()
        };
        let (p, q) = (probabilities(source), probabilities(model));
        let at = |t: &usize| p[*t].iter().zip(&q[*t]).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        positions.iter().map(at).sum::<f64>() / positions.len() as f64
    }

    /// Loss and gradient of a window against the definition and its differences: the right positions are scored, by the right
    /// head, within the precision of a training step's head.
    #[test]
    fn a_window_is_scored_at_its_positions() {
        let text = Mixture::new(vec![TEXT.map(|w| w.to_vec()).to_vec()]);
        for (own_head, w, pass, positions) in [
            (false, 0, 0, &[0, 3, 6][..]),
            (false, 1, 0, &[1, 4]),
            (true, 0, 2, &[2, 5]),
            (true, 1, 2, &[0, 3, 6]),
        ] {
            let (mut model, source) = (small(), source(own_head));
            if !own_head {
                model.head = source.head.clone();
            }
            let rows = |w: usize| source.normed(&source.stream(&TEXT[w], LENGTH));
            let teacher = Teacher::new((0..2).map(rows));
            let settings = Settings { stride: 3, ..Settings::default() };
            let run = Distillation::new(&mut model, &source, &teacher, &text, settings);
            assert_eq!(run.source_head.is_some(), own_head);
            // Steps of differences are smaller than those of a training step's activations.
            run.model.set_precision(Precision::Full);
            let mut grad = run.model.zero_grad(Trained::Scales);
            let value = run.window((w, pass), &mut grad);
            let base = run.model.clone();
            let want = divergence(&base, &source, w, positions);
            assert!((value - want).abs() < 0.02 * want && want > 0.01, "{value} against {want}");

            let mut gradients: Vec<Vec<f32>> = Vec::new();
            visit(&mut base.clone(), &grad, |_, _, g| gradients.push(g.to_vec()));
            let whole = gradients.iter().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            for (n, g) in gradients.iter().enumerate() {
                let along: Vec<f32> = (0..g.len()).map(|i| ((5 * i + n) as f32 * 1.1).sin()).collect();
                let at = |t: f32| {
                    let (mut m, mut i) = (base.clone(), 0);
                    visit(&mut m, &grad, |_, p, _| {
                        if i == n {
                            p.iter_mut().zip(&along).for_each(|(p, a)| *p += t * a);
                        }
                        i += 1;
                    });
                    divergence(&m, &source, w, positions)
                };
                let e = 4e-3f32;
                let numeric = (8.0 * (at(e) - at(-e)) - (at(2.0 * e) - at(-2.0 * e))) / (12.0 * f64::from(e));
                let exact: f64 = g.iter().zip(&along).map(|(g, a)| f64::from(g * a)).sum();
                let off = (numeric - exact).abs();
                assert!(off < 0.01 * whole, "vector {n}: {numeric} against {exact}, whole {whole}");
            }
            assert!(gradients.len() > 30 && whole > 0.01, "{} vectors, {whole}", gradients.len());
        }
    }
}
