//! JSON files of a checkpoint, with errors that name file and field.

use crate::error::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest JSON file that is read; tokenizers of 256k tokens take about 35 MB.
const MAX_BYTES: u64 = 1 << 30;

/// A parsed JSON file.
#[derive(Debug)]
pub(in crate::source) struct Json {
    pub path: PathBuf,
    pub root: Value,
}

impl Json {
    pub fn read(path: PathBuf) -> Result<Self> {
        let meta = std::fs::metadata(&path).map_err(|e| Error::io(&path, "open", e))?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return Err(Error::unsupported(
                &path,
                "not a regular file of a sensible size; fetch the checkpoint's own",
            ));
        }
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let root = serde_json::from_slice(&text).map_err(|e| fault(&path, 0, &text, &e))?;
        Ok(Self { path, root })
    }

    /// As [`Json::read`]; `None` if there is no such file.
    pub fn read_optional(path: PathBuf) -> Result<Option<Self>> {
        if path.exists() { Self::read(path).map(Some) } else { Ok(None) }
    }

    /// An error about this file.
    pub fn refuse(&self, what: impl Into<String>) -> Error {
        Error::unsupported(&self.path, what)
    }

    /// The value of `key`; JSON's null counts as absent, as Python code reads it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.root.get(key).filter(|v| !v.is_null())
    }

    /// A positive integer, if `key` is present.
    pub fn count(&self, key: &str) -> Result<Option<u64>> {
        self.get(key)
            .map(|v| {
                v.as_u64()
                    .filter(|n| (1..=u64::from(u32::MAX)).contains(n))
                    .ok_or_else(|| self.refuse(format!("{key} is {v}, a positive 32-bit integer is needed")))
            })
            .transpose()
    }

    /// A finite number, if `key` is present in `object`.
    pub fn number(&self, object: &Value, key: &str) -> Result<Option<f64>> {
        object
            .get(key)
            .filter(|v| !v.is_null())
            .map(|v| v.as_f64().ok_or_else(|| self.refuse(format!("{key} is {v}, a number is needed"))))
            .transpose()
    }
}

/// An error in the JSON `text` that starts at byte `start` of the file.
pub(in crate::source) fn fault(path: &Path, start: u64, text: &[u8], e: &serde_json::Error) -> Error {
    let lines = text.split_inclusive(|b| *b == b'\n');
    let before: usize = lines.take(e.line().saturating_sub(1)).map(<[u8]>::len).sum();
    Error::malformed(path, start + (before + e.column()) as u64, format!("bad JSON: {e}"))
}
