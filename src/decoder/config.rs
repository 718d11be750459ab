//! What a decoder is: the numbers and choices that set its graph, read from GGUF keys.

use crate::error::{Error, Result};
use crate::gguf::{Array, Value};
use std::path::Path;

/// Architectures (`general.architecture`) whose graph is described here; mistral models use `llama`.
pub const SUPPORTED: [&str; 5] = ["llama", "qwen2", "qwen3", "gemma3", "phi3"];

/// Which components of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `2i` and `2i + 1`.
    Adjacent,
    /// `i` and `i + dims/2`.
    Halves,
}

/// Function of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// GELU in its tanh form.
    Gelu,
}

/// Graph of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `general.architecture`.
    pub arch: String,
    /// Blocks.
    pub blocks: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the gated layer.
    pub d_ff: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub heads_kv: usize,
    /// Width of query and key heads.
    pub d_key: usize,
    /// Width of value heads.
    pub d_value: usize,
    /// Epsilon of the RMS norms.
    pub eps: f32,
    /// Components of a head that are rotated.
    pub rope_dims: usize,
    /// Pairing of the rotation.
    pub rope_style: RopeStyle,
    /// Base of the angles, for full-attention and for sliding-window blocks.
    pub rope_base: [f64; 2],
    /// Factor of positions (`1/factor` of linear scaling), likewise.
    pub rope_scale: [f64; 2],
    /// Factor of rotated components.
    pub rope_magnitude: f32,
    /// Window of each block, `None` for full attention.
    pub windows: Vec<Option<usize>>,
    /// Factor of attention scores.
    pub attention_scale: f32,
    /// Function of the gate.
    pub activation: Activation,
    /// Factor of the embeddings.
    pub embedding_scale: f32,
    /// `c tanh(logits / c)`.
    pub logit_softcap: Option<f32>,
    /// Context the model was trained for.
    pub context: usize,
    /// Context before its extension by rope factors.
    pub original_context: usize,
}

struct Keys<'a> {
    path: &'a Path,
    kv: &'a [(String, Value)],
    arch: &'a str,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        let name = format!("{}.{key}", self.arch);
        self.kv.iter().find(|(k, _)| *k == name).map(|(_, v)| v)
    }

    fn fault(&self, key: &str, what: &str) -> Error {
        Error::unsupported(
            self.path,
            format!(
                "key {}.{key} {what}, so there is no forward pass: the model can be compressed, with an imatrix too, but not \
                 calibrated, tuned or evaluated",
                self.arch
            ),
        )
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let one = match value {
            Value::Array(Array::U32(x)) if x.windows(2).all(|w| w[0] == w[1]) => {
                x.first().map(|&x| u64::from(x))
            }
            Value::Array(Array::I32(x)) if x.windows(2).all(|w| w[0] == w[1]) => {
                x.first().and_then(|&x| u64::try_from(x).ok())
            }
            other => other.as_u64(),
        };
        match one {
            Some(n) if n < 1 << 31 => Ok(Some(n as usize)),
            _ => Err(self.fault(key, "is not one number for all blocks")),
        }
    }

    fn need(&self, key: &str) -> Result<usize> {
        self.count(key)?.filter(|&n| n > 0).ok_or_else(|| self.fault(key, "is missing or 0"))
    }

    fn real(&self, key: &str) -> Option<f64> {
        self.get(key).and_then(Value::as_f64)
    }
}

impl Config {
    /// Reads the keys of the model in `path` (for messages).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another architecture, a feature that the graph here does not have, or keys that
    /// contradict each other.
    pub fn from_kv(path: &Path, kv: &[(String, Value)]) -> Result<Self> {
        let arch = kv.iter().find(|(k, _)| k == "general.architecture").and_then(|(_, v)| v.as_str());
        let arch = arch.unwrap_or("(none)");
        if !SUPPORTED.contains(&arch) {
            return Err(Error::unsupported(
                path,
                format!(
                    "no forward pass for architecture '{arch}' (there is one for {}): it can be compressed with an \
                     imatrix, but not calibrated, tuned or evaluated",
                    SUPPORTED.join(", ")
                ),
            ));
        }
        let k = Keys { path, kv, arch };
        if k.count("expert_count")?.unwrap_or(0) > 0 {
            return Err(k.fault("expert_count", "is not 0: no forward pass for mixtures of experts"));
        }
        let (d_model, heads) = (k.need("embedding_length")?, k.need("attention.head_count")?);
        let heads_kv = k.count("attention.head_count_kv")?.unwrap_or(heads);
        let d_key = k.count("attention.key_length")?.unwrap_or(d_model / heads);
        let d_value = k.count("attention.value_length")?.unwrap_or(d_model / heads);
        let rope_dims = k.count("rope.dimension_count")?.unwrap_or(d_key);
        if heads_kv == 0 || heads % heads_kv != 0 {
            return Err(k.fault("attention.head_count_kv", "does not divide the number of heads"));
        }
        if rope_dims > d_key || rope_dims % 2 != 0 || d_key == 0 || d_value == 0 {
            return Err(k.fault("rope.dimension_count", "does not fit the width of a head"));
        }
        let blocks = k.need("block_count")?;
        if blocks > 4096 {
            return Err(k.fault("block_count", "is out of range"));
        }
        let linear = position_scale(&k)?;
        let gemma = arch == "gemma3";
        let base = k.real("rope.freq_base").unwrap_or(10000.0);
        let context = k.count("context_length")?.unwrap_or(usize::MAX);
        Ok(Config {
            arch: arch.to_owned(),
            blocks,
            d_model,
            d_ff: k.need("feed_forward_length")?,
            heads,
            heads_kv,
            d_key,
            d_value,
            eps: k
                .real("attention.layer_norm_rms_epsilon")
                .ok_or_else(|| k.fault("attention.layer_norm_rms_epsilon", "is missing"))?
                as f32,
            rope_dims,
            rope_style: if arch == "llama" { RopeStyle::Adjacent } else { RopeStyle::Halves },
            rope_base: [base, k.real("rope.freq_base_swa").unwrap_or(if gemma { 10000.0 } else { base })],
            rope_scale: [linear, if gemma { 1.0 } else { linear }],
            rope_magnitude: k.real("rope.scaling.attn_factor").unwrap_or(1.0) as f32,
            windows: windows(&k, gemma, blocks)?,
            attention_scale: match gemma && blocks == 62 {
                true => 1.0 / ((d_model / heads) as f32).sqrt(),
                false => 1.0 / (d_key as f32).sqrt(),
            },
            activation: if gemma { Activation::Gelu } else { Activation::Silu },
            embedding_scale: if gemma { (d_model as f32).sqrt() } else { 1.0 },
            // llama.cpp's graphs of the other families ignore the key, and all of them that of attention.
            logit_softcap: k.real("final_logit_softcapping").filter(|&x| gemma && x != 0.0).map(|x| x as f32),
            context,
            original_context: k.count("rope.scaling.original_context_length")?.unwrap_or(context),
        })
    }

