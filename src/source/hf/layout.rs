//! Which tensors a Llama checkpoint has, what GGUF calls them, and how their rows are ordered there.

use super::config::Config;

/// A tensor that the architecture knows.
#[derive(Debug)]
pub(super) struct Slot {
    /// Name in the checkpoint.
    pub hf: String,
    /// Name in a GGUF.
    pub gguf: String,
    /// Sizes, slowest first.
    pub shape: Vec<u64>,
    /// Heads whose rows are interleaved in a GGUF.
    pub rotary_heads: Option<u64>,
    /// Whether a checkpoint may lack it.
    pub optional: bool,
}

/// All tensors of the model in the order in which they are written.
pub(super) fn slots(config: &Config) -> Vec<Slot> {
    let (hidden, ff) = (config.hidden, config.feed_forward);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut slots = vec![plain("model.embed_tokens.weight", "token_embd.weight", &[config.vocab, hidden])];
    for n in 0..config.layers {
        let mut norm = |hf: &str, gguf: &str| {
            slots.push(plain(
                &format!("model.layers.{n}.{hf}.weight"),
                &format!("blk.{n}.{gguf}.weight"),
                &[hidden],
            ));
        };
        norm("input_layernorm", "attn_norm");
        norm("post_attention_layernorm", "ffn_norm");
        let linears = [
            ("self_attn.q_proj", "attn_q", q, hidden, Some(config.heads)),
            ("self_attn.k_proj", "attn_k", kv, hidden, Some(config.kv_heads)),
            ("self_attn.v_proj", "attn_v", kv, hidden, None),
            ("self_attn.o_proj", "attn_output", hidden, q, None),
            ("mlp.gate_proj", "ffn_gate", ff, hidden, None),
            ("mlp.up_proj", "ffn_up", ff, hidden, None),
            ("mlp.down_proj", "ffn_down", hidden, ff, None),
        ];
        for (hf, gguf, d_out, d_in, rotary_heads) in linears {
            for (part, shape) in [("weight", vec![d_out, d_in]), ("bias", vec![d_out])] {
                slots.push(Slot {
                    hf: format!("model.layers.{n}.{hf}.{part}"),
                    gguf: format!("blk.{n}.{gguf}.{part}"),
                    shape,
                    rotary_heads,
                    optional: part == "bias",
                });
            }
        }
    }
    slots.push(plain("model.norm.weight", "output_norm.weight", &[hidden]));
    if config.tied != Some(true) {
        let mut head = plain("lm_head.weight", "output.weight", &[config.vocab, hidden]);
        // Old configurations do not say whether the head is tied; then its absence does.
        head.optional = config.tied.is_none();
        slots.push(head);
    }
    slots
}

fn plain(hf: &str, gguf: &str, shape: &[u64]) -> Slot {
    Slot {
        hf: hf.to_owned(),
        gguf: gguf.to_owned(),
        shape: shape.to_vec(),
        rotary_heads: None,
        optional: false,
    }
}

/// Whether a GGUF has no place for the tensor because llama.cpp computes it or a tied head repeats it.
pub(super) fn is_redundant(hf: &str, config: &Config) -> bool {
    hf.ends_with(".rotary_emb.inv_freq") || (hf == "lm_head.weight" && config.tied == Some(true))
}

/// Reorders the rows of a query or key projection from Hugging Face's halves to llama.cpp's pairs: the two rows that
/// one rotary angle turns are `head/2` apart there and neighbours here. `data` holds `heads * head` rows of equal
/// length.
///
/// out[h][2 j + p] = data[h][p head/2 + j]
pub(super) fn interleave_rows<T: Copy>(data: &[T], heads: usize, rows: usize) -> Vec<T> {
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
