//! Factorization in model order on the activations of the part that is already compressed.
//!
//! The source is read block by block; of it only the activations go on: a second stream of them passes the
//! compressed blocks, and at the end the source's predictions for every window are left.

use super::block_tuning::Norms;
use super::tuned::WINDOW;
use crate::calibrate::imatrix::Collector;
use crate::calibrate::moments::{Inputs, Moments, Shares};
use crate::calibrate::sensitivity::Sensitivity;
use crate::decoder::{
    Binary, Block, BlockTape, Config, Linear, Loader, Model, Precision, Rotation, Site, Weight,
};
use crate::error::Result;
use crate::factorize::Device;
use crate::format::Factors;
use crate::job::convert::Options;
use crate::job::journal::Journal;
use crate::job::report::{Event, check_device};
use crate::tune::{Absorption, BlockSettings, BlockTask, Teacher};
use half::bf16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Windows that go through a block together.
const AT_ONCE: usize = 16;
/// Record of what is left of the source.
const ROWS: &str = "source-rows";

/// Factors of one weight and how long they took.
#[derive(Serialize, Deserialize)]
pub(super) struct Made {
    pub factors: Factors,
    pub seconds: f64,
}

/// What the stage needs.
pub(super) struct Stage<'a> {
    pub loader: Loader<'a>,
    /// The source as the output will hold what is not factorized.
    pub stored: Loader<'a>,
    /// Tensors that it holds in another type.
    pub changed: HashSet<&'a str>,
    /// Windows that the source runs over; the first `statistics` of them serve for moments.
    pub windows: &'a [&'a [u32]],
    pub statistics: usize,
    /// Weights of those in the moments.
    pub shares: Vec<f32>,
    /// Windows of the calibration texts; the rest are only run through the source.
    pub training: usize,
    /// Place in the plan and rank by weight name; layers without an entry stay.
    pub ranks: HashMap<&'a str, (usize, usize)>,
    pub measured: &'a HashMap<String, Sensitivity>,
    /// What the targets make up for.
    pub correction: Shares,
    /// Rounds of polish.
    pub polish_rounds: usize,
    /// How dense weights make up for the errors of what is factorized before them.
    pub absorption: Absorption,
    /// Tuning of every block once it is factorized.
    pub tuning: BlockSettings,
    /// Whether the inputs' sums of squares are wanted.
    pub imatrix: bool,
    pub options: &'a Options,
    /// What factorizes.
    pub device: &'a Arc<Device>,
    pub journal: &'a Journal,
}

/// What it leaves.
pub(super) struct Sequential {
    pub model: Model,
    /// The source without its blocks.
    pub source: Model,
    pub made: HashMap<String, Made>,
    /// The source's predictions for the windows of the calibration texts.
    pub teacher: Teacher,
    /// Normalised last rows of the source for the other windows, `WINDOW x d_model`.
    pub rows: Vec<Vec<f32>>,
    /// Inputs of the source's layers over the windows of the calibration texts, if they are wanted.
    pub imatrix: Collector,
}

/// [`crate::factorize::polish::margins`] of U and V of several paths.
pub(super) type Margins = Vec<[Vec<f32>; 2]>;

/// What is left of the source: digest of the windows, predictions, rows, sums of squares.
type Record = (Vec<u8>, Teacher, Vec<Vec<f32>>, Collector);

