//! Which tensors a container has, from the header of its GGUF.

use crate::bits::words_per_row;
use crate::error::{Error, Result};
use crate::format::schema::{Part, key};
use crate::format::{LittleBitFile, MatrixEntry};
use crate::gguf::{GgmlType, Gguf, TensorInfo, Value};
use crate::source::names::{self, Rotary};
use safetensors::Dtype;

/// One tensor of the container.
#[derive(Debug)]
pub(super) struct Stored {
    pub name: String,
    pub dtype: Dtype,
    /// Sizes, slowest first.
    pub shape: Vec<u64>,
    pub content: Content,
}

/// What is in it.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A tensor that is not factorized, by its GGUF name.
    Kept(String),
    /// Something of slice `slice` of matrix `matrix`.
    Factor { matrix: usize, slice: usize, field: Field },
}

/// The tensors of one path of one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// Packed signs of U, or V^T.
    Packed(Part),
    /// Rows and columns of those.
    Shape(Part),
    /// h, `u1`.
    Output,
    /// Ones, `u2`: the official form has two vectors where one suffices.
    One,
    /// l, `v1`.
    Latent,
    /// g, `v2`.
    Input,
}

impl Field {
    pub const ALL: [Field; 8] = [
        Field::Packed(Part::U),
        Field::Shape(Part::U),
        Field::Packed(Part::V),
        Field::Shape(Part::V),
        Field::Output,
        Field::One,
        Field::Latent,
        Field::Input,
    ];

    /// Name after the module's, of path `path`.
    pub fn name(self, path: usize) -> String {
        let residual = if path == 0 { "" } else { "_R" };
        let of = |part| if part == Part::U { "U" } else { "V" };
        match self {
            Field::Packed(part) => format!("{}{residual}_packed", of(part)),
            Field::Shape(part) => format!("{}{residual}_shape", of(part)),
            Field::Output => format!("u1{residual}"),
            Field::One => format!("u2{residual}"),
            Field::Latent => format!("v1{residual}"),
            Field::Input => format!("v2{residual}"),
        }
    }
}

/// How the tensors of a container are called and ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// As in Hugging Face checkpoints, rows of queries and keys in their order; heads of both.
    HuggingFace { queries: usize, keys: usize },
    /// As in the GGUF.
    Gguf,
}

impl Naming {
    /// Hugging Face's where the architecture has its names one to one, the GGUF's elsewhere.
    pub fn of(file: &LittleBitFile) -> Self {
        let gguf = &file.gguf;
        let architecture = architecture(gguf);
        if !names::known(architecture) || file.matrices().iter().any(|m| m.experts() > 1) {
            return Naming::Gguf;
        }
        let count = |key: &str| gguf.get(&format!("{architecture}.attention.{key}")).and_then(Value::as_u64);
        let count = |key: &str| count(key).and_then(|n| usize::try_from(n).ok());
        let queries = count("head_count").unwrap_or(0);
        let naming = Naming::HuggingFace { queries, keys: count("head_count_kv").unwrap_or(queries) };
        // Rows can be put into the other order only if they are whole heads of pairs.
        let sound = |base: &str, rows: u64| match naming.heads(architecture, base) {
            None => true,
            Some(heads) => heads > 0 && rows.is_multiple_of(2 * heads as u64),
        };
        let kept = file.kept().all(|t| sound(base(&t.name), rows(t)));
        let factors = file.matrices().iter().all(|m| sound(&m.name, m.shape.d_out as u64));
        if kept && factors { naming } else { Naming::Gguf }
    }

    /// The value of `names` in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            Naming::HuggingFace { .. } => "hugging-face",
            Naming::Gguf => "gguf",
        }
    }

    /// Name of the GGUF's module `base`.
    fn module(self, base: &str) -> String {
        match self {
            Naming::HuggingFace { .. } => names::hugging_face(base),
            Naming::Gguf => None,
        }
        .unwrap_or_else(|| base.to_owned())
    }

    /// Heads by which the rows of the GGUF's module `base` are ordered otherwise than here.
    pub fn heads(self, architecture: &str, base: &str) -> Option<usize> {
        let Naming::HuggingFace { queries, keys } = self else { return None };
        names::rotary(architecture, base).map(|rotary| match rotary {
            Rotary::Queries => queries,
            Rotary::Keys => keys,
        })
    }
}

