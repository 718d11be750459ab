//! What two models differ in: keys, forms of their tensors, values.

use crate::bits::SignMatrix;
use crate::error::Result;
use crate::format::schema::base_name;
use crate::format::{Factors, LittleBitFile};
use crate::gguf::{Array, GgmlType, Value};
use crate::source::{self, Model, Rebuilt, TensorSource};
use half::f16;
use serde::Serialize;
use std::collections::HashMap;
use std::path::Path;

/// Longest text of a key's value.
const SHOWN: usize = 60;

/// A model of either kind, shown as weights.
#[derive(Debug)]
pub enum Weights {
    /// With factors.
    Compressed(Box<Rebuilt>),
    /// Without.
    Plain(Box<dyn TensorSource>),
}

impl Weights {
    /// Opens any model.
    ///
    /// # Errors
    /// As [`source::open_any`].
    pub fn open(path: &Path) -> Result<Self> {
        Ok(match source::open_any(path)? {
            Model::Compressed(model) => Weights::Compressed(Box::new(Rebuilt::new(model.file))),
            Model::Dense(source) => Weights::Plain(source),
        })
    }

    /// Its weights.
    pub fn source(&self) -> &dyn TensorSource {
        match self {
            Weights::Compressed(rebuilt) => rebuilt.as_ref(),
            Weights::Plain(source) => source.as_ref(),
        }
    }

    /// The file, if there are factors.
    pub fn file(&self) -> Option<&LittleBitFile> {
        match self {
            Weights::Compressed(rebuilt) => Some(rebuilt.file()),
            Weights::Plain(_) => None,
        }
    }

    /// Factors of the weight `name`.
    fn factors(&self, name: &str) -> Result<Option<Factors>> {
        let Some(file) = self.file() else { return Ok(None) };
        base_name(name).and_then(|base| file.find(base)).map(|m| file.read_factors(m)).transpose()
    }

    /// How tensor `i` is stored.
    fn form(&self, i: usize) -> String {
        let t = &self.source().tensors()[i];
        let matrix = self.file().and_then(|f| f.find(base_name(&t.name)?));
        match matrix {
            Some(m) if m.paths > 1 => format!("{} paths of rank {} {:?}", m.paths, m.shape.rank, t.dims),
            Some(m) => format!("rank {} {:?}", m.shape.rank, t.dims),
            None => format!("{} {:?}", t.ty, t.dims),
        }
    }
}

/// A key that is not the same in both; a value that is not there is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeyChange {
    /// Key.
    pub key: String,
    /// Value in the first model, shortened.
    pub a: Option<String>,
    /// In the second.
    pub b: Option<String>,
}

/// A tensor that is not the same in both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorChange {
    /// Name of the tensor or of the weight that factors stand for.
    pub name: String,
    /// How the first model stores it, if it has it.
    pub a: Option<String>,
    /// And the second.
    pub b: Option<String>,
    /// `||A - B|| / ||A||` of the values, where both have one shape.
    pub change: Option<f64>,
    /// Where both have factors of one form.
    pub factors: Option<FactorChange>,
}

/// How far factors of one form are from each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FactorChange {
    /// Share of the signs of U that are turned.
    pub u: f64,
    /// Of V.
    pub v: f64,
    /// `||a - b|| / ||a||` of all scales.
    pub scales: f64,
}

/// What two models differ in.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Keys.
    pub keys: Vec<KeyChange>,
    /// Tensors.
    pub tensors: Vec<TensorChange>,
    /// Number of tensors that are stored alike, with the same bytes.
    pub equal: usize,
}

impl Difference {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tensors.is_empty()
    }
}

/// Compares two models tensor by tensor.
///
/// # Errors
/// Tensors that cannot be read.
pub fn difference(a: &Weights, b: &Weights) -> Result<Difference> {
    let mut out = Difference { keys: keys(a.source().kv(), b.source().kv()), ..Difference::default() };
    let of = |w: &Weights| -> HashMap<String, usize> {
        w.source().tensors().iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect()
    };
    let (in_a, in_b) = (of(a), of(b));
    for (i, t) in a.source().tensors().iter().enumerate() {
        match in_b.get(&t.name) {
            Some(&j) => match compare(a, i, b, j)? {
                None => out.equal += 1,
                Some(change) => out.tensors.push(change),
            },
            None => out.tensors.push(lone(&t.name, Some(a.form(i)), None)),
        }
    }
    for (j, t) in b.source().tensors().iter().enumerate().filter(|(_, t)| !in_a.contains_key(&t.name)) {
        out.tensors.push(lone(&t.name, None, Some(b.form(j))));
    }
    Ok(out)
}

fn lone(name: &str, a: Option<String>, b: Option<String>) -> TensorChange {
    TensorChange { name: name.to_owned(), a, b, change: None, factors: None }
}

