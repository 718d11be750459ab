//! The keys of a vocabulary. Which files it is read from; byte-level BPE of tokenizer.json: tokens, their types, merges.

use super::config::Config;
use super::family::{Family, WAY_OUT};
use super::json::Json;
use super::{pre_tokenizer, special, spm};
use crate::error::Result;
use crate::gguf::{Array, Value as Kv};
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// Token types of GGUF.
pub(super) mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// A token that is cut out of a text before anything else happens to it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct AddedToken {
    #[serde(default)]
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub special: bool,
    /// Whether the token is matched in text after the normalizer; by default where it is not special.
    pub normalized: Option<bool>,
}

impl AddedToken {
    /// The text as the tokenizer decodes it; GGUF has tokens that are matched in raw text in this form.
    fn text(&self) -> Cow<'_, str> {
        if self.normalized.unwrap_or(!self.special) {
            return Cow::Borrowed(&self.content);
        }
        match self.content.chars().map(byte_of).collect::<Option<Vec<u8>>>() {
            Some(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
            None => Cow::Borrowed(&self.content),
        }
    }
}

/// The byte that a letter of byte-level text stands for: printable Latin-1 letters for themselves, letters from
/// U+0100 for the other bytes in order.
fn byte_of(letter: char) -> Option<u8> {
    const PRINTABLE: fn(&u8) -> bool = |b| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(letter) {
        code @ 0..0x100 => Some(code as u8).filter(PRINTABLE),
        code => (0..=u8::MAX).filter(|b| !PRINTABLE(b)).nth(code as usize - 0x100),
    }
}

/// A merge: "left right", or both sides on their own since transformers 4.45.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Merge {
    Joined(String),
    Pair(String, String),
}

impl Merge {
    /// What it makes.
    pub fn joined(&self) -> String {
        match self {
            Merge::Joined(s) => s.replacen(' ', "", 1),
            Merge::Pair(a, b) => [a.as_str(), b.as_str()].concat(),
        }
    }

    fn into_bytes(self) -> Vec<u8> {
        match self {
            Merge::Joined(s) => s.into_bytes(),
            // A space inside a side would be read as the separator; byte-level text spells it as U+0120.
            Merge::Pair(a, b) => [a.replace(' ', "Ġ"), b.replace(' ', "Ġ")].join(" ").into_bytes(),
        }
    }
}

/// Appends all `tokenizer.*` keys of the model in `dir` to `kv`.
pub(super) fn push_keys(kv: &mut Vec<(String, Kv)>, dir: &Path, config: &Config) -> Result<()> {
    let settings = Json::read_optional(dir.join("tokenizer_config.json"))?;
    let settings = settings.as_ref();
    let has_model = dir.join("tokenizer.model").exists();
    let tokenizer = match has_model {
        true => Json::read_optional(dir.join("tokenizer.json"))?,
        false => Some(Json::read(dir.join("tokenizer.json"))?),
    };
    let llama = matches!(config.family, Family::Llama | Family::Mistral);
    if let (true, Some(prefix)) = (llama, settings.and_then(|s| s.root["add_prefix_space"].as_bool())) {
        kv.push((ADD_SPACE.to_owned(), Kv::Bool(prefix)));
    }
    let class = settings.and_then(|s| s.root["tokenizer_class"].as_str());
    match &tokenizer {
        Some(tokenizer) if config.family == Family::Phi3 && class == Some("GPT2Tokenizer") => {
            byte_level(kv, dir, tokenizer, settings, config)?;
        }
        _ if has_model => {
            spm::of_model(dir, config.family, config.vocab, settings, tokenizer.as_ref())?.push_keys(kv);
            special::push_keys(kv, dir, tokenizer.as_ref(), settings, special::Beyond::Skip, config)?;
        }
        Some(tokenizer) if spm::is_sentence_piece(tokenizer) => {
            let (vocabulary, space) = spm::of_merges(tokenizer, config.vocab, settings)?;
            if !space && config.family != Family::Gemma3 {
                set(kv, ADD_SPACE, Kv::Bool(false));
            }
            vocabulary.push_keys(kv);
            special::push_keys(kv, dir, Some(tokenizer), settings, special::Beyond::Skip, config)?;
        }
        Some(tokenizer) => byte_level(kv, dir, tokenizer, settings, config)?,
        None => unreachable!("one of the two files was found"),
    }
    match config.family {
        Family::Gemma3 => set(kv, ADD_SPACE, Kv::Bool(false)),
        // The converter's rules for sizes of vocabularies: Code Llama's ...
        _ if llama && config.vocab == 32_016 => set(kv, "tokenizer.ggml.eot_token_id", Kv::U32(32_010)),
        // ... and that which the Granite and SmolLM models share.
        _ if llama && config.vocab == 49_152 => set(kv, "tokenizer.ggml.add_bos_token", Kv::Bool(false)),
        _ => {}
    }
    Ok(())
}

const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";

/// Puts a value in the place of another, or at the end.
fn set(kv: &mut Vec<(String, Kv)>, key: &str, value: Kv) {
    match kv.iter_mut().find(|(k, _)| k == key) {
        Some((_, old)) => *old = value,
        None => kv.push((key.to_owned(), value)),
    }
}

