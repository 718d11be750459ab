//! Hugging Face checkpoints of the Llama family, shown as the GGUF that llama.cpp's converter would make of them.

mod config;
mod files;
mod json;
mod keys;
mod layout;
pub mod pre_tokenizer;
mod shard;
mod special;
mod vocabulary;

pub use layout::separate_rows;

use super::{SourceTensor, TensorSource, check_finite, describe, digest};
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, Value, dequantize, encode};
use config::{Config, rope_factors};
use layout::{interleave_rows, is_redundant, slots};
use shard::{Entry, Shard};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Whether `path` looks like a checkpoint: a directory, a safetensors file or an index.
pub(super) fn is_checkpoint(path: &Path) -> bool {
    path.is_dir() || files::is_checkpoint(path)
}

/// An open checkpoint.
#[derive(Debug)]
pub struct HfSource {
    path: PathBuf,
    shards: Vec<Shard>,
    kv: Vec<(String, Value)>,
    tensors: Vec<SourceTensor>,
    origins: Vec<Origin>,
}

/// Where a tensor's values come from.
#[derive(Debug)]
enum Origin {
    /// `rope_freqs.weight`, computed from config.json.
    Computed(Vec<f32>),
    /// A tensor of a shard; its rows are interleaved for so many rotary heads.
    Stored { shard: usize, entry: Entry, rotary_heads: Option<u64> },
}

impl HfSource {
    /// Opens a directory with config.json, tokenizer.json and safetensors files, or one of those files in it.
    pub fn open(path: &Path) -> Result<Self> {
        let (shards, dir) = files::open(path)?;
        let config = Config::read(&dir)?;
        let (tensors, origins) = map_tensors(path, &shards, &config)?;
        let matrix = tensors.iter().find(|t| t.dims.len() == 2).map_or(GgmlType::F32, |t| t.ty);
        let n_params = tensors.iter().map(|t| t.dims.iter().product::<u64>()).sum();
        let kv = keys::keys(&dir, &config, matrix, n_params)?;
        Ok(Self { path: path.to_owned(), shards, kv, tensors, origins })
    }
}

/// Finds every tensor of the architecture in the shards and refuses what is missing, misshapen or unknown.
fn map_tensors(path: &Path, shards: &[Shard], config: &Config) -> Result<(Vec<SourceTensor>, Vec<Origin>)> {
    let mut found: HashMap<&str, (usize, &Entry)> = HashMap::new();
    for (s, shard) in shards.iter().enumerate() {
        found.extend(shard.tensors.iter().map(|t| (t.name.as_str(), (s, t))));
    }
    // Every block has tensors of its own, so the files bound the number of blocks.
    if config.layers > found.len() as u64 {
        let what = format!("num_hidden_layers is {}, the files hold {} tensors", config.layers, found.len());
        return Err(config.json.refuse(what));
    }
    let (mut tensors, mut origins) = (Vec::new(), Vec::new());
    if let Some(factors) = rope_factors(config) {
        tensors.push(SourceTensor {
            name: "rope_freqs.weight".to_owned(),
            dims: vec![factors.len() as u64],
            ty: GgmlType::F32,
        });
        origins.push(Origin::Computed(factors));
    }
    for slot in slots(config) {
        let Some((shard, entry)) = found.remove(slot.hf.as_str()) else {
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
        let ty = if slot.shape.len() == 1 { GgmlType::F32 } else { entry.ty };
        tensors.push(SourceTensor { name: slot.gguf, dims: slot.shape.iter().rev().copied().collect(), ty });
        origins.push(Origin::Stored { shard, entry: entry.clone(), rotary_heads: slot.rotary_heads });
    }
    let unknown =
        found.into_iter().filter(|(name, _)| !is_redundant(name, config)).min_by_key(|(name, _)| *name);
    match unknown {
        Some((name, (shard, _))) => {
            Err(Error::tensor(&shards[shard].path, name, "the architecture has no such tensor"))
        }
        None => Ok((tensors, origins)),
    }
}

/// Values of a stored tensor in the checkpoint's order.
fn decode(shard: &Shard, entry: &Entry) -> Result<Vec<f32>> {
    let mut bytes = Vec::new();
    shard.read(entry, &mut bytes)?;
    let mut values = vec![0.0; entry.shape.iter().product::<u64>() as usize];
    dequantize(entry.ty, &bytes, &mut values).map_err(|e| Error::tensor(&shard.path, &entry.name, e))?;
    Ok(values)
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
            Origin::Stored { shard, entry, rotary_heads } if entry.ty == self.tensors[i].ty => {
                self.shards[*shard].read(entry, out)?;
                if let Some(heads) = rotary_heads {
                    *out = interleave_rows(out, *heads as usize, entry.shape[0] as usize);
                }
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
            Origin::Stored { shard, entry, rotary_heads } => {
                let shard = &self.shards[*shard];
                let values = decode(shard, entry)?;
                check_finite(&shard.path, &entry.name, &values)?;
                Ok(match rotary_heads {
                    Some(heads) => interleave_rows(&values, *heads as usize, entry.shape[0] as usize),
                    None => values,
                })
            }
        }
    }

    fn sha256(&self) -> Result<String> {
        digest::sha256(self.shards.iter().map(|s| s.path.as_path()))
    }
}
