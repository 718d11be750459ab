//! One safetensors file: its header checked by the safetensors crate, its data read at offsets and never mapped.

use super::hf::json::fault;
use super::{check_finite, check_finite_from};
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, dequantize};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The format's limit on headers.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the length field before the header.
const LENGTH: u64 = 8;

/// An open safetensors file.
#[derive(Debug)]
pub(crate) struct Shard {
    pub path: PathBuf,
    /// `__metadata__`.
    pub metadata: HashMap<String, String>,
    /// Bytes of the file when it was opened.
    pub len: u64,
    /// Tensors in the order of their data.
    pub tensors: Vec<Entry>,
    file: File,
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: String,
    /// Sizes, slowest first as PyTorch has them.
    pub shape: Vec<u64>,
    pub dtype: Dtype,
    /// First byte from the start of the file.
    pub offset: u64,
    pub nbytes: u64,
}

impl Entry {
    /// ggml's type of a tensor of floats.
    ///
    /// # Errors
    /// [`Error::Tensor`] for any other.
    pub fn float(&self, path: &Path) -> Result<GgmlType> {
        match self.dtype {
            Dtype::F32 => Ok(GgmlType::F32),
            Dtype::F16 => Ok(GgmlType::F16),
            Dtype::BF16 => Ok(GgmlType::BF16),
            other => {
                Err(Error::tensor(path, &self.name, format!("dtype {other}; F32, F16 and BF16 can be read")))
            }
        }
    }
}

impl Shard {
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if !meta.is_file() {
            return Err(Error::unsupported(path, "not a regular file; a safetensors file is needed"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let (header, data) = read_header(path, &file, meta.len())?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| fault(path, LENGTH, &header, &e))?;
        if data.checked_add(metadata.data_len() as u64) != Some(meta.len()) {
            let what = format!(
                "{} bytes of tensor data are announced, the file has {}",
                metadata.data_len(),
                meta.len() - data
            );
            return Err(Error::malformed(path, data, what));
        }
        let tensors = metadata
            .offset_keys()
            .into_iter()
            .map(|name| {
                let info = metadata.info(&name).expect("offset_keys lists the header's names");
                let (start, end) = info.data_offsets;
                let shape = info.shape.iter().map(|d| *d as u64).collect();
                let (offset, nbytes) = (data + start as u64, (end - start) as u64);
                Entry { name, shape, dtype: info.dtype, offset, nbytes }
            })
            .collect();
        let of_file = metadata.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.to_owned(), metadata: of_file, len: meta.len(), tensors, file })
    }

    /// Reads a tensor's bytes; `out` is overwritten.
    pub fn read(&self, t: &Entry, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        out.resize(t.nbytes as usize, 0);
        let what = || format!("read tensor '{}' at byte {}", t.name, t.offset);
        self.file.read_exact_at(out, t.offset).map_err(|e| Error::io(&self.path, what(), e))
    }

    /// Values of a tensor of floats. NaN and infinite values are refused by name and index.
    pub fn read_f32(&self, t: &Entry) -> Result<Vec<f32>> {
        let mut bytes = Vec::new();
        let ty = t.float(&self.path)?;
        self.read(t, &mut bytes)?;
        let mut values = vec![0.0; t.shape.iter().product::<u64>() as usize];
        dequantize(ty, &bytes, &mut values).map_err(|e| Error::tensor(&self.path, &t.name, e))?;
        check_finite(&self.path, &t.name, &values)?;
        Ok(values)
    }

    /// Values of `rows` rows of a matrix of floats from row `first` on, as [`Shard::read_f32`] gives them.
    pub fn read_rows(&self, t: &Entry, first: u64, rows: u64) -> Result<Vec<f32>> {
        let ty = t.float(&self.path)?;
        let (height, width) = (t.shape[0], t.shape[1]);
        assert!(first + rows <= height, "rows outside of the matrix");
        let row = t.nbytes / height;
        let part = Entry { offset: t.offset + first * row, nbytes: rows * row, ..t.clone() };
        let mut bytes = Vec::new();
        self.read(&part, &mut bytes)?;
        let mut values = vec![0.0; (rows * width) as usize];
        dequantize(ty, &bytes, &mut values).map_err(|e| Error::tensor(&self.path, &t.name, e))?;
        check_finite_from(&self.path, &t.name, (first * width) as usize, &values)?;
        Ok(values)
    }

    /// Words of 32 bits, whatever they mean.
    pub fn read_words(&self, t: &Entry) -> Result<Vec<u32>> {
        let mut bytes = Vec::new();
        self.read(t, &mut bytes)?;
        let word = |b: &[u8]| u32::from_le_bytes(b.try_into().expect("4 bytes"));
        Ok(bytes.chunks_exact(4).map(word).collect())
    }

    /// Integers of 64 bits.
    pub fn read_i64(&self, t: &Entry) -> Result<Vec<i64>> {
        let mut bytes = Vec::new();
        self.read(t, &mut bytes)?;
        let integer = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("8 bytes"));
        Ok(bytes.chunks_exact(8).map(integer).collect())
    }
}

/// The JSON header and the offset at which data starts.
fn read_header(path: &Path, file: &File, file_len: u64) -> Result<(Vec<u8>, u64)> {
    let refuse = |at, what: String| Err(Error::malformed(path, at, what));
    if file_len < LENGTH {
        return refuse(file_len, "not a safetensors file: shorter than the 8-byte header length".to_owned());
    }
    let mut length = [0; LENGTH as usize];
    file.read_exact_at(&mut length, 0).map_err(|e| Error::io(path, "read header length", e))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return refuse(0, format!("header of {length} bytes, the format allows {MAX_HEADER}"));
    }
    if length > file_len - LENGTH {
        return refuse(0, format!("header of {length} bytes in a file of {file_len}: truncated file"));
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, LENGTH).map_err(|e| Error::io(path, "read header", e))?;
    Ok((header, LENGTH + length))
}