    /// Width of the joined q, k and v rows.
    pub fn joined(&self) -> usize {
        self.heads * self.d_key + self.heads_kv * (self.d_key + self.d_value)
    }
}

/// Factor of positions, by llama.cpp's rule: scaling is linear unless a key says otherwise, its factor has an older key too, and
/// 0 stands for none. longrope has factors of frequencies besides.
fn position_scale(k: &Keys) -> Result<f64> {
    match k.get("rope.scaling.type").map(Value::as_str) {
        Some(Some("none")) => return Ok(1.0),
        None | Some(Some("linear" | "longrope")) => {}
        Some(_) => return Err(k.fault("rope.scaling.type", "is not none, linear or longrope")),
    }
    let key = "rope.scaling.factor";
    let key = if k.get(key).is_some() { key } else { "rope.scale_linear" };
    match k.get(key).map(Value::as_f64) {
        None | Some(Some(0.0)) => Ok(1.0),
        Some(Some(f)) if f > 0.0 && f.is_finite() => Ok(1.0 / f),
        Some(_) => Err(k.fault(key, "is no factor of positions")),
    }
}

/// gemma3 sees a window in five blocks of six unless a pattern says otherwise; llama.cpp's graphs of the other
/// families ignore the key.
fn windows(k: &Keys, gemma: bool, blocks: usize) -> Result<Vec<Option<usize>>> {
    let window = k.count("attention.sliding_window")?.filter(|&w| gemma && w > 0);
    let local: Vec<bool> = match k.get("attention.sliding_window_pattern") {
        Some(Value::Array(Array::Bool(pattern))) => {
            (0..blocks).map(|i| pattern.get(i) == Some(&true)).collect()
        }
        Some(Value::Array(Array::U32(pattern))) => {
            (0..blocks).map(|i| pattern.get(i).is_some_and(|&x| x != 0)).collect()
        }
        Some(Value::Array(Array::I32(pattern))) => {
            (0..blocks).map(|i| pattern.get(i).is_some_and(|&x| x != 0)).collect()
        }
        other => {
            let n = other.and_then(Value::as_u64).unwrap_or(6) as usize;
            (0..blocks).map(|i| n == 0 || i % n < n - 1).collect()
        }
    };
    Ok(local.into_iter().map(|l| window.filter(|_| l)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(more: &[(&str, Value)]) -> Vec<(String, Value)> {
        let count = |n: u32| Value::U32(n);
        let all = [
            ("embedding_length", count(16)),
            ("attention.head_count", count(2)),
            ("block_count", count(1)),
            ("feed_forward_length", count(32)),
            ("attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ];
        let all = all.iter().chain(more).map(|(k, v)| (format!("llama.{k}"), v.clone()));
        all.chain([("general.architecture".to_owned(), Value::from("llama"))]).collect()
    }

    #[test]
    fn positions_are_scaled_as_llama_cpp_does() {
        let (kind, factor, old) = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear");
        let of = |more: &[(&str, Value)]| {
            Config::from_kv(Path::new("m.gguf"), &keys(more)).map(|c| c.rope_scale).map_err(|e| e.to_string())
        };
        let real = Value::F32;
        for (more, scale) in [
            (&[][..], 1.0),
            // Linear is the default.
            (&[(factor, real(4.0))], 0.25),
            (&[(old, real(2.0))], 0.5),
            (&[(factor, real(4.0)), (old, real(2.0))], 0.25),
            (&[(factor, real(0.0)), (old, real(2.0))], 1.0),
            (&[(kind, "linear".into())], 1.0),
            (&[(kind, "linear".into()), (old, real(8.0))], 0.125),
            (&[(kind, "none".into()), (factor, real(4.0))], 1.0),
            (&[(kind, "longrope".into()), (factor, real(4.0))], 0.25),
        ] {
            assert_eq!(of(more).unwrap(), [scale; 2], "{more:?}");
        }
        for (more, word) in [
            (&[(kind, "yarn".into()), (factor, real(4.0))][..], "rope.scaling.type is not"),
            (&[(kind, Value::U32(1))], "rope.scaling.type is not"),
            (&[(factor, real(-2.0))], "rope.scaling.factor is no factor"),
            (&[(old, real(f32::NAN))], "rope.scale_linear is no factor"),
        ] {
            let e = of(more).unwrap_err();
            assert!(e.contains(word), "{e}");
        }
    }
}
