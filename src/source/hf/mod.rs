//! Hugging Face checkpoints of the families in `family`, shown as the GGUF that llama.cpp's converter would make of them.

mod config;
mod family;
pub(super) mod files;
pub(super) mod json;
mod keys;
mod layout;
pub mod pre_tokenizer;
mod rope;
mod sentence_piece;
mod special;
mod spm;
mod vocabulary;

pub use layout::separate_rows;
pub(crate) use layout::{interleaved, separated};

use super::shard::{Entry, Shard};
use super::{SourceTensor, TensorSource, describe, digest};
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, Value, encode};
use config::Config;
pub(super) use layout::Slot;
use layout::{is_redundant, plain_name, slots};

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Files beside the weights that PyTorch users need.
const COMPANIONS: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "littlebit_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Whether `path` looks like a checkpoint: a directory, a safetensors file or an index.
pub(super) fn is_checkpoint(path: &Path) -> bool {
    path.is_dir() || files::is_checkpoint(path)
}

/// An open checkpoint.
#[derive(Debug)]
pub struct HfSource {
    path: PathBuf,
    dir: PathBuf,
    shards: Vec<Shard>,
    kv: Vec<(String, Value)>,
    tensors: Vec<SourceTensor>,
    origins: Vec<Origin>,
}

/// Where a tensor's values come from.
#[derive(Debug)]
enum Origin {
    /// Factors of rotations, from config.json.
    Computed(Vec<f32>),
    /// A tensor of a shard; its rows are interleaved for so many rotary heads, its values raised by `shift`.
    Stored { shard: usize, entry: Entry, rotary_heads: Option<usize>, shift: f32 },
}

/// Tensors of a checkpoint by their [`plain_name`], with the shard that holds them.
pub(super) type Found<'a> = HashMap<String, (usize, &'a Entry)>;

/// What stands in a checkpoint for tensors that it lacks.
pub(super) trait Substitute {
    /// Takes what stands for the missing tensor `slot`, whose place is before the model's tensor `before`, out of `found`;
    /// `false` if there is nothing.
    fn take(&mut self, slot: &Slot, before: usize, found: &mut Found, shards: &[Shard]) -> Result<bool>;
}

/// Nothing stands for anything.
struct Complete;

impl Substitute for Complete {
    fn take(&mut self, _: &Slot, _: usize, _: &mut Found, _: &[Shard]) -> Result<bool> {
        Ok(false)
    }
}

impl HfSource {
    /// Opens a directory with config.json, tokenizer.json or tokenizer.model, and safetensors files, or one of those in it.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, &mut Complete)
    }

    /// As [`HfSource::open`] for a checkpoint in which `substitute` may stand for some tensors; those are not among the
    /// source's, but its keys count their weights.
    pub(super) fn open_with(path: &Path, substitute: &mut dyn Substitute) -> Result<Self> {
        let (shards, dir) = files::open(path)?;
        let config = Config::read(&dir)?;
        let (tensors, origins, elsewhere) = map_tensors(path, &shards, &config, substitute)?;
        let matrix = tensors.iter().find(|t| t.dims.len() == 2).map_or(GgmlType::F32, |t| t.ty);
        let here: u64 = tensors.iter().map(|t| t.dims.iter().product::<u64>()).sum();
        let kv = keys::keys(&dir, &config, matrix, here + elsewhere)?;
        Ok(Self { path: path.to_owned(), dir, shards, kv, tensors, origins })
    }

    /// The files of the checkpoint.
    pub(super) fn shards(&self) -> &[Shard] {
        &self.shards
    }
}

