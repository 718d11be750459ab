//! The keys that llama.cpp's converter would write, in its order.
//!
//! Not taken over: what the converter reads from the model card, and the base name, finetune and version that it
//! guesses from the parts of a model's name.

use super::config::Config;
use super::family::Family;
use super::json::Json;
use super::rope::{Scaling, magnitude};
use super::vocabulary;
use crate::error::Result;
use crate::gguf::{GgmlType, Value as Kv};
use serde_json::Value;
use std::path::Path;

/// ggml's version of its block formats.
const QUANTIZATION_VERSION: u32 = 2;

/// All keys of the model in `dir`, whose matrices have type `ty` and which has `n_params` weights.
pub(super) fn keys(dir: &Path, config: &Config, ty: GgmlType, n_params: u64) -> Result<Vec<(String, Kv)>> {
    let mut kv = vec![pair("general.architecture", config.family.architecture().into())];
    if let Scaling::Long { original_context, long, .. } = &config.rope.scaling {
        // The converter writes it with the tensors, before all else.
        if !long.is_empty() {
            let factor = magnitude(config.context, *original_context) as f32;
            kv.push(pair("phi3.rope.scaling.attn_factor", Kv::F32(factor)));
        }
    }
    kv.push(pair("general.type", "model".into()));
    push_sampling(&mut kv, dir)?;
    let (name, organization) = names(dir, config);
    kv.push(pair("general.name", name.as_str().into()));
    if let Some(organization) = organization {
        kv.push(pair("general.organization", organization.as_str().into()));
    }
    kv.push(pair("general.size_label", size_label(n_params).as_str().into()));
    push_shape(&mut kv, config, ty);
    kv.push(pair("general.quantization_version", Kv::U32(QUANTIZATION_VERSION)));
    vocabulary::push_keys(&mut kv, dir, config)?;
    Ok(kv)
}

fn pair(key: &str, value: Kv) -> (String, Kv) {
    (key.to_owned(), value)
}

/// Everything in `<architecture>.*`, and the file type.
fn push_shape(kv: &mut Vec<(String, Kv)>, config: &Config, ty: GgmlType) {
    let arch = config.family.architecture();
    let mut put = |key: &str, value: Kv| kv.push((format!("{arch}.{key}"), value));
    // Counts are at most u32::MAX, config.json's reader sees to it.
    let count = |n: u64| Kv::U32(n as u32);
    let real = |x: f64| Kv::F32(x as f32);
    if let Scaling::Long { original_context, rotated, .. } = config.rope.scaling {
        put("context_length", count(config.context));
        put("rope.scaling.original_context_length", count(original_context));
        put("embedding_length", count(config.hidden));
        put("feed_forward_length", count(config.feed_forward));
        put("block_count", count(config.layers));
        put("attention.head_count", count(config.heads));
        put("attention.head_count_kv", count(config.kv_heads));
        put("attention.layer_norm_rms_epsilon", real(config.rms_eps));
        put("rope.dimension_count", count(rotated));
        put("rope.freq_base", real(config.rope.theta));
    } else {
        put("block_count", count(config.layers));
        put("context_length", count(config.context));
        put("embedding_length", count(config.hidden));
        put("feed_forward_length", count(config.feed_forward));
        put("attention.head_count", count(config.heads));
        put("attention.head_count_kv", count(config.kv_heads));
        match &config.rope.scaling {
            Scaling::Linear(factor) => {
                put("rope.scaling.type", "linear".into());
                put("rope.scaling.factor", real(*factor));
            }
            Scaling::Yarn { factor, original_context, options } => {
                put("rope.scaling.type", "yarn".into());
                put("rope.scaling.factor", real(*factor));
                put("rope.scaling.original_context_length", count(*original_context));
                options.iter().for_each(|(key, x)| put(&format!("rope.scaling.{key}"), real(*x)));
            }
            Scaling::None | Scaling::Llama3 { .. } | Scaling::Long { .. } => {}
        }
        put("rope.freq_base", real(config.rope.theta));
        if let Some(theta) = config.rope.theta_local {
            put("rope.freq_base_swa", real(theta));
        }
        put("attention.layer_norm_rms_epsilon", real(config.rms_eps));
        if config.key_length {
            put("attention.key_length", count(config.head_dim));
            put("attention.value_length", count(config.head_dim));
        }
    }
    kv.push(pair("general.file_type", Kv::U32(file_type(ty))));
    let mut put = |key: &str, value: Kv| kv.push((format!("{arch}.{key}"), value));
    if let Some(softcap) = config.softcap {
        put("final_logit_softcapping", real(softcap));
    }
    if let Some(window) = config.window {
        put("attention.sliding_window", count(window));
    }
    if matches!(config.family, Family::Llama | Family::Mistral) {
        put("vocab_size", count(config.vocab));
        put("rope.dimension_count", count(config.head_dim));
    }
}

