//! Whether a model still writes text: repetition and entropy of how it goes on with fixed beginnings, beside its source.
//!
//! Perplexity judges a model on text of others. A model can do well there and still fall into loops once it reads what
//! it wrote itself, or write words without sense; neither shows in one figure alone, so there are several.

use super::prompts::PROMPTS;
use crate::decoder::{Model, Prompt, continuations, exclude, exp_below_max};
use crate::tokenize::Tokenizer;
use rayon::prelude::*;
use std::collections::HashSet;

/// Tokens that are written after every beginning.
pub const WRITTEN: usize = 64;
/// Tokens in a row whose recurrence is a repetition.
const REPEATED: usize = 4;
/// Tokens in a row that are counted once for variety.
const DISTINCT: usize = 2;

/// Figures of what one model has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Writing {
    /// Share of runs of 4 tokens that stood in the same continuation before; each token the most likely one.
    pub repeated_likely: f64,
    /// The same where tokens are drawn from the model's distribution.
    pub repeated_drawn: f64,
    /// Number of different pairs of tokens over all pairs, of all drawn continuations together.
    pub distinct: f64,
    /// Mean entropy of the model's distribution of the next token in its drawn continuations, nats.
    pub entropy: f64,
    /// Mean negative log likelihood of the drawn tokens under the source, nats: what the source thinks of them.
    pub surprise: f64,
}

/// How both models went on with one beginning.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Continuation {
    /// Kind of text.
    pub kind: String,
    /// What was given.
    pub prompt: String,
    /// By the compressed model, the most likely tokens.
    pub likely: String,
    /// Likewise by the source.
    pub source_likely: String,
    /// By the compressed model, drawn tokens.
    pub drawn: String,
    /// Likewise by the source.
    pub source_drawn: String,
}

/// A model's writing beside its source's.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Coherence {
    /// Tokens written after every beginning.
    pub tokens: usize,
    /// Of the compressed model.
    pub model: Writing,
    /// Of the source.
    pub source: Writing,
    /// All of it.
    pub continuations: Vec<Continuation>,
}

impl Coherence {
    /// How much larger the share of repetitions is than the source's: of most likely and of drawn tokens, the larger.
    pub fn repetition_excess(&self) -> f64 {
        let likely = self.model.repeated_likely - self.source.repeated_likely;
        likely.max(self.model.repeated_drawn - self.source.repeated_drawn)
    }

    /// Distance of the entropies, nats.
    pub fn entropy_change(&self) -> f64 {
        (self.model.entropy - self.source.entropy).abs()
    }

    /// How much more the source wonders at the compressed model's text than at its own, nats a token.
    pub fn surprise_excess(&self) -> f64 {
        self.model.surprise - self.source.surprise
    }
}

/// What is to be written: the fixed beginnings twice (most likely tokens, drawn tokens), and others with the most likely.
#[derive(Debug)]
pub struct Task {
    prompts: Vec<Prompt>,
    never: Vec<u32>,
    seed: u64,
}

/// What a model has written.
#[derive(Debug)]
pub struct Written {
    /// Continuations in the order of a [`Task`].
    texts: Vec<Vec<u32>>,
    /// Mean entropy of the model's distributions along the drawn ones, and its own surprise at them.
    own: (f64, f64),
}

impl Task {
    /// The fixed beginnings in the tokens of `tokenizer`, and `others`. A model that would end its text has to go on.
    pub fn new(tokenizer: &Tokenizer, others: &[&[u32]], seed: u64) -> Self {
        let fixed = |drawn: bool| {
            PROMPTS.iter().map(move |(_, text)| {
                let tokens = tokenizer.add_bos().into_iter().chain(tokenizer.encode(text)).collect();
                Prompt { tokens, drawn }
            })
        };
        let others = others.iter().map(|t| Prompt { tokens: t.to_vec(), drawn: false });
        let prompts = fixed(false).chain(fixed(true)).chain(others).collect();
        Self { prompts, never: tokenizer.silent().to_vec(), seed }
    }

    /// Number of continuations.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there is nothing to write; there always is.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Has `model` write; `progress` is called with the number of finished continuations.
    pub fn write(&self, model: &Model, progress: impl FnMut(usize)) -> Written {
        let texts = continuations(model, &self.prompts, WRITTEN, &self.never, self.seed, progress);
        let own = self.scores(model, &texts);
        Written { texts, own }
    }