impl Stage<'_> {
    /// Factorizes block by block; every layer towards the target that makes up for the drift of its inputs.
    pub fn run(&self, progress: &mut dyn FnMut(Event)) -> Result<Sequential> {
        let source = self.loader.frame()?;
        let frame = ["token_embd.weight", "output.weight"].iter().any(|name| self.changed.contains(name));
        let mut model = if frame { self.stored.frame()? } else { source.clone() };
        let mut made = HashMap::new();
        for (&name, &(index, rank)) in &self.ranks {
            let record: Option<Made> = self.journal.get(&format!("matrix-{index}"))?;
            if let Some(m) = record.filter(|m| m.factors.slices.iter().all(|s| s.rank() == rank)) {
                made.insert(name.to_owned(), m);
            }
        }
        let tuned = self.tuned(&mut made)?;
        let done = |b: usize| tuned[b].is_some() || !self.tunes(b);
        let whole = made.len() == self.ranks.len() && (0..tuned.len()).all(done);
        if !made.is_empty() {
            let text =
                format!("{} of {} matrices are there from an earlier run", made.len(), self.ranks.len());
            progress(Event::Note(&text));
        }
        let digest = self.digest();
        let record: Option<Record> = if whole { self.journal.get(ROWS)? } else { None };
        if let Some((_, teacher, rows, imatrix)) =
            record.filter(|r| r.0 == digest && (!self.imatrix || !r.3.is_empty()))
        {
            for (b, tuned) in tuned.into_iter().enumerate() {
                let block = self.as_stored(self.loader.block(b)?)?;
                model.blocks.push(restored(block, &made, tuned.map_or_else(Norms::new, |t| t.norms)));
            }
            return Ok(Sequential { model, source, made, teacher, rows, imatrix });
        }

        let rotations = model.rotations(WINDOW);
        let mut xf: Vec<Vec<f32>> = self.windows.iter().map(|w| source.embed(w)).collect();
        let mut xq: Vec<Vec<f32>> = self.windows[..self.statistics].iter().map(|w| model.embed(w)).collect();
        let mut imatrix = Collector::default();
        for (b, tuned) in tuned.into_iter().enumerate() {
            let block = self.loader.block(b)?;
            let rotation = block.rotation(&rotations);
            // Windows that are not evaluated need no more precision than a training step has.
            let coarse = block.coarse();
            let mut inputs: Vec<Streams> = Vec::with_capacity(self.statistics);
            for (chunk, xf) in xf.chunks_mut(AT_ONCE).enumerate() {
                let training = |i: usize| chunk * AT_ONCE + i < self.training;
                let run = |(i, x): (usize, &mut Vec<f32>)| {
                    let block = if training(i) { &coarse } else { &block };
                    let (y, tape) = block.forward(&model.config, rotation, std::mem::take(x), WINDOW);
                    *x = y;
                    let (inputs, residuals) = tape.into_streams();
                    let kept = (chunk * AT_ONCE + i < self.statistics).then(|| Streams {
                        inputs: inputs.each_ref().map(|x| narrow(x)),
                        residuals: residuals.each_ref().map(|x| narrow(x)),
                    });
                    ((training(i) && self.imatrix).then_some(inputs), kept)
                };
                let tapes: Vec<_> = xf.par_iter_mut().enumerate().map(run).collect();
                for (tape, kept) in tapes {
                    for (linears, x) in block.linears.iter().zip(tape.iter().flatten()) {
                        linears.iter().for_each(|l| imatrix.add(&l.name, l.d_in, x));
                    }
                    inputs.extend(kept);
                }
            }
            // A device has other use for its memory now.
            drop(coarse);
            let block = self.as_stored(block)?;
            let (block, outcome) = match tuned {
                Some(tuned) => {
                    let mut block = restored(block, &made, tuned.norms);
                    pass(&model.config, &mut block, rotation, &mut xq);
                    (block, Some(tuned.outcome))
                }
                None => {
                    let config = &model.config;
                    let tunes = self.tunes(b);
                    let kept = tunes || self.absorption.passes > 0;
                    let before = if kept { xq.clone() } else { std::mem::take(&mut xq) };
                    let task = BlockTask {
                        config,
                        rotation,
                        inputs: &xq,
                        targets: &xf[..self.statistics],
                        shares: &self.shares,
                        channels: &self.channels(&block),
                        length: WINDOW,
                    };
                    let (mut block, margins, mut states) =
                        self.block(&task, block, inputs, before, &mut made)?;
                    if tunes {
                        drop(states);
                        let outcome = self.tune(b, &task, &mut block, &margins, &mut made)?;
                        pass(config, &mut block, rotation, &mut xq);
                        (block, Some(outcome))
                    } else {
                        xq = states.par_iter_mut().map(|state| block.finish(config, state)).collect();
                        block.set_precision(Precision::Fine);
                        (block, None)
                    }
                }
            };
            check_device(self.device, progress)?;
            model.blocks.push(block);
            if let Some(outcome) = &outcome {
                progress(Event::Block { index: b, count: model.config.blocks, outcome });
            }
            progress(Event::Stage {
                name: "factorize",
                done: b + 1,
                total: model.config.blocks,
                value: Some(drift(&xf, &xq)),
            });
        }
        drop(xq);
        self.device.check()?;
        let mut rows = xf.into_iter().map(|x| source.normed(&x));
        let teacher = Teacher::new(rows.by_ref().take(self.training));
        let record: Record = (digest, teacher, rows.collect(), imatrix);
        self.journal.put(ROWS, "the source's predictions", &record)?;
        let (_, teacher, rows, imatrix) = record;
        Ok(Sequential { model, source, made, teacher, rows, imatrix })
    }

    /// A block of the source with the layers that go on in another type rounded to it.
    fn as_stored(&self, mut block: Block) -> Result<Block> {
        for l in block.linears.iter_mut().flatten().filter(|l| self.changed.contains(l.name.as_str())) {
            l.weight = self.stored.weight(&l.name, l.d_out, l.d_in)?;
        }
        Ok(block)
    }

    /// Of the windows' tokens.
    fn digest(&self) -> Vec<u8> {
        let mut hash = Sha256::new();
        for window in self.windows {
            hash.update((window.len() as u64).to_le_bytes());
            window.iter().for_each(|t| hash.update(t.to_le_bytes()));
        }
        hash.finalize().to_vec()
    }

    /// Factorizes one block. `source` are the source's streams in it, by window; `xq` is the compressed stream before it.
    /// Returns the block in coarse precision, the [margins](crate::factorize::polish::margins) of all paths if it is to be tuned, and the
    /// compressed stream before the block's last site.
    fn block(
        &self,
        task: &BlockTask,
        mut block: Block,
        source: Vec<Streams>,
        xq: Vec<Vec<f32>>,
        made: &mut HashMap<String, Made>,
    ) -> Result<(Block, Margins, Vec<BlockTape>)> {
        let (c, rotation) = (task.config, task.rotation);
        let mut margins = Vec::new();
        // The compressed stream goes from site to site, past layers that are factorized by then.
        let mut states: Vec<BlockTape> = xq.into_iter().map(|x| block.begin(c, x)).collect();
        for site in Site::ALL {
            let planned = |l: &Linear| self.ranks.contains_key(l.name.as_str());
            // Margins need the moments even of what is made already.
            let open = |l: &Linear| planned(l) && (self.tuning.passes > 0 || !made.contains_key(&l.name));
            if self.absorption.passes > 0 && block.linears[site as usize..].iter().flatten().any(open) {
                task.absorb(&mut block, planned, &self.absorption);
            }
            let linears = &mut block.linears[site as usize];
            if linears.iter().any(open) {
                let mut moments = Moments::new(linears[0].d_in).on(&linears[0].place, &linears[0].name);
                // A norm in between would bend what the residual stream lacks.
                let added = match site {
                    Site::Output => block.post_norms[0].is_none(),
                    _ => block.post_norms[1].is_none(),
                };
                let windows = source.iter().zip(&states).zip(&self.shares);
                let windows = windows.map(|((s, q), &weight)| {
                    let residual = q.residual(site).filter(|_| added);
                    let residual = residual.map(|r| (&s.residuals[site as usize / 2][..], r));
                    Inputs { source: &s.inputs[site as usize], compressed: q.input(site), residual, weight }
                });
                moments.add(&windows.collect::<Vec<_>>());
                margins.extend(self.site(linears, &moments, made)?);
            }
            linears.iter_mut().for_each(|l| replace(l, made));
            linears.iter_mut().for_each(|l| l.set_precision(Precision::Coarse));
            if site != Site::Down {
                states.par_iter_mut().for_each(|state| {
                    block.advance(c, rotation, state, site, WINDOW);
                    state.shed(site);
                });
            }
        }
        Ok((block, margins, states))
    }
}

