//! Text that a model writes: many sequences at once, by sampling.

use super::cache::Cache;
use super::coarse::Coarse;
use super::exponential::exp_below_max;
use super::model::Model;
use super::rope::Rotation;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Groups of sequences that threads share out; the sequences of a group go through the model together. Few, because every
/// group reads all weights for each of its tokens.
const GROUPS: usize = 2;
/// Sequences at work at the same time, at most.
const AT_ONCE: usize = 72 * GROUPS;
/// Bytes that their keys and values may take, unless one sequence a group takes more.
const MEMORY: usize = 3 << 30;

/// Continues every prompt to `length` tokens, each drawn from the model's own distribution (temperature 1).
///
/// The same tokens for any number of threads. `progress` is called with the number of finished sequences; those at work
/// count by the share of their tokens that is there.
pub fn sample(
    model: &Model,
    prompts: &[&[u32]],
    length: usize,
    seed: u64,
    mut progress: impl FnMut(usize),
) -> Vec<Vec<u32>> {
    let (c, v) = (&model.config, model.vocabulary());
    let d = c.d_model;
    let head = Coarse::from_fn(v, d, |i, j| model.head[i * d + j]);
    let rotations = model.rotations(length);
    let sequence = c.blocks * length * c.heads_kv * (c.d_key + c.d_value) * size_of::<u16>();
    let at_once = (MEMORY / sequence.max(1)).clamp(GROUPS, AT_ONCE);
    let mut out = Vec::with_capacity(prompts.len());
    for (w, wave) in prompts.chunks(at_once).enumerate() {
        let groups = wave.chunks(wave.len().div_ceil(GROUPS)).enumerate();
        let mut groups: Vec<Group> = groups
            .map(|(i, prompts)| Group::new(model, prompts, length, seed, (w * GROUPS + i) as u64))
            .collect();
        for t in 1..length {
            groups.par_iter_mut().for_each(|g| g.extend(model, &head, &rotations));
            progress(out.len() + wave.len() * t / length);
        }
        out.extend(groups.into_iter().flat_map(|g| g.texts));
        progress(out.len());
    }
    out
}

/// Sequences of equal length but for their prompts, which may be ahead.
struct Group {
    texts: Vec<Vec<u32>>,
    caches: Vec<Cache>,
    /// Tokens that the caches hold.
    seen: usize,
    rng: ChaCha8Rng,
}

impl Group {
    fn new(model: &Model, prompts: &[&[u32]], length: usize, seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        let texts = prompts.iter().map(|p| p[..p.len().min(length)].to_vec()).collect();
        let caches = model.blocks.iter().map(|_| Cache::new(prompts.len())).collect();
        Self { texts, caches, seen: 0, rng }
    }

    /// Sends the next token of every sequence through the model, and draws one for those that end with it.
    fn extend(&mut self, model: &Model, head: &Coarse, rotations: &[Rotation; 2]) {
        let (c, v) = (&model.config, model.vocabulary());
        let tokens: Vec<u32> = self.texts.iter().map(|text| text[self.seen]).collect();
        self.seen += 1;
        let mut x = model.embed(&tokens);
        for (block, cache) in model.blocks.iter().zip(&mut self.caches) {
            x = block.extend(c, block.rotation(rotations), x, cache);
        }
        if self.texts.iter().all(|text| text.len() > self.seen) {
            return;
        }
        let mut logits = head.product(&model.normed(&x));
        model.bias_and_cap(&mut logits);
        let draws: Vec<f32> = self.texts.iter().map(|_| self.rng.random()).collect();
        let next: Vec<u32> = logits.par_chunks_mut(v).zip(draws).map(|(row, draw)| pick(row, draw)).collect();
        for (text, next) in self.texts.iter_mut().zip(next) {
            if text.len() == self.seen {
                text.push(next);
            }
        }
    }
}

/// The token at which the distribution of `logits` passes `draw`; the logits are overwritten.
fn pick(logits: &mut [f32], draw: f32) -> u32 {
    let sum = exp_below_max(logits).1;
    let mut left = draw * sum;
    let passed = logits.iter().position(|p| {
        left -= p;
        left < 0.0
    });
    passed.unwrap_or(logits.len() - 1) as u32
}

#[cfg(test)]
mod tests {
    use super::super::tests::small;
    use super::*;

    #[test]
    fn tokens_follow_the_models_distribution() {
        let model = small();
        let v = model.vocabulary();
        let prompts: Vec<Vec<u32>> = (0..800).map(|_| vec![1, 5, 3]).collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let texts = sample(&model, &prompts, 6, 7, |_| {});
        assert!(texts.iter().all(|t| t.len() == 6 && t.starts_with(&[1, 5, 3])));
        // The first drawn token, against the probabilities of a whole pass.
        let mut p = model.logits(&model.normed(&model.stream(&[1, 5, 3], 3)))[2 * v..].to_vec();
        let sum = exp_below_max(&mut p).1;
        let mut counts = vec![0f32; v];
        texts.iter().for_each(|t| counts[t[3] as usize] += 1.0);
        for (count, p) in counts.iter().zip(&p) {
            let p = p / sum;
            let deviation = (p * (1.0 - p) * 800.0).sqrt();
            assert!((count - 800.0 * p).abs() < 5.0 * deviation + 8.0, "{count} of 800 for {p}");
        }
        assert_eq!(texts, sample(&model, &prompts, 6, 7, |_| {}));
        assert_ne!(texts, sample(&model, &prompts, 6, 8, |_| {}));
    }

    #[test]
    fn the_cache_gives_what_whole_passes_give() {
        let model = small();
        let (c, text) = (&model.config, [1u32, 5, 3, 9, 0, 7]);
        let rotations = model.rotations(text.len());
        let mut caches: Vec<Cache> = model.blocks.iter().map(|_| Cache::new(2)).collect();
        let whole = model.stream(&text, text.len());
        let d = c.d_model;
        for (t, &token) in text.iter().enumerate() {
            let mut x = model.embed(&[token, token]);
            for (block, cache) in model.blocks.iter().zip(&mut caches) {
                x = block.extend(c, block.rotation(&rotations), x, cache);
            }
            for (i, x) in x.iter().enumerate() {
                let want = whole[t * d + i % d];
                assert!((x - want).abs() < 2e-2 * want.abs().max(1.0), "token {t}: {x} against {want}");
            }
        }
    }
}
