//! Models to compress, behind one trait: whatever the file format, a source shows the keys and tensors of a GGUF.

pub mod checkpoint;
mod digest;
mod gguf;
pub mod hf;
pub mod names;
mod rebuilt;
pub(crate) mod shard;

use crate::error::{Error, Result};
use crate::format::file::is_littlebit;
use crate::format::{LittleBitFile, container};
use crate::gguf::{GgmlType, Gguf, Value};
use std::path::{Path, PathBuf};

pub use self::gguf::GgufSource;
pub use digest::sha256;
pub use hf::HfSource;
pub use rebuilt::Rebuilt;

/// One tensor of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTensor {
    /// GGUF name.
    pub name: String,
    /// ne, fastest first: a weight of `d_out` rows and `d_in` columns has `[d_in, d_out]`.
    pub dims: Vec<u64>,
    /// Type as stored.
    pub ty: GgmlType,
}

/// An open model. Tensors are read one at a time and from any thread; nothing is cached.
pub trait TensorSource: std::fmt::Debug + Send + Sync {
    /// The path that was opened.
    fn path(&self) -> &Path;

    /// `general.name`, or the file's stem where the model has none: what a LittleBit file records as its origin.
    fn describe(&self) -> String;

    /// The keys that the GGUF carries, or for other formats those that llama.cpp's converter would write, in order.
    fn kv(&self) -> &[(String, Value)];

    /// The tensors in file order.
    fn tensors(&self) -> &[SourceTensor];

    /// Reads tensor `i` as stored, in GGUF's row order; `out` is overwritten.
    fn read_raw(&self, i: usize, out: &mut Vec<u8>) -> Result<()>;

    /// Values of tensor `i`, dequantized. NaN and infinite values are refused by name and index.
    fn read_f32(&self, i: usize) -> Result<Vec<f32>>;

    /// Values of so many rows of tensor `i`, from row `first` on, dequantized; sources that can read less than the whole
    /// tensor.
    fn read_rows(&self, i: usize, first: usize, rows: usize) -> Result<Vec<f32>> {
        let width = self.tensors()[i].dims[0] as usize;
        let mut values = self.read_f32(i)?;
        values.drain(..first * width);
        values.truncate(rows * width);
        Ok(values)
    }

    /// Files beside the weights that go with the model in the form in which it came: configuration, tokenizer.
    fn companions(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// SHA-256 of the model file as lower-case hex; of several files, SHA-256 over their binary digests in order.
    fn sha256(&self) -> Result<String>;
}

/// Opens the model at `path`: a GGUF file (the first shard of a split one), or a Hugging Face checkpoint given by its
/// directory, its safetensors file or its index.
pub fn open(path: &Path) -> Result<Box<dyn TensorSource>> {
    std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    if hf::is_checkpoint(path) {
        Ok(Box::new(HfSource::open(path)?))
    } else {
        hf::files::check_not_pytorch(path)?;
        Ok(Box::new(GgufSource::open(path)?))
    }
}

/// A model that is compressed already.
#[derive(Debug)]
pub struct Compressed {
    /// As the LittleBit GGUF that it is or stands for.
    pub file: LittleBitFile,
    /// What it was found as.
    pub origin: Origin,
}

/// What a compressed model was found as.
#[derive(Debug)]
pub enum Origin {
    /// A LittleBit GGUF.
    Gguf,
    /// A `.littlebit` file.
    Container,
    /// A checkpoint in the official LittleBit layout or NanoQuant's.
    Checkpoint {
        /// Files that go with it: configuration, tokenizer.
        companions: Vec<PathBuf>,
    },
}

/// Any model.
#[derive(Debug)]
pub enum Model {
    /// With factors.
    Compressed(Box<Compressed>),
    /// With weights.
    Dense(Box<dyn TensorSource>),
}

/// What stands at a path; of models without factors only what was needed to see that.
enum Found {
    Compressed(Compressed),
    Gguf(Gguf),
    Checkpoint,
}

fn find(path: &Path) -> Result<Found> {
    std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    if container::is_container(path) {
        let file = container::open(path)?;
        return Ok(Found::Compressed(Compressed { file, origin: Origin::Container }));
    }
    if hf::is_checkpoint(path) {
        return match checkpoint::is_compressed(path) {
            true => checkpoint::open(path).map(Found::Compressed),
            false => Ok(Found::Checkpoint),
        };
    }
    hf::files::check_not_pytorch(path)?;
    let gguf = Gguf::open(path)?;
    if !is_littlebit(&gguf) {
        return Ok(Found::Gguf(gguf));
    }
    let file = LittleBitFile::from_gguf(gguf)?;
    Ok(Found::Compressed(Compressed { file, origin: Origin::Gguf }))
}

/// Opens the model at `path`, compressed or not.
///
/// # Errors
/// Whatever is wrong with it.
pub fn open_any(path: &Path) -> Result<Model> {
    Ok(match find(path)? {
        Found::Compressed(compressed) => Model::Compressed(Box::new(compressed)),
        Found::Gguf(gguf) => Model::Dense(Box::new(GgufSource::new(gguf)?)),
        Found::Checkpoint => Model::Dense(Box::new(HfSource::open(path)?)),
    })
}

/// Opens the model at `path` if it is compressed already, `None` for any other.
///
/// # Errors
/// Faults of a compressed model, and of a GGUF.
pub fn open_compressed(path: &Path) -> Result<Option<Compressed>> {
    Ok(match find(path)? {
        Found::Compressed(compressed) => Some(compressed),
        Found::Gguf(_) | Found::Checkpoint => None,
    })
}

/// Name of the model in `path` from its keys.
fn describe(path: &Path, kv: &[(String, Value)]) -> String {
    let named = kv.iter().find(|(k, _)| k == "general.name").and_then(|(_, v)| v.as_str());
    match named.filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
    }
}

/// Refuses NaN and infinities, with the index of the first one.
fn check_finite(path: &Path, tensor: &str, values: &[f32]) -> Result<()> {
    check_finite_from(path, tensor, 0, values)
}

/// The same of values of which the first has the index `first` in its tensor.
fn check_finite_from(path: &Path, tensor: &str, first: usize, values: &[f32]) -> Result<()> {
    let Some(i) = values.iter().position(|x| !x.is_finite()) else { return Ok(()) };
    let what = if values[i].is_nan() { "NaN" } else { "infinite" };
    let what = format!(
        "value {} is {what}; the model is damaged: load it elsewhere, or download it again",
        first + i
    );
    Err(Error::tensor(path, tensor, what))
}