/// What is kept of the source's streams in a block, for one window.
struct Streams {
    /// Inputs of the layers by site.
    inputs: [Vec<bf16>; 4],
    /// Residual stream before attention and before the feed-forward part.
    residuals: [Vec<bf16>; 2],
}

fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|x| bf16::from_f32(*x)).collect()
}

/// The block that an earlier run has finished; without trained norms its own stay.
fn restored(mut block: Block, made: &HashMap<String, Made>, norms: Norms) -> Block {
    block.linears.iter_mut().flatten().for_each(|l| replace(l, made));
    block.norm_list().into_iter().zip(norms).for_each(|(to, from)| *to = from);
    block
}

/// Sends the compressed stream through a finished block.
fn pass(c: &Config, block: &mut Block, rotation: &Rotation, xq: &mut [Vec<f32>]) {
    block.set_precision(Precision::Coarse);
    let whole = &*block;
    xq.par_iter_mut().for_each(|x| *x = whole.forward(c, rotation, std::mem::take(x), WINDOW).0);
    block.set_precision(Precision::Fine);
}

/// Puts the factors in the place of the dense weight, if there are any.
fn replace(l: &mut Linear, made: &HashMap<String, Made>) {
    if let Some(m) = made.get(&l.name) {
        l.weight = Weight::Binary(m.factors.slices.iter().map(Binary::from).collect());
    }
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
