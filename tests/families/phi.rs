//! Phi 3.

use crate::checkpoint::{
    FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, Tensor, config, over, sentence_piece_files, write,
};
use crate::compare::{all, as_gguf, assert_tensors, bytes, count, fault, get, kv, named, shape_keys};
use crate::support;
use littlebit::gguf::{Array, GgmlType, Value};
use littlebit::source::open;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};

/// A checkpoint of Phi 3 with `own` over its configuration.
fn phi(dir: &Path, own: &Json) -> (PathBuf, Vec<Tensor>) {
    let block = vec![
        ("input_layernorm.weight", vec![HIDDEN]),
        ("post_attention_layernorm.weight", vec![HIDDEN]),
        ("self_attn.qkv_proj.weight", vec![2 * HIDDEN, HIDDEN]),
        ("self_attn.o_proj.weight", vec![HIDDEN, HIDDEN]),
        ("mlp.gate_up_proj.weight", vec![2 * FEED_FORWARD, HIDDEN]),
        ("mlp.down_proj.weight", vec![HIDDEN, FEED_FORWARD]),
    ];
    let stored = all("model.", 16, &block);
    let mut settings =
        json!({"hidden_act": "silu", "vocab_size": 16, "original_max_position_embeddings": 64});
    over(&mut settings, own);
    let mut files = sentence_piece_files();
    files.push(("config.json", bytes(&config("Phi3ForCausalLM", &settings))));
    (write(dir, "Phi-3-1k", &files, &stored), stored)
}

#[test]
fn phi3_has_joined_layers_and_long_factors() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let long =
        json!({"type": "longrope", "long_factor": [1.5, 2.5, 3.5, 4.5], "short_factor": [1, 1.25, 1.5, 2]});
    let (path, stored) = phi(dir.path(), &json!({"rope_scaling": long, "sliding_window": 100}));
    let source = open(&path).unwrap();
    assert_tensors(source.as_ref(), &stored, |hf| named(hf, &names), |_, v| v);
    let factors: Vec<_> = source.tensors()[..2].iter().map(|t| (t.name.as_str(), t.ty)).collect();
    assert_eq!(
        factors,
        [("rope_factors_long.weight", GgmlType::F32), ("rope_factors_short.weight", GgmlType::F32)]
    );
    assert_eq!(source.read_f32(0).unwrap(), [1.5, 2.5, 3.5, 4.5]);
    assert_eq!(source.read_f32(1).unwrap(), [1.0, 1.25, 1.5, 2.0]);
    // sqrt(1 + ln 4 / ln 64) = sqrt(4/3)
    let magnitude = (4.0f64 / 3.0).sqrt() as f32;
    let want = kv(&[
        ("general.architecture", "phi3".into()),
        ("phi3.rope.scaling.attn_factor", Value::F32(magnitude)),
        ("general.type", "model".into()),
        ("phi3.context_length", count(256)),
        ("phi3.rope.scaling.original_context_length", count(64)),
        ("phi3.embedding_length", count(HIDDEN)),
        ("phi3.feed_forward_length", count(FEED_FORWARD)),
        ("phi3.block_count", count(2)),
        ("phi3.attention.head_count", count(HEADS)),
        ("phi3.attention.head_count_kv", count(KV_HEADS)),
        ("phi3.attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
        ("phi3.rope.dimension_count", count(HIDDEN / HEADS)),
        ("phi3.rope.freq_base", Value::F32(5000.0)),
        ("general.file_type", Value::U32(32)),
        ("phi3.attention.sliding_window", count(100)),
        ("general.quantization_version", Value::U32(2)),
    ]);
    assert_eq!(shape_keys(source.as_ref()), want);
    // Its own rule: what does not call itself special is none, whatever its form.
    let Some(Value::Array(Array::I32(types))) = get(source.as_ref(), "tokenizer.ggml.token_type") else {
        panic!()
    };
    assert_eq!(types[..], [3, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 4, 4, 4, 5]);

    let refused = |own: Json, what: &str| {
        let (path, _) = phi(dir.path(), &own);
        assert!(fault(&path).contains(what), "{}", fault(&path));
    };
    refused(
        json!({"rope_scaling": {"type": "longrope", "long_factor": [1], "short_factor": [1]}}),
        "must be 4 positive numbers",
    );
    refused(
        json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}),
        "rope scaling 'yarn' is not read directly",
    );
    refused(json!({"head_dim": 16}), "4 heads of 16 do not make hidden_size 32");
    refused(json!({"partial_rotary_factor": 2.0}), "partial_rotary_factor is 2, a part of 1");

    let (path, _) = phi(dir.path(), &json!({"partial_rotary_factor": 0.5}));
    let source = open(&path).unwrap();
    assert_eq!(get(source.as_ref(), "phi3.rope.dimension_count"), Some(&count(4)));
    assert_eq!(get(source.as_ref(), "phi3.attention.sliding_window"), Some(&count(0)));
    assert_eq!(get(source.as_ref(), "phi3.rope.scaling.attn_factor"), None);
    assert!(source.tensors()[0].name == "token_embd.weight");
}

/// The program makes the same file of a checkpoint and of the GGUF with its keys and tensors, but for the digest.
#[test]
fn the_program_compresses_a_checkpoint_as_its_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = phi(dir.path(), &json!({}));
    let gguf = as_gguf(dir.path(), open(&path).unwrap().as_ref());
    let outputs = [&path, &gguf].map(|input| {
        let out = input.with_extension("out.gguf");
        support::ok(&[support::s(input), support::s(&out), "--bpw", "1.0", "--quiet", "--threads", "1"]);
        littlebit::gguf::Gguf::open(&out).unwrap()
    });
    let keys = |g: &littlebit::gguf::Gguf| -> Vec<_> {
        g.kv.iter().filter(|(k, _)| !k.contains("sha256")).cloned().collect()
    };
    assert_eq!(keys(&outputs[0]), keys(&outputs[1]));
    let data = outputs.each_ref().map(|g| {
        let mut data = Vec::new();
        g.tensors
            .iter()
            .map(|t| {
                g.read(t, &mut data).unwrap();
                (t.name.clone(), data.clone())
            })
            .collect::<Vec<_>>()
    });
    assert!(data[0] == data[1] && data[0].iter().any(|(name, _)| name.contains("attn_qkv")));
}
