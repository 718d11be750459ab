//! How a checkpoint rotates positions: base frequencies and scaling, in the forms of transformers 4 and 5.

use super::family::{Family, WAY_OUT};
use super::json::Json;
use crate::error::Result;
use serde_json::Value;

/// Base of Gemma 3's blocks with a window.
const DEFAULT_THETA_LOCAL: f64 = 10_000.0;
/// Phi 3's context before its extension.
const DEFAULT_ORIGINAL_CONTEXT: u64 = 4096;

/// Rotation of queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    /// Base frequency.
    pub theta: f64,
    /// That of blocks with a sliding window, where they have their own.
    pub theta_local: Option<f64>,
    pub scaling: Scaling,
}

/// How positions beyond the trained context are handled.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scaling {
    None,
    /// Positions divided by a factor.
    Linear(f64),
    /// Frequencies between interpolated and kept ones. `options` are key names of GGUF with their values.
    Yarn {
        factor: f64,
        original_context: u64,
        options: Vec<(&'static str, f64)>,
    },
    /// Llama 3's frequency-dependent factors.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_context: f64,
    },
    /// Phi 3: a factor per frequency for texts beyond the original context, and for others; none for models that keep it.
    Long {
        original_context: u64,
        rotated: u64,
        long: Vec<f32>,
        short: Vec<f32>,
    },
}

/// What YaRN can be told, as config.json and GGUF call it, in the converter's order.
const YARN: [(&[&str], &str); 4] = [
    (&["extrapolation_factor"], "yarn_ext_factor"),
    (&["attention_factor", "attn_factor"], "yarn_attn_factor"),
    (&["beta_fast"], "yarn_beta_fast"),
    (&["beta_slow"], "yarn_beta_slow"),
];

impl Rope {
    /// Reads `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` of a model of `heads` heads and
    /// `hidden` values.
    pub fn read(json: &Json, family: Family, hidden: u64, heads: u64) -> Result<Self> {
        let absent = Value::Null;
        let said = json.get("rope_parameters").or(json.get("rope_scaling")).unwrap_or(&absent);
        // Transformers 5 keeps the parameters of Gemma's two kinds of blocks apart.
        let apart = said.get("full_attention").is_some() || said.get("sliding_attention").is_some();
        let rope = said.get("full_attention").unwrap_or(said);
        let of_model = |key: &str| if apart { Ok(None) } else { json.number(&json.root, key) };
        let theta = match json.number(rope, "rope_theta")? {
            Some(theta) => theta,
            None => of_model("rope_theta")?.unwrap_or(family.defaults().rope_theta),
        };
        let theta_local = match family {
            Family::Gemma3 if apart => json.number(&said["sliding_attention"], "rope_theta")?,
            Family::Gemma3 => Some(of_model("rope_local_base_freq")?.unwrap_or(DEFAULT_THETA_LOCAL)),
            _ => None,
        };
        if theta <= 0.0 || theta_local.is_some_and(|theta| theta <= 0.0) {
            return Err(json.refuse("rope_theta must be positive"));
        }
        let scaling = match family {
            Family::Phi3 => long(json, rope, hidden, heads)?,
            _ => scaling(json, rope, family)?,
        };
        Ok(Self { theta, theta_local, scaling })
    }
}

fn kind(rope: &Value) -> &str {
    rope.get("rope_type").or(rope.get("type")).and_then(Value::as_str).unwrap_or("default")
}

fn scaling(json: &Json, rope: &Value, family: Family) -> Result<Scaling> {
    let kind = kind(rope);
    let number = |key: &str, default: Option<f64>| {
        json.number(rope, key)?
            .or(default)
            .filter(|x| *x > 0.0)
            .ok_or_else(|| json.refuse(format!("rope scaling '{kind}' needs a positive {key}")))
    };
    match (kind, family) {
        ("default", _) => Ok(Scaling::None),
        ("linear", _) => Ok(Scaling::Linear(number("factor", None)?)),
        ("yarn", Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3) => {
            let original_context = original(json, rope)
                .and_then(Value::as_u64)
                .filter(|n| u32::try_from(*n).is_ok())
                .ok_or_else(|| {
                    json.refuse("rope scaling 'yarn' needs original_max_position_embeddings, an integer")
                })?;
            let mut options = Vec::new();
            for (names, key) in YARN {
                for name in names {
                    if let Some(value) = json.number(rope, name)? {
                        options.push((key, value));
                        break;
                    }
                }
            }
            Ok(Scaling::Yarn { factor: number("factor", None)?, original_context, options })
        }
        ("llama3", Family::Llama | Family::Mistral) => {
            // The converter's fallbacks.
            let (low, high) = (number("low_freq_factor", Some(1.0))?, number("high_freq_factor", Some(4.0))?);
            if low >= high {
                return Err(json.refuse(format!("rope scaling: low_freq_factor {low} is not below {high}")));
            }
            Ok(Scaling::Llama3 {
                factor: number("factor", Some(8.0))?,
                low,
                high,
                original_context: number("original_max_position_embeddings", Some(8192.0))?,
            })
        }
        _ => Err(unread(json, kind)),
    }
}

