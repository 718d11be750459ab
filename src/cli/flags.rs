//! Flags of a conversion and their meaning.

mod texts;

use super::hint::Files;
use super::values::{bytes, duration, parse, positive, share, stored_type};
use crate::calibrate::moments::Shares;
use crate::error::{Error, Result};
use crate::factorize::device::Choice;
use crate::factorize::{Method, Rotate};
use crate::format::retype::KeptTypes;
use crate::gguf::GgmlType;
use crate::job::Options;
use crate::job::layout::Budget;
use crate::job::repack::Form;
use crate::job::search::Range;
use crate::job::tuned::{Calibration, Effort, POLISH_ROUNDS};
use crate::plan::Target;
use crate::plan::rules::{Rule, read_rules};
use crate::verify::Gates;
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Duration;
use texts::Texts;

/// Limits that a comparison has to keep.
#[derive(Args)]
pub struct GateArgs {
    /// Highest perplexity on every --eval text, as a multiple of the source's; beyond it the exit code is 3, and a conversion's
    /// result is kept as OUTPUT.rejected
    #[arg(long, value_name = "X", value_parser = positive, requires = "eval", help_heading = "Gates")]
    max_ppl_ratio: Option<f64>,
    /// Highest mean KL divergence from the source in nats, likewise
    #[arg(long, value_name = "NATS", value_parser = positive, requires = "eval", help_heading = "Gates")]
    max_kld: Option<f64>,
    /// Lowest share of positions with the same most likely token as the source's, 0 to 1, likewise
    #[arg(long, value_name = "SHARE", value_parser = share, requires = "eval", help_heading = "Gates")]
    min_same_top: Option<f64>,
    /// Compare what the model writes after twelve fixed beginnings with what its source writes: repetition, entropy, the
    /// source's surprise; done anyway with --eval or one of the limits below
    #[arg(long, help_heading = "Gates")]
    coherence: bool,
    /// Largest share of repeated runs of four tokens in what it writes, above the source's; beyond it the exit code is 3, likewise
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Gates")]
    max_repetition: Option<f64>,
    /// Largest distance of the entropy of what it writes from the source's, in nats, likewise
    #[arg(long, value_name = "NATS", value_parser = positive, help_heading = "Gates")]
    max_entropy_change: Option<f64>,
    /// Largest surprise of the source at what it writes, in nats a token above that at the source's own text, likewise
    #[arg(long, value_name = "NATS", value_parser = positive, help_heading = "Gates")]
    max_surprise: Option<f64>,
}

impl GateArgs {
    /// The limits.
    pub fn gates(&self) -> Gates {
        Gates {
            ppl_ratio: self.max_ppl_ratio,
            kld: self.max_kld,
            same_top: self.min_same_top,
            repetition: self.max_repetition,
            entropy: self.max_entropy_change,
            surprise: self.max_surprise,
        }
    }

    /// Whether both models are to write.
    pub fn coherence(&self) -> bool {
        self.coherence || self.gates().on_writing()
    }
}

/// Arguments of a conversion.
#[derive(Args)]
pub struct ConvertArgs {
    /// GGUF file, safetensors file beside its config.json, *.safetensors.index.json, or a checkpoint directory; or a model that
    /// is compressed already (LittleBit GGUF, .littlebit, checkpoint of LittleBit or NanoQuant), to write in another form
    pub input: PathBuf,
    /// Output: a LittleBit GGUF, or the safetensors form if its name ends with .littlebit (not needed with --dry-run)
    output: Option<PathBuf>,

