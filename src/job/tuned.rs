//! The calibrated path of a conversion: factorization in model order on the activations of the part that is already
//! compressed, then distillation of the whole model, then its comparison with the source.

use crate::calibrate::moments::Shares;
use crate::calibrate::sensitivity::{self, Sensitivity};
use crate::calibrate::text::{self, Mixture};
use crate::decoder::{self, Config, Model, Weight};
use crate::error::{Error, Result};
use crate::factorize;
use crate::job::convert::Options;
use crate::job::header::file_name;
use crate::job::journal::Journal;
use crate::job::output::AtomicFile;
use crate::job::report::{Evaluation, Event, Sample};
use crate::job::sequential::{Made, Sequential, Stage};
use crate::plan::{MatrixSpec, Plan};
use crate::source::TensorSource;
use crate::tokenize::Tokenizer;
use crate::tune::{BlockSettings, Checkpoint, Distillation, Length, Settings, Teacher};
use crate::verify;
use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Tokens of a window, for statistics, training and evaluation.
pub const WINDOW: usize = 512;
/// Windows that one text is evaluated on at most.
pub const EVALUATION_WINDOWS: usize = 32;

/// Rounds of polish by default; more gain little.
pub const POLISH_ROUNDS: usize = 2;
/// Tokens of the prompt of a sample, and of its continuation.
const SAMPLE: (usize, usize) = (24, 40);
/// Windows that a run with a time budget may use.
const TIMED_WINDOWS: usize = 1024;
/// Tokens of calibration text from which the source goes on in generated windows.
const PROMPT: usize = 64;
/// Generated pieces in a window: shorter ones take less time.
const PIECES: usize = 2;
/// Record of the generated windows.
const GENERATED: &str = "generated";
/// Bytes that the activations kept for moments may take.
const MOMENT_MEMORY: usize = 6 << 30;
/// Windows of text with which an effort tunes blocks.
const LEAST_BLOCK_WINDOWS: usize = 64;
/// Record of the sensitivities.
const SENSITIVITY: &str = "sensitivity";
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

/// How much of what an effort does.
struct Amounts {
    /// Windows for sensitivities.
    sensitivity: usize,
    /// Windows for moments.
    moments: usize,
    /// Iterations of ADMM.
    iterations: usize,
    /// Passes of block tuning over the windows for moments.
    passes: usize,
    /// Distillation steps.
    steps: usize,
}

impl Effort {
    fn amounts(self) -> Amounts {
        let [sensitivity, moments, iterations, passes, steps] = match self {
            Effort::Fast => [4, 128, 12, 0, 70],
            Effort::Normal => [12, 256, 20, 2, 300],
            Effort::Best => [24, 512, 40, 3, 1000],
        };
        Amounts { sensitivity, moments, iterations, passes, steps }
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
    /// Windows of text at least; the source writes what the files lack.
    pub windows: usize,
    /// Passes of block tuning instead of the effort's.
    pub passes: Option<usize>,
    /// How much of what went wrong before it a matrix makes up for.
    pub correction: Shares,
    /// Rounds of polish.
    pub polish_rounds: usize,
    /// Distillation steps instead of the effort's.
    pub steps: Option<usize>,
    /// Time for all stages instead of a number of steps: distillation takes what factorization leaves.
    pub time_budget: Option<Duration>,
    /// Where to write the importance matrix of the texts, in llama-imatrix's format.
    pub save_imatrix: Option<PathBuf>,
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

/// A calibrated conversion whose texts are read.
pub(super) struct Calibrated<'a> {
    source: &'a dyn TensorSource,
    options: &'a Options,
    calibration: &'a Calibration,
    journal: &'a Journal,
    started: Instant,
    tokenizer: Tokenizer,
    text: Mixture,
    /// Whether the source wrote some of it.
    generated: bool,
    /// Windows of every evaluation text.
    texts: Vec<Vec<Vec<u32>>>,
}

impl<'a> Calibrated<'a> {
    /// Reads and tokenizes the texts.
    pub fn new(
        source: &'a dyn TensorSource,
        options: &'a Options,
        calibration: &'a Calibration,
        journal: &'a Journal,
        progress: &mut dyn FnMut(Event),
    ) -> Result<Self> {
        let started = Instant::now();
        let tokenizer = Tokenizer::from_kv(source.path(), source.kv())?;
        let mut files = text::windows_of(&calibration.files, &tokenizer, WINDOW)?;
        let (wanted, seed) = (calibration.windows, options.seed);
        let generated = add_generated(source, &mut files, &tokenizer, wanted, seed, journal, progress)?;
        let text = Mixture::new(files);
        let mut texts = text::windows_of(&calibration.evaluation, &tokenizer, WINDOW)?;
        texts.iter_mut().for_each(|t| t.truncate(EVALUATION_WINDOWS));
        let rows = source.tensors().iter().find(|t| t.name == "token_embd.weight").map(|t| t.dims[1]);
        let all = text.windows.iter().chain(texts.iter().flatten()).flatten();
        if let Some(t) = all.copied().find(|&t| rows.is_some_and(|rows| u64::from(t) >= rows)) {
            let what = format!("token {t} of the tokenizer has no embedding");
            return Err(Error::unsupported(source.path(), what));
        }
        Ok(Self { source, options, calibration, journal, started, tokenizer, text, generated, texts })
    }

