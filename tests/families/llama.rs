//! Mistral and Llama with SentencePiece vocabularies.

use crate::checkpoint::{
    FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, PIECES, config, over, sentence_piece_files, tokenizer_json,
    tokenizer_model, write,
};
use crate::compare::{
    MIXED, SEPARATE, all, assert_tensors, assert_tokens, bytes, count, fault, get, interleaved, kv, named,
    separate, shape_keys, strings, tokenizer_keys,
};
use littlebit::gguf::{Array, Value};
use littlebit::source::open;
use littlebit::tokenize::Tokenizer;
use serde_json::{Value as Json, json};
use std::fs;

/// Of the beginning of [`MIXED`], up to the first token that was added.
const TOKENS_OF_MIXED: [u32; 9] = [7, 7, 8, 3, 4, 6, 9, 9, 11];

#[test]
fn mistral_is_a_llama_with_a_sentence_piece_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let stored = all("model.", 16, &separate(HIDDEN / HEADS));
    let own = json!({"hidden_act": "silu", "vocab_size": 16, "sliding_window": 64, "pad_token_id": 77});
    let mut files = sentence_piece_files();
    files.push(("config.json", bytes(&config("MistralForCausalLM", &own))));
    let path = write(dir.path(), "Mistral-1K", &files, &stored);
    let source = open(&path).unwrap();
    let change = |hf: &str, v: Vec<f32>| match hf.rsplit('.').nth(1) {
        Some("q_proj") => interleaved(&v, HEADS, HIDDEN),
        Some("k_proj") => interleaved(&v, KV_HEADS, HIDDEN / 2),
        _ => v,
    };
    assert_tensors(source.as_ref(), &stored, |hf| named(hf, &SEPARATE), change);
    let want = kv(&[
        ("general.architecture", "llama".into()),
        ("general.type", "model".into()),
        ("llama.block_count", count(2)),
        ("llama.context_length", count(256)),
        ("llama.embedding_length", count(HIDDEN)),
        ("llama.feed_forward_length", count(FEED_FORWARD)),
        ("llama.attention.head_count", count(HEADS)),
        ("llama.attention.head_count_kv", count(KV_HEADS)),
        ("llama.rope.freq_base", Value::F32(5000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
        ("general.file_type", Value::U32(32)),
        ("llama.vocab_size", count(16)),
        ("llama.rope.dimension_count", count(HIDDEN / HEADS)),
        ("general.quantization_version", Value::U32(2)),
    ]);
    assert_eq!(shape_keys(source.as_ref()), want);
    let mut texts: Vec<&str> = PIECES.iter().map(|p| p.0).collect();
    texts.extend(["<end>", "<think>", "<|x|>", "[PAD15]"]);
    let mut scores: Vec<f32> = PIECES.iter().map(|p| p.1).collect();
    scores[..3].fill(-1000.0);
    scores.extend([-1000.0, -1000.0, -1000.0, -10_000.0]);
    let types = vec![3, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 4, 4, 3, 5];
    let want = kv(&[
        ("tokenizer.ggml.model", "llama".into()),
        ("tokenizer.ggml.pre", "default".into()),
        ("tokenizer.ggml.tokens", strings(&texts)),
        ("tokenizer.ggml.scores", Value::Array(Array::F32(scores))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))),
        // The id of padding lies beyond the vocabulary.
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(false)),
        ("tokenizer.chat_template", "{{ messages }}".into()),
    ]);
    assert_eq!(tokenizer_keys(source.as_ref()), want);
    let tokens = Tokenizer::from_kv(&path, source.kv()).unwrap().encode(MIXED);
    assert_tokens(dir.path(), source.as_ref(), &tokens);
    assert_eq!(tokens[..10], [&TOKENS_OF_MIXED[..], &[13]].concat());

    // The same text has the same tokens where only tokenizer.json is there.
    fs::remove_file(path.join("tokenizer.model")).unwrap();
    let merges = open(&path).unwrap();
    let by_merges = Tokenizer::from_kv(&path, merges.kv()).unwrap();
    let text = "ab abba\u{e4} a  b<think>ab bab aab";
    let by_scores = Tokenizer::from_kv(&path, source.kv()).unwrap();
    assert_eq!(by_merges.encode(text), by_scores.encode(text));
    assert_eq!(get(merges.as_ref(), "tokenizer.ggml.add_space_prefix"), None);
    let edit = |own: Json| {
        let mut json = tokenizer_json(&[]);
        over(&mut json, &own);
        fs::write(path.join("tokenizer.json"), bytes(&json)).unwrap();
    };
    let metaspace = |scheme: &str, split: bool| {
        json!({"normalizer": null, "pre_tokenizer":
            {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": split}})
    };
    edit(metaspace("never", false));
    let without = open(&path).unwrap();
    assert_eq!(get(without.as_ref(), "tokenizer.ggml.add_space_prefix"), Some(&Value::Bool(false)));
    edit(metaspace("first", true));
    assert!(
        fault(&path).contains("is not known for a SentencePiece vocabulary; convert the model"),
        "{}",
        fault(&path)
    );
    edit(json!({"normalizer": {"type": "Lowercase"}}));
    assert!(fault(&path).contains("\"Lowercase\""), "{}", fault(&path));

    // Other SentencePiece models, and files that are none.
    let mut unigram = tokenizer_model(PIECES);
    *unigram.last_mut().unwrap() = 1;
    fs::write(path.join("tokenizer.model"), unigram).unwrap();
    assert!(
        fault(&path).contains("tokenizer.model: a SentencePiece model that does not merge pairs"),
        "{}",
        fault(&path)
    );
    fs::write(path.join("tokenizer.model"), "IQ== 0\nIg== 1\n").unwrap();
    assert!(fault(&path).contains("tokenizer.model: byte 0: not a SentencePiece model"), "{}", fault(&path));
}

#[test]
fn llama_takes_sizes_of_vocabularies_and_spaces_as_the_converter() {
    let dir = tempfile::tempdir().unwrap();
    let stored = all("model.", 32_016, &separate(HIDDEN / HEADS));
    let own = json!({"vocab_size": 32_016, "bos_token_id": 1});
    let mut files = vec![("tokenizer.model", tokenizer_model(PIECES))];
    files.push(("config.json", bytes(&config("LlamaForCausalLM", &own))));
    files.push(("tokenizer_config.json", bytes(&json!({"add_prefix_space": true}))));
    let source = open(&write(dir.path(), "Code-1K", &files, &stored)).unwrap();
    let keys = tokenizer_keys(source.as_ref());
    assert_eq!(keys[0], ("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(true)));
    let ids: Vec<_> = keys.iter().filter(|(k, _)| k.ends_with("_token_id")).cloned().collect();
    let want = kv(&[
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eot_token_id", Value::U32(32_010)),
    ]);
    assert_eq!(ids, want);
}
