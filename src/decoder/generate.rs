//! Text that a model writes: many sequences at once, by sampling or token by most likely token.

use super::cache::Cache;
use super::coarse::Coarse;
use super::exponential::exp_below_max;
use super::model::Model;
use super::rope::Rotation;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::sync::Mutex;

/// Groups of sequences that threads share out; the sequences of a group go through the model together. Few, because every
/// group reads all weights for each of its tokens.
const GROUPS: usize = 2;
/// Sequences at work at the same time, at most.
const AT_ONCE: usize = 72 * GROUPS;
/// Bytes that keys and values of a few continuations may take.
const MEMORY: usize = 3 << 30;

/// Continues every prompt to `length` tokens, each drawn from the model's own distribution (temperature 1).
///
/// Keys and values take at most `memory` bytes, unless one sequence in each of two groups takes more. The same tokens for any number of
/// threads, but not for any `memory` that sequences do not fit in together. `progress` is called with the number of finished sequences; those at work
/// count by the share of their tokens that is there.
pub fn sample(
    model: &Model,
    prompts: &[&[u32]],
    length: usize,
    seed: u64,
    memory: usize,
    progress: impl FnMut(usize),
) -> Vec<Vec<u32>> {
    extended(model, prompts, (length, memory), seed, &|_, logits, draw| pick(logits, draw), progress)
}

/// What a continuation begins with, and how it goes on.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// First tokens, at least one.
    pub tokens: Vec<u32>,
    /// Whether each token is drawn from the model's distribution instead of being the most likely one.
    pub drawn: bool,
}

/// The `count` tokens after every prompt, none of which is among `never`; `progress` is called as by [`sample`].
pub fn continuations(
    model: &Model,
    prompts: &[Prompt],
    count: usize,
    never: &[u32],
    seed: u64,
    progress: impl FnMut(usize),
) -> Vec<Vec<u32>> {
    let length = count + prompts.iter().map(|p| p.tokens.len()).max().unwrap_or(0);
    // Draws of its own for every prompt, whatever others there are.
    let draws: Vec<Mutex<ChaCha8Rng>> = (0..prompts.len() as u64)
        .map(|stream| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(stream);
            Mutex::new(rng)
        })
        .collect();
    let choose = |i: usize, logits: &mut [f32], _: f32| {
        exclude(logits, never);
        match prompts[i].drawn {
            true => pick(logits, draws[i].lock().expect("no panic under the lock").random()),
            false => most_likely(logits),
        }
    };
    let tokens: Vec<&[u32]> = prompts.iter().map(|p| p.tokens.as_slice()).collect();
    let texts = extended(model, &tokens, (length, MEMORY), seed, &choose, progress);
    texts.into_iter().zip(&tokens).map(|(text, p)| text[p.len()..p.len() + count].to_vec()).collect()
}

/// Makes tokens impossible.
pub fn exclude(logits: &mut [f32], never: &[u32]) {
    for &token in never {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = IMPOSSIBLE;
        }
    }
}

/// Logit of what is not to come: far below any other, and finite.
const IMPOSSIBLE: f32 = -1e9;

fn most_likely(logits: &[f32]) -> u32 {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i as u32)
}

/// Chooses the token after sequence `.0`, from its logits and a number drawn from 0 to 1.
type Choose<'a> = &'a (dyn Fn(usize, &mut [f32], f32) -> u32 + Sync);

fn extended(
    model: &Model,
    prompts: &[&[u32]],
    (length, memory): (usize, usize),
    seed: u64,
    choose: Choose,
    mut progress: impl FnMut(usize),
) -> Vec<Vec<u32>> {
    let c = &model.config;
    let head = model.coarse_head();
    let rotations = model.rotations(length);
    let sequence = c.blocks * length * c.heads_kv * (c.d_key + c.d_value) * size_of::<u16>();
    let at_once = (memory / sequence.max(1)).clamp(GROUPS, AT_ONCE);
    let mut out = Vec::with_capacity(prompts.len());
    for (w, wave) in prompts.chunks(at_once).enumerate() {
        let size = wave.len().div_ceil(GROUPS);
        let groups = wave.chunks(size).enumerate();
        let mut groups: Vec<Group> = groups
            .map(|(i, prompts)| {
                let stream = (w * GROUPS + i) as u64;
                Group::new(model, prompts, w * at_once + i * size, length, seed, stream)
            })
            .collect();
        for t in 1..length {
            groups.par_iter_mut().for_each(|g| g.extend(model, &head, &rotations, choose));
            progress(out.len() + wave.len() * t / length);
        }
        out.extend(groups.into_iter().flat_map(|g| g.texts));
        progress(out.len());
    }
    out
}

