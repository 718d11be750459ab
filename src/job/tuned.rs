//! The calibrated path of a conversion: factorization in model order on the activations of the part that is already
//! compressed, then distillation of the whole model, then its comparison with the source.

use crate::calibrate::moments::Shares;
use crate::calibrate::sensitivity::{self, Sensitivity};
use crate::calibrate::text::{self, Mixture};
use crate::decoder;
use crate::error::Result;
use crate::factorize;
use crate::job::convert::Options;
pub use crate::job::effort::Effort;
use crate::job::evaluation::{
    EVALUATION_WINDOWS, check_embeddings, evaluation_windows, repeated_texts, vocabulary,
};
use crate::job::generated;
use crate::job::header::{Action, file_name};
use crate::job::journal::{Fingerprint, Journal};
use crate::job::limits::{self, Portions};
use crate::job::output;
use crate::job::report::{Evaluation, Event, check_device};
use crate::job::sequential::{Made, Sequential, Stage};
use crate::job::statistics::{self, Measured};
use crate::job::stored::Stored;
use crate::job::trained::store;
use crate::plan::{MatrixSpec, Plan};
use crate::source::TensorSource;
use crate::tokenize::Tokenizer;
use crate::tune::{Absorption, BlockSettings, Checkpoint, Distillation, Length, Settings};
use crate::verify::Coherence;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of a window, for statistics, training and evaluation.
pub const WINDOW: usize = 512;
/// Rounds of polish by default; more gain little.
pub const POLISH_ROUNDS: usize = 2;
/// Windows that a run with a time budget may use.
const TIMED_WINDOWS: usize = 1024;
/// Windows of text with which an effort tunes blocks.
const LEAST_BLOCK_WINDOWS: usize = 64;
/// Record of the sensitivities.
const SENSITIVITY: &str = "sensitivity";
/// Record of the distillation's state.
const CHECKPOINT: &str = "distil";
/// Time between two of them at least, and as a multiple of the time that one takes.
const CHECKPOINT_EVERY: (Duration, u32) = (Duration::from_millis(500), 50);

/// Whether `source` can be calibrated at all.
///
/// # Errors
/// Why not: an architecture without a forward pass, a vocabulary that is missing or of an unknown kind.
pub fn check(source: &dyn TensorSource) -> Result<()> {
    decoder::Loader::new(source)?;
    Tokenizer::from_kv(source.path(), source.kv()).map(|_| ())
}

/// What a calibrated conversion needs.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Texts, mixed evenly with what the source writes.
    pub files: Vec<PathBuf>,
    /// How much work.
    pub effort: Effort,
    /// Windows that the source writes instead of the effort's.
    pub generated: Option<usize>,
    /// Passes of block tuning instead of the effort's.
    pub passes: Option<usize>,
    /// How much of what went wrong before it a matrix makes up for.
    pub correction: Shares,
    /// Rounds of polish.
    pub polish_rounds: usize,
    /// Passes in which dense weights make up for errors before they are factorized.
    pub absorb_passes: usize,
    /// Distillation steps instead of the effort's.
    pub steps: Option<usize>,
    /// Time for all stages instead of a number of steps: distillation takes what factorization leaves.
    pub time_budget: Option<Duration>,
    /// Where to write the importance matrix of the texts, in llama-imatrix's format.
    pub save_imatrix: Option<PathBuf>,
    /// File that keeps what was measured of the source: read if it is there, written if not.
    pub statistics: Option<PathBuf>,
    /// Texts to compare source and result on.
    pub evaluation: Vec<PathBuf>,
    /// Whether to compare what both write even without such texts.
    pub coherence: bool,
}

impl Calibration {
    /// Windows that the source writes. Where they are the only text, half of them serve for moments, and distillation begins
    /// with the others.
    pub(super) fn generated(&self) -> usize {
        let amounts = self.effort.amounts();
        self.generated.unwrap_or(if self.files.is_empty() { 2 * amounts.moments } else { amounts.generated })
    }