    /// Bits per factorized weight, signs, scales and padding included [default: 1.0]
    #[arg(long, value_name = "BITS", conflicts_with = "rank", help_heading = "Size")]
    bpw: Option<f64>,
    /// The same rank for every matrix (a multiple of 32) instead of a bit budget
    #[arg(long, value_name = "R", help_heading = "Size")]
    rank: Option<usize>,
    /// Largest size of the whole file instead of a bit budget: bytes, or with k, M, G, T (1000) or Ki, Mi, Gi, Ti (1024)
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["rank", "bpw", "lossy"], value_parser = bytes, help_heading = "Size")]
    target_size: Option<u64>,
    /// REGEX=ACTION for weights whose name matches, the last match wins: bpw:B, rank:R, keep, or type:T; repeatable
    #[arg(long, value_name = "RULE", value_parser = parse::<Rule>, help_heading = "Size")]
    tensor_rule: Vec<Rule>,
    /// File with one such rule in each line, before those of --tensor-rule
    #[arg(long, value_name = "FILE", help_heading = "Size")]
    tensor_rule_file: Option<PathBuf>,
    /// Paths per matrix: 2 adds a residual factorization of the same rank
    #[arg(long, value_name = "P", default_value_t = 1, help_heading = "Size")]
    paths: usize,
    /// Type of the token embeddings: f32, f16, bf16, q8_0, q6_K, q5_0, q4_K, q4_0 [default: as in the input, of floats
    /// q6_K; rows that do not fill its blocks: q8_0, for q4_K q5_0]
    #[arg(long, value_name = "TYPE", value_parser = stored_type, help_heading = "Size")]
    token_embedding_type: Option<GgmlType>,
    /// Type of the output head, likewise
    #[arg(long, value_name = "TYPE", value_parser = stored_type, help_heading = "Size")]
    output_tensor_type: Option<GgmlType>,

    /// Factorization: admm (LB-ADMM) or dual-svid (the paper's initialisation)
    #[arg(long, value_name = "NAME", default_value = "admm", value_parser = parse::<Method>, help_heading = "Method")]
    method: Method,
    /// Rotation of the latent space, dual-svid only: none or itq (Joint-ITQ)
    #[arg(long, value_name = "NAME", default_value = "none", help_heading = "Method")]
    rotate: String,
    /// Iterations of the method [default: the method's own]
    #[arg(long, value_name = "N", help_heading = "Method")]
    iterations: Option<usize>,
    /// Importance matrix of llama-imatrix (GGUF or legacy .dat): columns weighted by mean squared activation
    #[arg(long, value_name = "FILE", help_heading = "Method")]
    imatrix: Option<PathBuf>,
    /// Text to calibrate and tune on; several files are mixed evenly, so give different domains
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "imatrix", help_heading = "Method")]
    calibration: Vec<PathBuf>,
    /// How much work calibration and tuning do: fast, normal or best [default: normal; fast if no text is named]
    #[arg(long, value_name = "NAME", value_parser = parse::<Effort>, help_heading = "Method")]
    effort: Option<Effort>,
    /// Windows of 512 tokens that the source model writes by itself, as one more text to calibrate on beside the files, instead
    /// of the effort's; without --calibration it is the only text; 0 turns it off, without --calibration tuning too
    #[arg(long, value_name = "N", conflicts_with = "imatrix", value_parser = clap::value_parser!(u32).range(0..=65536), help_heading = "Method")]
    generated_windows: Option<u32>,
    /// Passes over the text that tune each block (signs, scales, norms) once it is factorized, instead of the effort's;
    /// 0 turns it off
    #[arg(long, value_name = "N", help_heading = "Method")]
    block_passes: Option<usize>,
    /// Share of the drift of its inputs that a matrix makes up for when it is factorized, 0 to 1
    #[arg(long, value_name = "A", default_value_t = Shares::default().inputs, value_parser = share, help_heading = "Method")]
    drift_correction: f64,
    /// Share of what the residual stream lacks beside it that a matrix fills in, 0 to 1
    #[arg(long, value_name = "B", default_value_t = Shares::default().residual, value_parser = share, help_heading = "Method")]
    residual_correction: f64,
    /// Rounds of polish (least-squares scales, coordinate descent on signs) after LB-ADMM; 0 turns it off
    #[arg(long, value_name = "N", default_value_t = POLISH_ROUNDS, help_heading = "Method")]
    polish_rounds: usize,
    /// Passes over the text in which the dense weights of a block make up for errors made before them, by gradient descent,
    /// each time before the next of them are factorized
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Method")]
    absorb_passes: usize,
    /// Distillation steps instead of the effort's; 0 turns it off
    #[arg(long, value_name = "N", help_heading = "Method")]
    tune_steps: Option<usize>,
    /// Also write the importance matrix of the calibration text, as llama-imatrix does, for llama-quantize or --imatrix
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    save_imatrix: Option<PathBuf>,
    /// Keep what is measured of the source in this file, and take it from there if the file is there: for conversions of
    /// one model to several sizes
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    statistics: Option<PathBuf>,
    /// Time from the beginning of the run after which distillation ends (90s, 40m, 2h), instead of a number of steps. The stages before
    /// it do as much as ever, and evaluation and writing come after it; the result depends on the machine
    #[arg(long, value_name = "TIME", conflicts_with = "tune_steps", value_parser = duration, help_heading = "Method")]
    time_budget: Option<Duration>,
    /// Text to compare the result with its source on, other than the calibration text: perplexity, divergence
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Output")]
    eval: Vec<PathBuf>,
    /// Limits, which are arguments of their own: an optional group that holds another is never taken for present.
    #[arg(skip)]
    pub gates: Gates,
    /// As the limits.
    #[arg(skip)]
    pub coherence: bool,
    /// Find the smallest number of bits per weight between these that passes the gates; every trial is a whole conversion
    #[arg(long, value_name = "LOW..HIGH", conflicts_with_all = ["bpw", "rank", "target_size", "dry_run"], help_heading = "Size")]
    pub auto_bpw: Option<Range>,
    /// Seed of the random starts; the same seed gives the same bytes for any number of threads
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Method")]
    seed: u64,

    /// Write what the run tells to a file too: a page if its name ends with .html, .json, or a model card if it ends with .md;
    /// repeatable
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub report: Vec<PathBuf>,
    /// Write a standard GGUF with the weights rebuilt from their factors: f32, f16, bf16, q8_0, q6_K, q5_0, q4_K, q4_0
    ///
    /// It loads in any stock llama.cpp and shows the same loss of quality without the gain in size. The input may
    /// be a model to compress or an existing LittleBit GGUF.
    #[arg(long, value_name = "TYPE", value_parser = stored_type, help_heading = "Output")]
    lossy: Option<GgmlType>,
    /// Folder where finished pieces are kept until the output is complete; the same command goes on from there after
    /// an interruption [default: OUTPUT.work]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    work_dir: Option<PathBuf>,
    /// Replace an existing output file
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Print the plan (ranks, bits) and stop
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
    /// One JSON object per event on stdout, the whole report last
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// No progress lines
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,

    /// Memory that the run may take, in bytes or with k, M, G, T (1000) or Ki, Mi, Gi, Ti (1024): less is done at once; refused at the
    /// beginning if that is not enough
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "Run")]
    max_memory: Option<u64>,
    /// What factorizes by LB-ADMM, polishes and multiplies for both models: cpu, cuda (an NVIDIA GPU, or an error), or auto (the
    /// GPU if it works); the rest runs on the CPU
    #[arg(long, value_name = "NAME", default_value_t = Choice::Cpu, value_parser = parse::<Choice>, help_heading = "Run")]
    device: Choice,
    /// Threads [default: all that this process may use]
    #[arg(long, short, value_name = "N", help_heading = "Run")]
    threads: Option<usize>,
}

