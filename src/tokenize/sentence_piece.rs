//! SentencePiece's byte-pair encoding by scores.

use super::merge::merge;
use std::collections::HashMap;

/// U+2581, which stands for a space in the vocabulary.
const SPACE: &str = "\u{2581}";

pub struct SentencePiece {
    ids: HashMap<Vec<u8>, u32>,
    scores: Vec<f32>,
    bytes: [Option<u32>; 256],
    unknown: u32,
}

/// Score of a merge, the highest first.
#[derive(PartialEq)]
struct Score(f32);

impl Eq for Score {}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The byte of a token `<0xNN>`.
pub fn byte_of(token: &[u8]) -> Option<u8> {
    let hex = token.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
}

/// Text of a token.
pub fn text_of(token: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(token).replace(SPACE, " ").into_bytes()
}

impl SentencePiece {
    pub fn new(
        ids: HashMap<Vec<u8>, u32>,
        scores: Vec<f32>,
        bytes: [Option<u32>; 256],
        unknown: u32,
    ) -> Self {
        Self { ids, scores, bytes, unknown }
    }

    pub fn encode(&self, text: &str, add_space: bool, out: &mut Vec<u32>) {
        let text = format!("{}{}", if add_space { " " } else { "" }, text).replace(' ', SPACE);
        let score = |a: &str, b: &str| {
            let id = self.ids.get([a, b].concat().as_bytes())?;
            Some(Score(self.scores[*id as usize]))
        };
        for piece in merge(&text, score) {
            match self.ids.get(piece.as_bytes()) {
                Some(&id) => out.push(id),
                // A symbol outside the vocabulary is one character: only pieces of the vocabulary are merged.
                None => out.extend(piece.bytes().map(|b| self.bytes[b as usize].unwrap_or(self.unknown))),
            }
        }
    }
}
