//! The module in a build without feature `cuda`: it cannot be had.

use super::{Args, Failure};
use std::convert::Infallible;

/// The kernels in a CUDA context. This build has none.
#[derive(Debug)]
pub struct Module(Infallible);

impl Module {
    /// Fails: [`Failure::Absent`].
    pub fn open() -> Result<Self, Failure> {
        Err(Failure::Absent("this liblittlebit was built without it".into()))
    }

    /// Cannot be called.
    ///
    /// # Safety
    /// None is needed.
    pub unsafe fn run(
        &self,
        _stages: &[Args],
        _chain: usize,
        _work: u64,
        _stream: u64,
    ) -> Result<(), Failure> {
        match self.0 {}
    }
}
