//! Perplexity and KL divergence by llama-perplexity's protocol.
//!
//! The text is cut into windows of equal length, each is run alone, and the predictions of its second half are scored,
//! so that every scored token has at least half a window of context.

use crate::decoder::{Model, exp_below_max};
use rayon::prelude::*;

/// Windows that are scored beside each other.
const AT_ONCE: usize = 4;
/// Positions whose logits are computed at once.
const POSITIONS: usize = 256;

/// A mean and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Estimate {
    /// Estimate.
    #[serde(deserialize_with = "or_nan")]
    pub value: f64,
    /// Its standard error.
    #[serde(deserialize_with = "or_nan")]
    pub error: f64,
}

/// A number, or what JSON has for one that is none.
fn or_nan<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    <Option<f64> as serde::Deserialize>::deserialize(from).map(|x| x.unwrap_or(f64::NAN))
}

/// Results on one text.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Comparison {
    /// Scored tokens.
    pub tokens: usize,
    /// Perplexity of the source.
    pub source_perplexity: Estimate,
    /// Perplexity of the compressed model.
    pub perplexity: Estimate,
    /// Mean KL divergence from the source, nats.
    pub kld: Estimate,
    /// Median of the divergence.
    #[serde(deserialize_with = "or_nan")]
    pub kld_median: f64,
    /// Its 99.9 % quantile.
    #[serde(deserialize_with = "or_nan")]
    pub kld_999: f64,
    /// Share of positions where both models hold the same token most likely.
    pub same_top: Estimate,
}

/// Scores `model` on `windows` against its source, of which the head and the normalised last rows of every window are
/// given.
pub fn compare(
    source: &Model,
    source_rows: &[Vec<f32>],
    model: &Model,
    windows: &[&[u32]],
    mut progress: impl FnMut(usize),
) -> Comparison {
    let mut scored: Vec<[f64; 4]> = Vec::new();
    let all: Vec<(&Vec<f32>, &[u32])> = source_rows.iter().zip(windows.iter().copied()).collect();
    for (i, some) in all.chunks(AT_ONCE).enumerate() {
        let one = |(rows, window): &(&Vec<f32>, &[u32])| {
            let normed = model.normed(&model.stream(window, window.len()));
            scores([source, model], [rows, &normed], window)
        };
        let parts: Vec<Vec<[f64; 4]>> = some.par_iter().map(one).collect();
        scored.extend(parts.into_iter().flatten());
        progress(i * AT_ONCE + some.len());
    }
    summary(&scored)
}

/// Scores one model against another, its source, of both of which the head and the normalised last rows of every window
/// are given: source first.
pub fn compare_rows(models: [&Model; 2], rows: [&[Vec<f32>]; 2], windows: &[&[u32]]) -> Comparison {
    let all = windows.par_iter().zip(rows[0].par_iter().zip(rows[1]));
    let parts: Vec<Vec<[f64; 4]>> = all.map(|(window, (a, b))| scores(models, [a, b], window)).collect();
    summary(&parts.concat())
}

/// [`score`] of every position in the second half of one window.
fn scores([source, model]: [&Model; 2], [source_rows, normed]: [&[f32]; 2], window: &[u32]) -> Vec<[f64; 4]> {
    let (d, v, length) = (model.config.d_model, model.vocabulary(), window.len());
    let positions: Vec<usize> = (length / 2..length - 1).collect();
    let of_part = |part: &[usize]| -> Vec<[f64; 4]> {
        let rows = part[0] * d..(part[part.len() - 1] + 1) * d;
        let p = source.logits(&source_rows[rows.clone()]);
        let q = model.logits(&normed[rows]);
        let next = &window[part[0] + 1..];
        let pairs = p.par_chunks(v).zip(q.par_chunks(v)).enumerate();
        pairs.map(|(j, (p, q))| score(p, q, next[j] as usize)).collect()
    };
    positions.chunks(POSITIONS).flat_map(of_part).collect()
}

