//! The header: magic, keys, tensor descriptors. Every fault is reported with the byte at which it stands.

use super::value::id;
use super::{Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, MAX_DIMS, MAX_NAME, TensorInfo, VERSION, Value};
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Longest key that ggml's tools handle sensibly.
const MAX_KEY: u64 = 65_535;
/// A chunk of the header that is read at once.
const WINDOW: usize = 1 << 16;

/// What a header says.
pub(super) struct Parsed {
    pub kv: Vec<(String, Value)>,
    pub alignment: u64,
    pub tensors: Vec<TensorInfo>,
    pub data_offset: u64,
}

/// Bytes that can be read at an offset.
pub(super) trait ReadAt {
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, out, at)
    }
}

impl ReadAt for &[u8] {
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..out.len()));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A cursor over the header with a read-ahead window.
pub(super) struct Header<'a> {
    path: &'a Path,
    bytes: &'a dyn ReadAt,
    /// Where they begin in `path`.
    start: u64,
    len: u64,
    at: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Header<'a> {
    /// The header in `bytes`, `len` of them, which begin at byte `start` of `path`.
    pub fn new(path: &'a Path, bytes: &'a dyn ReadAt, start: u64, len: u64) -> Self {
        Self { path, bytes, start, len, at: 0, window: Vec::new(), window_at: 0 }
    }

    /// Everything before the data, which ends before byte `end`.
    pub fn parse(mut self, end: u64) -> Result<Parsed> {
        self.magic_and_version()?;
        let n_tensors = self.count("tensor count", 24 + 8)?;
        let n_kv = self.count("key count", 8 + 4 + 1)?;
        let kv = self.metadata(n_kv)?;
        let alignment = self.alignment(&kv)?;
        let (mut tensors, fields) = self.tensor_infos(n_tensors)?;
        let data_offset = self
            .at
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| self.fault(self.at, "the header's end overflows"))?;
        self.place(&mut tensors, &fields, data_offset, alignment, end)?;
        let kv = kv.into_iter().map(|(k, v, _)| (k, v)).collect();
        Ok(Parsed { kv, alignment, tensors, data_offset })
    }

    fn fault(&self, at: u64, what: impl Into<String>) -> Error {
        Error::malformed(self.path, self.start + at, what)
    }

    /// The next `n` bytes, `n` small or already bounded by the file.
    fn take(&mut self, n: usize, what: &str) -> Result<&[u8]> {
        let end = self.at.checked_add(n as u64).filter(|e| *e <= self.len);
        let Some(end) = end else {
            return Err(self.fault(
                self.at,
                format!("{what} needs {n} bytes, the file ends at byte {}: truncated file", self.len),
            ));
        };
        let window_end = self.window_at + self.window.len() as u64;
        if self.at < self.window_at || end > window_end {
            let size = (self.len - self.at).min(n.max(WINDOW) as u64) as usize;
            self.window.clear();
            self.window.resize(size, 0);
            self.bytes.read_exact_at(&mut self.window, self.at).map_err(|e| {
                Error::io(self.path, format!("read header at byte {}", self.start + self.at), e)
            })?;
            self.window_at = self.at;
        }
        let from = (self.at - self.window_at) as usize;
        self.at = end;
        Ok(&self.window[from..from + n])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N, what)?.try_into().expect("take returns N bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn magic_and_version(&mut self) -> Result<()> {
        let magic: [u8; 4] = self.array("the magic")?;
        if magic != MAGIC {
            let hint = if &magic == b"FUGG" { " (a big-endian file; convert it first)" } else { "" };
            return Err(self.fault(0, format!("not a GGUF file: it starts with {magic:02x?}{hint}")));
        }
        let version = self.u32("the version")?;
        if version == VERSION {
            return Ok(());
        }
        let why = if version == 1 || version == 2 {
            "an old format; convert it with a llama.cpp of its time or download the model again"
        } else if version.swap_bytes() == VERSION {
            "a big-endian file; convert it to little-endian first"
        } else {
            "this build reads version 3"
        };
        Err(self.fault(4, format!("GGUF version {version}: {why}")))
    }

    /// A count whose items take at least `min_bytes` each, so the rest of the file bounds it.
    fn count(&mut self, what: &str, min_bytes: u64) -> Result<u64> {
        let at = self.at;
        let n = self.u64(what)?;
        let most = (self.len - self.at) / min_bytes;
        if n > most {
            return Err(self.fault(at, format!("{what} is {n}, the file has room for at most {most}")));
        }
        Ok(n)
    }

    /// A string's bytes; `limit` bounds it besides the file.
    fn string(&mut self, what: &str, limit: u64) -> Result<Vec<u8>> {
        let at = self.at;
        let n = self.u64(what)?;
        if n > self.len - self.at || n > limit {
            return Err(
                self.fault(at, format!("{what} is {n} bytes long, more than the file or the format allows"))
            );
        }
        Ok(self.take(n as usize, what)?.to_vec())
    }

    /// Keys with their values and the header byte at which each value starts.
    fn metadata(&mut self, n: u64) -> Result<Vec<(String, Value, u64)>> {
        let mut kv = Vec::new();
        let mut seen = HashSet::new();
        for i in 0..n {
            let at = self.at;
            let key = self.string("a key", MAX_KEY)?;
            let key = String::from_utf8(key).map_err(|_| self.fault(at, format!("key {i} is not UTF-8")))?;
            if key.is_empty() {
                return Err(self.fault(at, format!("key {i} is empty")));
            }
            if !seen.insert(key.clone()) {
                return Err(self.fault(at, format!("key '{key}' appears twice")));
            }
            let value_at = self.at;
            let value = self.value(&key)?;
            kv.push((key, value, value_at));
        }
        Ok(kv)
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let at = self.at;
        let what = format!("the value of '{key}'");
        Ok(match self.u32(&what)? {
            id::U8 => Value::U8(self.array::<1>(&what)?[0]),
            id::I8 => Value::I8(i8::from_le_bytes(self.array(&what)?)),
            id::U16 => Value::U16(u16::from_le_bytes(self.array(&what)?)),
            id::I16 => Value::I16(i16::from_le_bytes(self.array(&what)?)),
            id::U32 => Value::U32(self.u32(&what)?),
            id::I32 => Value::I32(i32::from_le_bytes(self.array(&what)?)),
            id::F32 => Value::F32(f32::from_le_bytes(self.array(&what)?)),
            id::U64 => Value::U64(self.u64(&what)?),
            id::I64 => Value::I64(i64::from_le_bytes(self.array(&what)?)),
            id::F64 => Value::F64(f64::from_le_bytes(self.array(&what)?)),
            id::BOOL => {
                let at = self.at;
                let byte = self.array::<1>(&what)?[0];
                Value::Bool(self.boolean(byte, at)?)
            }
            id::STR => Value::Str(self.string(&what, u64::MAX)?),
            id::ARRAY => Value::Array(self.array_value(key)?),
            other => return Err(self.fault(at, format!("{what} has the unknown type {other}"))),
        })
    }

    fn boolean(&self, byte: u8, at: u64) -> Result<bool> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.fault(at, format!("a bool is {other}"))),
        }
    }

    fn array_value(&mut self, key: &str) -> Result<Array> {
        let at = self.at;
        let what = format!("the array '{key}'");
        let ty = self.u32(&what)?;
        macro_rules! numbers {
            ($variant:ident, $t:ty) => {{
                const N: usize = size_of::<$t>();
                let n = self.count(&what, N as u64)? as usize;
                let bytes = self.take(n * N, &what)?;
                Array::$variant(
                    bytes
                        .chunks_exact(N)
                        .map(|b| <$t>::from_le_bytes(b.try_into().expect("N bytes")))
                        .collect(),
                )
            }};
        }
        Ok(match ty {
            id::U8 => numbers!(U8, u8),
            id::I8 => numbers!(I8, i8),
            id::U16 => numbers!(U16, u16),
            id::I16 => numbers!(I16, i16),
            id::U32 => numbers!(U32, u32),
            id::I32 => numbers!(I32, i32),
            id::F32 => numbers!(F32, f32),
            id::U64 => numbers!(U64, u64),
            id::I64 => numbers!(I64, i64),
            id::F64 => numbers!(F64, f64),
            id::BOOL => {
                let n = self.count(&what, 1)? as usize;
                let at = self.at;
                let bytes = self.take(n, &what)?.to_vec();
                let bools = bytes.iter().enumerate().map(|(i, b)| self.boolean(*b, at + i as u64));
                Array::Bool(bools.collect::<Result<_>>()?)
            }
            id::STR => {
                let n = self.count(&what, 8)?;
                let mut strings = Vec::new();
                for _ in 0..n {
                    strings.push(self.string(&what, u64::MAX)?);
                }
                Array::Str(strings)
            }
            id::ARRAY => {
                return Err(self.fault(at, format!("{what} holds arrays, which ggml does not allow")));
            }
            other => return Err(self.fault(at, format!("{what} has the unknown element type {other}"))),
        })
    }

    /// Tensor descriptors with offsets still relative to the data section, and the header byte of each offset field.
    fn tensor_infos(&mut self, n: u64) -> Result<(Vec<TensorInfo>, Vec<u64>)> {
        let (mut tensors, mut fields) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for i in 0..n {
            let at = self.at;
            let name = self.string("a tensor name", self.len)?;
            let name = String::from_utf8(name)
                .map_err(|_| self.fault(at, format!("the name of tensor {i} is not UTF-8")))?;
            if name.len() >= MAX_NAME {
                return Err(
                    self.fault(at, format!("tensor name '{name}' has {} bytes, ggml allows 63", name.len()))
                );
            }
            if !seen.insert(name.clone()) {
                return Err(self.fault(at, format!("tensor '{name}' appears twice")));
            }
            let at = self.at;
            let n_dims = self.u32("the number of dimensions")?;
            if n_dims == 0 || n_dims as usize > MAX_DIMS {
                return Err(
                    self.fault(at, format!("tensor '{name}' has {n_dims} dimensions, 1 to 4 are allowed"))
                );
            }
            let at = self.at;
            let mut dims = Vec::new();
            for _ in 0..n_dims {
                dims.push(self.u64("a dimension")?);
            }
            // ggml counts elements in a signed 64-bit integer.
            let elements =
                dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n <= i64::MAX as u64);
            if elements.is_none() || dims.iter().any(|d| *d > i64::MAX as u64) {
                return Err(self.fault(at, format!("the dimensions {dims:?} of tensor '{name}' overflow")));
            }
            let at = self.at;
            let ty = GgmlType(self.u32("a tensor type")?);
            let Some((block, _)) = ty.block() else {
                return Err(
                    self.fault(at, format!("tensor '{name}' has the unknown or removed type id {}", ty.0))
                );
            };
            let Some(nbytes) = ty.tensor_bytes(&dims) else {
                return Err(self.fault(
                    at,
                    format!("rows of {} values of tensor '{name}' do not fill {ty} blocks of {block}, or overflow", dims[0]),
                ));
            };
            fields.push(self.at);
            let offset = self.u64("a data offset")?;
            tensors.push(TensorInfo { name, dims, ty, offset, nbytes });
        }
        Ok((tensors, fields))
    }

    /// `general.alignment`, checked as ggml does.
    fn alignment(&self, kv: &[(String, Value, u64)]) -> Result<u64> {
        let Some((_, value, at)) = kv.iter().find(|(k, _, _)| k == "general.alignment") else {
            return Ok(DEFAULT_ALIGNMENT);
        };
        match value {
            Value::U32(a) if a.is_power_of_two() => Ok(u64::from(*a)),
            Value::U32(a) => Err(self.fault(*at, format!("general.alignment is {a}, not a power of two"))),
            _ => Err(self.fault(*at, "general.alignment is not a u32")),
        }
    }

    /// Turns offsets within the data section into offsets in the file, and checks that tensors follow each other as
    /// ggml demands and end inside the file. `ends` holds the header byte of each tensor's offset field.
    fn place(
        &self,
        tensors: &mut [TensorInfo],
        fields: &[u64],
        data_offset: u64,
        alignment: u64,
        file_len: u64,
    ) -> Result<()> {
        let mut expected = 0u64;
        for (t, &field) in tensors.iter_mut().zip(fields) {
            let fault = |what: String| self.fault(field, format!("tensor '{}': {what}", t.name));
            if t.offset != expected {
                return Err(fault(format!("data offset is {}, expected {expected}", t.offset)));
            }
            let end = data_offset.checked_add(t.offset).and_then(|x| x.checked_add(t.nbytes));
            match end {
                Some(end) if end <= file_len => {}
                Some(end) => {
                    return Err(fault(format!(
                        "data ends at byte {end}, the file at {file_len}: truncated file"
                    )));
                }
                None => return Err(fault("data offset overflows".to_owned())),
            }
            expected = t
                .offset
                .checked_add(t.nbytes)
                .and_then(|x| x.checked_next_multiple_of(alignment))
                .ok_or_else(|| fault("data size overflows".to_owned()))?;
            t.offset += data_offset;
        }
        Ok(())
    }
}
