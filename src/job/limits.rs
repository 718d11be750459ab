//! How much memory a run will take, by stage, and how it is kept within `--max-memory`.
//!
//! The figures are upper estimates from shapes alone. What is a matter of choice gives way: matrices that are factorized at
//! once, sequences that are written at once, windows whose activations are kept. What is not is refused before the work
//! begins.

use super::convert::Options;
use super::header::Action;
use super::tuned::WINDOW;
use crate::decoder::Config;
use crate::error::{Error, Result};
use crate::factorize::{self, Method};
use crate::gguf::Value;
use crate::gguf::encode::fitting;
use crate::job::memory;
use crate::plan::{MatrixSpec, Plan};
use crate::present::size;
use crate::source::TensorSource;

/// What a process of this program has before it does anything, and what allocation leaves unused.
const BASE: u64 = 128 << 20;
/// Working sets of all matrices under way together, unless a limit says otherwise.
const MATRICES: u64 = 1 << 30;
/// Bytes that the activations kept for moments may take, unless a limit leaves less.
pub(super) const MOMENTS: u64 = 6 << 30;
/// Bytes of keys and values of the sequences that are written at once, likewise.
pub(super) const CACHES: u64 = 3 << 30;
/// The smallest that these are set to: work in smaller portions takes too long.
const LEAST: u64 = 64 << 20;

/// Threads that factorize different matrices at once, within the memory of the options if that is limited.
///
/// Without a limit as many as asked for while their working sets fit in 1 GiB together. Below that number the
/// matrices themselves are computed in parallel.
///
/// # Errors
/// [`Error::Usage`] if not even one matrix fits.
pub(super) fn workers(
    source: &dyn TensorSource,
    actions: &[Action],
    specs: &[MatrixSpec],
    plan: &Plan,
    options: &Options,
) -> Result<usize> {
    let (method, paths) = (options.method, options.paths);
    let items = source.tensors().iter().zip(actions).map(|(t, action)| match action {
        Action::Factorize(at) => {
            let (s, rank) = (&specs[*at], plan.entries[*at].rank as u64);
            let (m, n, e) = (s.d_out as u64, s.d_in as u64, s.experts as u64);
            // As stored, as it is read, and turned to the order of the GGUF's rows.
            let reading = m * n * e * (4 + 4 + 4);
            let least = m.min(n);
            let few = factorize::is_small_part(rank as usize, least as usize);
            let method = match method {
                // Weighed weights, both factors with as much to work with, two Gram matrices; then products with stored scales.
                Method::Admm => 4 * (2 * m * n + 2 * rank * (m + n) + 2 * rank * rank),
                // Blocks of the Krylov space, or all singular vectors.
                Method::DualSvid if few => 4 * (m * n + 20 * (rank + 16) * (m + n)),
                Method::DualSvid => 4 * (4 * m * n + least * (m + n)),
            };
            let (work, done) = match options.lossy {
                // As a record, and as what is written.
                None => (0, 3 * plan.entries[*at].bits / 8),
                Some(ty) => (4 * m * n, fitting(ty, n).tensor_bytes(&t.dims).unwrap_or(0)),
            };
            let work = work + done + 4 * m * n * (e + paths as u64 - 1) + method;
            Item { work: work.max(reading), done, name: &s.name, factorized: true }
        }
        Action::Keep { ty, .. } => {
            let bytes = ty.tensor_bytes(&t.dims).unwrap_or(0);
            let values = t.dims.iter().product::<u64>();
            // Matrices are encoded in pieces.
            let piece = if t.dims.len() == 2 { values.min(1 << 24) } else { values };
            let work = if *ty == t.ty { bytes } else { bytes + 12 * piece };
            Item { work, done: bytes, name: &t.name, factorized: false }
        }
    });
    let mut items: Vec<Item> = items.collect();
    let threads = options.threads.max(1) as u64;
    let Some(limit) = options.max_memory else {
        let largest = items.iter().filter(|i| i.factorized).map(|i| i.work).max().unwrap_or(1);
        return Ok((MATRICES / largest.max(1)).clamp(1, threads) as usize);
    };
    // So many items are at work, and as many finished ones may wait for their turn.
    let peak = |items: &[Item], n: usize| {
        let most = |of: fn(&Item) -> u64, items: &[Item]| {
            let mut all: Vec<u64> = items.iter().map(of).collect();
            all.sort_unstable_by(|a, b| b.cmp(a));
            all.iter().take(n).sum::<u64>()
        };
        BASE + keys(source) + most(|i| i.work, items) + most(|i| i.done, items)
    };
    let fits = (1..=threads as usize).rev().find(|&n| peak(&items, n) <= limit);
    fits.ok_or_else(|| {
        items.sort_by_key(|i| std::cmp::Reverse(i.work));
        Error::usage(format!(
            "--max-memory {} is too little: '{}' alone takes about {}, the run {}. Give at least {}; a lower --bpw or a \
             smaller type of kept tensors takes less",
            size(limit),
            items[0].name,
            size(items[0].work),
            size(peak(&items, 1)),
            at_least(peak(&items, 1))
        ))
    })
}

