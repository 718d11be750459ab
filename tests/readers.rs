//! Readers of models, end to end: a GGUF of the Llama family becomes a Hugging Face checkpoint and is read back, and
//! damaged checkpoints are refused with a reason.

mod support;

use littlebit::gguf::{Array, GgmlType, Gguf, TensorDesc, Value, Writer};
use littlebit::source::hf::pre_tokenizer;
use littlebit::source::{TensorSource, open};
use serde_json::{Value as Json, json};
use std::fs;
use std::path::Path;
use support::checkpoint::{HIDDEN, SMOLLM, Shape, TOKENS, write_checkpoint, write_gguf};

fn value<'a>(source: &'a dyn TensorSource, key: &str) -> Option<&'a Value> {
    source.kv().iter().find(|(k, _)| k == key).map(|(_, v)| v)
}

/// Changes a JSON file of the checkpoint.
fn edit(path: &Path, change: impl FnOnce(&mut Json)) {
    let mut json: Json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// The error of opening `path`.
fn fault(path: &Path) -> String {
    match open(path) {
        Ok(_) => panic!("{} opens", path.display()),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_checkpoint_reads_as_the_gguf_it_was_made_of() {
    let shapes = [
        SMOLLM,
        Shape { tied: false, biases: true, pre: "llama-bpe", matrices: GgmlType::BF16, ..SMOLLM },
        Shape { heads: 4, kv_heads: 4, blocks: 11, pre: "qwen2", matrices: GgmlType::F16, ..SMOLLM },
        Shape { kv_heads: 1, blocks: 1, pre: "gpt-2", ..SMOLLM },
    ];
    for (shape, shards) in shapes.into_iter().zip([1, 3, 2, 1]) {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = write_checkpoint(dir.path(), &shape, shards);
        let gguf = open(&dir.path().join("model.gguf")).unwrap();
        let hf = open(&checkpoint).unwrap();
        assert_eq!(hf.describe(), "Checkpoint");
        assert_eq!(hf.tensors(), gguf.tensors());
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (i, t) in hf.tensors().iter().enumerate() {
            assert_eq!(hf.read_f32(i).unwrap(), gguf.read_f32(i).unwrap(), "{}", t.name);
            hf.read_raw(i, &mut a).unwrap();
            gguf.read_raw(i, &mut b).unwrap();
            assert_eq!(a, b, "{}", t.name);
        }
        let size =
            ("general.size_label".to_owned(), value(hf.as_ref(), "general.size_label").cloned().unwrap());
        let mut expected = gguf.kv().to_vec();
        expected.insert(3, size);
        assert_eq!(hf.kv(), expected);
    }
}

#[test]
fn all_ways_to_name_a_checkpoint_open_it() {
    let dir = tempfile::tempdir().unwrap();
    let one = write_checkpoint(dir.path(), &SMOLLM, 1);
    let sum = open(&one).unwrap().sha256().unwrap();
    assert_eq!(open(&one.join("model.safetensors")).unwrap().sha256().unwrap(), sum);
    fs::remove_file(one.join("model.safetensors")).unwrap();
    let many = write_checkpoint(dir.path(), &SMOLLM, 2);
    let index = open(&many.join("model.safetensors.index.json")).unwrap();
    assert_eq!(index.tensors(), open(&many).unwrap().tensors());
    assert_eq!(index.path(), many.join("model.safetensors.index.json"));
    let what = fault(&many.join("model-00001-of-00002.safetensors"));
    assert!(what.contains("one shard of several; give the index"), "{what}");
    fs::remove_file(many.join("model.safetensors.index.json")).unwrap();
    assert!(fault(&many).contains("no model.safetensors and no model.safetensors.index.json"));
}

#[test]
fn a_file_truncated_anywhere_in_its_header_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_checkpoint(dir.path(), &Shape { blocks: 1, ..SMOLLM }, 1).join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for n in (0..=header).chain([whole.len() - 1]) {
        fs::write(&path, &whole[..n]).unwrap();
        let what = fault(&path);
        assert!(what.contains("model.safetensors: byte"), "{n} bytes: {what}");
    }
    fs::write(&path, [whole, vec![0]].concat()).unwrap();
    assert!(fault(&path).contains("bytes of tensor data are announced, the file has"));
}

/// Replaces the safetensors header by `header` and keeps `data` bytes of data.
fn with_header(path: &Path, header: &str, data: usize) {
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
    fs::write(path, bytes).unwrap();
}

#[test]
fn faulty_safetensors_headers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_checkpoint(dir.path(), &Shape { blocks: 1, ..SMOLLM }, 1).join("model.safetensors");
    let entry = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    let one = |a: String| format!(r#"{{"a":{a}}}"#);
    for (what, header) in [
        ("bad JSON", "not json".to_owned()),
        ("bad JSON", "{".to_owned()),
        ("bad JSON", "[".repeat(100_000)),
        ("bad JSON", r#"{"__metadata__":{"format":7}}"#.to_owned()),
        ("bad JSON", two(entry("F32", "[2]", 0, 8), entry("F32", "[1]", 12, 16))),
        ("bad JSON", two(entry("F32", "[2]", 0, 8), entry("F32", "[2]", 4, 12))),
        ("bad JSON", one(entry("F32", "[2]", 4, 12))),
        ("bad JSON", one(entry("F32", "[3]", 0, 16))),
        ("bad JSON", one(entry("F32", "[2]", 16, 8))),
        ("bad JSON", one(entry("F32", "[4294967296,4294967296]", 0, 16))),
        ("bad JSON", one(entry("F32", "[9223372036854775807]", 0, 16))),
        ("bad JSON", one(entry("F32", "[-1]", 0, 16))),
        ("bad JSON", one(entry("F99", "[4]", 0, 16))),
        ("'model.embed_tokens.weight': missing", one(entry("I64", "[2]", 0, 16))),
        ("the file has 16", one(entry("F32", "[2]", 0, 8))),
        ("the file has 16", one(entry("F32", "[16]", 0, 64))),
    ] {
        with_header(&path, &header, 16);
        let said = fault(&path);
        assert!(said.contains(what), "{header:.80}: {said}");
    }
    for dtype in ["I64", "F8_E4M3"] {
        let n = TOKENS.len() * HIDDEN;
        let bytes = if dtype == "I64" { 8 * n } else { n };
        let shape = format!("[{},{HIDDEN}]", TOKENS.len());
        let embeddings = entry(dtype, &shape, 0, bytes as u64);
        with_header(&path, &format!(r#"{{"model.embed_tokens.weight":{embeddings}}}"#), bytes);
        let what = format!("dtype {dtype}; F32, F16 and BF16 can be read");
        assert!(fault(&path).contains(&what), "{}", fault(&path));
    }
    // Nine tensors that lie end to end and reach the end of 64-bit offsets.
    let size = u64::MAX / 9;
    let nine: Vec<String> = (0..9)
        .map(|i| format!("\"t{i}\":{}", entry("U8", &format!("[{size}]"), i * size, (i + 1) * size)))
        .collect();
    with_header(&path, &format!("{{{}}}", nine.join(",")), 16);
    assert!(
        fault(&path).contains("18446744073709551609 bytes of tensor data are announced"),
        "{}",
        fault(&path)
    );
    fs::write(&path, [u64::MAX.to_le_bytes().to_vec(), vec![b' '; 64]].concat()).unwrap();
    assert!(fault(&path).contains("header of 18446744073709551615 bytes, the format allows"));
}

#[test]
fn faulty_indices_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_checkpoint(dir.path(), &SMOLLM, 2);
    let index = checkpoint.join("model.safetensors.index.json");
    let good = fs::read(&index).unwrap();
    let refused = |what: &str, change: &dyn Fn(&mut serde_json::Map<String, Json>)| {
        edit(&index, |json| change(json["weight_map"].as_object_mut().unwrap()));
        let said = fault(&checkpoint);
        assert!(said.contains(what), "{said}");
        fs::write(&index, &good).unwrap();
    };
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let norm = "model.norm.weight";
    let outside = format!("/{second}");
    for name in [outside.as_str(), "../x.safetensors", "x/../y.safetensors", "..", "", "sub/x.safetensors"] {
        refused("not beside the index", &|map| drop(map.insert(norm.to_owned(), name.into())));
    }
    refused("not beside the index", &|map| drop(map.insert(norm.to_owned(), json!(7))));
    refused("shard none.safetensors is missing", &|map| {
        drop(map.insert("x".to_owned(), "none.safetensors".into()))
    });
    refused("the index does not list it", &|map| drop(map.remove(norm)));
    refused("the index lists it here, the file lacks it", &|map| {
        drop(map.insert("zzz".to_owned(), second.into()))
    });
    refused("the index lists it here, the file lacks it", &|map| {
        drop(map.insert(norm.to_owned(), first.into()))
    });
    for (text, what) in
        [("{", "bad JSON"), ("{}", "weight_map is missing"), ("{\"weight_map\": []}", "weight_map")]
    {
        fs::write(&index, text).unwrap();
        assert!(fault(&checkpoint).contains(what), "{}", fault(&checkpoint));
    }
    fs::write(&index, &good).unwrap();
    fs::copy(checkpoint.join(first), checkpoint.join(second)).unwrap();
    assert!(fault(&checkpoint).contains("the index says that it lies in"), "{}", fault(&checkpoint));
    fs::remove_file(checkpoint.join(second)).unwrap();
    assert!(fault(&checkpoint).contains(&format!("shard {second} is missing")));
}

#[test]
fn models_that_cannot_be_read_are_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_checkpoint(dir.path(), &SMOLLM, 1);
    let refused = |file: &str, what: &str, change: &dyn Fn(&mut Json)| {
        let path = checkpoint.join(file);
        let good = fs::read(&path).unwrap();
        edit(&path, change);
        let said = fault(&checkpoint);
        assert!(said.contains(what), "{said}");
        fs::write(&path, good).unwrap();
    };
    let config = |what, key: &'static str, value: Json| {
        refused("config.json", what, &move |json: &mut Json| json[key] = value.clone());
    };
    config(
        "architecture Qwen2MoeForCausalLM is not read directly (LlamaForCausalLM, ",
        "architectures",
        json!(["Qwen2MoeForCausalLM"]),
    );
    config("convert_hf_to_gguf.py", "architectures", json!([]));
    config("hidden_size is missing", "hidden_size", Json::Null);
    config("hidden_size is -1, a positive", "hidden_size", json!(-1));
    config("num_hidden_layers is 4294967295, the files hold", "num_hidden_layers", json!(u32::MAX));
    config("'model.layers.2.input_layernorm.weight': missing", "num_hidden_layers", json!(3));
    config("no such tensor", "num_hidden_layers", json!(1));
    config("shape [10, 48], config.json implies [11, 48]", "vocab_size", json!(11));
    config("implies", "num_attention_heads", json!(12));
    config("cannot share 4 key-value heads", "num_key_value_heads", json!(4));
    config("rope scaling 'dynamic' is not read", "rope_scaling", json!({"type": "dynamic", "factor": 2}));
    config("needs a positive factor", "rope_scaling", json!({"type": "linear"}));
    config("hidden_act gelu", "hidden_act", json!("gelu"));
    config("the checkpoint is quantized", "quantization_config", json!({"quant_method": "gptq"}));
    config("'lm_head.weight': missing", "tie_word_embeddings", json!(false));
    config("tokenizer.ggml.mask_token_id is 99, the vocabulary has 10", "mask_token_id", json!(99));
    let tokenizer = |what, pointer: &'static str, value: Json| {
        refused("tokenizer.json", what, &move |json: &mut Json| {
            *json.pointer_mut(pointer).unwrap() = value.clone()
        });
    };
    tokenizer("the pre-tokenizer is not known", "/pre_tokenizer", json!({"type": "Metaspace"}));
    tokenizer("the pre-tokenizer is not known", "/normalizer", json!({"type": "Lowercase"}));
    tokenizer("is not known for a SentencePiece vocabulary", "/model/byte_fallback", json!(true));
    tokenizer("a \"Unigram\" tokenizer", "/model/type", json!("Unigram"));
    tokenizer("token 'ab' has id 10", "/model/vocab/ab", json!(10));
    tokenizer("share the id 4", "/model/vocab/ab", json!(4));
    tokenizer("model.vocab", "/model/vocab", json!([]));
    tokenizer("model.merges", "/model/merges", json!([["a"]]));
    fs::remove_file(checkpoint.join("tokenizer.json")).unwrap();
    assert!(fault(&checkpoint).contains("tokenizer.json: open"), "{}", fault(&checkpoint));
    fs::remove_file(checkpoint.join("config.json")).unwrap();
    assert!(fault(&checkpoint).contains("config.json: open"), "{}", fault(&checkpoint));
}

#[test]
fn weights_that_are_not_finite_are_refused_by_index() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_checkpoint(dir.path(), &SMOLLM, 1);
    let path = checkpoint.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Json = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let name = "model.layers.1.self_attn.q_proj.weight";
    let start = 8 + header + json[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start + 4 * 777..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let source = open(&checkpoint).unwrap();
    let i = source.tensors().iter().position(|t| t.name == "blk.1.attn_q.weight").unwrap();
    let what = source.read_f32(i).unwrap_err().to_string();
    assert!(what.contains(&format!("tensor '{name}': value 777 is NaN")), "{what}");
}

#[test]
fn rope_scaling_becomes_keys_or_factors() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_checkpoint(dir.path(), &SMOLLM, 1);
    let config = checkpoint.join("config.json");
    edit(&config, |json| json["rope_scaling"] = json!({"rope_type": "linear", "factor": 4.0}));
    let source = open(&checkpoint).unwrap();
    assert_eq!(value(source.as_ref(), "llama.rope.scaling.type"), Some(&"linear".into()));
    assert_eq!(value(source.as_ref(), "llama.rope.scaling.factor"), Some(&Value::F32(4.0)));

    // The parameters of Llama 3.2 in the form of transformers 5; the heads have four frequencies.
    edit(&config, |json| {
        let object = json.as_object_mut().unwrap();
        object.remove("rope_scaling");
        object.remove("rope_theta");
        json["rope_parameters"] = json!({
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
        });
    });
    let source = open(&checkpoint).unwrap();
    assert_eq!(source.tensors()[0].name, "rope_freqs.weight");
    assert_eq!(value(source.as_ref(), "llama.rope.freq_base"), Some(&Value::F32(500_000.0)));
    let factors = source.read_f32(0).unwrap();
    // Wavelengths 6.3, 167, 4443 and 118143 against 2048 and 8192: the third lies between.
    assert_eq!([factors[0], factors[1], factors[3]], [1.0, 1.0, 32.0]);
    let smooth = (8192.0 / (std::f64::consts::TAU * 500_000f64.sqrt()) - 1.0) / 3.0;
    let between = 1.0 / ((1.0 - smooth) / 32.0 + smooth);
    assert!((f64::from(factors[2]) / between - 1.0).abs() < 1e-5, "{factors:?}, {between}");
    let mut raw = Vec::new();
    source.read_raw(0, &mut raw).unwrap();
    assert_eq!(raw.len(), 16);
}

