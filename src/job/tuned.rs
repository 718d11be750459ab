//! The calibrated path of a conversion: factorization in model order on the activations of the part that is already
//! compressed, then distillation of the whole model, then its comparison with the source.

use crate::calibrate::moments::Moments;
use crate::calibrate::text;
use crate::decoder::{self, Binary, Block, BlockTape, Model, Site, Weight};
use crate::error::{Error, Result};
use crate::factorize::{self, Job, Method, polish};
use crate::format::Factors;
use crate::job::convert::Options;
use crate::job::report::{Evaluation, Event};
use crate::plan::{MatrixSpec, Plan};
use crate::source::TensorSource;
use crate::tokenize::Tokenizer;
use crate::tune::{self, Settings, Teacher};
use crate::verify;
use std::collections::HashMap;
use std::path::PathBuf;

/// Tokens of a window, for statistics, training and evaluation.
pub const WINDOW: usize = 512;
/// Windows that one text is evaluated on at most.
pub const EVALUATION_WINDOWS: usize = 32;
/// Share of the drift that the target makes up for: all of it follows the calibration text too closely.
const ALPHA: f64 = 0.5;
/// Ridge of the target's normal equations, relative to the mean second moment.
const DAMP: f64 = 0.05;

/// Rounds of polish; more gain little.
const POLISH_ROUNDS: usize = 2;

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
    /// Texts to compare source and result on.
    pub evaluation: Vec<PathBuf>,
}

/// What came out of it, for the writer.
pub(super) struct Prepared {
    /// Factors by weight name.
    pub factors: HashMap<String, Factors>,
    /// Seconds by weight name.
    pub seconds: HashMap<String, f64>,
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
    progress: &mut dyn FnMut(Event),
) -> Result<Prepared> {
    let tokenizer = Tokenizer::from_kv(source.path(), source.kv())?;
    let windows = text::mixed(text::windows_of(&calibration.files, &tokenizer, WINDOW)?);
    let texts = text::windows_of(&calibration.evaluation, &tokenizer, WINDOW)?;
    let model = decoder::load(source)?;
    if let Some(t) =
        windows.iter().chain(texts.iter().flatten()).flatten().find(|&&t| t as usize >= model.vocabulary())
    {
        return Err(Error::unsupported(
            source.path(),
            format!("token {t} of the tokenizer has no embedding"),
        ));
    }
    let (count, iterations, steps) = calibration.effort.amounts();
    let mut job = options.clone();
    job.iterations = options.iterations.or(Some(iterations));
    let mut compressed = model.clone();
    let statistics = &windows[..count.min(windows.len())];
    let (factors, seconds) = sequential(&model, &mut compressed, statistics, specs, plan, &job, progress)?;

    let steps = calibration.steps.unwrap_or(steps);
    if steps > 0 {
        let needed = &windows[..windows.len().min(steps)];
        let teacher = Teacher::new(&model, needed, |done| {
            progress(Event::Stage { name: "teacher", done, total: needed.len(), value: None });
        });
        let settings = Settings { steps, ..Settings::default() };
        tune::distill(&mut compressed, &model, &teacher, needed, &settings, |s| {
            progress(Event::Stage { name: "distil", done: s.step, total: s.steps, value: Some(s.kld) });
        });
    }
    let (factors, norms) = store(&mut compressed, factors)?;
    let mut evaluations = Vec::new();
    for (file, windows) in calibration.evaluation.iter().zip(&texts) {
        let windows = &windows[..windows.len().min(EVALUATION_WINDOWS)];
        let comparison = verify::compare(&model, &compressed, windows, |done| {
            progress(Event::Stage { name: "evaluate", done, total: windows.len(), value: None });
        });
        evaluations.push(Evaluation { text: file.clone(), windows: windows.len(), comparison });
    }
    let tokens = (windows.len() * WINDOW) as u64;
    Ok(Prepared { factors, seconds, norms, tokens, evaluations })
}

type ByName<T> = HashMap<String, T>;

