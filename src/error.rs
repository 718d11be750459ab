//! One error type. Every variant names what a user needs to find the fault: file, tensor, byte offset.

use std::io;
use std::path::{Path, PathBuf};

/// Result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("{}: {op}: {source}", path.display())]
    Io {
        /// File or directory concerned.
        path: PathBuf,
        /// What was tried, for example "open" or "write tensor 'blk.0.attn_q.lb_u'".
        op: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A file breaks its format's rules at a known byte.
    #[error("{}: byte {offset}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Offset of the offending byte or field from the start of the file.
        offset: u64,
        /// What is wrong and, where possible, what to do.
        what: String,
    },
    /// A tensor of a readable file cannot be used.
    #[error("{}: tensor '{tensor}': {what}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor as the file spells it.
        tensor: String,
        /// What is wrong and, where possible, what to do.
        what: String,
    },
    /// A readable file whose content is not what was asked for (unknown architecture, tokenizer, version).
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported, and what to do instead.
        what: String,
    },
    /// The tokenizer of a readable model is incomplete or not known here, so text means nothing to it.
    #[error("{}: {what}", path.display())]
    Tokenizer {
        /// The model.
        path: PathBuf,
        /// What is missing or not known.
        what: String,
    },
    /// The request itself makes no sense (bpw 0, input = output, unknown kernel name).
    #[error("{0}")]
    Usage(String),
    /// A computation on a matrix failed (no convergence, f16 overflow).
    #[error("matrix '{matrix}': {what}")]
    Numeric {
        /// Name of the matrix.
        matrix: String,
        /// What failed.
        what: String,
    },
    /// A GPU failed at its work.
    #[error("{0}")]
    Device(String),
}

impl Error {
    /// The file concerned, of errors that have one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Io { path, .. }
            | Error::Malformed { path, .. }
            | Error::Tensor { path, .. }
            | Error::Unsupported { path, .. }
            | Error::Tokenizer { path, .. } => Some(path),
            Error::Usage(_) | Error::Numeric { .. } | Error::Device(_) => None,
        }
    }
    /// An [`Error::Io`] for `path` while doing `op`.
    pub fn io(path: &Path, op: impl Into<String>, source: io::Error) -> Self {
        Error::Io { path: path.to_owned(), op: op.into(), source }
    }
    /// An [`Error::Malformed`] at `offset` of `path`.
    pub fn malformed(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Error::Malformed { path: path.to_owned(), offset, what: what.into() }
    }
    /// An [`Error::Tensor`] for `tensor` in `path`.
    pub fn tensor(path: &Path, tensor: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Tensor { path: path.to_owned(), tensor: tensor.into(), what: what.into() }
    }
    /// An [`Error::Unsupported`] for `path`.
    pub fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Error::Unsupported { path: path.to_owned(), what: what.into() }
    }
    /// An [`Error::Tokenizer`] of the model in `path`.
    pub fn tokenizer(path: &Path, what: impl Into<String>) -> Self {
        Error::Tokenizer { path: path.to_owned(), what: what.into() }
    }
    /// An [`Error::Usage`].
    pub fn usage(what: impl Into<String>) -> Self {
        Error::Usage(what.into())
    }
}