/// The context before an extension, among the scaling's parameters or beside them.
fn original<'a>(json: &'a Json, rope: &'a Value) -> Option<&'a Value> {
    const KEY: &str = "original_max_position_embeddings";
    rope.get(KEY).filter(|v| !v.is_null()).or(json.get(KEY))
}

fn unread(json: &Json, kind: &str) -> crate::error::Error {
    json.refuse(format!("rope scaling '{kind}' is not read directly; {WAY_OUT}"))
}

/// Phi 3's kinds.
fn long(json: &Json, rope: &Value, hidden: u64, heads: u64) -> Result<Scaling> {
    let part = match json.number(rope, "partial_rotary_factor")? {
        Some(part) => part,
        None => json.number(&json.root, "partial_rotary_factor")?.unwrap_or(1.0),
    };
    if !(part > 0.0 && part <= 1.0) {
        return Err(json.refuse(format!("partial_rotary_factor is {part}, a part of 1 is needed")));
    }
    let rotated = (part * hidden as f64) as u64 / heads;
    let original_context = match original(json, rope) {
        Some(n) => n.as_u64().filter(|n| (2..=u64::from(u32::MAX)).contains(n)).ok_or_else(|| {
            json.refuse(format!("original_max_position_embeddings is {n}, an integer above 1 is needed"))
        })?,
        None => DEFAULT_ORIGINAL_CONTEXT,
    };
    let factors = |key: &str| -> Result<Vec<f32>> {
        let list = rope[key].as_array().map(Vec::as_slice).unwrap_or_default();
        let values: Option<Vec<f32>> = list.iter().map(|x| x.as_f64().map(|x| x as f32)).collect();
        values
            .filter(|v| v.len() as u64 == rotated / 2 && v.iter().all(|x| x.is_finite() && *x > 0.0))
            .ok_or_else(|| {
                json.refuse(format!("rope scaling: {key} must be {} positive numbers", rotated / 2))
            })
    };
    let (long, short) = match kind(rope) {
        "default" => (Vec::new(), Vec::new()),
        "longrope" | "su" => (factors("long_factor")?, factors("short_factor")?),
        other => return Err(unread(json, other)),
    };
    Ok(Scaling::Long { original_context, rotated, long, short })
}

/// Factor of rotated values with Phi 3's long factors, for a model of so long a context.
pub(super) fn magnitude(context: u64, original_context: u64) -> f64 {
    let scale = context as f64 / original_context as f64;
    if scale > 1.0 { (1.0 + scale.ln() / (original_context as f64).ln()).sqrt() } else { 1.0 }
}

/// Tensors that llama.cpp wants for the scaling, with GGUF's names, for heads of `dim` values.
pub(super) fn tensors(rope: &Rope, dim: u64) -> Vec<(&'static str, Vec<f32>)> {
    match &rope.scaling {
        Scaling::Llama3 { factor, low, high, original_context } => {
            vec![("rope_freqs.weight", llama3(rope.theta, dim, *factor, *low, *high, *original_context))]
        }
        Scaling::Long { long, short, .. } if !long.is_empty() => {
            vec![("rope_factors_long.weight", long.clone()), ("rope_factors_short.weight", short.clone())]
        }
        _ => Vec::new(),
    }
}

/// Factors for Llama 3's scaling: 1 for wavelengths that the original context holds often, `factor` for those that
/// exceed it, a smooth transition between. f32 throughout, as PyTorch computes them for the converter.
fn llama3(theta: f64, dim: u64, factor: f64, low: f64, high: f64, original_context: f64) -> Vec<f32> {
    let base = theta as f32;
    let of = |i: u64| {
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
    };
    (0..dim).step_by(2).map(of).collect()
}
