//! The calibrated path of a conversion: factorization in model order on the activations of the part that is already
//! compressed, then distillation of the whole model, then its comparison with the source.

use crate::calibrate::text;
use crate::decoder::{self, Model, Weight};
use crate::error::{Error, Result};
use crate::factorize;
use crate::job::convert::Options;
use crate::job::journal::Journal;
use crate::job::report::{Evaluation, Event};
use crate::job::sequential::{Made, Sequential, Stage};
use crate::plan::{MatrixSpec, Plan};
use crate::source::TensorSource;
use crate::tokenize::Tokenizer;
use crate::tune::{Checkpoint, Distillation, Length, Settings, Teacher};
use crate::verify;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Tokens of a window, for statistics, training and evaluation.
pub const WINDOW: usize = 512;
/// Windows that one text is evaluated on at most.
pub const EVALUATION_WINDOWS: usize = 32;

/// Windows that a run with a time budget may use.
const TIMED_WINDOWS: usize = 1024;
/// Record of the distillation's state.
const CHECKPOINT: &str = "distil";
/// Time between two of them at least, and as a multiple of the time that one takes.
const CHECKPOINT_EVERY: (Duration, u32) = (Duration::from_secs(5), 50);

/// How much work a calibrated conversion does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Minutes on a small model.
    Fast,
    /// The default.
    Normal,
    /// As long as it pays.
    Best,
}

impl Effort {
    /// Windows for moments, iterations of ADMM, distillation steps.
    fn amounts(self) -> (usize, usize, usize) {
        match self {
            Effort::Fast => (16, 12, 100),
            Effort::Normal => (48, 20, 700),
            Effort::Best => (64, 60, 2600),
        }
    }
}

impl std::str::FromStr for Effort {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "fast" => Ok(Effort::Fast),
            "normal" => Ok(Effort::Normal),
            "best" => Ok(Effort::Best),
            _ => Err(Error::usage(format!("unknown effort '{s}'; there are fast, normal and best"))),
        }
    }
}

/// What a calibrated conversion needs.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Texts, mixed evenly.
    pub files: Vec<PathBuf>,
    /// How much work.
    pub effort: Effort,
    /// Distillation steps instead of the effort's.
    pub steps: Option<usize>,
    /// Time for all stages instead of a number of steps: distillation takes what factorization leaves.
    pub time_budget: Option<Duration>,
    /// Texts to compare source and result on.
    pub evaluation: Vec<PathBuf>,
}

/// What came out of it, for the writer.
pub(super) struct Prepared {
    /// By weight name.
    pub made: HashMap<String, Made>,
    /// Trained norms by tensor name.
    pub norms: HashMap<String, Vec<f32>>,
    /// Tokens of calibration.
    pub tokens: u64,
    /// Comparison with the source for each text.
    pub evaluations: Vec<Evaluation>,
}

/// Runs all stages.
pub(super) fn prepare(
    source: &dyn TensorSource,
    specs: &[MatrixSpec],
    plan: &Plan,
    options: &Options,
    calibration: &Calibration,
    journal: &Journal,
    progress: &mut dyn FnMut(Event),
) -> Result<Prepared> {
    let started = Instant::now();
    let tokenizer = Tokenizer::from_kv(source.path(), source.kv())?;
    let windows = text::mixed(text::windows_of(&calibration.files, &tokenizer, WINDOW)?);
    let mut texts = text::windows_of(&calibration.evaluation, &tokenizer, WINDOW)?;
    texts.iter_mut().for_each(|t| t.truncate(EVALUATION_WINDOWS));
    let loader = decoder::Loader::new(source)?;
    let (count, iterations, steps) = calibration.effort.amounts();
    let mut job = options.clone();
    job.iterations = options.iterations.or(Some(iterations));
    let steps = calibration.steps.unwrap_or(steps);
    let used = match calibration.time_budget {
        Some(_) => TIMED_WINDOWS,
        None => steps.max(count),
    };
    let training: Vec<&[u32]> = windows.iter().take(used).map(Vec::as_slice).collect();
    let all: Vec<&[u32]> =
        training.iter().copied().chain(texts.iter().flatten().map(Vec::as_slice)).collect();
    let ranks = specs.iter().zip(&plan.entries).enumerate();
    let stage = Stage {
        path: source.path(),
        loader,
        windows: &all,
        statistics: count.min(training.len()),
        ranks: ranks.map(|(i, (s, e))| (s.name.as_str(), (i, e.rank))).collect(),
        options: &job,
        journal,
    };
    let Sequential { mut model, mut made, mut rows } = stage.run(progress)?;
    let evaluation_rows = rows.split_off(training.len());

    let length = match calibration.time_budget {
        Some(all) => Length::Time(all.saturating_sub(started.elapsed())),
        None => Length::Steps(steps),
    };
    distil(&mut model, &rows, &training, length, journal, progress)?;
    let norms = store(&mut model, &mut made)?;
    let mut evaluations = Vec::new();
    let mut at = 0;
    for (file, windows) in calibration.evaluation.iter().zip(&texts) {
        let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let rows = &evaluation_rows[at..at + windows.len()];
        at += windows.len();
        let comparison = verify::compare(rows, &model, &windows, |done| {
            progress(Event::Stage { name: "evaluate", done, total: windows.len(), value: None });
        });
        evaluations.push(Evaluation { text: file.clone(), windows: windows.len(), comparison });
    }
    let tokens = (training.len() * WINDOW) as u64;
    Ok(Prepared { made, norms, tokens, evaluations })
}