/// `general.architecture`.
pub(super) fn architecture(gguf: &Gguf) -> &str {
    gguf.get("general.architecture").and_then(Value::as_str).unwrap_or("")
}

/// Name of the module that the tensor `name` belongs to.
pub(super) fn base(name: &str) -> &str {
    name.strip_suffix(".weight").or(name.strip_suffix(".bias")).unwrap_or(name)
}

/// Rows of a matrix, values of a vector.
pub(super) fn rows(t: &TensorInfo) -> u64 {
    if t.dims.len() == 1 { t.dims[0] } else { t.dims[1..].iter().product() }
}

/// All tensors that the container of `file` holds besides its own, in an order that keeps values aligned.
pub(super) fn stored(file: &LittleBitFile, naming: Naming) -> Result<Vec<Stored>> {
    let mut all = Vec::new();
    for t in file.kept() {
        all.push(kept(file, t, naming)?);
    }
    for (matrix, m) in file.matrices().iter().enumerate() {
        for slice in 0..m.shape.slices {
            all.extend(Field::ALL.map(|field| {
                let module = naming.module(&m.name);
                // A stack has a module for each expert.
                let expert = if m.experts() > 1 { format!(".{}", slice / m.paths) } else { String::new() };
                let (dtype, shape) = form(m, field);
                Stored {
                    name: format!("{module}{expert}.{}", field.name(slice % m.paths)),
                    dtype,
                    shape,
                    content: Content::Factor { matrix, slice, field },
                }
            }));
        }
    }
    all.sort_by_key(|s| std::cmp::Reverse(s.dtype.bitsize()));
    Ok(all)
}

/// Type and shape of a field.
fn form(m: &MatrixEntry, field: Field) -> (Dtype, Vec<u64>) {
    let (d_out, d_in, rank) = (m.shape.d_out, m.shape.d_in, m.shape.rank);
    let sides = |part| if part == Part::U { (d_out, rank) } else { (rank, d_in) };
    let row = |n: usize| (Dtype::F16, vec![1, n as u64]);
    match field {
        Field::Packed(part) => {
            let (rows, cols) = sides(part);
            (Dtype::I32, vec![rows as u64, words_per_row(cols) as u64])
        }
        Field::Shape(_) => (Dtype::I64, vec![2]),
        Field::Output => row(d_out),
        Field::One | Field::Latent => row(rank),
        Field::Input => row(d_in),
    }
}

/// A tensor that is not factorized: numbers as such, blocks of a quantized type as their bytes, row by row.
fn kept(file: &LittleBitFile, t: &TensorInfo, naming: Naming) -> Result<Stored> {
    let mut shape: Vec<u64> = t.dims.iter().rev().copied().collect();
    let dtype = match t.ty {
        GgmlType::F32 => Dtype::F32,
        GgmlType::F16 => Dtype::F16,
        GgmlType::BF16 => Dtype::BF16,
        GgmlType::F64 => Dtype::F64,
        GgmlType::I8 => Dtype::I8,
        GgmlType::I16 => Dtype::I16,
        GgmlType::I32 => Dtype::I32,
        GgmlType::I64 => Dtype::I64,
        ty => {
            let bytes = ty.row_bytes(t.dims[0]).ok_or_else(|| {
                Error::tensor(&file.gguf.path, &t.name, format!("rows of type {ty} have no size in bytes"))
            })?;
            *shape.last_mut().expect("a tensor has dimensions") = bytes;
            Dtype::U8
        }
    };
    let base = base(&t.name);
    let name = format!("{}{}", naming.module(base), &t.name[base.len()..]);
    Ok(Stored { name, dtype, shape, content: Content::Kept(t.name.clone()) })
}

/// The official configuration's fields, for the tools that look for them.
pub(super) fn official_config(file: &LittleBitFile) -> String {
    let bpw = file.gguf.get(key::BPW).and_then(Value::as_f64).unwrap_or(0.0);
    let residual = file.matrices().iter().any(|m| m.paths == 2);
    serde_json::json!({
        "quant_func": "STEBinary", "eff_bit": bpw, "residual": residual, "kv_factor": 1.0, "min_split_dim": 8
    })
    .to_string()
}
