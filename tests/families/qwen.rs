//! Qwen 2 and 3.

use crate::checkpoint::{FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, config, qwen_tokenizer, write};
use crate::compare::{
    SEPARATE, all, assert_tensors, assert_tokens, bytes, count, fault, get, kv, named, reconfigure, separate,
    shape_keys, strings, tokenizer_keys,
};
use littlebit::gguf::{Array, Value};
use littlebit::source::open;
use serde_json::json;
use std::fs;

#[test]
fn qwen2_has_biases_and_its_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let mut block = separate(HIDDEN / HEADS);
    for (name, rows) in [("q", HIDDEN), ("k", HIDDEN / 2), ("v", HIDDEN / 2)] {
        let name: &'static str = format!("self_attn.{name}_proj.bias").leak();
        block.push((name, vec![rows]));
    }
    let stored = all("model.", 10, &block);
    let own = json!({"hidden_act": "silu", "vocab_size": 10, "bos_token_id": 6, "sliding_window": 128});
    let mut files = qwen_tokenizer().to_vec();
    files.push(("config.json", bytes(&config("Qwen2ForCausalLM", &own))));
    let path = write(dir.path(), "Qwen2.5-1K", &files, &stored);
    let source = open(&path).unwrap();
    assert_tensors(source.as_ref(), &stored, |hf| named(hf, &SEPARATE), |_, v| v);
    let want = kv(&[
        ("general.architecture", "qwen2".into()),
        ("general.type", "model".into()),
        ("qwen2.block_count", count(2)),
        ("qwen2.context_length", count(256)),
        ("qwen2.embedding_length", count(HIDDEN)),
        ("qwen2.feed_forward_length", count(FEED_FORWARD)),
        ("qwen2.attention.head_count", count(HEADS)),
        ("qwen2.attention.head_count_kv", count(KV_HEADS)),
        ("qwen2.rope.freq_base", Value::F32(5000.0)),
        ("qwen2.attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
        ("general.file_type", Value::U32(32)),
        ("general.quantization_version", Value::U32(2)),
    ]);
    assert_eq!(shape_keys(source.as_ref()), want);
    let tokens = ["a", "b", "Ġ", "ab", "Ġab", "1", "<|endoftext|>", "<think>", "[PAD8]", "[PAD9]"];
    let want = kv(&[
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", "qwen2".into()),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1, 1, 1, 1, 1, 1, 3, 4, 5, 5]))),
        ("tokenizer.ggml.merges", strings(&["a b", "Ġ ab"])),
        ("tokenizer.ggml.eos_token_id", Value::U32(6)),
        ("tokenizer.ggml.bos_token_id", Value::U32(6)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(false)),
        ("tokenizer.chat_template", "{{ messages }}".into()),
    ]);
    assert_eq!(tokenizer_keys(source.as_ref()), want);
    // "ab", " abba" without its last letter's bytes, ...: letters outside of the vocabulary vanish.
    assert_tokens(dir.path(), source.as_ref(), &[3, 4, 1, 0, 2, 0, 2, 2, 1, 7, 3, 2, 1, 5, 2, 5]);

    reconfigure(
        &path,
        &json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
            "attn_factor": 1.5, "beta_slow": 2}}),
    );
    let source = open(&path).unwrap();
    let yarn: Vec<_> = source.kv().iter().filter(|(k, _)| k.contains(".rope.scaling.")).cloned().collect();
    let want = kv(&[
        ("qwen2.rope.scaling.type", "yarn".into()),
        ("qwen2.rope.scaling.factor", Value::F32(4.0)),
        ("qwen2.rope.scaling.original_context_length", Value::U32(64)),
        ("qwen2.rope.scaling.yarn_attn_factor", Value::F32(1.5)),
        ("qwen2.rope.scaling.yarn_beta_slow", Value::F32(2.0)),
    ]);
    assert_eq!(yarn, want);
    reconfigure(&path, &json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}));
    assert!(fault(&path).contains("needs original_max_position_embeddings"), "{}", fault(&path));
    reconfigure(&path, &json!({"rope_scaling": {"type": "llama3", "factor": 4.0}}));
    assert!(fault(&path).contains("rope scaling 'llama3' is not read directly"), "{}", fault(&path));
    reconfigure(&path, &json!({"rope_scaling": null, "num_key_value_heads": null}));
    assert!(fault(&path).contains("num_key_value_heads is missing"), "{}", fault(&path));
    reconfigure(&path, &json!({"num_key_value_heads": KV_HEADS}));
    fs::write(path.join("modules.json"), "[]").unwrap();
    assert!(fault(&path).contains("an embedding or reranking model"), "{}", fault(&path));
}

#[test]
fn qwen3_has_norms_of_heads() {
    let dir = tempfile::tempdir().unwrap();
    let head = 16;
    let mut block = separate(head);
    block.extend([("self_attn.q_norm.weight", vec![head]), ("self_attn.k_norm.weight", vec![head])]);
    let mut stored = all("model.", 8, &block);
    let own = json!({"hidden_act": "silu", "vocab_size": 8, "head_dim": head, "tie_word_embeddings": false});
    stored.push(("lm_head.weight".to_owned(), vec![8, HIDDEN]));
    let mut files = qwen_tokenizer().to_vec();
    files.push(("config.json", bytes(&config("Qwen3ForCausalLM", &own))));
    let path = write(dir.path(), "Qwen3-1K", &files, &stored);
    let source = open(&path).unwrap();
    let name =
        |hf: &str| if hf == "lm_head.weight" { Some("output.weight".into()) } else { named(hf, &SEPARATE) };
    assert_tensors(source.as_ref(), &stored, name, |_, v| v);
    assert_eq!(get(source.as_ref(), "qwen3.attention.key_length"), Some(&count(head)));
    assert_eq!(get(source.as_ref(), "qwen3.attention.value_length"), Some(&count(head)));
    assert_eq!(get(source.as_ref(), "qwen3.rope.dimension_count"), None);
    reconfigure(&path, &json!({"head_dim": null}));
    assert!(fault(&path).contains("config.json implies [128]"), "128 by default: {}", fault(&path));
}
