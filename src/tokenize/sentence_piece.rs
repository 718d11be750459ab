//! SentencePiece's byte-pair encoding by scores.

use std::collections::{BinaryHeap, HashMap};

/// U+2581, which stands for a space in the vocabulary.
const SPACE: &str = "\u{2581}";

pub struct SentencePiece {
    ids: HashMap<Vec<u8>, u32>,
    scores: Vec<f32>,
    bytes: [Option<u32>; 256],
    unknown: u32,
}

/// Proposed merge: highest score first, then leftmost.
#[derive(PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Eq for Pair {}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
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
        let starts: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
        let n = starts.len();
        let mut length: Vec<usize> =
            starts[1.min(n)..].iter().copied().chain([text.len()]).zip(&starts).map(|(e, s)| e - s).collect();
        let mut next: Vec<usize> = (1..=n).collect();
        let mut previous: Vec<usize> = (0..n).map(|i| i.wrapping_sub(1)).collect();
        let mut heap = BinaryHeap::new();
        let propose = |heap: &mut BinaryHeap<Pair>, length: &[usize], left: usize, right: usize| {
            let total = length[left] + length[right];
            let piece = &text.as_bytes()[starts[left]..starts[left] + total];
            if let Some(&id) = self.ids.get(piece) {
                heap.push(Pair { score: self.scores[id as usize], left, right, length: total });
            }
        };
        (1..n).for_each(|j| propose(&mut heap, &length, j - 1, j));
        while let Some(p) = heap.pop() {
            let (i, j) = (p.left, p.right);
            if length[i] == 0 || length[j] == 0 || length[i] + length[j] != p.length {
                continue;
            }
            length[i] = p.length;
            length[j] = 0;
            next[i] = next[j];
            if next[i] < n {
                previous[next[i]] = i;
                propose(&mut heap, &length, i, next[i]);
            }
            if previous[i] < n {
                propose(&mut heap, &length, previous[i], i);
            }
        }
        let mut i = 0;
        while i < n {
            let piece = &text.as_bytes()[starts[i]..starts[i] + length[i]];
            match self.ids.get(piece) {
                Some(&id) => out.push(id),
                // A symbol outside the vocabulary is one character: only pieces of the vocabulary are merged.
                None => out.extend(piece.iter().map(|&b| self.bytes[b as usize].unwrap_or(self.unknown))),
            }
            i = next[i];
        }
    }
}