#[test]
fn special_tokens_follow_the_converter() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_checkpoint(dir.path(), &SMOLLM, 1);
    let special = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let sequence = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    // "bos A", as Llama 3 has it, wins over add_bos_token.
    edit(&checkpoint.join("tokenizer.json"), |json| {
        json["post_processor"] = json!({"type": "Sequence", "processors": [
            {"type": "ByteLevel"},
            {"type": "TemplateProcessing",
             "single": [special("<|im_start|>"), sequence("A")],
             "pair": [special("<|im_start|>"), sequence("A"), special("<|im_start|>"), sequence("B")]}
        ]});
        json["added_tokens"].as_array_mut().unwrap().retain(|t| t["id"] != 2);
    });
    edit(&checkpoint.join("tokenizer_config.json"), |json| {
        let object = json.as_object_mut().unwrap();
        object.remove("chat_template");
        json["add_bos_token"] = json!(false);
        json["bos_token"] = json!({"content": "<|im_start|>", "lstrip": false});
        json["added_tokens_decoder"] = json!({"4": {"content": "a", "special": false}});
    });
    fs::write(checkpoint.join("chat_template.jinja"), "{{ jinja }}").unwrap();
    fs::write(
        checkpoint.join("generation_config.json"),
        r#"{"temperature": 0.25, "top_k": 40, "top_p": null}"#,
    )
    .unwrap();
    let source = open(&checkpoint).unwrap();
    let get = |key: &str| value(source.as_ref(), key);
    assert_eq!(get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(true)));
    assert_eq!(get("tokenizer.ggml.add_eos_token"), Some(&Value::Bool(false)));
    assert_eq!(get("tokenizer.ggml.add_sep_token"), Some(&Value::Bool(false)));
    assert_eq!(get("tokenizer.ggml.bos_token_id"), Some(&Value::U32(1)));
    assert_eq!(get("tokenizer.ggml.eos_token_id"), Some(&Value::U32(2)));
    assert_eq!(get("tokenizer.chat_template"), Some(&"{{ jinja }}".into()));
    assert_eq!(get("general.sampling.temp"), Some(&Value::F32(0.25)));
    assert_eq!(get("general.sampling.top_k"), Some(&Value::I32(40)));
    assert_eq!(get("general.sampling.top_p"), None);
    let Some(Value::Array(Array::I32(types))) = get("tokenizer.ggml.token_type") else { panic!("no types") };
    // Token 2 has a role, token 4 was added by the configuration.
    assert_eq!(types[..6], [3, 3, 3, 4, 4, 1]);
}

#[test]
fn every_known_pre_tokenizer_survives_the_round_trip() {
    for pre in pre_tokenizer::names() {
        let dir = tempfile::tempdir().unwrap();
        let source = open(&write_checkpoint(dir.path(), &Shape { pre, ..SMOLLM }, 1)).unwrap();
        assert_eq!(value(source.as_ref(), "tokenizer.ggml.pre"), Some(&pre.into()));
    }
}

#[test]
fn a_gguf_copied_through_the_writer_has_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_gguf(dir.path(), &Shape { matrices: GgmlType::BF16, ..SMOLLM });
    let g = Gguf::open(&path).unwrap();
    let descs = g.tensors.iter().map(|t| TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty });
    let mut w = Writer::new(Vec::new(), &g.kv, descs.collect(), g.alignment).unwrap();
    let mut data = Vec::new();
    for t in &g.tensors {
        g.read(t, &mut data).unwrap();
        w.write_tensor(&t.name, &data).unwrap();
    }
    assert!(w.finish().unwrap() == fs::read(&path).unwrap());
}
