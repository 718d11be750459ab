//! A model of the Llama family as GGUF and as Hugging Face checkpoint.

#[path = "../../examples/gguf_to_hf.rs"]
mod gguf_to_hf;

use littlebit::gguf::{Array, GgmlType, TensorDesc, Value, Writer, dequantize, encode};
use std::fs;
use std::path::{Path, PathBuf};

/// What a test model varies in.
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub blocks: usize,
    pub tied: bool,
    pub biases: bool,
    pub pre: &'static str,
    pub matrices: GgmlType,
}

pub const HIDDEN: usize = 48;
pub const FEED_FORWARD: usize = 80;
pub const HEAD: usize = 8;
/// Tokens: three control tokens, a user-defined one, words, and one id without a token.
pub const TOKENS: &[(&str, i32)] = &[
    ("<|endoftext|>", 3),
    ("<|im_start|>", 3),
    ("<|im_end|>", 3),
    ("a b", 4),
    ("a", 1),
    ("b", 1),
    ("Ġ", 1),
    ("ab", 1),
    ("Ġab", 1),
    ("[PAD9]", 5),
];

pub const SMOLLM: Shape = Shape {
    heads: 6,
    kv_heads: 3,
    blocks: 2,
    tied: true,
    biases: false,
    pre: "smollm",
    matrices: GgmlType::F32,
};

fn strings<'a>(texts: impl IntoIterator<Item = &'a str>) -> Value {
    Value::Array(Array::Str(texts.into_iter().map(|s| s.as_bytes().to_vec()).collect()))
}

/// Keys as llama.cpp's converter writes them for the model.
pub fn keys(shape: &Shape) -> Vec<(String, Value)> {
    let count = |n: usize| Value::U32(n as u32);
    let file_type = match shape.matrices {
        GgmlType::F16 => 1,
        GgmlType::BF16 => 32,
        _ => 0,
    };
    let kv = [
        ("general.architecture", "llama".into()),
        ("general.type", "model".into()),
        ("general.name", "Checkpoint".into()),
        ("llama.block_count", count(shape.blocks)),
        ("llama.context_length", count(64)),
        ("llama.embedding_length", count(HIDDEN)),
        ("llama.feed_forward_length", count(FEED_FORWARD)),
        ("llama.attention.head_count", count(shape.heads)),
        ("llama.attention.head_count_kv", count(shape.kv_heads)),
        ("llama.rope.freq_base", Value::F32(100_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.attention.key_length", count(HEAD)),
        ("llama.attention.value_length", count(HEAD)),
        ("general.file_type", Value::U32(file_type)),
        ("llama.vocab_size", count(TOKENS.len())),
        ("llama.rope.dimension_count", count(HEAD)),
        ("general.quantization_version", Value::U32(2)),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(false)),
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", shape.pre.into()),
        ("tokenizer.ggml.tokens", strings(TOKENS.iter().map(|t| t.0))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(TOKENS.iter().map(|t| t.1).collect()))),
        ("tokenizer.ggml.merges", strings(["a b", "Ġ ab"])),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ("tokenizer.ggml.padding_token_id", Value::U32(2)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.chat_template", "{{ messages }}".into()),
    ];
    kv.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

/// Names, ne and types in the order in which the Hugging Face reader lists them.
pub fn tensors(shape: &Shape) -> Vec<TensorDesc> {
    let mut out = Vec::new();
    let mut push = |name: String, dims: &[usize]| {
        let ty = if dims.len() == 1 { GgmlType::F32 } else { shape.matrices };
        out.push(TensorDesc { name, dims: dims.iter().map(|d| *d as u64).collect(), ty });
    };
    push("token_embd.weight".to_owned(), &[HIDDEN, TOKENS.len()]);
    let (q, kv) = (shape.heads * HEAD, shape.kv_heads * HEAD);
    for n in 0..shape.blocks {
        push(format!("blk.{n}.attn_norm.weight"), &[HIDDEN]);
        push(format!("blk.{n}.ffn_norm.weight"), &[HIDDEN]);
        for (name, d_in, d_out) in [
            ("attn_q", HIDDEN, q),
            ("attn_k", HIDDEN, kv),
            ("attn_v", HIDDEN, kv),
            ("attn_output", q, HIDDEN),
            ("ffn_gate", HIDDEN, FEED_FORWARD),
            ("ffn_up", HIDDEN, FEED_FORWARD),
            ("ffn_down", FEED_FORWARD, HIDDEN),
        ] {
            push(format!("blk.{n}.{name}.weight"), &[d_in, d_out]);
            if shape.biases {
                push(format!("blk.{n}.{name}.bias"), &[d_out]);
            }
        }
    }
    push("output_norm.weight".to_owned(), &[HIDDEN]);
    if !shape.tied {
        push("output.weight".to_owned(), &[HIDDEN, TOKENS.len()]);
    }
    out
}

pub fn write_gguf(dir: &Path, shape: &Shape) -> PathBuf {
    let path = dir.join("model.gguf");
    let descs = tensors(shape);
    let mut w = Writer::new(Vec::new(), &keys(shape), descs.clone(), 32).unwrap();
    for (i, t) in descs.iter().enumerate() {
        // Vectors are f32 in the GGUF, but the checkpoint may have all tensors in a half precision.
        let rows = t.dims.get(1).copied().unwrap_or(1) as usize;
        let mut values = super::weights(rows, t.dims[0] as usize, i as u64);
        let mut bytes = Vec::new();
        encode(shape.matrices, &values, &mut bytes).unwrap();
        dequantize(shape.matrices, &bytes, &mut values).unwrap();
        bytes.clear();
        encode(t.ty, &values, &mut bytes).unwrap();
        w.write_tensor(&t.name, &bytes).unwrap();
    }
    fs::write(&path, w.finish().unwrap()).unwrap();
    path
}

/// A checkpoint of the model in `dir/Checkpoint`.
pub fn write_checkpoint(dir: &Path, shape: &Shape, shards: usize) -> PathBuf {
    let out = dir.join("Checkpoint");
    gguf_to_hf::export(&write_gguf(dir, shape), &out, shards, shape.matrices).unwrap();
    out
}