/// Sequences of equal length but for their prompts, which may be ahead.
struct Group {
    /// Number of the first sequence.
    first: usize,
    texts: Vec<Vec<u32>>,
    caches: Vec<Cache>,
    /// Tokens that the caches hold.
    seen: usize,
    rng: ChaCha8Rng,
}

impl Group {
    fn new(model: &Model, prompts: &[&[u32]], first: usize, length: usize, seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        let texts = prompts.iter().map(|p| p[..p.len().min(length)].to_vec()).collect();
        let caches = model.blocks.iter().map(|_| Cache::new(prompts.len())).collect();
        Self { first, texts, caches, seen: 0, rng }
    }

    /// Sends the next token of every sequence through the model, and chooses one for those that end with it.
    fn extend(&mut self, model: &Model, head: &Coarse, rotations: &[Rotation; 2], choose: Choose) {
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
        let rows = logits.par_chunks_mut(v).zip(draws).enumerate();
        // A prompt that is ahead of others has its next token.
        let ends = |i: usize| self.texts[i].len() == self.seen;
        let next: Vec<Option<u32>> =
            rows.map(|(i, (row, draw))| ends(i).then(|| choose(self.first + i, row, draw))).collect();
        self.texts.iter_mut().zip(next).for_each(|(text, next)| text.extend(next));
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
        let texts = sample(&model, &prompts, 6, 7, MEMORY, |_| {});
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
        assert_eq!(texts, sample(&model, &prompts, 6, 7, MEMORY, |_| {}));
        assert_ne!(texts, sample(&model, &prompts, 6, 8, MEMORY, |_| {}));
    }

    #[test]
    fn continuations_are_most_likely_or_drawn_and_never_what_is_excluded() {
        let model = small();
        let v = model.vocabulary();
        // Prompts of several lengths, in both groups.
        let prompts: Vec<Prompt> = (0..7)
            .map(|i| Prompt { tokens: vec![1, 5, 3, 2][..1 + i % 4].to_vec(), drawn: i % 2 == 1 })
            .collect();
        let never: Vec<u32> = (0..v as u32).filter(|t| t % 3 == 0).collect();
        let out = continuations(&model, &prompts, 5, &never, 7, |_| {});
        assert_eq!(out, continuations(&model, &prompts, 5, &never, 7, |_| {}));
        assert!(out.iter().all(|t| t.len() == 5 && t.iter().all(|t| t % 3 != 0)));
        // Others beside them change nothing.
        let fewer = continuations(&model, &prompts[..4], 5, &never, 7, |_| {});
        assert_eq!(out[..4], fewer);
        let other = continuations(&model, &prompts, 5, &never, 8, |_| {});
        for (i, prompt) in prompts.iter().enumerate() {
            if prompt.drawn {
                continue;
            }
            assert_eq!(out[i], other[i], "nothing was drawn");
            let all = [&prompt.tokens[..], &out[i]].concat();
            let logits = model.logits(&model.normed(&model.stream(&all, all.len())));
            for (j, &token) in out[i].iter().enumerate() {
                let row = &logits[(prompt.tokens.len() + j - 1) * v..][..v];
                let allowed = row.iter().enumerate().filter(|(t, _)| t % 3 != 0);
                let best = allowed.fold(f32::MIN, |m, (_, &x)| m.max(x));
                assert!(row[token as usize] > best - 2e-2, "sequence {i}, token {j}");
            }
        }
        assert!((0..7).any(|i| out[i] != other[i]), "the seed has no effect");
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
