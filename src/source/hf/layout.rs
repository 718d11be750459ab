//! Which tensors a Llama checkpoint has, what GGUF calls them, and how their rows are ordered there.

use super::config::Config;
use crate::source::names::{self, Rotary};

/// A tensor that the architecture knows.
#[derive(Debug)]
pub(in crate::source) struct Slot {
    /// Name in the checkpoint.
    pub hf: String,
    /// Name in a GGUF.
    pub gguf: String,
    /// Sizes, slowest first.
    pub shape: Vec<u64>,
    /// Heads whose rows are interleaved in a GGUF.
    pub rotary_heads: Option<usize>,
    /// Whether a checkpoint may lack it.
    pub optional: bool,
}

/// All tensors of the model in the order in which they are written.
pub(super) fn slots(config: &Config) -> Vec<Slot> {
    let (hidden, ff) = (config.hidden, config.feed_forward);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut slots = vec![slot("token_embd", "weight", &[config.vocab, hidden])];
    for n in 0..config.layers {
        let block = |part: &str| format!("blk.{n}.{part}");
        slots.push(slot(&block("attn_norm"), "weight", &[hidden]));
        slots.push(slot(&block("ffn_norm"), "weight", &[hidden]));
        let linears = [
            ("attn_q", q, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("attn_output", hidden, q),
            ("ffn_gate", ff, hidden),
            ("ffn_up", ff, hidden),
            ("ffn_down", hidden, ff),
        ];
        for (part, d_out, d_in) in linears {
            let base = block(part);
            let rotary_heads = names::rotary("llama", &base).map(|rotary| match rotary {
                Rotary::Queries => config.heads as usize,
                Rotary::Keys => config.kv_heads as usize,
            });
            slots.push(Slot { rotary_heads, ..slot(&base, "weight", &[d_out, d_in]) });
            slots.push(Slot { rotary_heads, optional: true, ..slot(&base, "bias", &[d_out]) });
        }
    }
    slots.push(slot("output_norm", "weight", &[hidden]));
    if config.tied != Some(true) {
        // Old configurations do not say whether the head is tied; then its absence does.
        let optional = config.tied.is_none();
        slots.push(Slot { optional, ..slot("output", "weight", &[config.vocab, hidden]) });
    }
    slots
}

/// The tensor `part` of the module that GGUF calls `base`.
fn slot(base: &str, part: &str, shape: &[u64]) -> Slot {
    let module = names::hugging_face(base).expect("the family's modules have names");
    Slot {
        hf: format!("{module}.{part}"),
        gguf: format!("{base}.{part}"),
        shape: shape.to_vec(),
        rotary_heads: None,
        optional: false,
    }
}

/// Whether a GGUF has no place for the tensor because llama.cpp computes it or a tied head repeats it.
pub(super) fn is_redundant(hf: &str, config: &Config) -> bool {
    hf.ends_with(".rotary_emb.inv_freq") || (hf == "lm_head.weight" && config.tied == Some(true))
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
