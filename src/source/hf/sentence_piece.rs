//! tokenizer.model: the pieces of a SentencePiece model, out of its Protocol Buffers message.
//!
//! Of `ModelProto` only the pieces (field 1: text 1, score 2, kind 3) and the kind of model (field 2, its field 3) matter
//! here. Unknown fields are passed over.

use super::family::WAY_OUT;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Largest file that is read; 262k pieces take about 5 MB.
const MAX_BYTES: u64 = 1 << 28;
/// `ModelType.BPE`.
const BPE: u64 = 2;

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// One piece of text with the score of merging it, the highest first.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// Reads the pieces of `path` by id.
///
/// # Errors
/// [`Error::Malformed`] for what is no such message; [`Error::Unsupported`] for models that do not merge pairs, which
/// llama.cpp would do with them.
pub(super) fn read(path: PathBuf) -> Result<Vec<Piece>> {
    let meta = std::fs::metadata(&path).map_err(|e| Error::io(&path, "open", e))?;
    if !meta.is_file() || meta.len() > MAX_BYTES {
        return Err(Error::unsupported(
            &path,
            "not a regular file of a sensible size; fetch the checkpoint's own",
        ));
    }
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
    parse(&path, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Piece>> {
    let (mut pieces, mut model) = (Vec::new(), 1);
    let mut message = Message { path, bytes, at: 0, end: bytes.len() };
    while let Some((field, value)) = message.next()? {
        match (field, value) {
            (1, Value::Bytes(inner)) => pieces.push(piece(inner)?),
            (2, Value::Bytes(mut inner)) => {
                while let Some((field, value)) = inner.next()? {
                    if let (3, Value::Integer(kind)) = (field, value) {
                        model = kind;
                    }
                }
            }
            _ => {}
        }
    }
    if pieces.is_empty() {
        return Err(Error::malformed(path, 0, "not a SentencePiece model: it has no pieces"));
    }
    if model != BPE {
        let what = format!(
            "a SentencePiece model that does not merge pairs (kind {model}); llama.cpp would; {WAY_OUT}"
        );
        return Err(Error::unsupported(path, what));
    }
    Ok(pieces)
}

fn piece(mut message: Message) -> Result<Piece> {
    let (path, start) = (message.path, message.at as u64);
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    while let Some((field, value)) = message.next()? {
        match (field, value) {
            (1, Value::Bytes(text)) => {
                let text = std::str::from_utf8(&text.bytes[text.at..text.end]);
                piece.text =
                    text.map_err(|_| Error::malformed(path, start, "a piece is not UTF-8"))?.to_owned();
            }
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Integer(kind)) => {
                piece.kind = match kind {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    _ => {
                        return Err(Error::malformed(
                            path,
                            start,
                            format!("a piece of the unknown kind {kind}"),
                        ));
                    }
                }
            }
            _ => {}
        }
    }
    if !piece.score.is_finite() {
        return Err(Error::malformed(path, start, format!("a piece has the score {}", piece.score)));
    }
    Ok(piece)
}

/// The rest of a message.
#[derive(Clone, Copy)]
struct Message<'a> {
    path: &'a Path,
    /// The whole file.
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

/// A field's value as it is encoded.
enum Value<'a> {
    Integer(u64),
    Fixed32(u32),
    Bytes(Message<'a>),
    Fixed64,
}

impl<'a> Message<'a> {
    /// Number and value of the next field.
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>> {
        if self.at == self.end {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.integer()?;
        let value = match tag & 7 {
            0 => Value::Integer(self.integer()?),
            1 => self.take(8).map(|_| Value::Fixed64)?,
            2 => {
                let length = self.integer()?;
                let (at, end) = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
                Value::Bytes(Message { at, end, ..*self })
            }
            5 => {
                let (at, end) = self.take(4)?;
                Value::Fixed32(u32::from_le_bytes(self.bytes[at..end].try_into().expect("4 bytes")))
            }
            other => return Err(self.fault(start, format!("no field starts here (wire type {other})"))),
        };
        Ok(Some((tag >> 3, value)))
    }

    /// Seven bits a byte, the lowest first; a set high bit says that more follow.
    fn integer(&mut self) -> Result<u64> {
        let start = self.at;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (at, _) = self.take(1)?;
            let byte = self.bytes[at];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.fault(start, "an integer of more than ten bytes".to_owned()))
    }

    fn take(&mut self, n: usize) -> Result<(usize, usize)> {
        let start = self.at;
        match start.checked_add(n).filter(|end| *end <= self.end) {
            Some(end) => {
                self.at = end;
                Ok((start, end))
            }
            None => Err(self.fault(start, format!("{n} bytes are announced, {} are left", self.end - start))),
        }
    }

    fn fault(&self, at: usize, what: String) -> Error {
        Error::malformed(self.path, at as u64, format!("not a SentencePiece model: {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces "▁a" (-1.5), "<s>" control and "<0x0A>" byte, between fields that nobody needs; a BPE model.
    const MODEL: &[u8] = b"\x0a\x0b\x0a\x04\xe2\x96\x81a\x15\0\0\xc0\xbf\
        \x0a\x0a\x0a\x03<s>\x15\0\0\0\0\
        \x1a\x02\x10\x01\
        \x0a\x0f\x0a\x06<0x0A>\x15\0\0\0\0\x18\x06\
        \x12\x06\x0a\x00\x18\x02\x20\x07";

    fn model() -> Vec<u8> {
        // The kind of "<s>" comes after the score.
        let mut bytes = MODEL.to_vec();
        let at = bytes.windows(3).position(|w| w == b"<s>").unwrap();
        bytes[at - 3] += 2;
        bytes.splice(at + 8..at + 8, [0x18, 3]);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<Piece>> {
        parse("tokenizer.model".as_ref(), bytes)
    }

    #[test]
    fn pieces_are_read() {
        let piece = |text: &str, score, kind| Piece { text: text.to_owned(), score, kind };
        let want = [
            piece("▁a", -1.5, Kind::Normal),
            piece("<s>", 0.0, Kind::Control),
            piece("<0x0A>", 0.0, Kind::Byte),
        ];
        assert_eq!(read(&model()).unwrap(), want);
    }

    #[test]
    fn truncated_and_foreign_files_are_refused() {
        let whole = model();
        for n in 0..whole.len() {
            // A cut between two fields leaves a model of another kind, or none.
            assert!(read(&whole[..n]).is_err(), "{n} bytes");
        }
        for bytes in [
            &b"IQ== 0\nIg== 1\n"[..],
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x0a\x02\x18\x09",
            b"\xff",
        ] {
            let what = read(bytes).unwrap_err().to_string();
            assert!(what.contains("tokenizer.model: byte"), "{what}");
        }
        let mut unigram = whole.clone();
        *unigram.iter_mut().rev().nth(2).unwrap() = 1;
        assert!(read(&unigram).unwrap_err().to_string().contains("does not merge pairs (kind 1)"));
        let infinite = b"\x0a\x08\x0a\x01a\x15\0\0\x80\x7f";
        assert!(read(infinite).unwrap_err().to_string().contains("score inf"));
    }
}
