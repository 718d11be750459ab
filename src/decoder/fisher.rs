//! What the loss feels of errors in a dense weight.

use super::product::{times_transposed, transposed_times};

/// Weights of tokens with inputs `x` (`tokens x d`): `min(1, median norm / norm)`, so that a few massive tokens do not
/// rule the moments of all.
pub fn token_weights(x: &[f32], d: usize) -> Vec<f32> {
    let norms: Vec<f32> = x.chunks_exact(d).map(|x| x.iter().map(|v| v * v).sum::<f32>().sqrt()).collect();
    let mut sorted = norms.clone();
    sorted.sort_by(f32::total_cmp);
    let median = sorted[sorted.len() / 2];
    norms.iter().map(|&n| if n > median { median / n } else { 1.0 }).collect()
}

/// Rows of `x` times their weights.
pub fn weighed(x: &[f32], weights: &[f32]) -> Vec<f32> {
    let d = x.len() / weights.len();
    x.chunks_exact(d).zip(weights).flat_map(|(x, w)| x.iter().map(move |v| v * w)).collect()
}

/// Sums over tokens t with input x, product y = W x (both times their [token weight](token_weights)) and gradient g
/// of the loss with respect to y.
#[derive(Clone, Debug, Default)]
pub struct Fisher {
    /// `sum |x|^2`.
    pub energy: f64,
    /// `sum g_i^2 |x|^2`.
    pub gradient: Vec<f32>,
    /// `sum y y^T` if there are no more outputs than inputs, else `sum x x^T`.
    pub moments: Vec<f32>,
}

impl Fisher {
    /// Adds the tokens of `x` with the gradients `dy` for a weight `w` of shape `d_out x d_in`.
    pub(super) fn add(&mut self, [d_out, d_in]: [usize; 2], w: &[f32], x: &[f32], dy: &[f32]) {
        let x = weighed(x, &token_weights(x, d_in));
        self.add_gradients(&x, d_in, dy, d_out);
        let d = d_out.min(d_in);
        self.moments.resize(d * d, 0.0);
        if d_out <= d_in {
            let mut y = vec![0f32; dy.len()];
            times_transposed(&mut y, &x, w, d_out, d_in, false);
            transposed_times(&mut self.moments, &y, &y, d, d, true);
        } else {
            transposed_times(&mut self.moments, &x, &x, d, d, true);
        }
    }
    /// Adds all but the moments, for inputs that are weighed already.
    pub(super) fn add_gradients(&mut self, x: &[f32], d_in: usize, dy: &[f32], d_out: usize) {
        self.gradient.resize(d_out, 0.0);
        for (x, dy) in x.chunks_exact(d_in).zip(dy.chunks_exact(d_out)) {
            let energy = x.iter().map(|v| v * v).sum::<f32>();
            self.energy += f64::from(energy);
            self.gradient.iter_mut().zip(dy).for_each(|(o, g)| *o += g * g * energy);
        }
    }

    /// Adds the sums over other tokens.
    pub(super) fn add_sums(&mut self, other: &Fisher) {
        self.energy += other.energy;
        for (to, from) in [(&mut self.gradient, &other.gradient), (&mut self.moments, &other.moments)] {
            to.resize(to.len().max(from.len()), 0.0);
            to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        }
    }
}
