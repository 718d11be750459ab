//! A compressed model as a source of weights: what is factorized is rebuilt as it is read.

use super::{SourceTensor, TensorSource, check_finite, describe, digest};
use crate::error::{Error, Result};
use crate::format::LittleBitFile;
use crate::format::schema::base_name;
use crate::gguf::{TensorDesc, Value};
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
        let tensor = |d: TensorDesc| SourceTensor { name: d.name, dims: d.dims, ty: d.ty };
        let tensors = file.weights().map(|(d, _)| tensor(d)).collect();
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
                self.file.read_factors(m.expect("a weight without tensor has factors"))?.dense_all()
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
