//! Byte-level byte-pair encoding (GPT-2's).

use super::merge::merge;
use super::pre_tokenizer::PreTokenizer;
use fancy_regex::Regex;
use std::collections::HashMap;
use std::sync::Mutex;

/// Words whose tokens are remembered.
const CACHE: usize = 1 << 16;

pub struct Bpe {
    ids: HashMap<Vec<u8>, u32>,
    /// Rank of the pair `left` and `right`, keyed by both with a space between, as the file spells it.
    ranks: HashMap<Vec<u8>, usize>,
    expressions: Vec<Regex>,
    ignore_merges: bool,
    cache: Mutex<HashMap<String, Vec<u32>>>,
}

/// The printable character that stands for byte `b` in the vocabulary: itself if printable in Latin-1, else the next
/// free one from U+0100 on.
fn visible(b: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(b) {
        return char::from(b);
    }
    let before = (0..b).filter(|&x| !printable(x)).count() as u32;
    char::from_u32(0x100 + before).expect("below the surrogates")
}

/// Bytes of a token of the vocabulary.
pub fn bytes_of(token: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(token) else { return token.to_vec() };
    let back: HashMap<char, u8> = (0..=255).map(|b| (visible(b), b)).collect();
    let mut out = Vec::new();
    for c in text.chars() {
        match back.get(&c) {
            Some(b) => out.push(*b),
            None => out.extend(c.to_string().bytes()),
        }
    }
    out
}

impl Bpe {
    pub fn new(ids: HashMap<Vec<u8>, u32>, merges: &[Vec<u8>], pre: &PreTokenizer) -> Self {
        let ranks = merges.iter().enumerate().map(|(i, m)| (m.clone(), i)).collect();
        let compile = |e: &&str| Regex::new(e).expect("the table's expressions are valid");
        let expressions = pre.expressions.iter().map(compile).collect();
        Self { ids, ranks, expressions, ignore_merges: pre.ignore_merges, cache: Mutex::default() }
    }

    pub fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut pieces = vec![text];
        for e in &self.expressions {
            pieces = pieces.into_iter().flat_map(|p| cut(e, p)).collect();
        }
        let mut cache = self.cache.lock().unwrap_or_else(|e| e.into_inner());
        for word in pieces {
            if let Some(tokens) = cache.get(word) {
                out.extend(tokens);
                continue;
            }
            let tokens = self.word(word);
            out.extend(&tokens);
            if cache.len() < CACHE {
                cache.insert(word.to_owned(), tokens);
            }
        }
    }

    /// Tokens of one word.
    fn word(&self, word: &str) -> Vec<u32> {
        let spelt: String = word.bytes().map(visible).collect();
        if let (true, Some(&id)) = (self.ignore_merges, self.ids.get(spelt.as_bytes())) {
            return vec![id];
        }
        let rank = |a: &str, b: &str| self.ranks.get([a, " ", b].concat().as_bytes());
        let mut out = Vec::new();
        for symbol in merge(&spelt, rank) {
            match self.ids.get(symbol.as_bytes()) {
                Some(&id) => out.push(id),
                None => out.extend(symbol.chars().filter_map(|c| self.ids.get(c.to_string().as_bytes()))),
            }
        }
        out
    }
}

/// Matches of `e` in `text` and what lies between, in order.
fn cut<'a>(e: &Regex, text: &'a str) -> Vec<&'a str> {
    let mut out = Vec::new();
    let mut at = 0;
    // An expression gives up only on pathological backtracking; the rest then stays one piece.
    for m in e.find_iter(text).map_while(Result::ok) {
        if m.start() > at {
            out.push(&text[at..m.start()]);
        }
        if m.end() > m.start() {
            out.push(m.as_str());
        }
        at = m.end();
    }
    if at < text.len() {
        out.push(&text[at..]);
    }
    out
}
