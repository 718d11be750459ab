//! What a source must be, by the definition: tensors value by value, keys, tokens.

use crate::checkpoint::{FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, Tensor, over, tensors, values};
use littlebit::gguf::{Array, GgmlType, TensorDesc, Value, Writer};
use littlebit::source::{SourceTensor, TensorSource, open};
use littlebit::tokenize::Tokenizer;
use serde_json::Value as Json;
use std::fs;
use std::path::{Path, PathBuf};

/// With words, letters outside of the vocabularies, added tokens and what looks like them.
pub const MIXED: &str = "ab abba\u{e4} a  b<think>ab</s> <end>b1 12\n";

pub fn kv(pairs: &[(&str, Value)]) -> Vec<(String, Value)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()
}

pub fn get<'a>(source: &'a dyn TensorSource, key: &str) -> Option<&'a Value> {
    source.kv().iter().find(|(k, _)| k == key).map(|(_, v)| v)
}

pub fn fault(path: &Path) -> String {
    match open(path) {
        Ok(_) => panic!("{} opens", path.display()),
        Err(e) => e.to_string(),
    }
}

pub fn strings(texts: &[&str]) -> Value {
    Value::Array(Array::Str(texts.iter().map(|t| t.as_bytes().to_vec()).collect()))
}

pub fn count(n: usize) -> Value {
    Value::U32(n as u32)
}

/// Keys of the model itself, without those of the tokenizer, the name and the size.
pub fn shape_keys(source: &dyn TensorSource) -> Vec<(String, Value)> {
    let other = |k: &str| k.starts_with("tokenizer.") || k == "general.name" || k == "general.size_label";
    source.kv().iter().filter(|(k, _)| !other(k)).cloned().collect()
}

pub fn tokenizer_keys(source: &dyn TensorSource) -> Vec<(String, Value)> {
    source.kv().iter().filter(|(k, _)| k.starts_with("tokenizer.")).cloned().collect()
}

/// `out[head][2 j + p] = rows[head][p half + j]`, by the definition.
pub fn interleaved(rows: &[f32], heads: usize, height: usize) -> Vec<f32> {
    let (width, head) = (rows.len() / height, height / heads);
    let mut out = vec![0.0; rows.len()];
    for h in 0..heads {
        for j in 0..head / 2 {
            for p in 0..2 {
                let (to, from) = (h * head + 2 * j + p, h * head + p * head / 2 + j);
                out[to * width..][..width].copy_from_slice(&rows[from * width..][..width]);
            }
        }
    }
    out
}

/// Compares all tensors with those of `stored`: `name` gives GGUF's name of each, `change` what a GGUF makes of it.
pub fn assert_tensors(
    source: &dyn TensorSource,
    stored: &[Tensor],
    name: impl Fn(&str) -> Option<String>,
    change: impl Fn(&str, Vec<f32>) -> Vec<f32>,
) {
    let mut compared = 0;
    for (i, (hf, shape)) in stored.iter().enumerate() {
        let Some(gguf) = name(hf) else { continue };
        let at = source.tensors().iter().position(|t| t.name == gguf);
        let at = at.unwrap_or_else(|| panic!("{hf} is not there as {gguf}"));
        let t = &source.tensors()[at];
        let dims: Vec<u64> = shape.iter().rev().map(|d| *d as u64).collect();
        let ty = if shape.len() == 1 { GgmlType::F32 } else { GgmlType::BF16 };
        assert_eq!((&t.dims, t.ty), (&dims, ty), "{hf}");
        let want = change(hf, values(i, shape));
        assert_eq!(source.read_f32(at).unwrap(), want, "{hf}");
        let (mut raw, mut bytes) = (Vec::new(), Vec::new());
        source.read_raw(at, &mut raw).unwrap();
        littlebit::gguf::encode(ty, &want, &mut bytes).unwrap();
        assert!(raw == bytes, "{hf} raw");
        if shape.len() == 2 {
            assert_eq!(source.read_rows(at, 1, 2).unwrap(), want[shape[1]..3 * shape[1]], "{hf} rows");
        }
        compared += 1;
    }
    let computed = source.tensors().iter().filter(|t| t.name.starts_with("rope_")).count();
    assert_eq!(source.tensors().len(), compared + computed);
}

