//! The source as its output will hold it: tensors that go on in another type are rounded to it.

use super::header::Action;
use super::tensor::encoded;
use crate::error::Result;
use crate::gguf::{GgmlType, Value, dequantize};
use crate::source::{SourceTensor, TensorSource};
use std::path::Path;

/// A source of which some tensors are read in another type.
#[derive(Debug)]
pub(super) struct Stored<'a> {
    source: &'a dyn TensorSource,
    /// By tensor: the type that it is rounded to.
    types: Vec<Option<GgmlType>>,
}

impl<'a> Stored<'a> {
    pub fn new(source: &'a dyn TensorSource, actions: &[Action]) -> Self {
        let other = |(t, action): (&SourceTensor, &Action)| match action {
            Action::Keep { ty, .. } if *ty != t.ty => Some(*ty),
            _ => None,
        };
        Self { source, types: source.tensors().iter().zip(actions).map(other).collect() }
    }

    /// Names of the tensors that change.
    pub fn changed(&self) -> impl Iterator<Item = &'a str> {
        let all = self.source.tensors().iter().zip(&self.types);
        all.filter(|(_, ty)| ty.is_some()).map(|(t, _)| t.name.as_str())
    }
}

impl TensorSource for Stored<'_> {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn describe(&self) -> String {
        self.source.describe()
    }

    fn kv(&self) -> &[(String, Value)] {
        self.source.kv()
    }

    fn tensors(&self) -> &[SourceTensor] {
        self.source.tensors()
    }

    fn read_raw(&self, i: usize, out: &mut Vec<u8>) -> Result<()> {
        self.source.read_raw(i, out)
    }

    fn read_f32(&self, i: usize) -> Result<Vec<f32>> {
        let mut values = self.source.read_f32(i)?;
        if let Some(ty) = self.types[i] {
            let bytes = encoded(ty, &values)?;
            dequantize(ty, &bytes, &mut values).expect("what was just encoded can be read");
        }
        Ok(values)
    }

    fn sha256(&self) -> Result<String> {
        self.source.sha256()
    }
}