    /// Distillation steps, and windows that the run uses if there are so many.
    fn windows(&self) -> (usize, usize) {
        let amounts = self.effort.amounts();
        let steps = self.steps.unwrap_or(amounts.steps);
        let windows = match self.time_budget {
            Some(_) => TIMED_WINDOWS,
            None => steps * Settings::default().batch + amounts.moments,
        };
        (steps, windows)
    }

    /// Bytes of the work folder beside the factors, which take `factors` bytes: those of tuned blocks, the source's rows, the
    /// state of the distillation.
    ///
    /// # Errors
    /// An architecture that has no forward pass here.
    pub(super) fn work_bytes(&self, source: &dyn TensorSource, factors: u64) -> Result<u64> {
        let d = decoder::Loader::new(source)?.config().d_model;
        let texts = EVALUATION_WINDOWS * self.evaluation.len();
        let rows = (WINDOW * d * (2 * self.windows().1 + 4 * texts)) as u64;
        // Scales are a small part of the factors; a new state is written beside the old one.
        Ok(factors + rows + factors / 4)
    }

    /// What the statistics of `run` depend on.
    pub(super) fn statistics_fingerprint(&self, run: &Fingerprint) -> Fingerprint {
        statistics::fingerprint(run, self.effort.amounts().sensitivity)
    }

    /// Names of the texts.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.files.iter().map(|f| file_name(f)).collect();
        names.extend((self.generated() > 0).then(|| generated::NAME.to_owned()));
        names
    }
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
    /// And of what both write.
    pub coherence: Option<Coherence>,
}

/// A calibrated conversion whose texts are read.
pub(super) struct Calibrated<'a> {
    source: &'a dyn TensorSource,
    pub(super) options: &'a Options,
    pub(super) calibration: &'a Calibration,
    device: &'a Arc<factorize::Device>,
    journal: &'a Journal,
    portions: Portions,
    started: Instant,
    pub(super) tokenizer: Tokenizer,
    /// Sensitivities of the file of statistics.
    kept: Option<Vec<Sensitivity>>,
    /// Windows that the source has written.
    generated: Vec<Vec<u32>>,
    text: Mixture,
    /// Windows of every evaluation text.
    pub(super) texts: Vec<Vec<Vec<u32>>>,
}

impl<'a> Calibrated<'a> {
    /// Reads and tokenizes the texts; the result will have about `bpw` bits per weight, and `device` computes what it can.
    pub fn new(
        source: &'a dyn TensorSource,
        options: &'a Options,
        calibration: &'a Calibration,
        bpw: f64,
        device: &'a Arc<factorize::Device>,
        journal: &'a Journal,
        progress: &mut dyn FnMut(Event),
    ) -> Result<Self> {
        let started = Instant::now();
        let tokenizer = Tokenizer::from_kv(source.path(), source.kv())?;
        let mut files = text::windows_of(&calibration.files, &tokenizer, WINDOW)?;
        let measured = match &calibration.statistics {
            Some(path) => statistics::load(path, &calibration.statistics_fingerprint(journal.fingerprint()))?,
            None => None,
        };
        repeated_texts(calibration)?.iter().for_each(|note| progress(Event::Note(note)));
        let count = calibration.generated();
        let texts = evaluation_windows(&calibration.evaluation, &tokenizer)?;
        let written = if measured.is_some() { 0 } else { count };
        let read = files.iter().map(Vec::len).sum::<usize>() + count;
        let scored = texts.iter().map(Vec::len).sum::<usize>();
        let coherence = calibration.coherence || scored > 0;
        let passes = calibration.passes.unwrap_or(calibration.effort.amounts().passes);
        let loader = decoder::Loader::new(source)?;
        let amounts = limits::Amounts {
            config: loader.config(),
            vocabulary: vocabulary(source),
            bpw,
            generated: written,
            sensitivity: if measured.is_some() { 0 } else { calibration.effort.amounts().sensitivity },
            all: read.min(calibration.windows().1) + scored,
            tuned: passes + calibration.absorb_passes > 0,
            coherence,
            threads: options.threads,
        };
        let portions = limits::portions(&amounts, limits::keys(source), options.max_memory)?;
        let (kept, generated) = match measured {
            Some(measured) => (Some(measured.sensitivities), measured.generated),
            None if count == 0 => (None, Vec::new()),
            None => {
                let of = generated::Text { count, seed: options.seed, memory: portions.caches as usize };
                (None, generated::windows(source, &tokenizer, &of, device, journal, progress)?)
            }
        };
        files.extend((count > 0).then(|| generated.clone()));
        let text = Mixture::new(files);
        check_embeddings(source, text.windows.iter().chain(texts.iter().flatten()))?;
        Ok(Self {
            source,
            options,
            calibration,
            device,
            journal,
            portions,
            started,
            tokenizer,
            kept,
            generated,
            text,
            texts,
        })
    }

