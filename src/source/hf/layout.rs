//! Which tensors a checkpoint of a family has, what GGUF calls them, and how their rows are ordered there.

use super::config::Config;
use super::family::Family;
use crate::source::names::{self, Rotary};

/// A tensor that the architecture knows.
#[derive(Debug)]
pub(in crate::source) struct Slot {
    /// Name in the checkpoint, without the part that says that it belongs to the language model of several.
    pub hf: String,
    /// Name in a GGUF.
    pub gguf: String,
    /// Sizes, slowest first.
    pub shape: Vec<u64>,
    /// Heads whose rows are interleaved in a GGUF.
    pub rotary_heads: Option<usize>,
    /// What a GGUF has more in each value.
    pub shift: f32,
    /// Whether a checkpoint may lack it.
    pub optional: bool,
}

/// Whether linear layers have biases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Biases {
    Never,
    Maybe,
    Always,
}

/// Where Gemma 3 and Phi 3 differ from the names of [`names::hugging_face`].
const GEMMA3: [(&str, &str); 3] = [
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const PHI3: [(&str, &str); 2] = [("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")];

/// All tensors of the model in the order in which they are written.
pub(super) fn slots(config: &Config) -> Vec<Slot> {
    let (hidden, vocab) = (config.hidden, config.vocab);
    let mut slots = vec![slot(config, "token_embd", "weight", &[vocab, hidden])];
    for n in 0..config.layers {
        let block = |part: &str| format!("blk.{n}.{part}");
        for (part, length) in norms(config) {
            slots.push(norm(config, &block(part), length));
        }
        for (part, d_out, d_in, biases) in linears(config) {
            let base = block(part);
            let rotary = names::rotary(config.family.architecture(), &base);
            let rotary_heads = rotary.map(|rotary| match rotary {
                Rotary::Queries => config.heads as usize,
                Rotary::Keys => config.kv_heads as usize,
            });
            slots.push(Slot { rotary_heads, ..slot(config, &base, "weight", &[d_out, d_in]) });
            if biases != Biases::Never {
                let optional = biases == Biases::Maybe;
                slots.push(Slot { rotary_heads, optional, ..slot(config, &base, "bias", &[d_out]) });
            }
        }
    }
    slots.push(norm(config, "output_norm", hidden));
    if config.tied != Some(true) {
        // Old configurations do not say whether the head is tied; then its absence does.
        let optional = config.tied.is_none();
        slots.push(Slot { optional, ..slot(config, "output", "weight", &[vocab, hidden]) });
    }
    slots
}

/// Norms of a block and their lengths.
fn norms(config: &Config) -> Vec<(&'static str, u64)> {
    let (hidden, head) = (config.hidden, config.head_dim);
    let mut norms = vec![("attn_norm", hidden), ("ffn_norm", hidden)];
    if matches!(config.family, Family::Qwen3 | Family::Gemma3) {
        norms.extend([("attn_q_norm", head), ("attn_k_norm", head)]);
    }
    if config.family == Family::Gemma3 {
        norms.extend([("post_attention_norm", hidden), ("post_ffw_norm", hidden)]);
    }
    norms
}

/// Linear layers of a block with their outputs, inputs and biases.
fn linears(config: &Config) -> Vec<(&'static str, u64, u64, Biases)> {
    let (hidden, ff) = (config.hidden, config.feed_forward);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let (of_qkv, of_others) = match config.family {
        Family::Llama | Family::Mistral => (Biases::Maybe, Biases::Maybe),
        Family::Qwen2 => (Biases::Always, Biases::Never),
        Family::Qwen3 | Family::Gemma3 | Family::Phi3 => (Biases::Never, Biases::Never),
    };
    let mut linears = match config.family {
        Family::Phi3 => vec![("attn_qkv", q + 2 * kv, hidden, of_qkv)],
        _ => vec![
            ("attn_q", q, hidden, of_qkv),
            ("attn_k", kv, hidden, of_qkv),
            ("attn_v", kv, hidden, of_qkv),
        ],
    };
    linears.push(("attn_output", hidden, q, of_others));
    match config.family {
        // Gate and up are one.
        Family::Phi3 => linears.push(("ffn_up", 2 * ff, hidden, of_others)),
        _ => linears.extend([("ffn_gate", ff, hidden, of_others), ("ffn_up", ff, hidden, of_others)]),
    }
    linears.push(("ffn_down", hidden, ff, of_others));
    linears
}

/// A norm's weights. Gemma multiplies by one more than the checkpoint has.
fn norm(config: &Config, base: &str, length: u64) -> Slot {
    let shift = if config.family == Family::Gemma3 { 1.0 } else { 0.0 };
    Slot { shift, ..slot(config, base, "weight", &[length]) }
}

/// The tensor `part` of the module that GGUF calls `base`.
fn slot(config: &Config, base: &str, part: &str, shape: &[u64]) -> Slot {
    let module = module(config.family, base).expect("the family's modules have names");
    Slot {
        hf: format!("{module}.{part}"),
        gguf: format!("{base}.{part}"),
        shape: shape.to_vec(),
        rotary_heads: None,
        shift: 0.0,
        optional: false,
    }
}

/// Hugging Face's name of a module.
fn module(family: Family, base: &str) -> Option<String> {
    let own: &[(&str, &str)] = match family {
        Family::Gemma3 => &GEMMA3,
        Family::Phi3 => &PHI3,
        _ => &[],
    };
    let of_block = base.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let renamed = of_block.and_then(|(n, part)| {
        let (_, hf) = own.iter().find(|(gguf, _)| *gguf == part)?;
        Some(format!("model.layers.{n}.{hf}"))
    });
    renamed.or_else(|| names::hugging_face(base))
}

/// The name of a tensor without the part that says that it belongs to the language model of a model with images.
pub(super) fn plain_name(stored: &str) -> String {
    stored.replacen("language_model.", "", 1)
}

/// Whether a GGUF has no place for the tensor because llama.cpp computes it, a tied head repeats it, or it sees images.
pub(super) fn is_redundant(hf: &str, config: &Config) -> bool {
    const IMAGES: [&str; 2] = ["vision_tower.", "multi_modal_projector."];
    let sees = |name: &str| IMAGES.iter().any(|part| name.starts_with(part));
    let images = config.family == Family::Gemma3 && sees(hf.strip_prefix("model.").unwrap_or(hf));
    images || hf.ends_with(".rotary_emb.inv_freq") || (hf == "lm_head.weight" && config.tied == Some(true))
}

/// [`interleave_rows`] where there are rotary heads.
pub(crate) fn interleaved<T: Copy>(data: Vec<T>, heads: Option<usize>, rows: usize) -> Vec<T> {
    match heads {
        Some(heads) => interleave_rows(&data, heads, rows),
        None => data,
    }
}

/// [`separate_rows`] where there are rotary heads.
pub(crate) fn separated<T: Copy>(data: Vec<T>, heads: Option<usize>, rows: usize) -> Vec<T> {
    match heads {
        Some(heads) => separate_rows(&data, heads, rows),
        None => data,
    }
}

/// Reorders the rows of a query or key projection from Hugging Face's halves to llama.cpp's pairs: the two rows that
/// one rotary angle turns are `head/2` apart there and neighbours here. `data` holds `heads * head` rows of equal
/// length.
///
/// out[h][2 j + p] = data[h][p head/2 + j]
fn interleave_rows<T: Copy>(data: &[T], heads: usize, rows: usize) -> Vec<T> {
    permute_rows(data, heads, rows, |half, i| i % 2 * half + i / 2)
}

/// The inverse of [`interleave_rows`].
pub fn separate_rows<T: Copy>(data: &[T], heads: usize, rows: usize) -> Vec<T> {
    permute_rows(data, heads, rows, |half, i| i % half * 2 + i / half)
}

/// Row `i` of each head of the result is row `from(head / 2, i)` of the same head of `data`.
fn permute_rows<T: Copy>(
    data: &[T],
    heads: usize,
    rows: usize,
    from: impl Fn(usize, usize) -> usize,
) -> Vec<T> {
    let (head, row) = (rows / heads, data.len() / rows);
    let mut out = Vec::with_capacity(data.len());
    for i in 0..rows {
        let source = i / head * head + from(head / 2, i % head);
        out.extend_from_slice(&data[source * row..(source + 1) * row]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_angle_become_neighbours_and_back() {
        // Two heads of six rows of two values.
        let data: Vec<u32> = (0..24).collect();
        let gguf = interleave_rows(&data, 2, 12);
        let first: Vec<u32> = gguf.iter().step_by(2).map(|x| x / 2).collect();
        assert_eq!(first, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(separate_rows(&gguf, 2, 12), data);
    }
}
