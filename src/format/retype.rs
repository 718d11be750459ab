//! A LittleBit file with some of its kept tensors in other types.

use crate::error::Result;
use crate::format::schema::{self, key};
use crate::format::{LittleBitFile, schema::ALIGNMENT};
use crate::gguf::encode::{encode, fitting};
use crate::gguf::{GgmlType, Gguf, TensorData, TensorDesc, TensorInfo, Value, Writer};

/// Types for embeddings and output head.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeptTypes {
    /// Of the token embeddings.
    pub token_embedding: Option<GgmlType>,
    /// Of the output head, and of embeddings that are the head too and have no type of their own.
    pub output: Option<GgmlType>,
    /// Of both where nothing else is said and they are floats: as such they would be the larger part of a file below two bits.
    pub floats: Option<GgmlType>,
}

impl KeptTypes {
    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        [self.token_embedding, self.output, self.floats].iter().all(Option::is_none)
    }

    /// What is wanted for the tensor `name` of type `ty`, in a file with (`has_output`) or without a head of its own.
    pub fn of(&self, name: &str, ty: GgmlType, has_output: bool) -> Option<GgmlType> {
        let wanted = match name {
            "token_embd.weight" if has_output => self.token_embedding,
            "token_embd.weight" => self.token_embedding.or(self.output),
            "output.weight" => self.output,
            _ => return None,
        };
        let float = [GgmlType::F32, GgmlType::F16, GgmlType::BF16].contains(&ty);
        wanted.or(self.floats.filter(|_| float))
    }
}

/// `file` with kept tensors as `types` wants them; values are encoded as they are read.
///
/// # Errors
/// A header that cannot be written.
pub fn retype(file: LittleBitFile, types: &KeptTypes) -> Result<LittleBitFile> {
    let (inner, types) = (&file.gguf, *types);
    let has_output = inner.tensor("output.weight").is_some();
    let descriptors: Vec<TensorDesc> = inner
        .tensors
        .iter()
        .map(|t| {
            let wanted = types.of(&t.name, t.ty, has_output);
            let ty = wanted.map_or(t.ty, |ty| fitting(ty, t.dims[0]));
            TensorDesc { ty, ..t.descriptor() }
        })
        .collect();
    if descriptors.iter().zip(&inner.tensors).all(|(d, t)| d.ty == t.ty) {
        return Ok(file);
    }
    let mut kv = inner.kv.clone();
    schema::set_file_type(&mut kv, &descriptors);
    if let Some(n_params) = inner.get(key::N_PARAMS).and_then(Value::as_u64).filter(|n| *n > 0) {
        let bits: u64 = descriptors.iter().map(|d| 8 * d.nbytes().unwrap_or(0)).sum();
        schema::set(&mut kv, key::BPW_FILE, Value::F32((bits as f64 / n_params as f64) as f32));
    }
    schema::set(&mut kv, "general.alignment", Value::U32(ALIGNMENT as u32));
    let header = Writer::new(Vec::new(), &kv, descriptors, ALIGNMENT)?.into_inner();
    let (path, len) = (inner.path.clone(), inner.file_len);
    let data = Box::new(Retyped { inner: file.gguf });
    LittleBitFile::from_gguf(Gguf::detached(&path, 0, &header, len, data)?)
}

/// Tensors of a file, some of them in another type.
#[derive(Debug)]
struct Retyped {
    inner: Gguf,
}

impl TensorData for Retyped {
    fn read(&self, t: &TensorInfo, out: &mut Vec<u8>) -> Result<()> {
        let from = self.inner.tensor(&t.name).expect("the header lists the file's tensors");
        if from.ty == t.ty {
            return self.inner.read(from, out);
        }
        out.clear();
        encode(t.ty, &self.inner.read_f32(from)?, out)
    }
}
