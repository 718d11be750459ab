//! Lossy GGUF: weights rebuilt from their factors, in a standard type, for any stock llama.cpp.

use crate::error::{Error, Result};
use crate::format::schema;
use crate::format::{Factors, LittleBitFile, MatrixEntry};
use crate::gguf::encode::{self, encode};
use crate::gguf::{GgmlType, TensorDesc, Value, Writer};
use std::io::Write;

/// All experts of `factors`, rebuilt and encoded as `ty`.
pub fn dense_bytes(factors: &Factors, ty: GgmlType) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for e in 0..factors.experts() {
        encode(ty, &factors.dense(e), &mut out)?;
    }
    Ok(out)
}

/// KV of the lossy form of a LittleBit file: everything but `littlebit.*`, with an honest `general.file_type`.
pub fn lossy_kv(kv: &[(String, Value)], ty: GgmlType) -> Vec<(String, Value)> {
    let mut out: Vec<_> = kv.iter().filter(|(k, _)| !k.starts_with("littlebit.")).cloned().collect();
    if let Some(ft) = schema::file_type(ty) {
        schema::set(&mut out, "general.file_type", Value::U32(ft));
    }
    out
}

/// Writes the lossy form of an existing LittleBit file to `w`; `progress` sees each rebuilt matrix's name.
pub fn expand<W: Write>(
    file: &LittleBitFile,
    ty: GgmlType,
    w: W,
    mut progress: impl FnMut(&str),
) -> Result<W> {
    let rebuilt = |(d, m): (TensorDesc, Option<&MatrixEntry>)| match m {
        Some(_) => TensorDesc { ty: encode::fitting(ty, d.dims[0]), ..d },
        None => d,
    };
    let descs: Vec<TensorDesc> = file.weights().map(rebuilt).collect();
    let kv = lossy_kv(&file.gguf.kv, ty);
    let mut writer = Writer::new(w, &kv, descs.clone(), file.gguf.alignment)?;
    let mut bytes = Vec::new();
    for d in &descs {
        match schema::base_name(&d.name).and_then(|base| file.find(base)) {
            Some(m) => {
                progress(&d.name);
                writer.write_tensor(&d.name, &dense_bytes(&file.read_factors(m)?, d.ty)?)?;
            }
            None => {
                let t = file.gguf.tensor(&d.name).ok_or_else(|| {
                    Error::tensor(&file.gguf.path, &d.name, "tensor vanished between two reads of the header")
                })?;
                file.gguf.read(t, &mut bytes)?;
                writer.write_tensor(&d.name, &bytes)?;
            }
        }
    }
    writer.finish()
}
