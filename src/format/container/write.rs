//! Writing a container, tensor by tensor.

use super::layout::{Content, Field, Naming, Stored, architecture, base, official_config, rows, stored};
use super::{FILES, FORMAT, HEADER, VERSION};
use crate::error::{Error, Result};
use crate::format::schema::Part;
use crate::format::{Factors, LittleBitFile};
use crate::gguf::{TensorDesc, Writer};
use crate::source::hf::separate_rows;
use half::f16;
use safetensors::Dtype;
use serde_json::{Map, Value as Json, json};
use std::io::{self, Write};
use std::path::Path;

/// Tensor data starts at a multiple of this.
const ALIGNMENT: usize = 8;

/// Writes `file` as a container to `out`, with copies of `companions` (files of the model it was made from, by name).
///
/// # Errors
/// Faults of the file, [`Error::Io`] of the output under the path "output".
pub fn write<W: Write>(
    file: &LittleBitFile,
    companions: &[(String, Vec<u8>)],
    mut out: W,
    mut progress: impl FnMut(&str),
) -> Result<W> {
    let naming = Naming::of(file);
    let all = stored(file, naming)?;
    let gguf_header = gguf_header(file)?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| Error::io(Path::new("output"), format!("write {what}"), e)
    };
    out.write_all(&header(file, naming, &all, companions, gguf_header.len())).map_err(failed("header"))?;
    let mut factors: Option<(usize, Factors)> = None;
    for s in &all {
        let bytes = match &s.content {
            Content::Kept(name) => kept(file, naming, name)?,
            Content::Factor { matrix, slice, field } => {
                let m = &file.matrices()[*matrix];
                // Sorted by type, a matrix comes up once for its signs and once for its scales.
                let (_, f) = match factors.take() {
                    Some(read) if read.0 == *matrix => factors.insert(read),
                    _ => {
                        progress(&m.name);
                        factors.insert((*matrix, file.read_factors(m)?))
                    }
                };
                let heads = naming.heads(architecture(&file.gguf), &m.name);
                bytes_of(f, *slice, *field, heads.map(|h| h as usize))
            }
        };
        out.write_all(&bytes).map_err(failed(&format!("tensor '{}'", s.name)))?;
    }
    for bytes in std::iter::once(&gguf_header).chain(companions.iter().map(|(_, b)| b)) {
        out.write_all(bytes).map_err(failed("header of the GGUF and files"))?;
    }
    Ok(out)
}

/// What the GGUF form has before its data.
fn gguf_header(file: &LittleBitFile) -> Result<Vec<u8>> {
    let descriptors = file
        .gguf
        .tensors
        .iter()
        .map(|t| TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty })
        .collect();
    Ok(Writer::new(Vec::new(), &file.gguf.kv, descriptors, file.gguf.alignment)?.into_inner())
}

/// The safetensors header with its length, padded.
fn header(
    file: &LittleBitFile,
    naming: Naming,
    all: &[Stored],
    companions: &[(String, Vec<u8>)],
    gguf_header: usize,
) -> Vec<u8> {
    let quantized: Map<String, Json> = all
        .iter()
        .filter_map(|s| match &s.content {
            Content::Kept(name) if s.dtype == Dtype::U8 => {
                let ty = file.gguf.tensor(name)?.ty;
                Some((s.name.clone(), json!(ty.name().to_string())))
            }
            _ => None,
        })
        .collect();
    let mut top = Map::new();
    top.insert(
        "__metadata__".to_owned(),
        json!({
            "format": FORMAT,
            "version": format!("{}.{}", VERSION.0, VERSION.1),
            "architecture": architecture(&file.gguf),
            "names": naming.name(),
            "quantized": Json::Object(quantized).to_string(),
            "littlebit_config": official_config(file),
        }),
    );
    let mut offset = 0u64;
    let mut put = |name: String, dtype: Dtype, shape: &[u64]| {
        let bits = shape.iter().product::<u64>() * dtype.bitsize() as u64;
        let end = offset + bits / 8;
        top.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    };
    for s in all {
        put(s.name.clone(), s.dtype, &s.shape);
    }
    put(HEADER.to_owned(), Dtype::U8, &[gguf_header as u64]);
    for (name, bytes) in companions {
        put(format!("{FILES}{name}"), Dtype::U8, &[bytes.len() as u64]);
    }
    let mut text = Json::Object(top).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// A kept tensor, its rows in the order of the names.
fn kept(file: &LittleBitFile, naming: Naming, name: &str) -> Result<Vec<u8>> {
    let t = file.gguf.tensor(name).expect("the layout is made of the file's tensors");
    let mut bytes = Vec::new();
    file.gguf.read(t, &mut bytes)?;
    Ok(match naming.heads(architecture(&file.gguf), base(name)) {
        Some(heads) => separate_rows(&bytes, heads as usize, rows(t) as usize),
        None => bytes,
    })
}

/// One field of a slice; rows of U and values of h are separated for `heads` where there are any.
fn bytes_of(factors: &Factors, slice: usize, field: Field, heads: Option<usize>) -> Vec<u8> {
    let path = &factors.slices[slice];
    let scales = |v: &[f16]| v.iter().flat_map(|x| x.to_le_bytes()).collect();
    let signs = |part| if part == Part::U { &path.u } else { &path.vt };
    match field {
        Field::Packed(part) => {
            let words = match heads {
                Some(heads) if part == Part::U => separate_rows(&path.u.to_words(), heads, path.d_out()),
                _ => signs(part).to_words(),
            };
            words.iter().flat_map(|w| w.to_le_bytes()).collect()
        }
        Field::Shape(part) => {
            let m = signs(part);
            [m.rows(), m.cols()].iter().flat_map(|n| (*n as i64).to_le_bytes()).collect()
        }
        Field::Output => match heads {
            Some(heads) => scales(&separate_rows(&path.h, heads, path.d_out())),
            None => scales(&path.h),
        },
        Field::One => scales(&vec![f16::ONE; path.rank()]),
        Field::Latent => scales(&path.l),
        Field::Input => scales(&path.g),
    }
}