/// A value for the flag that holds `bytes`.
fn at_least(bytes: u64) -> String {
    format!("{}M", bytes.div_ceil(1_000_000))
}

/// Bytes that one tensor takes while it is worked on, and afterwards until it is written.
struct Item<'a> {
    work: u64,
    done: u64,
    name: &'a str,
    factorized: bool,
}

/// Bytes of the keys: a vocabulary, mostly, of which there are a few copies.
pub(super) fn keys(source: &dyn TensorSource) -> u64 {
    let strings = |v: &Value| match v {
        Value::Array(crate::gguf::Array::Str(all)) => all.iter().map(|s| s.len() as u64 + 64).sum(),
        _ => 64,
    };
    4 * source.kv().iter().map(|(_, v)| strings(v)).sum::<u64>()
}

/// Memory for what is a matter of choice in a calibrated run, and how many threads may need some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Portions {
    /// Activations kept for moments, bytes.
    pub moments: u64,
    /// Keys and values of the sequences that are written at once, bytes.
    pub caches: u64,
    /// Threads, at most as many as were asked for.
    pub threads: usize,
}

/// Threads whose memory is set aside before the portion for moments is cut, however many there are: the portion decides on
/// the result, which is to be the same for any number.
const RECKONED: usize = 8;

/// What a calibrated run works on.
pub(super) struct Amounts<'a> {
    pub config: &'a Config,
    /// Tokens of the vocabulary, and whether the head is a matrix of its own.
    pub vocabulary: (usize, bool),
    /// Bits per weight, about.
    pub bpw: f64,
    /// Windows that the source writes.
    pub generated: usize,
    /// Windows for sensitivities.
    pub sensitivity: usize,
    /// Windows of all texts.
    pub all: usize,
    /// Whether blocks are tuned.
    pub tuned: bool,
    /// Whether both models write text at the end.
    pub coherence: bool,
    /// Threads that were asked for.
    pub threads: usize,
}

/// Windows for moments that there are at least.
const LEAST_WINDOWS: usize = 16;

/// Bytes of the activations that are kept of one window while a block is factorized: the inputs of all sites and
/// the residual stream at two places in two bytes, and residual stream, middle and one input in four, the block's input once
/// more if it is `tuned`.
fn moment_window(c: &Config, tuned: bool) -> u64 {
    let (d, heads) = (c.d_model, c.heads * c.d_value);
    let streams = if tuned { 3 } else { 2 };
    let token = 2 * (4 * d + heads + c.d_ff) + 4 * (streams * d + c.d_ff.max(heads));
    (token * WINDOW) as u64
}

/// Bytes of the fewest windows for moments.
fn least_moments(a: &Amounts) -> u64 {
    moment_window(a.config, a.tuned) * LEAST_WINDOWS as u64
}

/// Windows whose activations, kept while a block is factorized, fit into `memory` bytes.
pub(super) fn windows_for_moments(c: &Config, tuned: bool, memory: u64) -> usize {
    ((memory / moment_window(c, tuned)) as usize).max(LEAST_WINDOWS)
}

/// Portions that keep a calibrated run of a model with so many bytes of `keys` within `limit` bytes.
///
/// # Errors
/// [`Error::Usage`] that names the stage that cannot be kept within it.
pub(super) fn portions(a: &Amounts, keys: u64, limit: Option<u64>) -> Result<Portions> {
    let largest =
        |threads| stages(a, keys, threads).into_iter().max_by_key(|s| s.1).expect("there are stages");
    let Some(limit) = limit else {
        let (stage, needed) = largest(a.threads);
        return match memory::machine() {
            Some(all) if needed > all => Err(Error::usage(format!(
                "stage '{stage}' takes about {}, and this machine has {}. Take a machine with more, or try it all the same with \
                 --max-memory {}{}",
                size(needed),
                size(all),
                at_least(needed),
                instead(stage)
            ))),
            _ => Ok(Portions { moments: MOMENTS, caches: CACHES, threads: a.threads }),
        };
    };
    let (stage, needed) = largest(1);
    if needed > limit {
        return Err(Error::usage(format!(
            "--max-memory {} is too little: stage '{stage}' takes about {}. Give at least {}{}",
            size(limit),
            size(needed),
            at_least(needed),
            instead(stage)
        )));
    }
    let reckoned = stages(a, keys, RECKONED);
    let left = |stage: &str| {
        limit.saturating_sub(reckoned.iter().find(|s| s.0 == stage).expect("it is one of them").1)
    };
    let least = least_moments(a);
    let moments = (least + left("factorize")).min(MOMENTS.max(least));
    let beyond = |stage: &str| if stage == "factorize" { moments - least } else { 0 };
    let fits = |&n: &usize| stages(a, keys, n).iter().all(|(stage, bytes)| bytes + beyond(stage) <= limit);
    Ok(Portions {
        moments,
        caches: (LEAST + left("generate")).min(CACHES),
        // The portion leaves room for one.
        threads: (2..=a.threads).rev().find(fits).unwrap_or(1),
    })
}

