//! What a conversion tells while it runs and when it is done.

use crate::error::Result;
use crate::factorize::Device;
use crate::plan::Plan;
use crate::tune::BlockOutcome;
use crate::verify::{Coherence, Gates};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::PathBuf;

/// Progress of a conversion.
#[derive(Debug)]
pub enum Event<'a> {
    /// Ranks are fixed; work begins.
    Planned(&'a Plan),
    /// A rule of the user decides on a weight.
    Rule {
        /// Weight.
        name: &'a str,
        /// The rule.
        rule: &'a str,
    },
    /// Something the user should know that is not an error.
    Warning(&'a str),
    /// Something about the run that is good to know.
    Note(&'a str),
    /// A stage of a calibrated conversion went on.
    Stage {
        /// Stage.
        name: &'static str,
        /// Units done.
        done: usize,
        /// Of how many.
        total: usize,
        /// Drift of the compressed stream (factorize) or divergence in nats (distil).
        value: Option<f64>,
    },
    /// A block is tuned.
    Block {
        /// Position, from 0.
        index: usize,
        /// Number of blocks.
        count: usize,
        /// What came of it.
        outcome: &'a BlockOutcome,
    },
    /// A matrix is factorized and written.
    Matrix {
        /// Position among the plan's matrices, from 0.
        index: usize,
        /// Number of matrices.
        count: usize,
        /// What came out.
        report: &'a MatrixReport,
    },
}

/// Hands on what has come up on the device.
pub(super) fn tell_notes(device: &Device, progress: &mut dyn FnMut(Event)) {
    device.take_notes().iter().for_each(|note| progress(Event::Note(note)));
}

/// The same once the device has worked: the end of the run if it has failed where nobody could be told at once.
pub(super) fn check_device(device: &Device, progress: &mut dyn FnMut(Event)) -> Result<()> {
    device.check()?;
    tell_notes(device, progress);
    Ok(())
}

/// One factorized matrix (all its experts).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MatrixReport {
    /// Weight name.
    pub name: String,
    /// Outputs.
    pub d_out: usize,
    /// Inputs.
    pub d_in: usize,
    /// Experts in the stack.
    pub experts: usize,
    /// Rank of each path.
    pub rank: usize,
    /// Paths.
    pub paths: usize,
    /// Bits of its five tensors.
    pub bits: u64,
    /// Bits per weight.
    pub bpw: f64,
    /// Relative Frobenius error of the rebuilt weight.
    pub error: f64,
    /// The same with columns weighted by importance (equal to `error` without an imatrix).
    pub weighted_error: f64,
    /// Wall time of the factorization.
    pub seconds: f64,
}

/// One tensor that was not factorized.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptReport {
    /// Name.
    pub name: String,
    /// ne, fastest first.
    pub dims: Vec<u64>,
    /// Type in the output.
    pub r#type: String,
    /// Bytes in the output.
    pub bytes: u64,
    /// Why it was kept.
    pub reason: String,
}

/// Generated text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// What was given.
    pub prompt: String,
    /// The most likely continuation.
    pub continuation: String,
    /// The source's.
    pub source: String,
}

/// Comparison with the source on one text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// The text.
    pub text: PathBuf,
    /// Windows of it that were used.
    pub windows: usize,
    /// What the result writes after a piece of the text.
    pub sample: Sample,
    /// Figures.
    #[serde(flatten)]
    pub comparison: crate::verify::Comparison,
}

impl Evaluation {
    /// A sentence for every gate that was not passed, by text and by what the result writes.
    pub(super) fn failures(gates: &Gates, all: &[Evaluation], coherence: Option<&Coherence>) -> Vec<String> {
        let on_text = |e: &Evaluation| gates.failures(&super::header::file_name(&e.text), &e.comparison);
        let incoherence = coherence.map(|c| gates.incoherence(c)).unwrap_or_default();
        all.iter().flat_map(on_text).chain(incoherence).collect()
    }

    /// Name of the text, and the figures.
    pub(super) fn named(&self) -> (String, crate::verify::Comparison) {
        (super::header::file_name(&self.text), self.comparison.clone())
    }
}

/// A stage that is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageReport {
    /// Stage, as in [`Event::Stage`]; "write" is what comes last.
    pub name: Cow<'static, str>,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident set of the process from its beginning to the end of the stage, bytes.
    pub peak_rss: u64,
}

/// Result of a conversion.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Program and version.
    pub tool: String,
    /// Input path.
    pub input: PathBuf,
    /// Output path.
    pub output: PathBuf,
    /// Output form: "littlebit", "littlebit container" or "lossy TYPE".
    pub form: String,
    /// Method with options.
    pub method: String,
    /// Seed.
    pub seed: u64,
    /// Threads used.
    pub threads: usize,
    /// What factorized: "cpu", or "cuda" and the name of the GPU. Matrices too large for its memory, which notes name, were the
    /// CPU's all the same.
    pub device: String,
    /// Importance statistics used, if any.
    pub imatrix: Option<PathBuf>,
    /// Files with the texts of a calibrated conversion.
    pub calibration: Vec<PathBuf>,
    /// Windows of text that the source wrote for it.
    pub generated_windows: usize,
    /// Comparison with the source on every text that was asked for.
    pub evaluations: Vec<Evaluation>,
    /// What the result writes, beside its source's text, if that was asked for.
    pub coherence: Option<Coherence>,
    /// Gates that the result did not pass; if there are any, `output` has the name of a rejected file.
    pub failures: Vec<String>,
    /// Bits per factorized weight, from the bytes written.
    pub bpw: f64,
    /// Bits of all tensors over all weights.
    pub bpw_file: f64,
    /// Weights of the whole model.
    pub n_params: u64,
    /// Weights that were factorized.
    pub factorized_weights: u64,
    /// Size of the output file.
    pub bytes: u64,
    /// Mean of the matrices' relative errors, each weighted by its number of weights.
    pub mean_error: f64,
    /// Wall time of the run in seconds.
    pub seconds: f64,
    /// Its stages in order.
    pub stages: Vec<StageReport>,
    /// Factorized matrices in file order.
    pub matrices: Vec<MatrixReport>,
    /// Everything else in file order.
    pub kept: Vec<KeptReport>,
}

impl Report {
    /// Whether the result was calibrated and tuned on text.
    pub fn calibrated(&self) -> bool {
        !self.calibration.is_empty() || self.generated_windows > 0
    }
}
