//! Special tokens, the chat template and what is added around a text: from tokenizer.json's post-processor,
//! tokenizer_config.json and config.json, in the converter's order of preference.

use super::config::Config;
use super::json::Json;
use super::vocabulary::own_added;
use crate::error::{Error, Result};
use crate::gguf::{Array, Value as Kv};
use serde_json::Value;
use std::path::Path;

/// Roles in the order in which the converter looks for them, and GGUF's keys (its spelling of separator is kept).
const ROLES: &[(&str, &str)] = &[
    ("bos", "tokenizer.ggml.bos_token_id"),
    ("eos", "tokenizer.ggml.eos_token_id"),
    ("unk", "tokenizer.ggml.unknown_token_id"),
    ("sep", "tokenizer.ggml.seperator_token_id"),
    ("pad", "tokenizer.ggml.padding_token_id"),
    ("mask", "tokenizer.ggml.mask_token_id"),
    ("eot", "tokenizer.ggml.eot_token_id"),
];

/// Which special tokens a text gets by default, in the order in which they were found.
#[derive(Default)]
struct Added(Vec<(&'static str, bool)>);

impl Added {
    fn set(&mut self, role: &'static str, value: bool) {
        match self.0.iter_mut().find(|(r, _)| *r == role) {
            Some(entry) => entry.1 = value,
            None => self.0.push((role, value)),
        }
    }

    fn set_default(&mut self, role: &'static str, value: bool) {
        if !self.0.iter().any(|(r, _)| *r == role) {
            self.0.push((role, value));
        }
    }
}

/// What happens to special tokens beyond the vocabulary.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Beyond {
    Refuse,
    Skip,
}

/// Appends ids of special tokens, `add_*_token` flags and the chat template to `kv`. `tokenizer` is tokenizer.json,
/// `settings` tokenizer_config.json.
pub(super) fn push_keys(
    kv: &mut Vec<(String, Kv)>,
    dir: &Path,
    tokenizer: Option<&Json>,
    settings: Option<&Json>,
    beyond: Beyond,
    config: &Config,
) -> Result<()> {
    let added_tokens = tokenizer.map_or(Ok(Vec::new()), own_added)?;
    // Text of the token in each role, as tokenizer_config.json has it and the post-processor corrects it.
    let mut texts: Vec<Option<String>> = ROLES.iter().map(|(role, _)| role_text(settings, role)).collect();
    let mut added = Added::default();
    if let Some(processor) = tokenizer.and_then(|t| t.get("post_processor")) {
        let parts = processor["processors"].as_array().map_or(std::slice::from_ref(processor), Vec::as_slice);
        for part in parts {
            match part["type"].as_str() {
                Some("ByteLevel") => {
                    added.set_default("bos", false);
                    added.set_default("eos", false);
                }
                Some("TemplateProcessing") => template(part, &mut texts, &mut added),
                _ => {}
            }
        }
    }
    let mut ids: Vec<(&str, u64)> = Vec::new();
    if let Some(settings) = settings {
        for ((role, key), text) in ROLES.iter().zip(&texts) {
            let flag = settings.root[format!("add_{role}_token")].as_bool();
            if let (Some(value), "bos" | "eos" | "sep") = (flag, *role) {
                added.set_default(role, value);
            }
            let token = text.as_ref().and_then(|text| added_tokens.iter().find(|t| t.content == *text));
            if let Some(token) = token {
                ids.push((key, u64::from(token.id)));
            }
        }
    }
    for (role, key) in ROLES {
        let id = config.json.get(&format!("{role}_token_id")).and_then(Value::as_i64);
        if id.is_some_and(|id| id < 0) {
            return Err(config.json.refuse(format!("{role}_token_id is negative")));
        }
        if let Some(id) = id.filter(|_| !ids.iter().any(|(k, _)| k == key)) {
            ids.push((key, id as u64));
        }
    }
    let n_tokens = config.vocab;
    for (key, id) in ids {
        if id >= n_tokens {
            if beyond == Beyond::Skip {
                continue;
            }
            return Err(config.json.refuse(format!("{key} is {id}, the vocabulary has {n_tokens} tokens")));
        }
        kv.push((key.to_owned(), Kv::U32(id as u32)));
    }
    for (role, value) in added.0 {
        kv.push((format!("tokenizer.ggml.add_{role}_token"), Kv::Bool(value)));
    }
    push_chat_template(kv, dir, settings)
}

/// `tokenizer_config.json`'s token in a role: text, or an object with the text as its content.
fn role_text(settings: Option<&Json>, role: &str) -> Option<String> {
    let entry = settings?.get(&format!("{role}_token"))?;
    entry.as_str().or(entry["content"].as_str()).map(str::to_owned)
}

/// A template "bos A eos" tells which tokens a text gets; a last token other than eos is the eos of a text, and
/// what was called eos ends a turn.
fn template(processor: &Value, texts: &mut [Option<String>], added: &mut Added) {
    let at = |role: &str| ROLES.iter().position(|(r, _)| *r == role).expect("a role of the table");
    let (bos, eos, sep, eot) = (at("bos"), at("eos"), at("sep"), at("eot"));
    let part = |piece: Option<&Value>| -> Option<String> {
        piece.and_then(|p| p["SpecialToken"]["id"].as_str()).map(str::to_owned)
    };
    let pieces = |key: &str| processor[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let single = pieces("single");
    let (mut first, mut last) = (None, None);
    if single.len() > 1 {
        first = part(single.first());
        last = part(single.last());
    }
    if first.is_some() {
        texts[bos] = texts[bos].take().or_else(|| first.clone());
        added.set("bos", texts[bos] == first);
    }
    if last.is_some() {
        if texts[eos] != last {
            texts[eot] = std::mem::replace(&mut texts[eos], last.clone());
        }
        added.set("eos", true);
    }
    // Between the two texts of a pair, without what stands at its ends.
    let pair = pieces("pair");
    let from = usize::from(first.is_some() && part(pair.first()) == first);
    let to = pair.len().saturating_sub(usize::from(last.is_some() && part(pair.last()) == last));
    let Some([a, middle @ .., b]) = pair.get(from..to) else { return };
    if a["Sequence"]["id"] == "A" && b["Sequence"]["id"] == "B" && !middle.is_empty() {
        let separates =
            |token: Option<String>| token.is_some() && (token == texts[sep] || token == texts[eos]);
        let one = separates(part(middle.first())) && last.is_none();
        let two = middle.len() == 2 && separates(part(middle.last()));
        added.set("sep", one || two);
    }
}

/// The chat template: in tokenizer_config.json, or a file of its own.
fn push_chat_template(kv: &mut Vec<(String, Kv)>, dir: &Path, settings: Option<&Json>) -> Result<()> {
    let jinja = dir.join("chat_template.jinja");
    let template = match settings.and_then(|s| s.get("chat_template")) {
        Some(template) => template.clone(),
        None if jinja.exists() => {
            Value::String(std::fs::read_to_string(&jinja).map_err(|e| Error::io(&jinja, "read", e))?)
        }
        None => match Json::read_optional(dir.join("chat_template.json"))? {
            Some(file) => file.root["chat_template"].clone(),
            None => return Ok(()),
        },
    };
    if let Some(text) = template.as_str() {
        kv.push(("tokenizer.chat_template".to_owned(), text.into()));
        return Ok(());
    }
    let (mut default, mut names) = (None, Vec::new());
    for choice in template.as_array().into_iter().flatten() {
        let (Some(name), Some(text)) = (choice["name"].as_str(), choice["template"].as_str()) else {
            continue;
        };
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if name == "default" {
            default = Some(text);
        } else if !name.is_empty() && !names.contains(&name.clone().into_bytes()) {
            kv.push((format!("tokenizer.chat_template.{name}"), text.into()));
            names.push(name.into_bytes());
        }
    }
    if !names.is_empty() {
        kv.push(("tokenizer.chat_templates".to_owned(), Kv::Array(Array::Str(names))));
    }
    if let Some(text) = default {
        kv.push(("tokenizer.chat_template".to_owned(), text.into()));
    }
    Ok(())
}
