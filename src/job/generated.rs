//! Text that the source writes by itself: what it knows beyond the domains of the calibration files.
//!
//! Text of other domains is what a compressed model is worst at. Sampled from the source's own distribution, from random
//! first tokens on, text comes from all that it was trained on, in about the shares that it had there.

use super::journal::Journal;
use super::report::{Event, check_device};
use super::tuned::WINDOW;
use crate::decoder;
use crate::error::Result;
use crate::factorize::Device;
use crate::source::TensorSource;
use crate::tokenize::Tokenizer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// Pieces in a window: attention to shorter ones takes less time, and they are more of them.
const PIECES: usize = 2;
/// Random tokens that are tried before any one will do.
const TRIES: usize = 1000;
/// Name of the text and of its record.
pub(super) const NAME: &str = "generated";

/// How much is to be written.
pub(super) struct Text {
    /// Windows.
    pub count: usize,
    pub seed: u64,
    /// Bytes of keys and values at a time.
    pub memory: usize,
}

/// The windows, from `journal` if an earlier run has written them.
pub(super) fn windows(
    source: &dyn TensorSource,
    tokenizer: &Tokenizer,
    text: &Text,
    device: &Arc<Device>,
    journal: &Journal,
    progress: &mut dyn FnMut(Event),
) -> Result<Vec<Vec<u32>>> {
    // The run's fingerprint has the count.
    if let Some(windows) = journal.get(NAME)? {
        return Ok(windows);
    }
    let loader = decoder::Loader::new(source)?.on(device);
    let model = loader.coarse(&loader.frame()?)?;
    let prompts = prompts(tokenizer, model.vocabulary(), PIECES * text.count, text.seed);
    let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let pieces = decoder::sample(&model, &all, WINDOW / PIECES, text.seed, text.memory, |done| {
        progress(Event::Stage { name: "generate", done, total: all.len(), value: None });
    });
    check_device(device, progress)?;
    let windows: Vec<Vec<u32>> = pieces.chunks(PIECES).map(|p| p.concat()).collect();
    journal.put(NAME, "generated text", &windows)?;
    Ok(windows)
}

/// `count` times a random token that stands for text, after the beginning token where the model has one.
fn prompts(tokenizer: &Tokenizer, vocabulary: usize, count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // `sample` draws from the streams that count up from 0.
    rng.set_stream(u64::MAX);
    let mut token = || {
        // Control tokens and parts of characters begin no text. A vocabulary of nothing else has no better ones.
        let mut draws =
            std::iter::repeat_with(|| rng.random_range(0..vocabulary as u32)).take(TRIES).peekable();
        let any = *draws.peek().expect("several draws");
        let begins = |text: String| !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER);
        draws.find(|&t| begins(tokenizer.decode(&[t]))).unwrap_or(any)
    };
    (0..count).map(|_| tokenizer.add_bos().into_iter().chain([token()]).collect()).collect()
}
