//! Text to tokens and back, as llama.cpp does it, from the keys of a GGUF alone.

mod bpe;
mod merge;
mod pre_tokenizer;
mod sentence_piece;

use crate::error::{Error, Result};
use crate::gguf::{Array, Value};
use std::collections::HashMap;
use std::path::Path;

/// `tokenizer.ggml.token_type` of tokens that mean something to the program.
const CONTROL: i32 = 3;
/// Of tokens that text is searched for before all else.
const USER_DEFINED: i32 = 4;
/// Of byte tokens `<0xNN>`.
const BYTE: i32 = 6;

/// Spellings of tokens that end a text or a turn.
const ENDS: [&str; 10] = [
    "</s>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
];

enum Kind {
    Bpe(bpe::Bpe),
    SentencePiece(Box<sentence_piece::SentencePiece>),
}

/// A tokenizer.
pub struct Tokenizer {
    vocabulary: Vec<Vec<u8>>,
    types: Vec<i32>,
    kind: Kind,
    /// User-defined tokens, longest first.
    user_defined: Vec<(String, u32)>,
    add_bos: Option<u32>,
    add_space: bool,
    /// Control tokens and those that end a text.
    silent: Vec<u32>,
    /// White space after user-defined tokens belongs to them (phi-3).
    strip_after: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocabulary.len())
    }
}

fn strings(value: Option<&Value>) -> Option<&[Vec<u8>]> {
    match value {
        Some(Value::Array(Array::Str(s))) => Some(s),
        _ => None,
    }
}

impl Tokenizer {
    /// Builds the tokenizer of the model in `path` (for messages) from its keys.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a tokenizer or pre-tokenizer that is not known here, or missing keys.
    pub fn from_kv(path: &Path, kv: &[(String, Value)]) -> Result<Self> {
        let get = |key: &str| {
            let name = format!("tokenizer.ggml.{key}");
            kv.iter().find(|(k, _)| *k == name).map(|(_, v)| v)
        };
        let fault = |what: String| Error::tokenizer(path, what);
        let flag = |key: &str| match get(key) {
            Some(Value::Bool(b)) => Some(*b),
            _ => None,
        };
        let vocabulary = strings(get("tokens"))
            .ok_or_else(|| fault("key tokenizer.ggml.tokens is missing".into()))?
            .to_vec();
        let types = match get("token_type") {
            Some(Value::Array(Array::I32(t))) if t.len() == vocabulary.len() => t.clone(),
            _ => vec![1; vocabulary.len()],
        };
        // Of equal tokens the last wins, as in a map that is filled in order.
        let ids: HashMap<Vec<u8>, u32> =
            vocabulary.iter().enumerate().map(|(i, t)| (t.clone(), i as u32)).collect();
        let model = get("model").and_then(Value::as_str).unwrap_or("(none)");
        let (kind, bos_default, add_space) = match model {
            "gpt2" => {
                let name = get("pre").and_then(Value::as_str).unwrap_or("default");
                let pre = pre_tokenizer::find(name).ok_or_else(|| {
                    fault(format!(
                        "pre-tokenizer '{name}' is not known here (known: {})",
                        pre_tokenizer::names().join(", ")
                    ))
                })?;
                let merges = strings(get("merges"))
                    .ok_or_else(|| fault("key tokenizer.ggml.merges is missing".into()))?;
                (Kind::Bpe(bpe::Bpe::new(ids, merges, pre)), pre.add_bos, false)
            }
            "llama" => {
                let scores = match get("scores") {
                    Some(Value::Array(Array::F32(s))) if s.len() == vocabulary.len() => s.clone(),
                    _ => {
                        return Err(fault(
                            "key tokenizer.ggml.scores is missing or of another length".into(),
                        ));
                    }
                };
                let bytes = std::array::from_fn(|b| {
                    let name = format!("<0x{b:02X}>");
                    ids.get(name.as_bytes()).or_else(|| ids.get(&vec![b as u8])).copied()
                });
                let unknown = get("unknown_token_id").and_then(Value::as_u64).unwrap_or(0) as u32;
                (
                    Kind::SentencePiece(Box::new(sentence_piece::SentencePiece::new(
                        ids, scores, bytes, unknown,
                    ))),
                    true,
                    true,
                )
            }
            other => {
                return Err(fault(format!("tokenizer '{other}' is not known here (known: gpt2, llama)")));
            }
        };
        let bos = get("bos_token_id").and_then(Value::as_u64).map(|b| b as u32);
        let add_bos =
            bos.filter(|&b| flag("add_bos_token").unwrap_or(bos_default) && (b as usize) < vocabulary.len());
        // llama.cpp takes tokens that end a text for control tokens, whatever their type says.
        let ends = |i: usize, t: &[u8]| {
            let named = ["eos_token_id", "eot_token_id", "eom_token_id"];
            ENDS.iter().any(|e| e.as_bytes() == t)
                || named.iter().any(|k| get(k).and_then(Value::as_u64) == Some(i as u64))
        };
        let silent = vocabulary.iter().zip(&types).enumerate();
        let silent = silent.filter(|(i, (t, kind))| **kind == CONTROL || ends(*i, t));
        let silent = silent.map(|(i, _)| i as u32).collect();
        let mut user_defined: Vec<(String, u32)> = vocabulary
            .iter()
            .zip(&types)
            .enumerate()
            .filter(|(i, (t, k))| **k == USER_DEFINED && !t.is_empty() && !ends(*i, t))
            .filter_map(|(i, (t, _))| String::from_utf8(t.clone()).ok().map(|t| (t, i as u32)))
            .collect();
        user_defined.sort_by_key(|(t, _)| std::cmp::Reverse(t.len()));
        let add_space = flag("add_space_prefix").unwrap_or(add_space);
        let name = kv.iter().find(|(k, _)| k == "general.name").and_then(|(_, v)| v.as_str()).unwrap_or("");
        let name = name.to_lowercase();
        let strip_after = name.contains("phi-3") || name.contains("phi3");
        Ok(Self { strip_after, vocabulary, types, kind, user_defined, add_bos, add_space, silent })
    }

