//! Tests of the module as a whole.

mod dequant;
mod encode;
mod faults;
mod round_trip;

use super::Gguf;
use crate::error::Result;
use std::path::PathBuf;

/// A file that is rewritten by each case of a test.
struct Scratch {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { path: dir.path().join("t.gguf"), _dir: dir }
    }

    /// Opens a file with the given bytes.
    fn open(&self, bytes: &[u8]) -> Result<Gguf> {
        std::fs::write(&self.path, bytes).unwrap();
        Gguf::open(&self.path)
    }
}
