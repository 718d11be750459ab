//! config.json of the Llama family.

use super::json::Json;
use crate::error::Result;
use serde_json::Value;
use std::path::Path;

/// The only architecture that is read directly.
const ARCHITECTURE: &str = "LlamaForCausalLM";
/// What transformers takes for `max_position_embeddings`, `rms_norm_eps` and `rope_theta` of this family where
/// config.json is silent; the converter writes them down.
const DEFAULT_CONTEXT: u64 = 2048;
const DEFAULT_RMS_EPS: f64 = 1e-6;
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// What the model's shape and its keys need to know.
#[derive(Debug)]
pub(super) struct Config {
    pub json: Json,
    pub layers: u64,
    pub hidden: u64,
    pub feed_forward: u64,
    pub heads: u64,
    pub kv_heads: u64,
    /// Values of one attention head.
    pub head_dim: u64,
    pub vocab: u64,
    pub context: u64,
    pub rms_eps: f64,
    pub rope_theta: f64,
    pub rope: RopeScaling,
    /// `tie_word_embeddings`, where given.
    pub tied: Option<bool>,
}

/// How positions beyond the trained context are handled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RopeScaling {
    None,
    /// Positions divided by a factor.
    Linear(f64),
    /// Llama 3's frequency-dependent factors.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_context: f64,
    },
}

impl Config {
    pub fn read(dir: &Path) -> Result<Self> {
        let json = Json::read(dir.join("config.json"))?;
        check_family(&json)?;
        let hidden = json.needed_count("hidden_size")?;
        let heads = json.needed_count("num_attention_heads")?;
        let head_dim = match json.count("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden % heads == 0 => hidden / heads,
            None => return Err(json.refuse(format!("hidden_size {hidden} is no multiple of {heads} heads"))),
        };
        if head_dim % 2 != 0 {
            return Err(json.refuse(format!("heads of the odd size {head_dim} cannot be rotated")));
        }
        let kv_heads = json.count("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(json.refuse(format!("{heads} heads cannot share {kv_heads} key-value heads")));
        }
        let (rope, rope_theta) = rope(&json)?;
        Ok(Self {
            layers: json.needed_count("num_hidden_layers")?,
            hidden,
            feed_forward: json.needed_count("intermediate_size")?,
            heads,
            kv_heads,
            head_dim,
            vocab: json.needed_count("vocab_size")?,
            context: json.count("max_position_embeddings")?.unwrap_or(DEFAULT_CONTEXT),
            rms_eps: json.number(&json.root, "rms_norm_eps")?.unwrap_or(DEFAULT_RMS_EPS),
            rope_theta,
            rope,
            tied: json.get("tie_word_embeddings").and_then(Value::as_bool),
            json,
        })
    }
}

fn check_family(json: &Json) -> Result<()> {
    let architecture = json.root.pointer("/architectures/0").and_then(Value::as_str);
    if architecture != Some(ARCHITECTURE) {
        return Err(json.refuse(format!(
            "architecture {}; only {ARCHITECTURE} is read directly. Convert the model with llama.cpp's \
             convert_hf_to_gguf.py and give the GGUF",
            architecture.unwrap_or("not given"),
        )));
    }
    if json.get("quantization_config").is_some() {
        return Err(json.refuse("the checkpoint is quantized; give the original weights or a GGUF"));
    }
    match json.get("hidden_act").map(|v| v.as_str()) {
        None | Some(Some("silu")) => Ok(()),
        Some(act) => Err(json.refuse(format!(
            "hidden_act {}: llama.cpp computes silu for this family",
            act.unwrap_or("is no string")
        ))),
    }
}

/// Scaling and base frequency, from `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta`.
fn rope(json: &Json) -> Result<(RopeScaling, f64)> {
    let absent = Value::Null;
    let rope = json.get("rope_parameters").or(json.get("rope_scaling")).unwrap_or(&absent);
    let theta = match json.number(rope, "rope_theta")? {
        Some(theta) => theta,
        None => json.number(&json.root, "rope_theta")?.unwrap_or(DEFAULT_ROPE_THETA),
    };
    if theta <= 0.0 {
        return Err(json.refuse("rope_theta must be positive"));
    }
    let kind = rope.get("rope_type").or(rope.get("type")).and_then(Value::as_str).unwrap_or("default");
    let number = |key: &str, default: Option<f64>| {
        json.number(rope, key)?
            .or(default)
            .filter(|x| *x > 0.0)
            .ok_or_else(|| json.refuse(format!("rope scaling '{kind}' needs a positive {key}")))
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear(number("factor", None)?),
        "llama3" => {
            // The converter's fallbacks.
            let (low, high) = (number("low_freq_factor", Some(1.0))?, number("high_freq_factor", Some(4.0))?);
            if low >= high {
                return Err(json.refuse(format!("rope scaling: low_freq_factor {low} is not below {high}")));
            }
            RopeScaling::Llama3 {
                factor: number("factor", Some(8.0))?,
                low,
                high,
                original_context: number("original_max_position_embeddings", Some(8192.0))?,
            }
        }
        other => {
            return Err(json.refuse(format!(
                "rope scaling '{other}' is not read directly; convert the model with llama.cpp's \
                 convert_hf_to_gguf.py and give the GGUF"
            )));
        }
    };
    Ok((scaling, theta))
}

/// Factors of llama.cpp's `rope_freqs.weight` for Llama 3's scaling: 1 for wavelengths that the original context
/// holds often, `factor` for those that exceed it, a smooth transition between. f32 throughout, as PyTorch computes
/// them for the converter.
pub(super) fn rope_factors(config: &Config) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low, high, original_context } = config.rope else { return None };
    let base = config.rope_theta as f32;
    let dim = config.head_dim;
    let factors = (0..dim).step_by(2).map(|i| {
        let frequency = 1.0 / base.powf(i as f32 / dim as f32);
        let wavelength = 1.0 / frequency * std::f32::consts::TAU;
        if f64::from(wavelength) < original_context / high {
            1.0
        } else if f64::from(wavelength) > original_context / low {
            factor as f32
        } else {
            let smooth = (1.0 / wavelength * original_context as f32 - low as f32) / (high - low) as f32;
            1.0 / ((1.0 - smooth) / factor as f32 + smooth)
        }
    });
    Some(factors.collect())
}