/// Distils the source's predictions into `model`, from the journal's checkpoint if there is one.
fn distil(
    model: &mut Model,
    rows: &[Vec<f32>],
    windows: &[&[u32]],
    length: Length,
    journal: &Journal,
    progress: &mut dyn FnMut(Event),
) -> Result<()> {
    let teacher = Teacher::new(rows);
    let checkpoint: Option<Checkpoint> = journal.get(CHECKPOINT)?;
    // What time was left when it began, not what is left now.
    let length = match (length, &checkpoint) {
        (Length::Time(_), Some(c)) if matches!(c.length(), Length::Time(_)) => c.length(),
        _ => length,
    };
    let mut run = Distillation::new(model, &teacher, windows, Settings { length, ..Settings::default() });
    let resumed = checkpoint.is_some_and(|c| run.resume(c));
    if resumed {
        progress(Event::Note(&format!("{} distillation steps are there from an earlier run", run.steps())));
    }
    let (mut saved, mut wait) = (Instant::now(), CHECKPOINT_EVERY.0);
    while let Some(s) = run.step() {
        progress(Event::Stage { name: "distil", done: s.step, total: s.steps, value: Some(s.kld) });
        if saved.elapsed() > wait {
            saved = Instant::now();
            journal.put(CHECKPOINT, "a checkpoint", run.checkpoint())?;
            wait = CHECKPOINT_EVERY.0.max(saved.elapsed() * CHECKPOINT_EVERY.1);
        }
    }
    journal.put(CHECKPOINT, "a checkpoint", run.checkpoint())
}

/// Rounds the trained scales to what the file holds, and the model with them.
fn store(model: &mut Model, made: &mut HashMap<String, Made>) -> Result<HashMap<String, Vec<f32>>> {
    let mut norms = HashMap::new();
    norms.insert("output_norm.weight".to_owned(), model.norm.clone());
    for (i, block) in model.blocks.iter_mut().enumerate() {
        for l in block.linears.iter_mut().flatten() {
            let (Weight::Binary(paths), Some(f)) = (&mut l.weight, made.get_mut(&l.name)) else {
                continue;
            };
            for (p, stored) in paths.iter_mut().zip(&mut f.factors.slices) {
                *stored = factorize::with_scales(&l.name, stored, &p.h, &p.l, &p.g)?;
                p.set_scales(stored);
            }
        }
        let names =
            ["attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm"];
        let present = [
            Some(&block.norms[0]),
            Some(&block.norms[1]),
            block.post_norms[0].as_ref(),
            block.post_norms[1].as_ref(),
            block.head_norms[0].as_ref(),
            block.head_norms[1].as_ref(),
        ];
        for (name, norm) in names.iter().zip(present) {
            if let Some(norm) = norm {
                norms.insert(format!("blk.{i}.{name}.weight"), norm.clone());
            }
        }
    }
    Ok(norms)
}