/// llama.cpp's number for files whose matrices have type `ty`.
fn file_type(ty: GgmlType) -> u32 {
    match ty {
        GgmlType::F32 => 0,
        GgmlType::F16 => 1,
        _ => 32,
    }
}

/// Recommended sampling parameters from generation_config.json.
fn push_sampling(kv: &mut Vec<(String, Kv)>, dir: &Path) -> Result<()> {
    let Some(file) = Json::read_optional(dir.join("generation_config.json"))? else { return Ok(()) };
    const INTEGER: bool = true;
    const REAL: bool = false;
    let table = [
        ("top_k", "top_k", INTEGER),
        ("top_p", "top_p", REAL),
        ("min_p", "min_p", REAL),
        ("xtc_probability", "xtc_probability", REAL),
        ("xtc_threshold", "xtc_threshold", REAL),
        ("temperature", "temp", REAL),
        ("penalty_last_n", "penalty_last_n", INTEGER),
        ("penalty_repeat", "penalty_repeat", REAL),
        ("mirostat", "mirostat", INTEGER),
        ("mirostat_tau", "mirostat_tau", REAL),
        ("mirostat_eta", "mirostat_eta", REAL),
    ];
    for (from, to, integer) in table {
        let mut value = file.get(from);
        if from == "penalty_repeat" {
            value = value.or(file.get("repetition_penalty"));
        }
        let value = match value {
            Some(v) if integer => v.as_i64().and_then(|n| i32::try_from(n).ok()).map(Kv::I32),
            Some(v) => v.as_f64().map(|x| Kv::F32(x as f32)),
            None => None,
        };
        kv.extend(value.map(|v| (format!("general.sampling.{to}"), v)));
    }
    Ok(())
}

/// Name and organization: of the model id in config.json, else of the directory.
fn names(dir: &Path, config: &Config) -> (String, Option<String>) {
    let id = config.json.get("_name_or_path").and_then(Value::as_str);
    let id = id.filter(|id| !id.is_empty() && id.matches('/').count() <= 1);
    let (organization, name) = match id.and_then(|id| id.split_once('/')) {
        Some((organization, name)) if !organization.starts_with('.') => (Some(organization), name),
        Some((_, name)) => (None, name),
        None => (None, id.unwrap_or_default()),
    };
    if !name.is_empty() {
        return (title(name), organization.filter(|o| !o.is_empty()).map(title));
    }
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    (title(&dir.file_name().unwrap_or_default().to_string_lossy()), None)
}

/// A model id as a title: dashes become spaces, words in lower case that are no version or size get capitals.
fn title(id: &str) -> String {
    if id.contains(' ') {
        return id.to_owned();
    }
    let words = id.split('-').filter(|w| !w.is_empty()).map(|word| {
        let version = word.strip_prefix('v').unwrap_or(word);
        let is_version = word.starts_with(|c: char| c.is_ascii_digit())
            || (version.len() < word.len()
                && version.split('.').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())));
        let lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        if lower && !is_version { capitalize(word) } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The first letter of every run of letters in upper case.
fn capitalize(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut inside = false;
    for c in word.chars() {
        if inside {
            out.push(c);
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

/// The number of weights with at least two digits: "135M", "1.2B".
fn size_label(n: u64) -> String {
    let n = n as f64;
    let (scaled, suffix) = match n {
        n if n > 1e12 => (n * 1e-12, 'T'),
        n if n > 1e9 => (n * 1e-9, 'B'),
        n if n > 1e6 => (n * 1e-6, 'M'),
        n => (n * 1e-3, 'K'),
    };
    let rounded = scaled.round_ties_even();
    let digits = if rounded == 0.0 { 0 } else { rounded.to_string().len() };
    format!("{scaled:.*}{suffix}", 2usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_titles() {
        assert_eq!(title("SmolLM2-135M-Instruct"), "SmolLM2 135M Instruct");
        assert_eq!(title("smollm2-135M-8k-v0.2-mix1-v2x"), "Smollm2 135M 8k v0.2 Mix1 V2X");
        assert_eq!(title("a name as people write it"), "a name as people write it");
    }

    #[test]
    fn sizes_keep_two_digits() {
        for (n, label) in [
            (134_515_008, "135M"),
            (1_235_814_400, "1.2B"),
            (8_030_261_248, "8.0B"),
            (960, "1.0K"),
            (66_000, "66K"),
        ] {
            assert_eq!(size_label(n), label);
        }
    }
}
