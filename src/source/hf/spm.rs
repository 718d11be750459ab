//! Vocabularies of SentencePiece: tokens, scores and types from tokenizer.model and what the files beside it add, or from a
//! tokenizer.json of the same kind where there is no tokenizer.model.

use super::family::{Family, WAY_OUT};
use super::json::Json;
use super::sentence_piece::{self, Kind};
use super::vocabulary::{AddedToken, decoder_added, looks_special, own_added, part, token_type};
use crate::error::Result;
use crate::gguf::{Array, Value as Kv};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Scores that the converter gives to ids without a token, and to tokens that were added.
const SCORE_PADDING: f32 = -10_000.0;
const SCORE_ADDED: f32 = -1000.0;
/// A space in the vocabulary.
const SPACE: &str = "\u{2581}";

/// Tokens by id.
pub(super) struct Vocabulary {
    tokens: Vec<Vec<u8>>,
    scores: Vec<f32>,
    types: Vec<i32>,
}

impl Vocabulary {
    fn new(n: u64) -> Self {
        Self {
            tokens: (0..n).map(|id| format!("[PAD{id}]").into_bytes()).collect(),
            scores: vec![SCORE_PADDING; n as usize],
            types: vec![token_type::UNUSED; n as usize],
        }
    }

    /// Ids beyond the vocabulary are passed over, as by the converter.
    fn set(&mut self, id: u64, text: &str, score: f32, ty: i32) {
        let Ok(id) = usize::try_from(id) else { return };
        if let Some(token) = self.tokens.get_mut(id) {
            *token = text.as_bytes().to_vec();
            (self.scores[id], self.types[id]) = (score, ty);
        }
    }

    /// A token that is cut out of a text before anything else happens to it.
    fn add(&mut self, token: &AddedToken) {
        if token.special || looks_special(&token.content) {
            self.set(token.id.into(), &token.content, SCORE_ADDED, token_type::CONTROL);
        } else {
            let text = token.content.replace(SPACE, " ");
            self.set(token.id.into(), &text, SCORE_ADDED, token_type::USER_DEFINED);
        }
    }

    /// The same with Phi 3's rule: the text as it stands, and what calls itself special.
    fn add_as_said(&mut self, token: &AddedToken) {
        let ty = if token.special { token_type::CONTROL } else { token_type::USER_DEFINED };
        self.set(token.id.into(), &token.content, SCORE_ADDED, ty);
    }

    /// Appends `tokenizer.ggml.*` keys.
    pub fn push_keys(self, kv: &mut Vec<(String, Kv)>) {
        let mut push = |key: &str, value| kv.push((format!("tokenizer.ggml.{key}"), value));
        push("model", "llama".into());
        push("pre", "default".into());
        push("tokens", Kv::Array(Array::Str(self.tokens)));
        push("scores", Kv::Array(Array::F32(self.scores)));
        push("token_type", Kv::Array(Array::I32(self.types)));
    }
}

/// The vocabulary of `n` tokens in `dir/tokenizer.model`, with the tokens that `settings` (tokenizer_config.json),
/// added_tokens.json and, for Phi 3, `tokenizer` (tokenizer.json) add.
pub(super) fn of_model(
    dir: &Path,
    family: Family,
    n: u64,
    settings: Option<&Json>,
    tokenizer: Option<&Json>,
) -> Result<Vocabulary> {
    let mut vocabulary = Vocabulary::new(n);
    for (id, piece) in sentence_piece::read(dir.join("tokenizer.model"))?.into_iter().enumerate() {
        let ty = match piece.kind {
            // The converter takes user-defined pieces for words, unless they are also added tokens.
            Kind::Normal | Kind::UserDefined => token_type::NORMAL,
            Kind::Unknown => token_type::UNKNOWN,
            Kind::Control => token_type::CONTROL,
            Kind::Unused => token_type::UNUSED,
            Kind::Byte => token_type::BYTE,
        };
        vocabulary.set(id as u64, &piece.text, piece.score, ty);
    }
    if let Some(added) = Json::read_optional(dir.join("added_tokens.json"))? {
        let added: HashMap<String, u64> = part(&added, &added.root, "added tokens")?;
        for (text, id) in added {
            vocabulary.set(id, &text, SCORE_ADDED, token_type::USER_DEFINED);
        }
    }
    let add = match family {
        Family::Phi3 => Vocabulary::add_as_said,
        _ => Vocabulary::add,
    };
    decoder_added(settings)?.iter().for_each(|token| add(&mut vocabulary, token));
    if let (Family::Phi3, Some(tokenizer)) = (family, tokenizer) {
        own_added(tokenizer)?.iter().for_each(|token| add(&mut vocabulary, token));
    }
    Ok(vocabulary)
}

