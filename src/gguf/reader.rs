//! The checked reader: an open file, its keys and the data of its tensors.

use super::header::{Header, Parsed};
use super::{GgmlType, TensorDesc, VERSION, Value, dequantize};
use crate::error::{Error, Result};
use std::fmt::Debug;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// ne, fastest first, 1 to 4 values.
    pub dims: Vec<u64>,
    /// Type.
    pub ty: GgmlType,
    /// First byte of the data, from the start of the file.
    pub offset: u64,
    /// Bytes of the data.
    pub nbytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// What a writer needs to know of it.
    pub fn descriptor(&self) -> TensorDesc {
        TensorDesc { name: self.name.clone(), dims: self.dims.clone(), ty: self.ty }
    }
}

/// Where the tensors of a header lie that stands apart from them.
pub trait TensorData: Debug + Send + Sync {
    /// Reads a tensor's bytes; `out` is overwritten.
    ///
    /// # Errors
    /// What the place of the data has to say, in its own terms.
    fn read(&self, t: &TensorInfo, out: &mut Vec<u8>) -> Result<()>;
}

/// Bytes of the tensors.
#[derive(Debug)]
enum Data {
    /// In the file, at their offsets.
    Here(File),
    /// Somewhere else.
    Elsewhere(Box<dyn TensorData>),
}

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    /// Where it is.
    pub path: PathBuf,
    /// Format version, always 3.
    pub version: u32,
    /// Alignment of tensor data.
    pub alignment: u64,
    /// Metadata in file order.
    pub kv: Vec<(String, Value)>,
    /// Tensors in file order.
    pub tensors: Vec<TensorInfo>,
    /// First byte of the data section.
    pub data_offset: u64,
    /// Length of the file when it was opened.
    pub file_len: u64,
    data: Data,
    index: std::collections::HashMap<String, usize>,
}

impl Gguf {
    /// Opens `path` and reads its header; tensor data is only checked to lie inside the file.
    pub fn open(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        if !meta.is_file() {
            return Err(Error::unsupported(path, "not a regular file; a GGUF file is needed"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let len = meta.len();
        let parsed = Header::new(path, &file, 0, len).parse(len)?;
        Ok(Self::new(path, parsed, len, Data::Here(file)))
    }

    /// The GGUF whose header is `header`, found at byte `start` of `path`, and whose tensors are `data`'s, in files of
    /// `file_len` bytes. Offsets of tensors count as if the data followed the header.
    ///
    /// # Errors
    /// As [`Gguf::open`], with offsets in `path`.
    pub fn detached(
        path: &Path,
        start: u64,
        header: &[u8],
        file_len: u64,
        data: Box<dyn TensorData>,
    ) -> Result<Self> {
        let parsed = Header::new(path, &header, start, header.len() as u64).parse(u64::MAX)?;
        Ok(Self::new(path, parsed, file_len, Data::Elsewhere(data)))
    }

    fn new(path: &Path, parsed: Parsed, file_len: u64, data: Data) -> Self {
        let Parsed { kv, alignment, tensors, data_offset } = parsed;
        let index = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let path = path.to_owned();
        Self { path, version: VERSION, alignment, kv, tensors, data_offset, file_len, data, index }
    }

    /// Value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.kv.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// Reads a tensor's bytes; `out` is overwritten.
    pub fn read(&self, t: &TensorInfo, out: &mut Vec<u8>) -> Result<()> {
        self.read_range(t, 0, t.nbytes, out)
    }

    /// Reads `len` bytes of `t` from its byte `start`; `out` is overwritten.
    pub fn read_range(&self, t: &TensorInfo, start: u64, len: u64, out: &mut Vec<u8>) -> Result<()> {
        let inside = start.checked_add(len).is_some_and(|end| end <= t.nbytes);
        if !inside {
            return Err(Error::tensor(
                &self.path,
                &t.name,
                format!("bytes {start}..+{len} are outside its {} bytes", t.nbytes),
            ));
        }
        let file = match &self.data {
            Data::Here(file) => file,
            Data::Elsewhere(data) => {
                data.read(t, out)?;
                if out.len() as u64 != t.nbytes {
                    let what = format!("{} bytes of data, its type and shape need {}", out.len(), t.nbytes);
                    return Err(Error::tensor(&self.path, &t.name, what));
                }
                out.drain(..start as usize);
                out.truncate(len as usize);
                return Ok(());
            }
        };
        out.clear();
        out.resize(len as usize, 0);
        file.read_exact_at(out, t.offset + start).map_err(|e| {
            Error::io(&self.path, format!("read tensor '{}' at byte {}", t.name, t.offset + start), e)
        })
    }

    /// A tensor's values, dequantized.
    pub fn read_f32(&self, t: &TensorInfo) -> Result<Vec<f32>> {
        let mut bytes = Vec::new();
        self.read(t, &mut bytes)?;
        let mut values = vec![0.0; t.elements() as usize];
        dequantize(t.ty, &bytes, &mut values).map_err(|what| Error::tensor(&self.path, &t.name, what))?;
        Ok(values)
    }
}
