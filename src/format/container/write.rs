//! Writing a container, tensor by tensor.

use super::layout::{Content, Field, Naming, Stored, architecture, base, official_config, rows, stored};
use super::{FILES, FORMAT, HEADER, VERSION};
use crate::error::{Error, Result};
use crate::format::schema::{Part, Shape};
use crate::format::{FactorPath, Factors, LittleBitFile};
use crate::gguf::{TensorInfo, Writer};
use crate::source::hf::separated;
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
    let mut matrices = Matrices { file, last: None };
    for s in &all {
        let bytes = match &s.content {
            Content::Kept(name) => kept(file, naming, name)?,
            Content::Factor { matrix, slice, field } => {
                let m = &file.matrices()[*matrix];
                if (*field, *slice) == (Field::Packed(Part::U), 0) {
                    progress(&m.name);
                }
                let heads = naming.heads(architecture(&file.gguf), &m.name);
                matrices.bytes(*matrix, *slice, *field, heads)?
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
    let descriptors = file.gguf.tensors.iter().map(TensorInfo::descriptor).collect();
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
    Ok(separated(bytes, naming.heads(architecture(&file.gguf), base(name)), rows(t) as usize))
}

/// The factors of a file, of which those read last are kept: sorted by type, a matrix comes up once for its signs and once
/// for its scales.
struct Matrices<'a> {
    file: &'a LittleBitFile,
    last: Option<(usize, Factors)>,
}

impl Matrices<'_> {
    fn path(&mut self, matrix: usize, slice: usize) -> Result<&FactorPath> {
        let (_, factors) = match self.last.take() {
            Some(last) if last.0 == matrix => self.last.insert(last),
            _ => {
                let factors = self.file.read_factors(&self.file.matrices()[matrix])?;
                self.last.insert((matrix, factors))
            }
        };
        Ok(&factors.slices[slice])
    }

    /// One field of a slice; rows of U and values of h are separated for `heads` where there are any.
    fn bytes(&mut self, matrix: usize, slice: usize, field: Field, heads: Option<usize>) -> Result<Vec<u8>> {
        let Shape { d_out, d_in, rank, .. } = self.file.matrices()[matrix].shape;
        let words = |words: Vec<u32>| words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let scales = |scales: &[f16]| scales.iter().flat_map(|x| x.to_le_bytes()).collect();
        let sizes = |sizes: [usize; 2]| sizes.iter().flat_map(|n| (*n as i64).to_le_bytes()).collect();
        Ok(match field {
            Field::Packed(Part::U) => words(separated(self.path(matrix, slice)?.u.to_words(), heads, d_out)),
            Field::Packed(_) => words(self.path(matrix, slice)?.vt.to_words()),
            Field::Shape(Part::U) => sizes([d_out, rank]),
            Field::Shape(_) => sizes([rank, d_in]),
            Field::Output => scales(&separated(self.path(matrix, slice)?.h.clone(), heads, d_out)),
            Field::One => scales(&vec![f16::ONE; rank]),
            Field::Latent => scales(&self.path(matrix, slice)?.l),
            Field::Input => scales(&self.path(matrix, slice)?.g),
        })
    }
}