/// GGUF's name by a table of a block's parts.
pub fn named(hf: &str, block: &[(&str, &str)]) -> Option<String> {
    let rest = hf.replace("language_model.", "").strip_prefix("model.")?.to_owned();
    match rest.as_str() {
        "embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "norm.weight" => return Some("output_norm.weight".to_owned()),
        _ => {}
    }
    let (n, part) = rest.strip_prefix("layers.")?.split_once('.')?;
    let (module, end) = part.rsplit_once('.')?;
    let (_, gguf) = block.iter().find(|(hf, _)| *hf == module)?;
    Some(format!("blk.{n}.{gguf}.{end}"))
}

pub const SEPARATE: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Weights of a block with heads of `head` values.
pub fn separate(head: usize) -> Vec<(&'static str, Vec<usize>)> {
    let (q, kv) = (HEADS * head, KV_HEADS * head);
    vec![
        ("input_layernorm.weight", vec![HIDDEN]),
        ("post_attention_layernorm.weight", vec![HIDDEN]),
        ("self_attn.q_proj.weight", vec![q, HIDDEN]),
        ("self_attn.k_proj.weight", vec![kv, HIDDEN]),
        ("self_attn.v_proj.weight", vec![kv, HIDDEN]),
        ("self_attn.o_proj.weight", vec![HIDDEN, q]),
        ("mlp.gate_proj.weight", vec![FEED_FORWARD, HIDDEN]),
        ("mlp.up_proj.weight", vec![FEED_FORWARD, HIDDEN]),
        ("mlp.down_proj.weight", vec![HIDDEN, FEED_FORWARD]),
    ]
}

pub fn all(prefix: &str, vocab: usize, block: &[(&'static str, Vec<usize>)]) -> Vec<Tensor> {
    let block: Vec<(&str, &[usize])> = block.iter().map(|(n, s)| (*n, &s[..])).collect();
    tensors(prefix, vocab, &block)
}

pub fn bytes(json: &Json) -> Vec<u8> {
    json.to_string().into_bytes()
}

/// Changes config.json of a checkpoint.
pub fn reconfigure(dir: &Path, own: &Json) {
    let path = dir.join("config.json");
    let mut json: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    over(&mut json, own);
    fs::write(path, bytes(&json)).unwrap();
}

/// The tokens of mixed text are those of a GGUF with the source's keys.
pub fn assert_tokens(dir: &Path, source: &dyn TensorSource, want: &[u32]) {
    let ours = Tokenizer::from_kv(source.path(), source.kv()).unwrap();
    let gguf = open(&as_gguf(dir, source)).unwrap();
    let theirs = Tokenizer::from_kv(gguf.path(), gguf.kv()).unwrap();
    assert_eq!(ours.encode(MIXED), want);
    assert_eq!(theirs.encode(MIXED), want);
    assert_eq!((ours.add_bos(), ours.silent()), (theirs.add_bos(), theirs.silent()));
}

/// The source as a GGUF file.
pub fn as_gguf(dir: &Path, source: &dyn TensorSource) -> PathBuf {
    let desc = |t: &SourceTensor| TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty };
    let descs = source.tensors().iter().map(desc).collect();
    let mut w = Writer::new(Vec::new(), source.kv(), descs, 32).unwrap();
    let mut raw = Vec::new();
    for (i, t) in source.tensors().iter().enumerate() {
        source.read_raw(i, &mut raw).unwrap();
        w.write_tensor(&t.name, &raw).unwrap();
    }
    let path = dir.join("source.gguf");
    fs::write(&path, w.finish().unwrap()).unwrap();
    path
}