/// Threads to use.
pub fn threads(asked: Option<usize>) -> Result<usize> {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    match asked.unwrap_or(cpus) {
        n @ 1..=1024 => Ok(n),
        _ => Err(Error::usage("--threads must be between 1 and 1024")),
    }
}

impl ConvertArgs {
    /// The output path, required unless nothing is written.
    pub fn output(&self) -> Result<&Path> {
        self.output.as_deref().ok_or_else(|| {
            Error::usage(format!(
                "the output file is missing: littlebit-convert {} OUTPUT.gguf",
                self.input.display()
            ))
        })
    }

    /// Whether an output that exists is replaced.
    pub fn force(&self) -> bool {
        self.force
    }

    /// Form of the output, by its name and --lossy.
    pub fn form(&self) -> Result<Form> {
        let form = self.output.as_deref().map_or(Form::Gguf, Form::of);
        match (self.lossy, form) {
            (Some(_), Form::Container) => {
                Err(Error::usage("--lossy writes a GGUF, a .littlebit file holds factors; choose one"))
            }
            (Some(ty), _) => Ok(Form::Lossy(ty)),
            (None, Form::Container) if self.target_size.is_some() => Err(Error::usage(
                "--target-size counts the bytes of a GGUF, not of a .littlebit file; give --bpw",
            )),
            (None, form) => Ok(form),
        }
    }

    /// Types of embeddings and head.
    pub fn kept_types(&self) -> KeptTypes {
        let (token_embedding, output) = (self.token_embedding_type, self.output_tensor_type);
        KeptTypes { token_embedding, output, floats: None }
    }