/// Whether tokenizer.json stands for a SentencePiece model: pairs are merged, and bytes stand for unknown letters.
pub(super) fn is_sentence_piece(tokenizer: &Json) -> bool {
    let model = &tokenizer.root["model"];
    model["type"] == "BPE" && model["byte_fallback"] == true
}

/// The vocabulary of `n` tokens in a tokenizer.json of that kind, and whether a space goes before a text.
///
/// The converter gives all tokens one score here, with which llama.cpp merges other pairs than the tokenizer. A score
/// stands for the place in the order of merges, which tokenizer.json has: the first merge that makes a token counts.
pub(super) fn of_merges(tokenizer: &Json, n: u64, settings: Option<&Json>) -> Result<(Vocabulary, bool)> {
    let space = space_prefix(tokenizer)?;
    let model = &tokenizer.root["model"];
    let vocab: HashMap<String, u32> = part(tokenizer, &model["vocab"], "model.vocab")?;
    let merges: Vec<super::vocabulary::Merge> = part(tokenizer, &model["merges"], "model.merges")?;
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        ranks.entry(merge.joined()).or_insert(rank);
    }
    let unknown = model["unk_token"].as_str().unwrap_or("<unk>");
    let mut vocabulary = Vocabulary::new(n);
    for (text, id) in &vocab {
        if u64::from(*id) >= n {
            let what = format!("token '{text}' has id {id}, config.json's vocab_size is {n}");
            return Err(tokenizer.refuse(what));
        }
        let is_byte = text.len() == 6
            && text
                .strip_prefix("<0x")
                .and_then(|rest| rest.strip_suffix('>'))
                .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let (score, ty) = match ranks.get(text) {
            _ if is_byte => (0.0, token_type::BYTE),
            _ if text == unknown => (0.0, token_type::UNKNOWN),
            Some(rank) => (-(*rank as f32), token_type::NORMAL),
            // Letters, which nothing makes.
            None => (-(merges.len() as f32), token_type::NORMAL),
        };
        vocabulary.set(u64::from(*id), text, score, ty);
    }
    let mut added = own_added(tokenizer)?;
    added.extend(decoder_added(settings)?);
    added.iter().filter(|token| token.content != unknown).for_each(|token| vocabulary.add(token));
    Ok((vocabulary, space))
}

/// Whether the tokenizer puts a space before a text; steps that SentencePiece does not have are refused.
fn space_prefix(tokenizer: &Json) -> Result<bool> {
    let absent = Value::Null;
    let normalizer = tokenizer.get("normalizer").unwrap_or(&absent);
    let parts = match normalizer["normalizers"].as_array() {
        Some(parts) => parts.as_slice(),
        None if normalizer.is_null() => &[],
        None => std::slice::from_ref(normalizer),
    };
    let refuse = |what: &Value| {
        tokenizer.refuse(format!("the step {what} is not known for a SentencePiece vocabulary; {WAY_OUT}"))
    };
    let (mut prefix, mut spaces) = (false, false);
    for step in parts {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == SPACE => prefix = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == SPACE => spaces = true,
            _ => return Err(refuse(step)),
        }
    }
    let step = tokenizer.get("pre_tokenizer").unwrap_or(&absent);
    match step["type"].as_str() {
        None if spaces => {}
        // Nothing is left to cut where spaces are spelt otherwise by now.
        Some("Split") if spaces && step["pattern"]["String"] == " " => {}
        Some("Metaspace") if step["replacement"] == SPACE && step["split"] == false => {
            prefix |= step["prepend_scheme"] != "never" && step["add_prefix_space"] != false;
        }
        _ => return Err(refuse(step)),
    }
    Ok(prefix)
}