/// What a user can do instead of giving `stage` what it takes.
fn instead(stage: &str) -> &'static str {
    match stage {
        "generate" => {
            "; or leave writing out with --generated-windows 0, and give texts of your own with --calibration: without \
             any the file is not tuned"
        }
        "factorize" => "; or give less text: fewer --generated-windows, shorter files",
        "continue" => "; or leave out --eval, --coherence and its limits, and run verify afterwards",
        _ => "; or give statistics with --imatrix instead of --calibration: the file is not tuned then",
    }
}

/// Stages and the bytes that each takes with the smallest portions on so many threads.
fn stages(a: &Amounts, keys: u64, threads: usize) -> [(&'static str, u64); 5] {
    let (c, u) = (a.config, |n: usize| n as u64);
    let (d, ff, blocks) = (u(c.d_model), u(c.d_ff), u(c.blocks));
    let (q, kv) = (u(c.heads * c.d_key), u(c.heads_kv * (c.d_key + c.d_value)));
    let attention = u(c.heads * c.d_value);
    let block = d * (q + kv + attention) + 3 * d * ff;
    let (vocabulary, own_head) = (u(a.vocabulary.0), a.vocabulary.1);
    let token = u(WINDOW);
    // Embeddings and head of the source, and once more as the output stores them.
    let frame = 4 * vocabulary * d * if own_head { 4 } else { 2 };
    let base = BASE + keys + frame;
    // Four copies of every sign as a bit, scales, and the factors for the output.
    let compressed = ((blocks * block) as f64 * a.bpw * (4.0 + 2.0) / 8.0) as u64;
    let widest = ff.max(attention);
    // Sums of products of inputs, their decomposition, the target: the widest layer.
    let solving = 40 * widest * widest + 32 * widest * d + 8 * widest * d;
    let coarse = 2 * blocks * block + 6 * block + 2 * vocabulary * d;
    let writing = base + coarse + u(72) * 8 * vocabulary;
    // What a backward pass needs of one window in one block: streams, inputs, outputs of the layers, and their latents.
    let shapes = [(q, d), (kv / 2, d), (kv / 2, d), (d, attention), (ff, d), (ff, d), (d, ff)];
    let rank = |(m, n): (u64, u64)| (a.bpw * (m * n) as f64 / (m + n).max(1) as f64) as u64;
    let latents: u64 = shapes.iter().map(|&shape| rank(shape)).sum();
    let activations = 4 * token * (6 * d + attention + 5 * ff + 2 * (q + kv) + latents);
    let logits = 4 * token * vocabulary;
    let streams = u(a.all) * token * d * 4;
    [
        ("generate", if a.generated > 0 { writing + LEAST } else { 0 }),
        (
            "sensitivity",
            base + u(a.sensitivity) * token * d * 4 * (blocks + 2)
                + 12 * block
                + solving
                + u(threads) * activations
                + 2 * logits,
        ),
        (
            "factorize",
            base + compressed
                + streams
                + 10 * block
                + solving
                + if a.tuned { 12 * (block as f64 * a.bpw) as u64 * 2 } else { 0 }
                + u(threads) * 2 * activations
                + least_moments(a),
        ),
        (
            "distil",
            base + compressed + streams / 2 + 4 * vocabulary * d + 2 * (blocks * activations + 2 * logits),
        ),
        ("continue", if a.coherence { writing + compressed + streams / 2 } else { 0 }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::small;

    #[test]
    fn portions_are_the_same_for_any_number_of_threads() {
        let config = Config { d_model: 512, d_ff: 1536, blocks: 4, ..small().config };
        let on = |threads: usize, limit: u64| {
            let (vocabulary, bpw, tuned, coherence) = ((1000, false), 1.0, true, false);
            let a = Amounts {
                config: &config,
                vocabulary,
                bpw,
                generated: 40,
                sensitivity: 4,
                all: 200,
                tuned,
                coherence,
                threads,
            };
            let most = |n: usize| stages(&a, 0, n).into_iter().map(|s| s.1).max().unwrap();
            (portions(&a, 0, Some(limit)), most(1), most(RECKONED))
        };
        let (_, one, reckoned) = on(1, 0);
        assert!(one < reckoned);
        let mut fewer = false;
        for limit in [one, one.midpoint(reckoned), reckoned, reckoned + (64 << 20), 64 << 30] {
            let first = on(1, limit).0.unwrap();
            assert_eq!(first.threads, 1);
            for threads in [2, 3, RECKONED, 64] {
                let p = on(threads, limit).0.unwrap();
                assert_eq!((p.moments, p.caches), (first.moments, first.caches), "{threads} in {limit}");
                assert!(p.threads <= threads);
                fewer |= p.threads < threads;
                // What is set aside is enough for its threads.
                assert!(limit < reckoned || p.threads >= threads.min(RECKONED), "{} of {threads}", p.threads);
            }
        }
        assert!(fewer, "no limit was too little for 64 threads");
        // More room, more windows.
        let windows = |limit| windows_for_moments(&config, true, on(1, limit).0.unwrap().moments);
        assert_eq!(windows(one), LEAST_WINDOWS);
        assert!(windows(reckoned + (64 << 20)) > LEAST_WINDOWS);
        assert!(on(1, one - 1).0.is_err());
    }
}
