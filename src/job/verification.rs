//! A finished file against the model it was made from.

use super::evaluation::{check_embeddings, evaluation_windows};
use super::pool;
use super::tuned::WINDOW;
use crate::decoder::{Loader, Model};
use crate::error::Result;
use crate::factorize::relative_error;
use crate::format::LittleBitFile;
use crate::format::schema::{base_name, key};
use crate::gguf::Value;
use crate::source::{Rebuilt, TensorSource};
use crate::tokenize::Tokenizer;
use crate::verify::{self, Coherence, Comparison};
use rayon::prelude::*;
use serde::Serialize;
use std::path::PathBuf;

/// Windows that go through a block together.
const AT_ONCE: usize = 16;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Verification {
    /// Whether the source is the one whose checksum the file records.
    pub same_source: bool,
    /// Faults: tensors that are missing, misshapen or not the source's.
    pub faults: Vec<String>,
    /// Factorized weights with the relative error of the rebuilt values.
    pub matrices: Vec<(String, f64)>,
    /// Tensors that are stored in another type than the source's, or with other values, and their relative change.
    pub changed: Vec<(String, f64)>,
    /// Comparison on texts.
    pub evaluations: Vec<(PathBuf, Comparison)>,
    /// What the file's model writes, beside its source's text, if that was asked for.
    pub coherence: Option<Coherence>,
}