    /// Refuses what only a model that is not compressed yet can be asked for.
    pub fn check_compressed(&self) -> Result<()> {
        let asked = [
            ("--bpw", self.bpw.is_some()),
            ("--auto-bpw", self.auto_bpw.is_some()),
            ("--rank", self.rank.is_some()),
            ("--target-size", self.target_size.is_some()),
            ("--tensor-rule", !self.tensor_rule.is_empty()),
            ("--tensor-rule-file", self.tensor_rule_file.is_some()),
            ("--iterations", self.iterations.is_some()),
            ("--imatrix", self.imatrix.is_some()),
            ("--calibration", !self.calibration.is_empty()),
            ("--generated-windows", self.generated_windows.is_some()),
            ("--dry-run", self.dry_run),
            ("--max-memory", self.max_memory.is_some()),
            ("--device", self.device != Choice::Cpu),
            ("--report", !self.report.is_empty()),
            ("--coherence or one of its limits", self.coherence),
        ];
        let asked = asked.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag);
        match asked.or_else(|| self.needs_text()) {
            Some(flag) => Err(Error::usage(format!(
                "{}: already compressed, so {flag} means nothing; give the original model, or leave it out to write \
                 another form",
                self.input.display()
            ))),
            None => Ok(()),
        }
    }

    /// What the files that it names are to it.
    pub fn files(&self) -> Files {
        let one = |path: &Option<PathBuf>| path.iter().cloned().collect::<Vec<_>>();
        let outputs = [&self.output, &self.save_imatrix, &self.statistics].map(one).concat();
        Files {
            models: vec![self.input.clone()],
            imatrix: self.imatrix.clone(),
            texts: [&self.calibration[..], &self.eval].concat(),
            statistics: self.statistics.clone(),
            outputs: [&outputs[..], &self.report].concat(),
            work: self.output.as_deref().and_then(|o| Some(self.options().ok()?.work_dir(o))),
        }
    }

    /// The flags as the library's options.
    pub fn options(&self) -> Result<Options> {
        let rotate = match self.rotate.as_str() {
            "none" => None,
            other => Some(other.parse::<Rotate>().map_err(|e| Error::usage(format!("--rotate: {e}")))?),
        };
        let threads = threads(self.threads)?;
        if rotate.is_some() && self.method != Method::DualSvid {
            return Err(Error::usage("--rotate applies to --method dual-svid only"));
        }
        let texts = self.texts();
        if texts == Texts::None {
            self.check_untuned()?;
        }
        let mut rules = self.tensor_rule_file.as_deref().map(read_rules).transpose()?.unwrap_or_default();
        rules.extend(self.tensor_rule.iter().cloned());
        Ok(Options {
            budget: match (self.rank, self.target_size) {
                (Some(r), _) => Budget::Target(Target::Rank(r)),
                (None, Some(bytes)) => Budget::FileSize(bytes),
                (None, None) => Budget::Target(Target::Bpw(self.bpw.unwrap_or(1.0))),
            },
            rules,
            paths: self.paths,
            method: self.method,
            rotate,
            iterations: self.iterations,
            seed: self.seed,
            threads,
            device: self.device,
            imatrix: self.imatrix.clone(),
            calibration: (texts != Texts::None).then(|| Calibration {
                files: self.calibration.clone(),
                effort: self.effort.unwrap_or(match texts {
                    Texts::Own => Effort::Fast,
                    _ => Effort::Normal,
                }),
                generated: self.generated_windows.map(|n| n as usize),
                passes: self.block_passes,
                correction: Shares {
                    inputs: self.drift_correction,
                    residual: self.residual_correction,
                    ..Shares::default()
                },
                polish_rounds: self.polish_rounds,
                absorb_passes: self.absorb_passes,
                steps: self.tune_steps,
                time_budget: self.time_budget,
                save_imatrix: self.save_imatrix.clone(),
                statistics: self.statistics.clone(),
                evaluation: self.eval.clone(),
                coherence: self.coherence,
            }),
            token_embedding_type: self.token_embedding_type,
            output_tensor_type: self.output_tensor_type,
            lossy: self.lossy,
            container: self.form()? == Form::Container,
            work_dir: self.work_dir.clone(),
            max_memory: self.max_memory,
            force: self.force,
            gates: self.gates,
        })
    }
}
