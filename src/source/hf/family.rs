//! Families of models whose checkpoints are read, and what transformers takes for what a config.json leaves out.

use super::json::Json;
use crate::error::Result;
use serde_json::Value;

/// What an unread checkpoint needs.
pub(super) const WAY_OUT: &str = "convert the model with llama.cpp's convert_hf_to_gguf.py and give the GGUF";

/// A family of decoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma3,
    Phi3,
}

/// Names in config.json. The model with images of Gemma 3 is read for its text part.
const ARCHITECTURES: [(&str, Family); 7] = [
    ("LlamaForCausalLM", Family::Llama),
    ("MistralForCausalLM", Family::Mistral),
    ("Qwen2ForCausalLM", Family::Qwen2),
    ("Qwen3ForCausalLM", Family::Qwen3),
    ("Gemma3ForCausalLM", Family::Gemma3),
    ("Gemma3ForConditionalGeneration", Family::Gemma3),
    ("Phi3ForCausalLM", Family::Phi3),
];

/// Values of transformers' configuration classes; `None` where config.json must speak, or another value stands in.
pub(super) struct Defaults {
    pub context: u64,
    pub rms_eps: f64,
    pub rope_theta: f64,
    pub heads: Option<u64>,
    pub kv_heads: Option<u64>,
    pub head_dim: Option<u64>,
    pub vocab: Option<u64>,
    pub window: Option<u64>,
}

impl Family {
    /// The family that config.json names.
    ///
    /// # Errors
    /// None that is read.
    pub fn of(json: &Json) -> Result<Self> {
        let said = json.root.pointer("/architectures/0").and_then(Value::as_str);
        match ARCHITECTURES.iter().find(|(name, _)| Some(*name) == said) {
            Some((_, family)) => Ok(*family),
            None => Err(json.refuse(format!(
                "architecture {} is not read directly ({} are); {WAY_OUT}",
                said.unwrap_or("not given"),
                ARCHITECTURES.map(|(name, _)| name).join(", "),
            ))),
        }
    }

    /// `general.architecture`.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma3 => "gemma3",
            Family::Phi3 => "phi3",
        }
    }

    /// Key and value of the gate's function in config.json; llama.cpp computes no other.
    pub fn activation(self) -> (&'static str, &'static str) {
        match self {
            Family::Gemma3 => ("hidden_activation", "gelu_pytorch_tanh"),
            _ => ("hidden_act", "silu"),
        }
    }

    pub fn defaults(self) -> Defaults {
        let common = Defaults {
            context: 2048,
            rms_eps: 1e-6,
            rope_theta: 10_000.0,
            heads: None,
            kv_heads: None,
            head_dim: None,
            vocab: None,
            window: None,
        };
        match self {
            Family::Llama => common,
            Family::Mistral => Defaults { context: 131_072, ..common },
            Family::Qwen2 => Defaults { context: 32_768, ..common },
            Family::Qwen3 => Defaults { context: 32_768, head_dim: Some(128), ..common },
            // Models with images have only what differs from these in text_config.
            Family::Gemma3 => Defaults {
                context: 131_072,
                rope_theta: 1_000_000.0,
                heads: Some(8),
                kv_heads: Some(4),
                head_dim: Some(256),
                vocab: Some(262_208),
                window: Some(4096),
                ..common
            },
            Family::Phi3 => Defaults { context: 4096, rms_eps: 1e-5, ..common },
        }
    }
}