/// Compares every tensor of `file` with `source`, and both models on `texts`, on `threads` threads; with texts or
/// `coherence` also what both write. `progress` hears of stages.
///
/// # Errors
/// Files that cannot be read, factors that are not sound; texts, if the architecture has no forward pass here.
pub fn verify_against(
    file: LittleBitFile,
    source: &dyn TensorSource,
    texts: &[PathBuf],
    coherence: bool,
    threads: usize,
    progress: impl FnMut(&'static str, usize, usize) + Send,
) -> Result<Verification> {
    pool::start(threads)?.install(|| compare(file, source, texts, coherence, progress))
}

fn compare(
    file: LittleBitFile,
    source: &dyn TensorSource,
    texts: &[PathBuf],
    coherence: bool,
    mut progress: impl FnMut(&'static str, usize, usize),
) -> Result<Verification> {
    // A fault in a text is told before hours of other work.
    let windows = if texts.is_empty() { Vec::new() } else { read(source, texts)? };
    let recorded = file.gguf.get(key::SOURCE_SHA256).and_then(Value::as_str).unwrap_or("").to_owned();
    let same_source = recorded == source.sha256()?;
    let rebuilt = Rebuilt::new(file);
    let mut out = Verification {
        same_source,
        faults: Vec::new(),
        matrices: Vec::new(),
        changed: Vec::new(),
        evaluations: Vec::new(),
        coherence: None,
    };
    let total = source.tensors().len();
    for (i, t) in source.tensors().iter().enumerate() {
        progress("tensors", i + 1, total);
        let Some(j) = rebuilt.tensors().iter().position(|r| r.name == t.name) else {
            out.faults.push(format!("tensor '{}' of the source is missing", t.name));
            continue;
        };
        let matrix = base_name(&t.name).and_then(|base| rebuilt.file().find(base));
        let factors = matrix.map(|m| rebuilt.file().read_factors(m)).transpose()?;
        if rebuilt.tensors()[j].dims != t.dims {
            out.faults.push(format!(
                "tensor '{}' stands for {:?}, the source's has {:?}",
                t.name,
                rebuilt.tensors()[j].dims,
                t.dims
            ));
            continue;
        }
        match factors {
            Some(factors) => {
                let w = source.read_f32(i)?;
                let experts = w.par_chunks(w.len() / factors.experts());
                let parts = experts.zip(factors.slices.par_chunks(factors.paths));
                let errors: Vec<f64> = parts.map(|(w, paths)| relative_error(w, paths, None).0).collect();
                out.matrices.push((t.name.clone(), errors.iter().sum::<f64>() / errors.len() as f64));
            }
            None => {
                let (mut a, mut b) = (Vec::new(), Vec::new());
                source.read_raw(i, &mut a)?;
                rebuilt.read_raw(j, &mut b)?;
                if rebuilt.tensors()[j].ty != t.ty || a != b {
                    let change = verify::relative(&source.read_f32(i)?, &rebuilt.read_f32(j)?);
                    out.changed.push((t.name.clone(), change));
                }
            }
        }
    }
    for t in rebuilt.tensors().iter().filter(|r| source.tensors().iter().all(|t| t.name != r.name)) {
        if let Some(m) = base_name(&t.name).and_then(|base| rebuilt.file().find(base)) {
            rebuilt.file().read_factors(m)?;
        }
        out.faults.push(format!("tensor '{}' is none of the source's", t.name));
    }
    // Compression leaves more than nothing of the weights; of a retyped source the checksum may differ.
    let mean = out.matrices.iter().map(|(_, error)| error).sum::<f64>() / out.matrices.len() as f64;
    if !same_source && mean >= 1.0 {
        out.faults.push(format!(
            "factorized weights are as far from the source's as zeros would be (mean relative error {mean:.2}): this is not the \
             model that the file was made from"
        ));
    }
    if !texts.is_empty() && out.faults.is_empty() {
        out.evaluations = evaluate(source, &rebuilt, texts, &windows, &mut progress)?;
    }
    if (coherence || !texts.is_empty()) && out.faults.is_empty() {
        out.coherence = Some(written(source, &rebuilt, &mut progress)?);
    }
    Ok(out)
}

/// What both models write, of which only one is in memory.
fn written(
    source: &dyn TensorSource,
    rebuilt: &Rebuilt,
    progress: &mut dyn FnMut(&'static str, usize, usize),
) -> Result<Coherence> {
    let tokenizer = Tokenizer::from_kv(source.path(), source.kv())?;
    let task = verify::Task::new(&tokenizer, &[], 0);
    let mut write = |model: &Model, before: usize| {
        task.write(model, |done| progress("continuations", before + done, 2 * task.len()))
    };
    let whole = |of: &dyn TensorSource| {
        let loader = Loader::new(of)?;
        loader.coarse(&loader.frame()?)
    };
    let by_model = write(&whole(rebuilt)?, 0);
    let source = whole(source)?;
    let by_source = write(&source, task.len());
    Ok(task.compare(&source, &by_source, &by_model, &tokenizer))
}

/// The windows of every text that both models are compared on.
fn read(source: &dyn TensorSource, texts: &[PathBuf]) -> Result<Vec<Vec<Vec<u32>>>> {
    let tokenizer = Tokenizer::from_kv(source.path(), source.kv())?;
    let windows = evaluation_windows(texts, &tokenizer)?;
    check_embeddings(source, windows.iter().flatten())?;
    Ok(windows)
}

/// Both models on the `windows` of every text, block by block, so that only one block of each is in memory.
fn evaluate(
    source: &dyn TensorSource,
    rebuilt: &Rebuilt,
    texts: &[PathBuf],
    windows: &[Vec<Vec<u32>>],
    progress: &mut dyn FnMut(&'static str, usize, usize),
) -> Result<Vec<(PathBuf, Comparison)>> {
    let all: Vec<&[u32]> = windows.iter().flatten().map(Vec::as_slice).collect();
    let loaders = [Loader::new(source)?, Loader::new(rebuilt)?];
    let frames = [loaders[0].frame()?, loaders[1].frame()?];
    let blocks = loaders[0].blocks();
    let rows = |i: usize, progress: &mut dyn FnMut(&'static str, usize, usize)| -> Result<Vec<Vec<f32>>> {
        let (frame, loader): (&Model, &Loader) = (&frames[i], &loaders[i]);
        let rotations = frame.rotations(WINDOW);
        let mut x: Vec<Vec<f32>> = all.iter().map(|w| frame.embed(w)).collect();
        for b in 0..blocks {
            let block = loader.block(b)?;
            let rotation = block.rotation(&rotations);
            for some in x.chunks_mut(AT_ONCE) {
                some.par_iter_mut().for_each(|x| {
                    *x = block.forward(&frame.config, rotation, std::mem::take(x), WINDOW).0;
                });
            }
            progress("blocks", i * blocks + b + 1, 2 * blocks);
        }
        Ok(x.iter().map(|x| frame.normed(x)).collect())
    };
    let (of_source, of_file) = (rows(0, progress)?, rows(1, progress)?);
    let mut at = 0;
    let mut out = Vec::new();
    for (path, windows) in texts.iter().zip(windows) {
        let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let range = at..at + windows.len();
        at = range.end;
        let comparison = verify::compare_rows(
            [&frames[0], &frames[1]],
            [&of_source[range.clone()], &of_file[range]],
            &windows,
        );
        out.push((path.clone(), comparison));
    }
    Ok(out)
}