    /// Threads for the stages that follow, if memory is not enough for as many as were asked for.
    pub fn fewer_threads(&self) -> Option<usize> {
        Some(self.portions.threads).filter(|&n| n < self.options.threads)
    }

    /// What the loss feels of errors in each weight, by name: from the journal, from the file of statistics, or measured.
    pub fn sensitivities(&self, progress: &mut dyn FnMut(Event)) -> Result<HashMap<String, Sensitivity>> {
        if let Some(kept) = &self.kept {
            return Ok(sensitivity::by_name(kept));
        }
        let sensitivities: Vec<Sensitivity> = match self.journal.get(SENSITIVITY)? {
            Some(all) => all,
            None => {
                let all = self.measure(self.calibration.effort.amounts().sensitivity, progress)?;
                check_device(self.device, progress)?;
                self.journal.put(SENSITIVITY, "sensitivities", &all)?;
                all
            }
        };
        let found = sensitivity::by_name(&sensitivities);
        if let Some(path) = &self.calibration.statistics {
            let fingerprint = self.calibration.statistics_fingerprint(self.journal.fingerprint());
            statistics::save(
                path,
                &fingerprint,
                &Measured { generated: self.generated.clone(), sensitivities },
            )?;
        }
        Ok(found)
    }

    /// Sensitivities over the first `count` windows.
    fn measure(&self, count: usize, progress: &mut dyn FnMut(Event)) -> Result<Vec<Sensitivity>> {
        let loader = decoder::Loader::new(self.source)?.on(self.device);
        let windows: Vec<&[u32]> = self.text.windows.iter().take(count).map(Vec::as_slice).collect();
        let (frame, total) = (loader.frame()?, 2 * loader.blocks());
        let on_step = |done| progress(Event::Stage { name: "sensitivity", done, total, value: None });
        sensitivity::measure(&frame, |b| loader.block(b), &windows, self.options.seed, on_step)
    }