/// Appends the keys of a byte-level vocabulary.
fn byte_level(
    kv: &mut Vec<(String, Kv)>,
    dir: &Path,
    tokenizer: &Json,
    settings: Option<&Json>,
    config: &Config,
) -> Result<()> {
    let kind = &tokenizer.root["model"]["type"];
    if kind != "BPE" {
        return Err(tokenizer.refuse(format!("a {kind} tokenizer; BPE is read directly. Else {WAY_OUT}")));
    }
    let pre = pre_tokenizer::detect(&tokenizer.root).map_err(|why| {
        tokenizer.refuse(format!(
            "the pre-tokenizer is not known: {why}. llama.cpp's converter knows more of them; {WAY_OUT}"
        ))
    })?;
    let vocab: HashMap<String, u32> = part(tokenizer, &tokenizer.root["model"]["vocab"], "model.vocab")?;
    let merges: Vec<Merge> = part(tokenizer, &tokenizer.root["model"]["merges"], "model.merges")?;
    let added = added_tokens(own_added(tokenizer)?, settings, &vocab)?;
    let (tokens, types) = tokens(tokenizer, vocab, &added, config.vocab)?;
    let mut push = |key: &str, value| kv.push((format!("tokenizer.ggml.{key}"), value));
    push("model", "gpt2".into());
    push("pre", pre.into());
    push("tokens", Kv::Array(Array::Str(tokens)));
    push("token_type", Kv::Array(Array::I32(types)));
    if !merges.is_empty() {
        push("merges", Kv::Array(Array::Str(merges.into_iter().map(Merge::into_bytes).collect())));
    }
    special::push_keys(kv, dir, Some(tokenizer), settings, special::Beyond::Refuse, config)
}

pub(super) fn part<T: for<'a> Deserialize<'a>>(file: &Json, value: &Value, name: &str) -> Result<T> {
    T::deserialize(value).map_err(|e| file.refuse(format!("{name}: {e}")))
}

/// `added_tokens` of tokenizer.json.
pub(super) fn own_added(tokenizer: &Json) -> Result<Vec<AddedToken>> {
    tokenizer.get("added_tokens").map_or(Ok(Vec::new()), |list| part(tokenizer, list, "added_tokens"))
}

/// `added_tokens_decoder` of tokenizer_config.json, in any order.
pub(super) fn decoder_added(settings: Option<&Json>) -> Result<Vec<AddedToken>> {
    let Some((settings, decoder)) = settings.and_then(|s| Some((s, s.get("added_tokens_decoder")?))) else {
        return Ok(Vec::new());
    };
    let decoder: HashMap<u32, AddedToken> = part(settings, decoder, "added_tokens_decoder")?;
    Ok(decoder.into_iter().map(|(id, token)| AddedToken { id, ..token }).collect())
}

/// The added tokens of tokenizer.json, `added`, with what tokenizer_config.json says of them over it.
fn added_tokens(
    mut added: Vec<AddedToken>,
    settings: Option<&Json>,
    vocab: &HashMap<String, u32>,
) -> Result<Vec<AddedToken>> {
    let Some(settings) = settings else { return Ok(added) };
    for token in decoder_added(Some(settings))? {
        added.retain(|t| t.id != token.id);
        added.push(token);
    }
    // A token with a role is special even if it is an ordinary word of the vocabulary.
    for role in ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
        let entry = &settings.root[role];
        let Some(content) = entry.as_str().or(entry["content"].as_str()) else { continue };
        if let (Some(id), false) = (vocab.get(content), added.iter().any(|t| t.content == content)) {
            added.push(AddedToken { id: *id, content: content.to_owned(), special: true, normalized: None });
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
        let text = t.text();
        *slot = Some(if t.special || looks_special(&text) {
            (text.into_owned(), token_type::CONTROL)
        } else {
            (text.replace('\u{2581}', " "), token_type::USER_DEFINED)
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
pub(super) fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(content: &str, special: bool, normalized: Option<bool>) -> AddedToken {
        AddedToken { id: 0, content: content.to_owned(), special, normalized }
    }

    #[test]
    fn byte_level_letters_cover_all_bytes_once() {
        let mut bytes: Vec<u8> = (0..0x180).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        bytes.sort_unstable();
        assert!(bytes.iter().enumerate().all(|(i, b)| i == *b as usize));
        assert_eq!(
            [byte_of('Ġ'), byte_of('Ċ'), byte_of('é'), byte_of('✓')],
            [Some(32), Some(10), Some(0xe9), None]
        );
    }

    #[test]
    fn tokens_of_raw_text_are_decoded() {
        assert_eq!(token("Ġthe", true, None).text(), " the");
        assert_eq!(token("Ã©", false, Some(false)).text(), "é");
        assert_eq!(token("Ġthe", false, None).text(), "Ġthe");
        // Not byte-level text: spaces and CJK letters stand for themselves.
        assert_eq!(token("a Ġ", true, Some(false)).text(), "a Ġ");
        assert_eq!(token("<｜end▁of｜>", true, None).text(), "<｜end▁of｜>");
    }

    #[test]
    fn control_tokens_are_known_by_their_form() {
        for control in ["<|x|>", "<｜end▁of｜>", "<unused7>", "<pad>", "[@BOS@]"] {
            assert!(looks_special(control), "{control}");
        }
        for word in ["<x>", "pad", "<|x", "unused7"] {
            assert!(!looks_special(word), "{word}");
        }
    }
}
