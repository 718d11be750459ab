//! tokenizer.json with byte-level BPE: tokens, their types, merges.

use super::json::Json;
use super::{pre_tokenizer, special};
use crate::error::Result;
use crate::gguf::{Array, Value as Kv};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Token types of GGUF.
mod token_type {
    pub const NORMAL: i32 = 1;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
}

/// A token that is cut out of a text before anything else happens to it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct AddedToken {
    #[serde(default)]
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub special: bool,
}

/// A merge: "left right", or both sides on their own since transformers 4.45.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

impl Merge {
    fn into_bytes(self) -> Vec<u8> {
        match self {
            Merge::Joined(s) => s.into_bytes(),
            // A space inside a side would be read as the separator; byte-level text spells it as U+0120.
            Merge::Pair(a, b) => [a.replace(' ', "Ġ"), b.replace(' ', "Ġ")].join(" ").into_bytes(),
        }
    }
}

/// Appends all `tokenizer.*` keys for a vocabulary of `n_tokens` to `kv`.
pub(super) fn push_keys(kv: &mut Vec<(String, Kv)>, dir: &Path, n_tokens: u64, config: &Json) -> Result<()> {
    let tokenizer = Json::read(dir.join("tokenizer.json"))?;
    check_kind(dir, &tokenizer)?;
    let pre = pre_tokenizer::detect(&tokenizer.root).map_err(|why| {
        tokenizer.refuse(format!(
            "the pre-tokenizer is not known: {why}. llama.cpp's convert_hf_to_gguf.py knows more of them; convert \
             the model with it and give the GGUF"
        ))
    })?;
    let settings = Json::read_optional(dir.join("tokenizer_config.json"))?;
    if let Some(prefix) = settings.as_ref().and_then(|s| s.root["add_prefix_space"].as_bool()) {
        kv.push(("tokenizer.ggml.add_space_prefix".to_owned(), Kv::Bool(prefix)));
    }
    let vocab: HashMap<String, u32> = part(&tokenizer, &tokenizer.root["model"]["vocab"], "model.vocab")?;
    let merges: Vec<Merge> = part(&tokenizer, &tokenizer.root["model"]["merges"], "model.merges")?;
    let added = added_tokens(&tokenizer, settings.as_ref(), &vocab)?;
    let (tokens, types) = tokens(&tokenizer, vocab, &added, n_tokens)?;
    let mut push = |key: &str, value| kv.push((format!("tokenizer.ggml.{key}"), value));
    push("model", "gpt2".into());
    push("pre", pre.into());
    push("tokens", Kv::Array(Array::Str(tokens)));
    push("token_type", Kv::Array(Array::I32(types)));
    if !merges.is_empty() {
        push("merges", Kv::Array(Array::Str(merges.into_iter().map(Merge::into_bytes).collect())));
    }
    special::push_keys(kv, dir, &tokenizer, &added, config)?;
    // The converter's rule for the vocabulary of this size that the Granite and SmolLM models share.
    if n_tokens == 49_152 {
        let key = "tokenizer.ggml.add_bos_token";
        match kv.iter_mut().find(|(k, _)| k == key) {
            Some((_, value)) => *value = Kv::Bool(false),
            None => kv.push((key.to_owned(), Kv::Bool(false))),
        }
    }
    Ok(())
}

/// Only byte-level BPE is read; SentencePiece vocabularies need scores that tokenizer.json does not have.
fn check_kind(dir: &Path, tokenizer: &Json) -> Result<()> {
    let model = &tokenizer.root["model"];
    let sentence_piece = dir.join("tokenizer.model").exists() || model["byte_fallback"] == true;
    if model["type"] != "BPE" || sentence_piece {
        let kind = if sentence_piece { "SentencePiece".to_owned() } else { model["type"].to_string() };
        return Err(tokenizer.refuse(format!(
            "a {kind} tokenizer; byte-level BPE is read directly. Convert the model with llama.cpp's \
             convert_hf_to_gguf.py and give the GGUF"
        )));
    }
    Ok(())
}

fn part<T: for<'a> Deserialize<'a>>(file: &Json, value: &Value, name: &str) -> Result<T> {
    T::deserialize(value).map_err(|e| file.refuse(format!("{name}: {e}")))
}

/// Added tokens of tokenizer.json, with what tokenizer_config.json says of them over it.
fn added_tokens(
    tokenizer: &Json,
    settings: Option<&Json>,
    vocab: &HashMap<String, u32>,
) -> Result<Vec<AddedToken>> {
    let mut added: Vec<AddedToken> = match tokenizer.get("added_tokens") {
        Some(list) => part(tokenizer, list, "added_tokens")?,
        None => Vec::new(),
    };
    let Some(settings) = settings else { return Ok(added) };
    if let Some(decoder) = settings.get("added_tokens_decoder") {
        let decoder: HashMap<u32, AddedToken> = part(settings, decoder, "added_tokens_decoder")?;
        for (id, token) in decoder {
            added.retain(|t| t.id != id);
            added.push(AddedToken { id, ..token });
        }
    }
    // A token with a role is special even if it is an ordinary word of the vocabulary.
    for role in ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
        let entry = &settings.root[role];
        let Some(content) = entry.as_str().or(entry["content"].as_str()) else { continue };
        if let (Some(id), false) = (vocab.get(content), added.iter().any(|t| t.content == content)) {
            added.push(AddedToken { id: *id, content: content.to_owned(), special: true });
        }
    }
    added.sort_by_key(|t| t.id);
    Ok(added)
}

/// Text and type of every token id; ids that the tokenizer lacks are named and marked as unused.
fn tokens(
    tokenizer: &Json,
    vocab: HashMap<String, u32>,
    added: &[AddedToken],
    n_tokens: u64,
) -> Result<(Vec<Vec<u8>>, Vec<i32>)> {
    let mut slots: Vec<Option<(String, i32)>> = vec![None; n_tokens as usize];
    let outside = |id: u32, text: &str| {
        tokenizer.refuse(format!("token '{text}' has id {id}, config.json's vocab_size is {n_tokens}"))
    };
    for (text, id) in vocab {
        let slot = slots.get_mut(id as usize).ok_or_else(|| outside(id, &text))?;
        if let Some((other, _)) = slot {
            return Err(tokenizer.refuse(format!("tokens '{other}' and '{text}' share the id {id}")));
        }
        *slot = Some((text, token_type::NORMAL));
    }
    for t in added {
        let slot = slots.get_mut(t.id as usize).ok_or_else(|| outside(t.id, &t.content))?;
        *slot = Some(if t.special || looks_special(&t.content) {
            (t.content.clone(), token_type::CONTROL)
        } else {
            (t.content.replace('\u{2581}', " "), token_type::USER_DEFINED)
        });
    }
    Ok(slots
        .into_iter()
        .enumerate()
        .map(|(id, slot)| {
            let (text, ty) = slot.unwrap_or_else(|| (format!("[PAD{id}]"), token_type::UNUSED));
            (text.into_bytes(), ty)
        })
        .unzip())
}

/// Some models forget to mark control tokens; their form gives them away.
fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}