/// Negative log likelihoods of `next` under both, divergence, whether the tops agree.
fn score(p: &[f32], q: &[f32], next: usize) -> [f64; 4] {
    let exponentials = |x: &[f32]| {
        let mut e = x.to_vec();
        let (max, sum) = exp_below_max(&mut e);
        (e, f64::from(max) + f64::from(sum).ln(), f64::from(sum))
    };
    let ((weights, zp, sum), (_, zq, _)) = (exponentials(p), exponentials(q));
    let kld = weights
        .iter()
        .zip(p.iter().zip(q))
        .map(|(w, (p, q))| f64::from(*w) / sum * ((f64::from(*p) - zp) - (f64::from(*q) - zq)));
    let top = |x: &[f32]| x.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
    let kld: f64 = kld.sum();
    [zp - f64::from(p[next]), zq - f64::from(q[next]), kld.max(0.0), f64::from(u8::from(top(p) == top(q)))]
}

fn summary(scored: &[[f64; 4]]) -> Comparison {
    if scored.is_empty() {
        return Comparison::default();
    }
    let estimate = |k: usize| {
        let n = scored.len() as f64;
        let mean = scored.iter().map(|s| s[k]).sum::<f64>() / n;
        let variance = scored.iter().map(|s| (s[k] - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        Estimate { value: mean, error: (variance / n).sqrt() }
    };
    // The error of exp(m) is exp(m) times that of m.
    let perplexity = |e: Estimate| Estimate { value: e.value.exp(), error: e.value.exp() * e.error };
    let mut klds: Vec<f64> = scored.iter().map(|s| s[2]).collect();
    klds.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let at = q * (klds.len() - 1) as f64;
        let (low, high) = (klds[at.floor() as usize], klds[at.ceil() as usize]);
        low + (high - low) * at.fract()
    };
    Comparison {
        tokens: scored.len(),
        source_perplexity: perplexity(estimate(0)),
        perplexity: perplexity(estimate(1)),
        kld: estimate(2),
        kld_median: quantile(0.5),
        kld_999: quantile(0.999),
        same_top: estimate(3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_a_known_pair() {
        // p = (1/2, 1/4, 1/4), q uniform: divergence ln 3 - 1.5 ln 2.
        let p = [2f32.ln(), 0.0, 0.0];
        let s = score(&p, &[5.0; 3], 1);
        assert!((s[0] - 4f64.ln()).abs() < 1e-6 && (s[1] - 3f64.ln()).abs() < 1e-6);
        assert!((s[2] - (3f64.ln() - 1.5 * 2f64.ln())).abs() < 1e-6, "{}", s[2]);
        assert_eq!(score(&p, &p, 0)[2..], [0.0, 1.0]);
    }

    #[test]
    fn figures_come_back_from_json() {
        let mut c = summary(&[[1.0, 2.0, 0.5, 1.0], [1.5, 2.5, 0.25, 0.0]]);
        let again = |c: &Comparison| -> Comparison {
            serde_json::from_str(&serde_json::to_string(c).unwrap()).unwrap()
        };
        assert_eq!(format!("{:?}", again(&c)), format!("{c:?}"));
        c.perplexity.value = f64::NAN;
        assert!(again(&c).perplexity.value.is_nan());
    }

    #[test]
    fn means_errors_and_quantiles() {
        let scored: Vec<[f64; 4]> = (0..5).map(|i| [0.0, 1.0, f64::from(i), f64::from(i % 2)]).collect();
        let c = summary(&scored);
        assert_eq!((c.tokens, c.kld_median), (5, 2.0));
        assert!((c.perplexity.value - 1f64.exp()).abs() < 1e-12 && c.perplexity.error == 0.0);
        assert!((c.kld.value - 2.0).abs() < 1e-12 && (c.kld.error - (2.5f64 / 5.0).sqrt()).abs() < 1e-12);
        assert!((c.kld_999 - 3.996).abs() < 1e-9 && (c.same_top.value - 0.4).abs() < 1e-12);
    }
}