/// Finds every tensor of the architecture in the shards and refuses what is missing, misshapen or unknown. Returns also
/// the number of weights that `substitute` stands for.
fn map_tensors(
    path: &Path,
    shards: &[Shard],
    config: &Config,
    substitute: &mut dyn Substitute,
) -> Result<(Vec<SourceTensor>, Vec<Origin>, u64)> {
    let mut found = Found::new();
    for (s, shard) in shards.iter().enumerate() {
        found.extend(shard.tensors.iter().map(|t| (plain_name(&t.name), (s, t))));
    }
    // Every block has tensors of its own, so the files bound the number of blocks.
    if config.layers > found.len() as u64 {
        let what = format!("num_hidden_layers is {}, the files hold {} tensors", config.layers, found.len());
        return Err(config.json.refuse(what));
    }
    let (mut tensors, mut origins, mut elsewhere) = (Vec::new(), Vec::new(), 0);
    for (name, factors) in rope::tensors(&config.rope, config.head_dim) {
        let dims = vec![factors.len() as u64];
        tensors.push(SourceTensor { name: name.to_owned(), dims, ty: GgmlType::F32 });
        origins.push(Origin::Computed(factors));
    }
    for slot in slots(config) {
        let Some((shard, entry)) = found.remove(slot.hf.as_str()) else {
            if substitute.take(&slot, tensors.len(), &mut found, shards)? {
                elsewhere += slot.shape.iter().product::<u64>();
                continue;
            }
            if slot.optional {
                continue;
            }
            return Err(Error::tensor(path, slot.hf, "missing from the checkpoint"));
        };
        if entry.shape != slot.shape {
            let what = format!("shape {:?}, config.json implies {:?}", entry.shape, slot.shape);
            return Err(Error::tensor(&shards[shard].path, slot.hf, what));
        }
        // llama.cpp wants vectors in f32.
        let stored = entry.float(&shards[shard].path)?;
        let ty = if slot.shape.len() == 1 { GgmlType::F32 } else { stored };
        tensors.push(SourceTensor { name: slot.gguf, dims: slot.shape.iter().rev().copied().collect(), ty });
        let (rotary_heads, shift) = (slot.rotary_heads, slot.shift);
        origins.push(Origin::Stored { shard, entry: entry.clone(), rotary_heads, shift });
    }
    let unknown = found.into_iter().filter(|(name, _)| !is_redundant(name, config));
    let unknown = unknown.min_by(|(_, (_, a)), (_, (_, b))| a.name.cmp(&b.name));
    match unknown {
        Some((_, (shard, t))) => {
            Err(Error::tensor(&shards[shard].path, &t.name, "the architecture has no such tensor"))
        }
        None => Ok((tensors, origins, elsewhere)),
    }
}

impl TensorSource for HfSource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn describe(&self) -> String {
        describe(&self.path, &self.kv)
    }

    fn kv(&self) -> &[(String, Value)] {
        &self.kv
    }

    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn read_raw(&self, i: usize, out: &mut Vec<u8>) -> Result<()> {
        match &self.origins[i] {
            Origin::Stored { shard, entry, rotary_heads, shift: 0.0 }
                if entry.float(&self.shards[*shard].path)? == self.tensors[i].ty =>
            {
                self.shards[*shard].read(entry, out)?;
                *out = interleaved(std::mem::take(out), *rotary_heads, entry.shape[0] as usize);
                Ok(())
            }
            _ => {
                out.clear();
                encode(self.tensors[i].ty, &self.read_f32(i)?, out)
            }
        }
    }

    fn read_f32(&self, i: usize) -> Result<Vec<f32>> {
        match &self.origins[i] {
            Origin::Computed(values) => Ok(values.clone()),
            Origin::Stored { shard, entry, rotary_heads, shift } => {
                let mut values = self.shards[*shard].read_f32(entry)?;
                if *shift != 0.0 {
                    values.iter_mut().for_each(|x| *x += shift);
                }
                Ok(interleaved(values, *rotary_heads, entry.shape[0] as usize))
            }
        }
    }

    fn read_rows(&self, i: usize, first: usize, rows: usize) -> Result<Vec<f32>> {
        match &self.origins[i] {
            // Neighbouring rows of the GGUF stand together in the checkpoint, too.
            Origin::Stored { shard, entry, rotary_heads: None, .. } if entry.shape.len() == 2 => {
                self.shards[*shard].read_rows(entry, first as u64, rows as u64)
            }
            _ => {
                let width = self.tensors[i].dims[0] as usize;
                let values = self.read_f32(i)?;
                Ok(values[first * width..(first + rows) * width].to_vec())
            }
        }
    }

    fn companions(&self) -> Vec<PathBuf> {
        COMPANIONS.iter().map(|name| self.dir.join(name)).filter(|path| path.is_file()).collect()
    }

    fn sha256(&self) -> Result<String> {
        digest::sha256(self.shards.iter().map(|s| s.path.as_path()))
    }
}