/// Tensor `i` of `a` and `j` of `b`; `None` if they are stored alike with the same content.
fn compare(a: &Weights, i: usize, b: &Weights, j: usize) -> Result<Option<TensorChange>> {
    let (ta, tb) = (&a.source().tensors()[i], &b.source().tensors()[j]);
    let mut out = lone(&ta.name, Some(a.form(i)), Some(b.form(j)));
    let (fa, fb) = (a.factors(&ta.name)?, b.factors(&tb.name)?);
    if out.a == out.b {
        let same = match (&fa, &fb) {
            (Some(fa), Some(fb)) => fa == fb,
            _ => {
                let (mut raw_a, mut raw_b) = (Vec::new(), Vec::new());
                a.source().read_raw(i, &mut raw_a)?;
                b.source().read_raw(j, &mut raw_b)?;
                raw_a == raw_b
            }
        };
        if same {
            return Ok(None);
        }
        out.factors = fa.as_ref().zip(fb.as_ref()).map(|(fa, fb)| factor_change(fa, fb));
    }
    let numbers = |ty: GgmlType| ty.can_dequantize();
    if ta.dims == tb.dims && numbers(ta.ty) && numbers(tb.ty) {
        let values = |w: &Weights, i: usize, factors: Option<Factors>| match factors {
            Some(factors) => Ok(factors.dense_all()),
            None => w.source().read_f32(i),
        };
        out.change = Some(relative(&values(a, i, fa)?, &values(b, j, fb)?));
    }
    Ok(Some(out))
}

/// `||a - b|| / ||a||`; infinite if only a is 0.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = a.iter().map(|a| square(f64::from(*a))).sum();
    if off == 0.0 { 0.0 } else { (off / norm).sqrt() }
}

fn factor_change(a: &Factors, b: &Factors) -> FactorChange {
    let turned = |of: fn(&crate::format::FactorPath) -> &SignMatrix| {
        let mut counts = (0u64, 0u64);
        for (a, b) in a.slices.iter().zip(&b.slices) {
            let (a, b) = (of(a), of(b));
            counts.0 += a
                .as_bytes()
                .iter()
                .zip(b.as_bytes())
                .map(|(a, b)| u64::from((a ^ b).count_ones()))
                .sum::<u64>();
            counts.1 += (a.rows() * a.cols()) as u64;
        }
        counts.0 as f64 / counts.1.max(1) as f64
    };
    let scales = |f: &Factors| -> Vec<f32> {
        let wide = |v: &[f16]| v.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        f.slices.iter().flat_map(|p| [wide(&p.h), wide(&p.l), wide(&p.g)].concat()).collect()
    };
    FactorChange { u: turned(|p| &p.u), v: turned(|p| &p.vt), scales: relative(&scales(a), &scales(b)) }
}

/// Keys that are not the same, those of `a` first.
fn keys(a: &[(String, Value)], b: &[(String, Value)]) -> Vec<KeyChange> {
    let find =
        |all: &[(String, Value)], key: &str| all.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let mut out = Vec::new();
    for (key, value) in a {
        let other = find(b, key);
        // A NaN is the same as itself here.
        let same = |other: &Value| other == value || format!("{other:?}") == format!("{value:?}");
        if !other.as_ref().is_some_and(same) {
            out.push(KeyChange { key: key.clone(), a: Some(shown(value)), b: other.as_ref().map(shown) });
        }
    }
    for (key, value) in b.iter().filter(|(key, _)| find(a, key).is_none()) {
        out.push(KeyChange { key: key.clone(), a: None, b: Some(shown(value)) });
    }
    out
}

/// A value in a few words.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Str(s) => format!("\"{}\"", String::from_utf8_lossy(s)),
        Value::Bool(b) => b.to_string(),
        Value::F32(x) => x.to_string(),
        Value::F64(x) => x.to_string(),
        Value::Array(Array::Str(all)) => format!("[{} strings]", all.len()),
        Value::Array(all) => format!("{all:?}"),
        other => match (other.as_u64(), other) {
            (Some(n), _) => n.to_string(),
            (None, other) => format!("{other:?}"),
        },
    };
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ() {
        let kv = |pairs: &[(&str, Value)]| -> Vec<(String, Value)> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()
        };
        let a = kv(&[("same", Value::F32(f32::NAN)), ("type", Value::U32(1)), ("gone", Value::Bool(true))]);
        let b = kv(&[
            ("same", Value::F32(f32::NAN)),
            ("type", Value::I32(1)),
            ("new", "x".repeat(99).as_str().into()),
        ]);
        let changes = keys(&a, &b);
        let names: Vec<&str> = changes.iter().map(|c| c.key.as_str()).collect();
        assert_eq!(names, ["type", "gone", "new"]);
        assert_eq!((changes[1].a.as_deref(), changes[1].b.as_deref()), (Some("true"), None));
        assert!(changes[2].b.as_ref().unwrap().ends_with("x..."));
    }

    #[test]
    fn relative_distance() {
        assert_eq!(relative(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((relative(&[3.0, 4.0], &[3.0, 3.0]) - 0.2).abs() < 1e-12);
        assert_eq!(relative(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative(&[0.0], &[1.0]), f64::INFINITY);
    }
}