    /// Runs all stages after the plan.
    pub fn prepare(
        &self,
        actions: &[Action],
        specs: &[MatrixSpec],
        plan: &Plan,
        measured: &HashMap<String, Sensitivity>,
        progress: &mut dyn FnMut(Event),
    ) -> Result<Prepared> {
        let (calibration, amounts) = (self.calibration, self.calibration.effort.amounts());
        let mut job = self.options.clone();
        job.iterations = self.options.iterations.or(Some(amounts.iterations));
        let (steps, used) = calibration.windows();
        let mut text = self.text.clone();
        text.truncate(used);
        let loader = decoder::Loader::new(self.source)?.on(self.device);
        // Little text is learned by heart: then blocks are tuned on demand only.
        let enough = text.windows.len() >= LEAST_BLOCK_WINDOWS;
        let passes = calibration.passes.unwrap_or(if enough { amounts.passes } else { 0 });
        let tuned = passes + calibration.absorb_passes > 0;
        let most = limits::windows_for_moments(loader.config(), tuned, self.portions.moments);
        let statistics = amounts.moments.min(text.windows.len()).min(most);
        // Distillation begins with others: those that blocks were fitted to say least about what is still wrong.
        text.begin_after(statistics);
        let training: Vec<&[u32]> = text.windows.iter().map(Vec::as_slice).collect();
        let evaluation = self.texts.iter().flatten().map(Vec::as_slice);
        let all: Vec<&[u32]> = training.iter().copied().chain(evaluation).collect();
        let ranks = specs.iter().zip(&plan.entries).enumerate();
        let stored = Stored::new(self.source, actions);
        let stage = Stage {
            loader,
            stored: decoder::Loader::new(&stored)?.on(self.device),
            changed: stored.changed().collect(),
            windows: &all,
            statistics,
            shares: text.shares(statistics),
            training: training.len(),
            ranks: ranks.map(|(i, (s, e))| (s.name.as_str(), (i, e.rank))).collect(),
            measured,
            correction: calibration.correction,
            polish_rounds: calibration.polish_rounds,
            absorption: Absorption { passes: calibration.absorb_passes, ..Absorption::default() },
            tuning: BlockSettings { passes, ..BlockSettings::default() },
            imatrix: calibration.save_imatrix.is_some(),
            options: &job,
            device: self.device,
            journal: self.journal,
        };
        let Sequential { mut model, source, mut made, teacher, rows, imatrix } = stage.run(progress)?;
        if let Some(path) = &calibration.save_imatrix {
            let names = calibration.names();
            let bytes = imatrix.to_gguf(&names, training.len(), WINDOW)?;
            output::write_file(path, self.options.force, &bytes)?;
        }

        let length = match calibration.time_budget {
            Some(all) => Length::Time(all.saturating_sub(self.started.elapsed())),
            None => Length::Steps(steps),
        };
        let checkpoint: Option<Checkpoint> = self.journal.get(CHECKPOINT)?;
        // What time was left when it began, not what is left now.
        let length = match (length, &checkpoint) {
            (Length::Time(_), Some(c)) if matches!(c.length(), Length::Time(_)) => c.length(),
            _ => length,
        };
        if length == Length::Time(Duration::ZERO) {
            progress(Event::Note(
                "nothing of --time-budget is left for distillation: the stages before it, which do not shrink, have taken all of it",
            ));
        }
        let settings = Settings { length, ..Settings::default() };
        let run = Distillation::new(&mut model, &source, &teacher, &text, settings);
        self.distil(run, checkpoint, progress)?;
        let norms = store(&mut model, &mut made)?;
        let (evaluations, coherence) = self.compare(&stage.loader, [&source, &model], &rows, progress)?;
        check_device(self.device, progress)?;
        let tokens = (training.len() * WINDOW) as u64;
        Ok(Prepared { made, norms, tokens, evaluations, coherence })
    }
}

impl Calibrated<'_> {
    /// Runs a distillation to its end, from the journal's checkpoint if there is one.
    fn distil(
        &self,
        mut run: Distillation,
        checkpoint: Option<Checkpoint>,
        progress: &mut dyn FnMut(Event),
    ) -> Result<()> {
        if checkpoint.is_some_and(|c| run.resume(c)) {
            progress(Event::Note(&format!(
                "{} distillation steps are there from an earlier run",
                run.steps()
            )));
        }
        let (mut saved, mut wait) = (Instant::now(), CHECKPOINT_EVERY.0);
        while let Some(s) = run.step() {
            check_device(self.device, progress)?;
            progress(Event::Stage { name: "distil", done: s.step, total: s.steps, value: Some(s.kld) });
            if saved.elapsed() > wait {
                saved = Instant::now();
                self.journal.put(CHECKPOINT, "a checkpoint", run.checkpoint())?;
                wait = CHECKPOINT_EVERY.0.max(saved.elapsed() * CHECKPOINT_EVERY.1);
            }
        }
        self.journal.put(CHECKPOINT, "a checkpoint", run.checkpoint())
    }
}
