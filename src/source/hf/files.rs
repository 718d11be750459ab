//! Which files a checkpoint consists of: one safetensors file, or an index and its shards.

use super::json::Json;
use crate::error::{Error, Result};
use crate::gguf::MAGIC;
use crate::source::shard::Shard;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// Whether `path` names a safetensors file or an index of them.
pub(super) fn is_checkpoint(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".safetensors") || name.ends_with(INDEX_SUFFIX)
}

/// Refuses files as PyTorch writes them.
///
/// # Errors
/// [`Error::Unsupported`]; [`Error::Io`].
pub(in crate::source) fn check_not_pytorch(path: &Path) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    file.take(4).read_to_end(&mut start).map_err(|e| Error::io(path, "read", e))?;
    // A zip archive, or a bare pickle as before version 1.6.
    let content = start == *b"PK\x03\x04" || start.starts_with(&[0x80, 0x02]);
    let named = path.extension().is_some_and(|e| ["bin", "pt", "pth"].iter().any(|n| e == *n));
    if content || (named && start != MAGIC) {
        let what = "PyTorch files (.bin, .pt) are not read; give the checkpoint in safetensors, or a GGUF made by llama.cpp's \
                    convert_hf_to_gguf.py";
        return Err(Error::unsupported(path, what));
    }
    Ok(())
}

/// Opens the shards of `path`, a checkpoint's directory or one of the files that [`is_checkpoint`] accepts. Also
/// returns the directory in which config.json and the tokenizer lie.
pub(in crate::source) fn open(path: &Path) -> Result<(Vec<Shard>, PathBuf)> {
    if path.is_dir() {
        for name in [INDEX, SINGLE] {
            if path.join(name).exists() {
                return Ok((open_file(&path.join(name))?, path.to_owned()));
            }
        }
        let what = format!(
            "no {SINGLE} and no {INDEX} in this directory; give a folder with a checkpoint in safetensors (PyTorch .bin files are not read), or a GGUF file"
        );
        return Err(Error::unsupported(path, what));
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((open_file(path)?, parent.to_owned()))
}

fn open_file(path: &Path) -> Result<Vec<Shard>> {
    if path.to_string_lossy().ends_with(INDEX_SUFFIX) {
        return open_index(path);
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let of = stem.len().checked_sub("-of-00001".len()).and_then(|at| stem.get(at..));
    if of.is_some_and(|of| of.starts_with("-of-") && !of.ends_with("-00001")) {
        let what = format!("one shard of several; give the index (*{INDEX_SUFFIX}) or the directory");
        return Err(Error::unsupported(path, what));
    }
    Ok(vec![Shard::open(path)?])
}

/// Opens all shards of an index, in the order of their names, and checks that both agree.
fn open_index(path: &Path) -> Result<Vec<Shard>> {
    let index = Json::read(path.to_owned())?;
    let map = index
        .root
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| index.refuse("weight_map is missing or no object"))?;
    let mut by_file: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file
            .as_str()
            .filter(|f| is_plain(f))
            .ok_or_else(|| index.refuse(format!("tensor '{tensor}' lies in {file}, not beside the index")))?;
        by_file.entry(file).or_default().insert(tensor);
    }
    let mut shards: Vec<Shard> = Vec::new();
    for (file, announced) in by_file {
        let shard_path = path.with_file_name(file);
        if !shard_path.exists() {
            return Err(index.refuse(format!("shard {file} is missing")));
        }
        let shard = Shard::open(&shard_path)?;
        for t in &shard.tensors {
            if !announced.contains(t.name.as_str()) {
                let what = match map.get(&t.name).and_then(|f| f.as_str()) {
                    Some(other) => format!("the index says that it lies in {other}"),
                    None => "the index does not list it".to_owned(),
                };
                return Err(Error::tensor(&shard_path, &t.name, what));
            }
        }
        let present: BTreeSet<_> = shard.tensors.iter().map(|t| t.name.as_str()).collect();
        if let Some(missing) = announced.difference(&present).next() {
            return Err(Error::tensor(&shard_path, *missing, "the index lists it here, the file lacks it"));
        }
        shards.push(shard);
    }
    Ok(shards)
}

/// A file name without any directory.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains('\\')
}
