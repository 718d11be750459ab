//! Small checkpoints of the families that are read, written by hand: nothing here knows how they are read.

use littlebit::gguf::{GgmlType, encode};
use serde_json::{Value as Json, json};
use std::fs;
use std::path::{Path, PathBuf};

pub const HIDDEN: usize = 32;
pub const FEED_FORWARD: usize = 48;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;

/// A tensor of a checkpoint: name, sizes from the slowest on.
pub type Tensor = (String, Vec<usize>);

/// Values of the tensor at `i` of a checkpoint, exact in bfloat16.
pub fn values(i: usize, shape: &[usize]) -> Vec<f32> {
    let (rows, cols) = if shape.len() == 2 { (shape[0], shape[1]) } else { (1, shape[0]) };
    let mut values = crate::support::weights(rows, cols, i as u64 + 1);
    values.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
    values
}

/// Writes `dir/name` with its files and the tensors as bfloat16.
pub fn write(dir: &Path, name: &str, files: &[(&str, Vec<u8>)], tensors: &[Tensor]) -> PathBuf {
    let dir = dir.join(name);
    fs::create_dir_all(&dir).unwrap();
    for (file, content) in files {
        fs::write(dir.join(file), content).unwrap();
    }
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let (start, mut bytes) = (data.len(), Vec::new());
        encode(GgmlType::BF16, &values(i, shape), &mut bytes).unwrap();
        data.append(&mut bytes);
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Json::from(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(dir.join("model.safetensors"), bytes).unwrap();
    dir
}

/// config.json with `own` over what all families have.
pub fn config(architecture: &str, own: &Json) -> Json {
    let mut config = json!({
        "architectures": [architecture], "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 5000.0, "tie_word_embeddings": true
    });
    over(&mut config, own);
    config
}

/// Puts the entries of `own` over those of `json`.
pub fn over(json: &mut Json, own: &Json) {
    for (key, value) in own.as_object().unwrap() {
        json[key] = value.clone();
    }
}

/// Tensors of a model with `vocab` tokens: names below `model.layers.N.` with their sizes in every block.
pub fn tensors(prefix: &str, vocab: usize, block: &[(&str, &[usize])]) -> Vec<Tensor> {
    let mut out = vec![(format!("{prefix}embed_tokens.weight"), vec![vocab, HIDDEN])];
    for n in 0..2 {
        for (name, shape) in block {
            out.push((format!("{prefix}layers.{n}.{name}"), shape.to_vec()));
        }
    }
    out.push((format!("{prefix}norm.weight"), vec![HIDDEN]));
    out
}

/// Pieces of a SentencePiece vocabulary: text, score, kind (1 word, 2 unknown, 3 control, 4 user-defined, 6 byte).
pub const PIECES: &[(&str, f32, u8)] = &[
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    ("<0xC3>", 0.0, 6),
    ("<0xA4>", 0.0, 6),
    ("ab", 0.0, 1),
    ("\u{2581}a", -1.0, 1),
    ("\u{2581}ab", -2.0, 1),
    ("ba", -3.0, 1),
    ("\u{2581}", -4.0, 1),
    ("a", -5.0, 1),
    ("b", -6.0, 1),
];

/// Merges of the same vocabulary in the order of the scores.
pub const MERGES: &[&str] = &["a b", "\u{2581} a", "\u{2581} ab", "\u{2581}a b", "b a"];

/// tokenizer.model with `pieces`, as a message of `ModelProto` for merged pairs.
pub fn tokenizer_model(pieces: &[(&str, f32, u8)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (text, score, kind) in pieces {
        let mut piece = vec![0x0a, text.len() as u8];
        piece.extend(text.as_bytes());
        piece.push(0x15);
        piece.extend(score.to_le_bytes());
        piece.extend([0x18, *kind]);
        out.extend([0x0a, piece.len() as u8]);
        out.extend(piece);
    }
    out.extend([0x12, 2, 0x18, 2]);
    out
}

/// An added token of tokenizer.json.
pub fn added(id: usize, content: &str, special: bool) -> Json {
    json!({"id": id, "content": content, "special": special, "normalized": false})
}

/// tokenizer.json of [`PIECES`] with [`MERGES`].
pub fn tokenizer_json(added_tokens: &[Json]) -> Json {
    let vocab: serde_json::Map<String, Json> =
        PIECES.iter().enumerate().map(|(id, p)| (p.0.to_owned(), id.into())).collect();
    let space = "\u{2581}";
    json!({
        "added_tokens": added_tokens,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": space},
            {"type": "Replace", "pattern": {"String": " "}, "content": space}
        ]},
        "pre_tokenizer": null,
        "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocab, "merges": MERGES}
    })
}

/// tokenizer.json and tokenizer_config.json of a byte-level vocabulary with Qwen's steps; eight tokens.
pub fn qwen_tokenizer() -> [(&'static str, Vec<u8>); 2] {
    let regex = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
    let tokenizer = json!({
        "added_tokens": [added(6, "<|endoftext|>", true), added(7, "<think>", false)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}, byte_level
        ]},
        "post_processor": byte_level,
        "model": {
            "type": "BPE", "byte_fallback": false, "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "1": 5},
            "merges": ["a b", "Ġ ab"]
        }
    });
    let settings = json!({
        "add_bos_token": false, "add_prefix_space": false, "bos_token": null, "eos_token": "<|endoftext|>",
        "chat_template": "{{ messages }}", "tokenizer_class": "Qwen2Tokenizer"
    });
    [
        ("tokenizer.json", tokenizer.to_string().into_bytes()),
        ("tokenizer_config.json", settings.to_string().into_bytes()),
    ]
}

/// Files of a SentencePiece vocabulary of 16 ids: the pieces, and tokens that other files add.
pub fn sentence_piece_files() -> Vec<(&'static str, Vec<u8>)> {
    let own = [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)];
    let mut decoder =
        json!({"13": {"content": "<think>", "special": false}, "14": {"content": "<|x|>", "special": false}});
    for token in &own {
        decoder[token["id"].to_string()] = token.clone();
    }
    let settings = json!({
        "added_tokens_decoder": decoder, "add_bos_token": true, "add_eos_token": false, "bos_token": {"content": "<s>"},
        "eos_token": "</s>", "unk_token": "<unk>", "chat_template": "{{ messages }}"
    });
    vec![
        ("tokenizer.model", tokenizer_model(PIECES)),
        ("tokenizer.json", crate::compare::bytes(&tokenizer_json(&own))),
        ("tokenizer_config.json", crate::compare::bytes(&settings)),
        ("added_tokens.json", crate::compare::bytes(&json!({"<end>": 12, "<far>": 99}))),
    ]
}