    /// Continuations of the beginnings that were given to [`Task::new`].
    pub fn others<'a>(&self, written: &'a Written) -> &'a [Vec<u32>] {
        &written.texts[2 * PROMPTS.len()..]
    }

    /// Mean entropy of the distributions of `model` along drawn continuations, and mean negative log likelihood of their tokens.
    fn scores(&self, model: &Model, texts: &[Vec<u32>]) -> (f64, f64) {
        let n = PROMPTS.len();
        let drawn = self.prompts[n..2 * n].par_iter().zip(&texts[n..2 * n]);
        let sums: Vec<(f64, f64)> = drawn
            .map(|(prompt, text)| {
                let all = [&prompt.tokens[..], &text[..text.len() - 1]].concat();
                let x = model.normed(&model.stream(&all, all.len()));
                let d = model.config.d_model;
                let mut logits = model.logits(&x[(prompt.tokens.len() - 1) * d..]);
                let rows = logits.chunks_mut(model.vocabulary()).zip(text);
                rows.map(|(row, &next)| score(row, next as usize, &self.never))
                    .fold((0.0, 0.0), |(h, s), (dh, ds)| (h + dh, s + ds))
            })
            .collect();
        let count = (n * WRITTEN) as f64;
        let (entropy, surprise) = sums.iter().fold((0.0, 0.0), |(h, s), (dh, ds)| (h + dh, s + ds));
        (entropy / count, surprise / count)
    }

    /// Compares what a model and its source have written.
    pub fn compare(
        &self,
        source: &Model,
        by_source: &Written,
        by_model: &Written,
        tokenizer: &Tokenizer,
    ) -> Coherence {
        let of = |written: &Written, surprise: f64| {
            let (likely, drawn) = written.texts[..2 * PROMPTS.len()].split_at(PROMPTS.len());
            let mean = |texts: &[Vec<u32>]| {
                texts.iter().map(|t| repeated(t, REPEATED)).sum::<f64>() / texts.len() as f64
            };
            let (repeated_likely, repeated_drawn) = (mean(likely), mean(drawn));
            let (distinct, entropy) = (distinct(drawn, DISTINCT), written.own.0);
            Writing { repeated_likely, repeated_drawn, distinct, entropy, surprise }
        };
        let text = |written: &Written, i: usize| tokenizer.decode(&written.texts[i]);
        let continuation = |(i, (kind, prompt)): (usize, &(&str, &str))| Continuation {
            kind: (*kind).to_owned(),
            prompt: (*prompt).to_owned(),
            likely: text(by_model, i),
            source_likely: text(by_source, i),
            drawn: text(by_model, PROMPTS.len() + i),
            source_drawn: text(by_source, PROMPTS.len() + i),
        };
        Coherence {
            tokens: WRITTEN,
            model: of(by_model, self.scores(source, &by_model.texts).1),
            source: of(by_source, by_source.own.1),
            continuations: PROMPTS.iter().enumerate().map(continuation).collect(),
        }
    }
}

/// Entropy of the distribution of `logits` without the tokens `never`, and negative log likelihood of `next`, nats. The logits are
/// overwritten.
fn score(logits: &mut [f32], next: usize, never: &[u32]) -> (f64, f64) {
    exclude(logits, never);
    let before = logits.to_vec();
    let (max, sum) = exp_below_max(logits);
    let log_sum = f64::from(sum).ln();
    let below = |x: f32| f64::from(x) - f64::from(max);
    let mean: f64 = logits.iter().zip(&before).map(|(w, &x)| f64::from(*w) * below(x)).sum();
    (log_sum - mean / f64::from(sum), log_sum - below(before[next]))
}

/// Share of the runs of `n` tokens that stood in the text before.
fn repeated(text: &[u32], n: usize) -> f64 {
    let mut seen = HashSet::new();
    let runs = text.windows(n).len();
    let again = text.windows(n).filter(|run| !seen.insert(*run)).count();
    again as f64 / runs.max(1) as f64
}

/// Number of different runs of `n` tokens over all runs of all texts.
fn distinct(texts: &[Vec<u32>], n: usize) -> f64 {
    let runs: Vec<&[u32]> = texts.iter().flat_map(|t| t.windows(n)).collect();
    let different: HashSet<&[u32]> = runs.iter().copied().collect();
    different.len() as f64 / runs.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_come_again_are_counted() {
        // 1 2 1 2 1 2 1 has four runs of four, of which the last two stood there before.
        assert_eq!(repeated(&[1, 2, 1, 2, 1, 2, 1], 4), 0.5);
        assert_eq!(
            [repeated(&[1, 2, 3, 4, 5], 4), repeated(&[7; 10], 4), repeated(&[1], 4)],
            [0.0, 6.0 / 7.0, 0.0]
        );
        // Pairs 12 21 | 12 23: three of four are different.
        assert_eq!(distinct(&[vec![1, 2, 1], vec![1, 2, 3]], 2), 0.75);
    }

    #[test]
    fn entropy_and_likelihood_of_known_distributions() {
        // 1/2, 1/4, 1/4 once the fourth is excluded.
        let mut logits = [2f32.ln(), 0.0, 0.0, 9.0];
        let (entropy, surprise) = score(&mut logits, 0, &[3]);
        assert!((entropy - 1.5 * 2f64.ln()).abs() < 1e-6, "{entropy}");
        assert!((surprise - 2f64.ln()).abs() < 1e-6, "{surprise}");
        let (entropy, surprise) = score(&mut [1.0; 8], 3, &[]);
        assert!((entropy - 8f64.ln()).abs() < 1e-6 && (surprise - 8f64.ln()).abs() < 1e-6);
        assert!(score(&mut [50.0, 0.0], 0, &[]).0 < 1e-6);
    }

    #[test]
    fn excesses_are_over_the_source() {
        let writing = |repeated_likely, repeated_drawn, entropy, surprise| Writing {
            repeated_likely,
            repeated_drawn,
            entropy,
            surprise,
            distinct: 1.0,
        };
        let c = Coherence {
            model: writing(0.5, 0.3, 2.0, 5.0),
            source: writing(0.4, 0.1, 2.5, 3.0),
            ..Coherence::default()
        };
        assert!((c.repetition_excess() - 0.2).abs() < 1e-12);
        assert_eq!((c.entropy_change(), c.surprise_excess()), (0.5, 2.0));
    }
}
