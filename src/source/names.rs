//! What Hugging Face and GGUF call the same tensor, where a checkpoint's tensors become a GGUF's one by one: decoders with
//! Llama's layout.

/// Parts of a block: GGUF's name, Hugging Face's.
const BLOCK: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Other tensors.
const MODEL: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Architectures whose tensors have the names of this table. Others rename, split or shift theirs.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Whether tensors of a GGUF's architecture have names in [`hugging_face`]'s table.
pub fn known(architecture: &str) -> bool {
    ARCHITECTURES.contains(&architecture)
}

/// Hugging Face's name of the module that GGUF calls `base`: `model.layers.3.mlp.up_proj` of `blk.3.ffn_up`.
pub fn hugging_face(base: &str) -> Option<String> {
    let of = |table: &[(&str, &str)], name: &str| {
        table.iter().find(|(gguf, _)| *gguf == name).map(|(_, hf)| (*hf).to_owned())
    };
    match base.strip_prefix("blk.") {
        None => of(&MODEL, base),
        Some(rest) => {
            let (n, part) = rest.split_once('.')?;
            let number = !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
            number.then(|| of(&BLOCK, part))?.map(|hf| format!("model.layers.{n}.{hf}"))
        }
    }
}

/// Which heads turn the rows of the module that GGUF calls `base`, so that its rows are ordered differently in the two
/// worlds. Of the architectures of [`known`] only `llama` orders them.
pub fn rotary(architecture: &str, base: &str) -> Option<Rotary> {
    if architecture != "llama" {
        return None;
    }
    match base.strip_prefix("blk.")?.split_once('.')?.1 {
        "attn_q" => Some(Rotary::Queries),
        "attn_k" => Some(Rotary::Keys),
        _ => None,
    }
}

/// Heads of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotary {
    /// Those of the queries.
    Queries,
    /// Those of the keys.
    Keys,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_checkpoints() {
        let hf = |base| hugging_face(base);
        assert_eq!(hf("blk.12.attn_output").unwrap(), "model.layers.12.self_attn.o_proj");
        assert_eq!(hf("output").unwrap(), "lm_head");
        for base in ["blk.x.attn_q", "blk..attn_q", "blk.3", "blk.3.ffn_up_exps", "rope_freqs"] {
            assert_eq!(hf(base), None, "{base}");
        }
        assert_eq!(rotary("llama", "blk.0.attn_k"), Some(Rotary::Keys));
        assert_eq!(rotary("llama", "blk.0.attn_v"), None);
        assert_eq!(rotary("qwen3", "blk.0.attn_k"), None);
    }
}
