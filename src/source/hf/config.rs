//! config.json of the families that are read.

use super::family::{Family, WAY_OUT};
use super::json::Json;
use super::rope::Rope;
use crate::error::Result;
use serde_json::Value;
use std::path::Path;

/// What the model's shape and its keys need to know.
#[derive(Debug)]
pub(super) struct Config {
    pub json: Json,
    pub family: Family,
    pub layers: u64,
    pub hidden: u64,
    pub feed_forward: u64,
    pub heads: u64,
    pub kv_heads: u64,
    /// Values of one attention head.
    pub head_dim: u64,
    /// Whether the file says how long heads are.
    pub key_length: bool,
    pub vocab: u64,
    pub context: u64,
    pub rms_eps: f64,
    pub rope: Rope,
    /// Positions that blocks with a window see; 0 says that there are none.
    pub window: Option<u64>,
    /// Bound of the logits.
    pub softcap: Option<f64>,
    /// `tie_word_embeddings`, where given.
    pub tied: Option<bool>,
}

impl Config {
    pub fn read(dir: &Path) -> Result<Self> {
        let mut json = Json::read(dir.join("config.json"))?;
        let family = Family::of(&json)?;
        if json.get("quantization_config").is_some() {
            return Err(json.refuse("the checkpoint is quantized; give the original weights or a GGUF"));
        }
        if matches!(family, Family::Qwen2 | Family::Qwen3) {
            check_text_model(dir, &json)?;
        }
        text_part(&mut json);
        check_activation(&json, family)?;
        let defaults = family.defaults();
        let count = |key: &str, default: Option<u64>| match json.count(key)?.or(default) {
            Some(n) => Ok(n),
            None => Err(json.refuse(format!("{key} is missing"))),
        };
        let hidden = count("hidden_size", None)?;
        let heads = count("num_attention_heads", defaults.heads)?;
        let said = json.count("head_dim")?.or(defaults.head_dim);
        let head_dim = match said {
            Some(head_dim) => head_dim,
            None if hidden % heads == 0 => hidden / heads,
            None => return Err(json.refuse(format!("hidden_size {hidden} is no multiple of {heads} heads"))),
        };
        if head_dim % 2 != 0 {
            return Err(json.refuse(format!("heads of the odd size {head_dim} cannot be rotated")));
        }
        // llama.cpp divides the width by the number of heads here.
        if family == Family::Phi3 && head_dim * heads != hidden {
            return Err(json.refuse(format!("{heads} heads of {head_dim} do not make hidden_size {hidden}")));
        }
        let kv_heads = match family {
            Family::Llama | Family::Phi3 => count("num_key_value_heads", Some(heads))?,
            _ => count("num_key_value_heads", defaults.kv_heads)?,
        };
        if heads % kv_heads != 0 {
            return Err(json.refuse(format!("{heads} heads cannot share {kv_heads} key-value heads")));
        }
        let layers = count("num_hidden_layers", None)?;
        let window = match family {
            Family::Gemma3 => gemma_window(&json, layers, defaults.window)?,
            Family::Phi3 => Some(json.count("sliding_window")?.unwrap_or(0)),
            _ => None,
        };
        let softcap = match family {
            Family::Gemma3 => json.number(&json.root, "final_logit_softcapping")?.filter(|x| *x != 0.0),
            _ => None,
        };
        Ok(Self {
            family,
            layers,
            hidden,
            feed_forward: count("intermediate_size", None)?,
            heads,
            kv_heads,
            head_dim,
            key_length: said.is_some() || family == Family::Llama,
            vocab: count("vocab_size", defaults.vocab)?,
            context: count("max_position_embeddings", Some(defaults.context))?,
            rms_eps: json.number(&json.root, "rms_norm_eps")?.unwrap_or(defaults.rms_eps),
            rope: Rope::read(&json, family, hidden, heads)?,
            window,
            softcap,
            tied: json.get("tie_word_embeddings").and_then(Value::as_bool),
            json,
        })
    }
}

/// Embedding models and rerankers share the architecture of text models, but their GGUF says more.
fn check_text_model(dir: &Path, json: &Json) -> Result<()> {
    let folder = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let names = [
        folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase(),
        json.get("_name_or_path").and_then(Value::as_str).unwrap_or_default().to_lowercase(),
    ];
    if dir.join("modules.json").exists() || names.iter().any(|name| name.contains("qwen3-reranker")) {
        return Err(json.refuse(format!("an embedding or reranking model is not read directly; {WAY_OUT}")));
    }
    Ok(())
}

/// Puts a `text_config` over the configuration of a model that sees more than text.
fn text_part(json: &mut Json) {
    let Some(Value::Object(text)) = json.root.get("text_config").cloned() else { return };
    let Some(root) = json.root.as_object_mut() else { return };
    for (key, value) in text {
        // The converter takes names and tokens from the outer one, as far as it has them.
        let outer = key.ends_with("_token_id") || key == "_name_or_path" || key == "architectures";
        if !(outer && root.get(&key).is_some_and(|v| !v.is_null())) {
            root.insert(key, value);
        }
    }
}

fn check_activation(json: &Json, family: Family) -> Result<()> {
    let (key, known) = family.activation();
    match json.get(key).map(|v| v.as_str()) {
        None => Ok(()),
        Some(Some(act)) if act == known => Ok(()),
        Some(act) => Err(json.refuse(format!(
            "{key} {}: llama.cpp computes {known} for this family",
            act.unwrap_or("is no string")
        ))),
    }
}

/// The window of Gemma 3. llama.cpp takes for granted that each sixth block has none.
fn gemma_window(json: &Json, layers: u64, default: Option<u64>) -> Result<Option<u64>> {
    if json.get("attn_logit_softcapping").is_some() {
        return Err(
            json.refuse("attn_logit_softcapping is set, which llama.cpp does not compute for this family")
        );
    }
    let pattern = json.count("sliding_window_pattern")?.or(json.count("_sliding_window_pattern")?);
    let full = |i: usize| i % 6 == 5;
    let types = json.get("layer_types").and_then(Value::as_array);
    let usual = types.is_none_or(|types| {
        let kind = |i: usize| if full(i) { "full_attention" } else { "sliding_attention" };
        types.len() as u64 == layers && types.iter().enumerate().all(|(i, t)| t == kind(i))
    });
    match pattern {
        Some(1) => Ok(None),
        None | Some(6) if usual => Ok(json.count("sliding_window")?.or(default)),
        _ => Err(json
            .refuse("the blocks with a sliding window are not five of six, as llama.cpp takes them to be")),
    }
}
