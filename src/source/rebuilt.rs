//! A compressed model as a source of weights: what is factorized is rebuilt as it is read.

use super::{SourceTensor, TensorSource, check_finite, describe, digest};
use crate::error::{Error, Result};
use crate::format::LittleBitFile;
use crate::format::lossy::dense_dims;
use crate::format::schema::{Part, base_name};
use crate::gguf::{GgmlType, Value};
use std::path::Path;

/// An open compressed model with its weights rebuilt in f32.
#[derive(Debug)]
pub struct Rebuilt {
    file: LittleBitFile,
    tensors: Vec<SourceTensor>,
}

impl Rebuilt {
    /// The weights of `file`, each in the place of its U.
    pub fn new(file: LittleBitFile) -> Self {
        let mut tensors = Vec::new();
        for t in &file.gguf.tensors {
            if let Some(m) = t.name.strip_suffix(Part::U.suffix()).and_then(|base| file.find(base)) {
                let dims = dense_dims(m.shape.d_in as u64, m.shape.d_out as u64, m.experts() as u64);
                tensors.push(SourceTensor { name: format!("{}.weight", m.name), dims, ty: GgmlType::F32 });
            } else if !Part::ALL.iter().any(|p| t.name.ends_with(p.suffix())) {
                tensors.push(SourceTensor { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty });
            }
        }
        Self { file, tensors }
    }

    /// The file.
    pub fn file(&self) -> &LittleBitFile {
        &self.file
    }
}

impl TensorSource for Rebuilt {
    fn path(&self) -> &Path {
        &self.file.gguf.path
    }

    fn describe(&self) -> String {
        describe(self.path(), self.kv())
    }

    fn kv(&self) -> &[(String, Value)] {
        &self.file.gguf.kv
    }

    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn read_raw(&self, i: usize, out: &mut Vec<u8>) -> Result<()> {
        match self.file.gguf.tensor(&self.tensors[i].name) {
            Some(t) => self.file.gguf.read(t, out),
            None => {
                out.clear();
                self.read_f32(i)?.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
                Ok(())
            }
        }
    }

    fn read_f32(&self, i: usize) -> Result<Vec<f32>> {
        let name = &self.tensors[i].name;
        let values = match self.file.gguf.tensor(name) {
            Some(t) => self.file.gguf.read_f32(t)?,
            None => {
                let m = base_name(name).and_then(|base| self.file.find(base));
                let factors = self.file.read_factors(m.expect("a weight without tensor has factors"))?;
                (0..factors.experts()).flat_map(|e| factors.dense(e)).collect()
            }
        };
        check_finite(self.path(), name, &values)?;
        Ok(values)
    }

    fn sha256(&self) -> Result<String> {
        if self.path().is_dir() {
            return Err(Error::unsupported(self.path(), "a directory has no checksum"));
        }
        digest::sha256(std::iter::once(self.path()))
    }
}