    /// What the loss feels of errors in each weight, by name.
    pub fn sensitivities(&self, progress: &mut dyn FnMut(Event)) -> Result<HashMap<String, Sensitivity>> {
        let loader = decoder::Loader::new(self.source)?;
        let all: Vec<Sensitivity> = match self.journal.get(SENSITIVITY)? {
            Some(all) => all,
            None => {
                let windows = self.text.windows.iter().take(self.calibration.effort.amounts().sensitivity);
                let windows: Vec<&[u32]> = windows.map(Vec::as_slice).collect();
                let total = 2 * loader.blocks();
                let (frame, seed) = (loader.frame()?, self.options.seed);
                let all = sensitivity::measure(
                    &frame,
                    |b| loader.block(b),
                    &windows,
                    seed,
                    |done| {
                        progress(Event::Stage { name: "sensitivity", done, total, value: None });
                    },
                )?;
                self.journal.put(SENSITIVITY, "sensitivities", &all)?;
                all
            }
        };
        Ok(all.into_iter().map(|s| (s.name.clone(), s)).collect())
    }

    /// Runs all stages after the plan.
    pub fn prepare(
        &self,
        specs: &[MatrixSpec],
        plan: &Plan,
        measured: &HashMap<String, Sensitivity>,
        progress: &mut dyn FnMut(Event),
    ) -> Result<Prepared> {
        let (calibration, amounts) = (self.calibration, self.calibration.effort.amounts());
        let mut job = self.options.clone();
        job.iterations = self.options.iterations.or(Some(amounts.iterations));
        let steps = calibration.steps.unwrap_or(amounts.steps);
        let used = match calibration.time_budget {
            Some(_) => TIMED_WINDOWS,
            None => (steps * Settings::default().batch).max(amounts.moments),
        };
        let mut text = self.text.clone();
        text.truncate(used);
        let training: Vec<&[u32]> = text.windows.iter().map(Vec::as_slice).collect();
        let evaluation = self.texts.iter().flatten().map(Vec::as_slice);
        let all: Vec<&[u32]> = training.iter().copied().chain(evaluation).collect();
        let ranks = specs.iter().zip(&plan.entries).enumerate();
        let loader = decoder::Loader::new(self.source)?;
        // Little text is learned by heart: then blocks are tuned on demand only.
        let enough = training.len() >= LEAST_BLOCK_WINDOWS;
        let passes = calibration.passes.unwrap_or(if enough { amounts.passes } else { 0 });
        let most = most_for_moments(loader.config(), passes > 0);
        let statistics = amounts.moments.min(training.len()).min(most);
        let stage = Stage {
            loader,
            windows: &all,
            statistics,
            shares: text.shares(statistics),
            training: training.len(),
            ranks: ranks.map(|(i, (s, e))| (s.name.as_str(), (i, e.rank))).collect(),
            measured,
            correction: calibration.correction,
            polish_rounds: calibration.polish_rounds,
            tuning: BlockSettings { passes, ..BlockSettings::default() },
            imatrix: calibration.save_imatrix.is_some(),
            options: &job,
            journal: self.journal,
        };
        let Sequential { mut model, mut made, teacher, rows, imatrix } = stage.run(progress)?;
        if let Some(path) = &calibration.save_imatrix {
            let mut names: Vec<String> = calibration.files.iter().map(|f| file_name(f)).collect();
            names.extend(self.generated.then(|| GENERATED.to_owned()));
            let bytes = imatrix.to_gguf(&names, training.len(), WINDOW)?;
            let file = AtomicFile::create(path, self.options.force)?;
            let mut writer = file.writer()?;
            writer.write_all(&bytes).map_err(|e| Error::io(path, "write", e))?;
            file.commit(writer)?;
        }

        let length = match calibration.time_budget {
            Some(all) => Length::Time(all.saturating_sub(self.started.elapsed())),
            None => Length::Steps(steps),
        };
        distil(&mut model, &teacher, &text, length, self.journal, progress)?;
        let norms = store(&mut model, &mut made)?;
        let mut evaluations = Vec::new();
        let mut at = 0;
        for (file, windows) in calibration.evaluation.iter().zip(&self.texts) {
            let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
            let rows = &rows[at..at + windows.len()];
            at += windows.len();
            let comparison = verify::compare(rows, &model, &windows, |done| {
                progress(Event::Stage { name: "evaluate", done, total: windows.len(), value: None });
            });
            let prompt = &windows[0][..SAMPLE.0];
            let sample = Sample {
                prompt: self.tokenizer.decode(prompt),
                continuation: self.tokenizer.decode(&verify::greedy(&model, prompt, SAMPLE.1)),
            };
            evaluations.push(Evaluation { text: file.clone(), windows: windows.len(), sample, comparison });
        }
        let tokens = (training.len() * WINDOW) as u64;
        Ok(Prepared { made, norms, tokens, evaluations })
    }
}

/// Windows whose activations, kept while a block is factorized, fit into [`MOMENT_MEMORY`]: the inputs of all sites and
/// the residual stream at two places in two bytes, and residual stream, middle and one input in four, the block's input once more if it is `tuned`.
fn most_for_moments(c: &Config, tuned: bool) -> usize {
    let (d, heads) = (c.d_model, c.heads * c.d_value);
    let streams = if tuned { 3 } else { 2 };
    let token = 2 * (4 * d + heads + c.d_ff) + 4 * (streams * d + c.d_ff.max(heads));
    (MOMENT_MEMORY / (token * WINDOW)).max(16)
}

/// Has the source go on from pieces of the calibration text until every file has an equal share of `wanted` windows:
/// more text than the user gave, of the same kinds. Returns whether there was anything to do.
fn add_generated(
    source: &dyn TensorSource,
    files: &mut [Vec<Vec<u32>>],
    tokenizer: &Tokenizer,
    wanted: usize,
    seed: u64,
    journal: &Journal,
    progress: &mut dyn FnMut(Event),
) -> Result<bool> {
    let share = wanted.div_ceil(files.len().max(1));
    let prompts: Vec<(usize, Vec<u32>)> = files
        .iter()
        .enumerate()
        .flat_map(|(f, windows)| {
            let count = PIECES * share.saturating_sub(windows.len());
            let prompts = text::prompts(windows, count, PROMPT, tokenizer.add_bos());
            prompts.into_iter().map(move |p| (f, p))
        })
        .collect();
    if prompts.is_empty() {
        return Ok(false);
    }
    let made: Vec<Vec<u32>> = match journal.get(GENERATED)? {
        Some(made) => made,
        None => {
            let loader = decoder::Loader::new(source)?;
            let mut model = loader.frame()?;
            for b in 0..loader.blocks() {
                model.blocks.push(loader.block(b)?.coarse());
            }
            let all: Vec<&[u32]> = prompts.iter().map(|(_, p)| p.as_slice()).collect();
            let made = decoder::sample(&model, &all, WINDOW / PIECES, seed, |done| {
                progress(Event::Stage { name: "generate", done, total: all.len(), value: None });
            });
            journal.put(GENERATED, "generated text", &made)?;
            made
        }
    };
    for (prompts, pieces) in prompts.chunks(PIECES).zip(made.chunks(PIECES)) {
        files[prompts[0].0].push(pieces.concat());
    }
    Ok(true)
}

/// Distils the source's predictions into `model`, from the journal's checkpoint if there is one.
fn distil(
    model: &mut Model,
    teacher: &Teacher,
    text: &Mixture,
    length: Length,
    journal: &Journal,
    progress: &mut dyn FnMut(Event),
) -> Result<()> {
    let checkpoint: Option<Checkpoint> = journal.get(CHECKPOINT)?;
    // What time was left when it began, not what is left now.
    let length = match (length, &checkpoint) {
        (Length::Time(_), Some(c)) if matches!(c.length(), Length::Time(_)) => c.length(),
        _ => length,
    };
    let mut run = Distillation::new(model, teacher, text, Settings { length, ..Settings::default() });
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
