//! Checkpoints that are compressed already: the official LittleBit layout and NanoQuant's, shown as the LittleBit GGUF that
//! they are.
//!
//! What a linear layer `p` of such a checkpoint has instead of `p.weight` is found and checked in [`module`], and becomes
//! factors in the GGUF's order of rows in [`factors`]. Everything else is read as from any checkpoint.

mod factors;
mod module;

use super::hf::{self, Found, HfSource, Slot, Substitute};
use super::shard::Shard;
use super::{Compressed, Origin, TensorSource, digest};
use crate::arch;
use crate::error::{Error, Result};
use crate::format::schema::{self, Part, Shape, key};
use crate::format::{Factors, LittleBitFile};
use crate::gguf::{GgmlType, Gguf, TensorData, TensorDesc, TensorInfo, Value, Writer};
use module::{Layout, Module};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Whether `path` is a checkpoint with factors. Faults show up when it is opened.
pub fn is_compressed(path: &Path) -> bool {
    hf::is_checkpoint(path)
        && hf::files::open(path).is_ok_and(|(shards, _)| {
            shards.iter().flat_map(|s| &s.tensors).any(|t| Layout::announced_by(&t.name))
        })
}

/// Opens the checkpoint at `path`: a directory, or one of its files.
///
/// # Errors
/// As for a checkpoint of weights; factors that are missing, misshapen or without meaning.
pub fn open(path: &Path) -> Result<Compressed> {
    let mut modules = Modules::default();
    let source = HfSource::open_with(path, &mut modules)?;
    let modules = modules.0;
    if modules.is_empty() {
        let what = "no layer of this checkpoint is factorized; if it is a model to compress, remove littlebit_config.json";
        return Err(Error::unsupported(path, what));
    }
    let paths = modules.iter().map(|(_, m)| m.paths.len()).max().unwrap_or(1);
    let mut descriptors = Vec::new();
    let mut rest = modules.iter().peekable();
    for (i, t) in source.tensors().iter().enumerate() {
        while let Some((_, m)) = rest.next_if(|(before, _)| *before <= i) {
            descriptors.extend(parts(m, paths));
        }
        descriptors.push(TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty });
    }
    rest.for_each(|(_, m)| descriptors.extend(parts(m, paths)));
    let kv = keys(&source, &modules, paths, &descriptors)?;
    let header = Writer::new(Vec::new(), &kv, descriptors, schema::ALIGNMENT)?.into_inner();
    let bytes = source.shards().iter().map(|s| s.len).sum();
    let modules = modules.into_iter().map(|(_, m)| m).collect();
    let origin = Origin::Checkpoint { companions: source.companions() };
    let data = Box::new(CheckpointData { source, modules, paths, last: Mutex::default() });
    let file = LittleBitFile::from_gguf(Gguf::detached(path, 0, &header, bytes, data)?)?;
    Ok(Compressed { file, origin })
}

/// The modules that were found, with the index of the tensor that follows each.
#[derive(Debug, Default)]
struct Modules(Vec<(usize, Module)>);

impl Substitute for Modules {
    fn take(&mut self, slot: &Slot, before: usize, found: &mut Found, shards: &[Shard]) -> Result<bool> {
        let Some(module) = Module::take(slot, found, shards)? else { return Ok(false) };
        let dims: Vec<u64> = slot.shape.iter().rev().copied().collect();
        arch::factorizable(&slot.gguf, &dims, GgmlType::F16).map_err(|reason| {
            let what = format!("is factorized, which llama.cpp cannot use: {reason}");
            Error::tensor(&shards[module.shard].path, &slot.hf, what)
        })?;
        self.0.push((before, module));
        Ok(true)
    }
}

/// Descriptors of a module's factor tensors.
fn parts(m: &Module, paths: usize) -> Vec<TensorDesc> {
    let shape = Shape { d_out: m.d_out, d_in: m.d_in, rank: m.rank(), slices: paths };
    schema::descriptors(&m.base, &shape)
}

/// The checkpoint's keys, with what a LittleBit file must say.
fn keys(
    source: &HfSource,
    modules: &[(usize, Module)],
    paths: usize,
    descriptors: &[TensorDesc],
) -> Result<Vec<(String, Value)>> {
    let mut kv = source.kv().to_vec();
    let bits = |d: &TensorDesc| 8 * d.nbytes().unwrap_or(0);
    let is_factor = |d: &&TensorDesc| Part::split(&d.name).is_some();
    let factor_bits: u64 = descriptors.iter().filter(is_factor).map(bits).sum();
    let all_bits: u64 = descriptors.iter().map(bits).sum();
    let weights: u64 = modules.iter().map(|(_, m)| m.d_out as u64 * m.d_in as u64).sum();
    let kept: u64 = source.tensors().iter().map(|t| t.dims.iter().product::<u64>()).sum();
    let layout = modules[0].1.layout.name();
    let n_params = kept + weights;
    for (k, v) in [
        ("general.alignment", Value::U32(schema::ALIGNMENT as u32)),
        (key::VERSION, Value::U32(schema::VERSION)),
        (key::REQUIRES, schema::REQUIRES.into()),
        (key::PATHS, Value::U32(paths as u32)),
        (key::N_PARAMS, Value::U64(n_params)),
        (key::BPW, Value::F32((factor_bits as f64 / weights as f64) as f32)),
        (key::BPW_FILE, Value::F32((all_bits as f64 / n_params as f64) as f32)),
        (key::METHOD, format!("imported from a {layout} checkpoint, paths={paths}").as_str().into()),
        (key::TOOL, schema::TOOL.into()),
        (key::SEED, Value::U64(0)),
        (key::SOURCE_NAME, source.describe().as_str().into()),
        (
            key::SOURCE_SHA256,
            digest::sha256(source.shards().iter().map(|s| s.path.as_path()))?.as_str().into(),
        ),
        (key::CALIBRATION_DATASET, "".into()),
        (key::CALIBRATION_TOKENS, Value::U64(0)),
    ] {
        schema::set(&mut kv, k, v);
    }
    Ok(kv)
}

/// Factors of the module that was read last: its five tensors are asked for one after the other.
type Last = Mutex<Option<(usize, Arc<Factors>)>>;

/// Tensors of an open checkpoint.
#[derive(Debug)]
struct CheckpointData {
    source: HfSource,
    modules: Vec<Module>,
    paths: usize,
    last: Last,
}

impl TensorData for CheckpointData {
    fn read(&self, t: &TensorInfo, out: &mut Vec<u8>) -> Result<()> {
        if let Some((base, part)) = Part::split(&t.name) {
            *out = schema::part_bytes(&*self.factors(base)?, part);
            return Ok(());
        }
        let i = self.source.tensors().iter().position(|s| s.name == t.name);
        self.source.read_raw(i.expect("the header lists the source's tensors"), out)
    }
}

impl CheckpointData {
    fn factors(&self, base: &str) -> Result<Arc<Factors>> {
        let i = self.modules.iter().position(|m| m.base == base).expect("the header lists the modules");
        // A panic elsewhere cannot leave half of a value here.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, factors)) = last.as_ref().filter(|(at, _)| *at == i) {
            return Ok(factors.clone());
        }
        let factors = Arc::new(factors::read(&self.modules[i], self.source.shards(), self.paths)?);
        *last = Some((i, factors.clone()));
        Ok(factors)
    }
}