    /// Tokens of `text`, without the one for its beginning. Control tokens spelt out in the text are text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        self.fragments(text, &self.user_defined, true, &mut out);
        out
    }

    /// Cuts out user-defined tokens, longest first, and encodes what lies between.
    fn fragments(&self, text: &str, defined: &[(String, u32)], first: bool, out: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let Some(i) = defined.iter().position(|(t, _)| text.contains(t.as_str())) else {
            match &self.kind {
                Kind::Bpe(bpe) => bpe.encode(text, out),
                Kind::SentencePiece(spm) => spm.encode(text, self.add_space && first, out),
            }
            return;
        };
        let (token, id) = &defined[i];
        let mut first = first;
        for (n, part) in text.split(token.as_str()).enumerate() {
            if n > 0 {
                out.push(*id);
                first = false;
            }
            // llama.cpp exempts these three by name.
            let strip =
                self.strip_after && n > 0 && !["<unk>", "<s>", "<|endoftext|>"].contains(&token.as_str());
            let part =
                if strip { part.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']) } else { part };
            self.fragments(part, &defined[i + 1..], first, out);
            first &= part.is_empty();
        }
    }

    /// Text of `tokens`; control tokens vanish, invalid UTF-8 is replaced.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &t in tokens {
            let (Some(piece), kind) = (self.vocabulary.get(t as usize), self.types.get(t as usize)) else {
                continue;
            };
            match (kind, &self.kind) {
                (Some(&CONTROL), _) => {}
                (Some(&USER_DEFINED), _) => bytes.extend_from_slice(piece),
                (Some(&BYTE), _) => bytes.extend(sentence_piece::byte_of(piece)),
                (_, Kind::Bpe(_)) => bytes.extend(bpe::bytes_of(piece)),
                (_, Kind::SentencePiece(_)) => bytes.extend(sentence_piece::text_of(piece)),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The token that llama.cpp puts before a text of this model by default.
    pub fn add_bos(&self) -> Option<u32> {
        self.add_bos
    }

    /// Tokens that are no text: control tokens, those that end one.
    pub fn silent(&self) -> &[u32] {
        &self.silent
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.vocabulary.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.vocabulary.is_empty()
    }

    /// Tokens of `text` in windows of `length`, the rest dropped; as llama-perplexity makes them, with the beginning
    /// token first in each if the model has one.
    pub fn windows(&self, text: &str, length: usize) -> Vec<Vec<u32>> {
        let mut tokens: Vec<u32> = self.add_bos.into_iter().collect();
        tokens.extend(self.encode(text));
        let mut windows: Vec<Vec<u32>> = tokens.chunks_exact(length).map(<[u32]>::to_vec).collect();
        if let Some(bos) = self.add_bos {
            windows.iter_mut().for_each(|w| w[0] = bos);
        }
        windows
    }
}

#[cfg(test)]
mod tests;
