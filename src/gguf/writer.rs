//! The streaming writer: header from descriptors, then tensor data in the announced order.

use super::{Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, MAX_DIMS, MAX_NAME, VERSION, Value};
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

/// What a tensor will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDesc {
    /// Name, shorter than 64 bytes.
    pub name: String,
    /// ne, fastest first, 1 to 4 values.
    pub dims: Vec<u64>,
    /// Type.
    pub ty: GgmlType,
}

impl TensorDesc {
    /// Bytes of the data; `None` if rows do not fill blocks, or on overflow.
    pub fn nbytes(&self) -> Option<u64> {
        self.ty.tensor_bytes(&self.dims)
    }
}

/// Writes one GGUF file to `W`.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    tensors: Vec<TensorDesc>,
    next: usize,
    alignment: u64,
}

fn refuse(what: String) -> Error {
    Error::Usage(format!("cannot write GGUF: {what}"))
}

impl<W: Write> Writer<W> {
    /// Writes the header. Keys and names must be unique and within ggml's limits; a `general.alignment` among the
    /// keys must equal `alignment`, and any other than 32 must be among the keys.
    pub fn new(mut out: W, kv: &[(String, Value)], tensors: Vec<TensorDesc>, alignment: u64) -> Result<Self> {
        let declared = kv.iter().find(|(k, _)| k == "general.alignment").map(|(_, v)| v);
        let said = match declared {
            Some(Value::U32(a)) => u64::from(*a),
            Some(_) => return Err(refuse("general.alignment must be a u32".to_owned())),
            None => DEFAULT_ALIGNMENT,
        };
        if said != alignment || !alignment.is_power_of_two() {
            return Err(refuse(format!("alignment {alignment} disagrees with the keys' {said}")));
        }
        let mut header = Vec::new();
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(kv.len() as u64).to_le_bytes());
        let mut keys = HashSet::new();
        for (key, value) in kv {
            if key.is_empty() || !keys.insert(key) {
                return Err(refuse(format!("key '{key}' is empty or appears twice")));
            }
            put_str(&mut header, key.as_bytes());
            put_value(&mut header, value);
        }
        let mut names = HashSet::new();
        let mut offset = 0u64;
        for t in &tensors {
            let bad = |what: &str| refuse(format!("tensor '{}': {what}", t.name));
            if t.name.len() >= MAX_NAME {
                return Err(bad("the name is longer than 63 bytes"));
            }
            if !names.insert(&t.name) {
                return Err(bad("the name appears twice"));
            }
            if t.dims.is_empty() || t.dims.len() > MAX_DIMS {
                return Err(bad("1 to 4 dimensions are allowed"));
            }
            let bytes =
                t.nbytes().ok_or_else(|| bad("its rows do not fill the type's blocks, or overflow"))?;
            put_str(&mut header, t.name.as_bytes());
            header.extend_from_slice(&(t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| header.extend_from_slice(&d.to_le_bytes()));
            header.extend_from_slice(&t.ty.0.to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            offset = offset
                .checked_add(bytes)
                .and_then(|o| o.checked_next_multiple_of(alignment))
                .ok_or_else(|| bad("the file's size overflows"))?;
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        out.write_all(&header).map_err(|e| Error::io(Path::new("output"), "write header", e))?;
        Ok(Self { out, tensors, next: 0, alignment })
    }

    /// Writes the data of the next tensor, which must be `name`.
    pub fn write_tensor(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let Some(t) = self.tensors.get(self.next) else {
            return Err(refuse(format!("tensor '{name}' was not announced")));
        };
        if t.name != name || t.nbytes() != Some(data.len() as u64) {
            return Err(refuse(format!(
                "expected {:?} bytes of tensor '{}', got {} bytes of '{name}'",
                t.nbytes(),
                t.name,
                data.len()
            )));
        }
        let padding = (data.len() as u64).next_multiple_of(self.alignment) - data.len() as u64;
        self.out
            .write_all(data)
            .and_then(|()| {
                std::io::copy(&mut std::io::Read::take(std::io::repeat(0), padding), &mut self.out)
            })
            .map_err(|e| Error::io(Path::new("output"), format!("write tensor '{name}'"), e))?;
        self.next += 1;
        Ok(())
    }

    /// Hands the sink back as it is.
    pub fn into_inner(self) -> W {
        self.out
    }

    /// Hands the sink back once every announced tensor is written. The caller flushes it.
    pub fn finish(self) -> Result<W> {
        match self.tensors.get(self.next) {
            Some(t) => Err(refuse(format!("tensor '{}' was announced and not written", t.name))),
            None => Ok(self.out),
        }
    }
}

fn put_str(out: &mut Vec<u8>, s: &[u8]) {
    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
    out.extend_from_slice(s);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(&value.type_id().to_le_bytes());
    match value {
        Value::U8(x) => out.push(*x),
        Value::I8(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::Str(s) => put_str(out, s),
        Value::U64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Array(a) => put_array(out, a),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend_from_slice(&array.type_id().to_le_bytes());
    macro_rules! numbers {
        ($v:expr) => {{
            out.extend_from_slice(&($v.len() as u64).to_le_bytes());
            $v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }};
    }
    match array {
        Array::U8(v) => numbers!(v),
        Array::I8(v) => numbers!(v),
        Array::U16(v) => numbers!(v),
        Array::I16(v) => numbers!(v),
        Array::U32(v) => numbers!(v),
        Array::I32(v) => numbers!(v),
        Array::F32(v) => numbers!(v),
        Array::U64(v) => numbers!(v),
        Array::I64(v) => numbers!(v),
        Array::F64(v) => numbers!(v),
        Array::Bool(v) => {
            out.extend_from_slice(&(v.len() as u64).to_le_bytes());
            out.extend(v.iter().map(|b| u8::from(*b)));
        }
        Array::Str(v) => {
            out.extend_from_slice(&(v.len() as u64).to_le_bytes());
            v.iter().for_each(|s| put_str(out, s));
        }
    }
}