/// Factorizes block by block; every layer towards the target that makes up for the drift of its inputs.
fn sequential(
    model: &Model,
    compressed: &mut Model,
    windows: &[Vec<u32>],
    specs: &[MatrixSpec],
    plan: &Plan,
    options: &Options,
    progress: &mut dyn FnMut(Event),
) -> Result<(ByName<Factors>, ByName<f64>)> {
    let ranks: HashMap<&str, usize> =
        specs.iter().zip(&plan.entries).map(|(s, e)| (s.name.as_str(), e.rank)).collect();
    let rotations = model.rotations(WINDOW);
    let mut xf: Vec<Vec<f32>> = windows.iter().map(|w| model.embed(w)).collect();
    let mut xq = xf.clone();
    let (mut all, mut seconds) = (HashMap::new(), HashMap::new());
    for b in 0..model.blocks.len() {
        let rotation = model.rotation(&rotations, b);
        let forward = |block: &Block, x: &Vec<f32>| block.forward(&model.config, rotation, x.clone(), WINDOW);
        let mut tapes = Vec::with_capacity(windows.len());
        for x in &mut xf {
            let (y, tape) = forward(&model.blocks[b], x);
            tapes.push(tape.into_inputs());
            *x = y;
        }
        // The compressed stream goes from site to site, past layers that are factorized by then.
        let mut states: Vec<BlockTape> =
            xq.iter_mut().map(|x| model.blocks[b].begin(&model.config, std::mem::take(x))).collect();
        for site in Site::ALL {
            let d_in = model.blocks[b].linears[site as usize][0].d_in;
            let mut moments = Moments::new(d_in);
            for (state, source) in states.iter().zip(&tapes) {
                moments.add(&source[site as usize], state.input(site));
            }
            let importance = moments.importance();
            let metric = polish::metric(&moments.compressed(), d_in);
            for l in &mut compressed.blocks[b].linears[site as usize] {
                let (Some(&rank), Weight::Dense(w)) = (ranks.get(l.name.as_str()), &l.weight) else {
                    continue;
                };
                let started = std::time::Instant::now();
                let target = moments.target(&l.name, w, ALPHA, DAMP)?;
                let mut outcome = factorize::factorize(&Job {
                    name: &l.name,
                    w: &target,
                    d_out: l.d_out,
                    d_in: l.d_in,
                    rank,
                    paths: options.paths,
                    method: options.method,
                    rotate: options.rotate,
                    importance: Some(&importance),
                    seed: options.seed,
                    iterations: options.iterations,
                })?;
                if options.method == Method::Admm && options.paths == 1 {
                    outcome.paths[0] =
                        polish::polish(&l.name, &target, &outcome.paths[0], &metric, POLISH_ROUNDS)?;
                }
                l.weight = Weight::Binary(outcome.paths.iter().map(Binary::from).collect());
                seconds.insert(l.name.clone(), started.elapsed().as_secs_f64());
                all.insert(l.name.clone(), Factors { paths: options.paths, slices: outcome.paths });
            }
            let (block, c) = (&compressed.blocks[b], &model.config);
            for (state, x) in states.iter_mut().zip(&mut xq) {
                if site == Site::Down {
                    *x = block.finish(c, state);
                } else {
                    block.advance(c, rotation, state, site, WINDOW);
                }
                state.shed(site);
            }
        }
        let drift = drift(&xf, &xq);
        progress(Event::Stage {
            name: "factorize",
            done: b + 1,
            total: model.blocks.len(),
            value: Some(drift),
        });
    }
    Ok((all, seconds))
}

/// Median over tokens of the relative squared distance between both streams.
fn drift(xf: &[Vec<f32>], xq: &[Vec<f32>]) -> f64 {
    let d = xf[0].len() / WINDOW;
    let mut all: Vec<f64> = Vec::new();
    for (f, q) in xf.iter().zip(xq) {
        for (f, q) in f.chunks_exact(d).zip(q.chunks_exact(d)) {
            let (mut difference, mut norm) = (0f64, 1e-30f64);
            for (f, q) in f.iter().zip(q) {
                difference += f64::from(f - q).powi(2);
                norm += f64::from(*f).powi(2);
            }
            all.push(difference / norm);
        }
    }
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Rounds the trained scales to what the file holds, and the model with them.
fn store(model: &mut Model, mut factors: ByName<Factors>) -> Result<(ByName<Factors>, ByName<Vec<f32>>)> {
    let mut norms = HashMap::new();
    norms.insert("output_norm.weight".to_owned(), model.norm.clone());
    for (i, block) in model.blocks.iter_mut().enumerate() {
        for l in block.linears.iter_mut().flatten() {
            let (Weight::Binary(paths), Some(f)) = (&mut l.weight, factors.get_mut(&l.name)) else {
                continue;
            };
            for (p, stored) in paths.iter_mut().zip(&mut f.slices) {
                *stored = factorize::with_scales(&l.name, stored, &p.h, &p.l, &p.g)?;
                *p = Binary::from(&*stored);
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
    Ok((factors, norms))
}
