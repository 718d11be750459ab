//! Gemma 3, alone and in a model with images.

use crate::checkpoint::{
    FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, PIECES, config, sentence_piece_files, tokenizer_model, write,
};
use crate::compare::{
    SEPARATE, all, assert_tensors, bytes, count, fault, get, kv, named, reconfigure, separate, shape_keys,
    tokenizer_keys,
};
use littlebit::gguf::Value;
use littlebit::source::open;
use littlebit::tokenize::Tokenizer;
use serde_json::json;

/// Tensors of a block with their sizes.
type Block = Vec<(&'static str, Vec<usize>)>;

/// A block of Gemma 3, and GGUF's names of its parts.
fn gemma(head: usize) -> (Block, Vec<(&'static str, &'static str)>) {
    let mut block = separate(head);
    block.extend([
        ("self_attn.q_norm.weight", vec![head]),
        ("self_attn.k_norm.weight", vec![head]),
        ("pre_feedforward_layernorm.weight", vec![HIDDEN]),
        ("post_feedforward_layernorm.weight", vec![HIDDEN]),
    ]);
    let mut names = SEPARATE.to_vec();
    names[1].1 = "post_attention_norm";
    names
        .extend([("pre_feedforward_layernorm", "ffn_norm"), ("post_feedforward_layernorm", "post_ffw_norm")]);
    (block, names)
}

fn one_more(hf: &str, values: Vec<f32>) -> Vec<f32> {
    if hf.ends_with("norm.weight") { values.iter().map(|x| x + 1.0).collect() } else { values }
}

#[test]
fn gemma3_norms_are_one_more_and_blocks_have_windows() {
    let dir = tempfile::tempdir().unwrap();
    let head = 16;
    let (block, names) = gemma(head);
    let stored = all("model.", 16, &block);
    let own = json!({
        "hidden_activation": "gelu_pytorch_tanh", "vocab_size": 16, "head_dim": head, "sliding_window": 64,
        "rope_local_base_freq": 1000.0, "eos_token_id": [1, 2], "attn_logit_softcapping": null
    });
    let mut files = sentence_piece_files();
    files.push(("config.json", bytes(&config("Gemma3ForCausalLM", &own))));
    let path = write(dir.path(), "gemma-3-1k", &files, &stored);
    let source = open(&path).unwrap();
    assert_tensors(source.as_ref(), &stored, |hf| named(hf, &names), one_more);
    let want = kv(&[
        ("general.architecture", "gemma3".into()),
        ("general.type", "model".into()),
        ("gemma3.block_count", count(2)),
        ("gemma3.context_length", count(256)),
        ("gemma3.embedding_length", count(HIDDEN)),
        ("gemma3.feed_forward_length", count(FEED_FORWARD)),
        ("gemma3.attention.head_count", count(HEADS)),
        ("gemma3.attention.head_count_kv", count(KV_HEADS)),
        ("gemma3.rope.freq_base", Value::F32(5000.0)),
        ("gemma3.rope.freq_base_swa", Value::F32(1000.0)),
        ("gemma3.attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
        ("gemma3.attention.key_length", count(head)),
        ("gemma3.attention.value_length", count(head)),
        ("general.file_type", Value::U32(32)),
        ("gemma3.attention.sliding_window", count(64)),
        ("general.quantization_version", Value::U32(2)),
    ]);
    assert_eq!(shape_keys(source.as_ref()), want);
    let keys = tokenizer_keys(source.as_ref());
    assert_eq!(keys.last(), Some(&("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(false))));
    // No space before the text.
    assert_eq!(Tokenizer::from_kv(&path, source.kv()).unwrap().encode("ab ab"), [5, 7]);

    // Parameters of both kinds of blocks apart, as transformers 5 has them.
    reconfigure(
        &path,
        &json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 9000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 700.0}
        }, "final_logit_softcapping": 30.0, "layer_types": ["sliding_attention", "sliding_attention"]}),
    );
    let source = open(&path).unwrap();
    assert_eq!(get(source.as_ref(), "gemma3.rope.scaling.factor"), Some(&Value::F32(8.0)));
    assert_eq!(get(source.as_ref(), "gemma3.rope.freq_base"), Some(&Value::F32(9000.0)));
    assert_eq!(get(source.as_ref(), "gemma3.rope.freq_base_swa"), Some(&Value::F32(700.0)));
    assert_eq!(get(source.as_ref(), "gemma3.final_logit_softcapping"), Some(&Value::F32(30.0)));
    reconfigure(&path, &json!({"layer_types": ["sliding_attention", "full_attention"]}));
    assert!(fault(&path).contains("are not five of six"), "{}", fault(&path));
    reconfigure(&path, &json!({"layer_types": null, "attn_logit_softcapping": 50.0}));
    assert!(fault(&path).contains("attn_logit_softcapping"), "{}", fault(&path));
    reconfigure(&path, &json!({"attn_logit_softcapping": null, "hidden_activation": "silu"}));
    assert!(fault(&path).contains("llama.cpp computes gelu_pytorch_tanh"), "{}", fault(&path));
}

#[test]
fn gemma3_with_images_is_read_for_its_text() {
    let dir = tempfile::tempdir().unwrap();
    for prefix in ["language_model.model.", "model.language_model."] {
        let (block, names) = gemma(16);
        let mut stored = all(prefix, 16, &block);
        stored.push(("vision_tower.vision_model.post_layernorm.weight".to_owned(), vec![4]));
        stored.push(("model.multi_modal_projector.mm_input_projection_weight".to_owned(), vec![4, HIDDEN]));
        let text = json!({
            "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_hidden_layers": 2, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": 16, "vocab_size": 16, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "bos_token_id": 5
        });
        let outer = json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "bos_token_id": 1,
            "vision_config": {"hidden_size": 4}
        });
        let mut files = vec![("tokenizer.model", tokenizer_model(PIECES))];
        files.push(("config.json", bytes(&outer)));
        let source = open(&write(dir.path(), "gemma-3-1k-it", &files, &stored)).unwrap();
        assert_tensors(source.as_ref(), &stored, |hf| named(hf, &names), one_more);
        // What text_config leaves out.
        assert_eq!(get(source.as_ref(), "gemma3.context_length"), Some(&count(131_072)));
        assert_eq!(get(source.as_ref(), "gemma3.rope.freq_base"), Some(&Value::F32(1e6)));
        assert_eq!(get(source.as_ref(), "gemma3.rope.freq_base_swa"), Some(&Value::F32(1e4)));
        assert_eq!(get(source.as_ref(), "gemma3.attention.sliding_window"), Some(&count(4096)));
        assert_eq!(get(source.as_ref(), "tokenizer.ggml.bos_token_id"), Some(&Value::U32(1)));
    }
}
