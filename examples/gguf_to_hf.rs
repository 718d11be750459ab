//! Turns a GGUF of the Llama family back into a Hugging Face checkpoint: config.json, tokenizer.json,
//! tokenizer_config.json and safetensors files. The inverse of llama.cpp's convert_hf_to_gguf.py for models with
//! byte-level BPE; quantized weights are dequantized.
//!
//! `cargo run --release --example gguf_to_hf -- IN.gguf OUT_DIR [--shards N] [--dtype f32|f16|bf16]`

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use littlebit::gguf::{Array, GgmlType, Value, encode};
use littlebit::source::hf::{pre_tokenizer, separate_rows};
use littlebit::source::{SourceTensor, TensorSource, open};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Parser)]
#[command(about = "Turns a GGUF of the Llama family into a Hugging Face checkpoint")]
struct Args {
    /// The model.
    input: PathBuf,
    /// Directory to create or to write into.
    output: PathBuf,
    /// Number of safetensors files; above one, an index names them.
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Type of the written weights: f32, f16 or bf16.
    #[arg(long, default_value = "f32")]
    dtype: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let dtype = match args.dtype.as_str() {
        "f32" => GgmlType::F32,
        "f16" => GgmlType::F16,
        "bf16" => GgmlType::BF16,
        other => bail!("--dtype {other}: f32, f16 or bf16"),
    };
    export(&args.input, &args.output, args.shards, dtype)
}

/// Writes the checkpoint of `input` into the directory `output`.
pub fn export(input: &Path, output: &Path, shards: usize, dtype: GgmlType) -> Result<()> {
    ensure!(shards > 0, "at least one shard is needed");
    let source = open(input)?;
    let keys = Keys(source.as_ref());
    ensure!(
        keys.text("general.architecture")? == "llama",
        "only the llama architecture has a checkpoint form here"
    );
    let config = config(&keys, dtype)?;
    let (tokenizer, settings) = tokenizer(&keys)?;
    fs::create_dir_all(output).with_context(|| format!("create {}", output.display()))?;
    for (name, json) in
        [("config.json", &config), ("tokenizer.json", &tokenizer), ("tokenizer_config.json", &settings)]
    {
        fs::write(output.join(name), serde_json::to_vec_pretty(json)?)
            .with_context(|| format!("write {name}"))?;
    }
    write_weights(&keys, output, shards, dtype)
}

/// The keys of a GGUF with errors for what is missing.
struct Keys<'a>(&'a dyn TensorSource);

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.kv().iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    fn text(&self, key: &str) -> Result<&str> {
        self.get(key).and_then(Value::as_str).with_context(|| format!("{key} is missing or no string"))
    }

    fn count(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(Value::as_u64)
    }

    fn needed(&self, key: &str) -> Result<u64> {
        self.count(key).with_context(|| format!("{key} is missing"))
    }

    /// A number with the digits of its f32, so that 1e-5 is not written as 9.999999747378752e-6.
    fn real(&self, key: &str) -> Option<f64> {
        self.get(key)
            .and_then(Value::as_f64)
            .map(|x| (x as f32).to_string().parse().expect("printed by Rust"))
    }

    fn strings(&self, key: &str) -> Result<Vec<&str>> {
        let Some(Value::Array(Array::Str(strings))) = self.get(key) else {
            bail!("{key} is missing or no strings")
        };
        strings
            .iter()
            .map(|s| std::str::from_utf8(s).with_context(|| format!("{key} is not UTF-8")))
            .collect()
    }

    fn heads(&self) -> Result<u64> {
        self.needed("llama.attention.head_count")
    }

    fn kv_heads(&self) -> Result<u64> {
        Ok(self.count("llama.attention.head_count_kv").unwrap_or(self.heads()?))
    }

    fn has(&self, tensor: &str) -> bool {
        self.0.tensors().iter().any(|t| t.name == tensor)
    }
}

/// config.json.
fn config(keys: &Keys, dtype: GgmlType) -> Result<Json> {
    ensure!(
        !keys.has("rope_freqs.weight"),
        "rope_freqs.weight: the scaling's parameters cannot be told from it"
    );
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": keys.needed("llama.embedding_length")?,
        "intermediate_size": keys.needed("llama.feed_forward_length")?,
        "num_hidden_layers": keys.needed("llama.block_count")?,
        "num_attention_heads": keys.heads()?,
        "num_key_value_heads": keys.kv_heads()?,
        "max_position_embeddings": keys.needed("llama.context_length")?,
        "rms_norm_eps": keys.real("llama.attention.layer_norm_rms_epsilon").context("rms epsilon is missing")?,
        "vocab_size": keys.strings("tokenizer.ggml.tokens")?.len(),
        "rope_theta": keys.real("llama.rope.freq_base").unwrap_or(10_000.0),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "mlp_bias": keys.has("blk.0.ffn_up.bias"),
        "tie_word_embeddings": !keys.has("output.weight"),
        "torch_dtype": match dtype { GgmlType::F16 => "float16", GgmlType::BF16 => "bfloat16", _ => "float32" },
    });
    let object = config.as_object_mut().expect("an object");
    if let Some(head_dim) = keys.count("llama.attention.key_length") {
        object.insert("head_dim".to_owned(), head_dim.into());
    }
    match keys.text("llama.rope.scaling.type") {
        Err(_) | Ok("none") => {}
        Ok("linear") => {
            let factor = keys.real("llama.rope.scaling.factor").context("rope.scaling.factor is missing")?;
            object.insert("rope_scaling".to_owned(), json!({"rope_type": "linear", "factor": factor}));
        }
        Ok(other) => bail!("rope scaling '{other}' is not supported"),
    }
    for (role, id) in special_ids(keys) {
        object.insert(format!("{role}_token_id"), id.into());
    }
    Ok(config)
}

/// Roles of special tokens that the file names, with their ids.
fn special_ids(keys: &Keys) -> Vec<(&'static str, u64)> {
    [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]
        .into_iter()
        .filter_map(|(role, key)| Some((role, keys.count(&format!("tokenizer.ggml.{key}_token_id"))?)))
        .collect()
}

/// tokenizer.json and tokenizer_config.json.
fn tokenizer(keys: &Keys) -> Result<(Json, Json)> {
    let pre = keys.text("tokenizer.ggml.pre")?;
    let Some((normalizer, steps, ignore_merges)) = pre_tokenizer::definition(pre) else {
        bail!("pre-tokenizer '{pre}' is none of {:?}", pre_tokenizer::names().collect::<Vec<_>>());
    };
    let tokens = keys.strings("tokenizer.ggml.tokens")?;
    let Some(Value::Array(Array::I32(types))) = keys.get("tokenizer.ggml.token_type") else {
        bail!("tokenizer.ggml.token_type is missing");
    };
    ensure!(types.len() == tokens.len(), "{} tokens with {} types", tokens.len(), types.len());
    let (mut vocab, mut added) = (Map::new(), Vec::new());
    for (id, (token, ty)) in tokens.iter().zip(types).enumerate() {
        const CONTROL: i32 = 3;
        const USER_DEFINED: i32 = 4;
        const UNUSED: i32 = 5;
        if *ty != UNUSED {
            vocab.insert((*token).to_owned(), id.into());
        }
        if matches!(*ty, CONTROL | USER_DEFINED) {
            added.push(json!({
                "id": id, "content": token, "special": *ty == CONTROL,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false
            }));
        }
    }
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": steps, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocab, "merges": keys.strings("tokenizer.ggml.merges")?
        }
    });
    let mut settings = Map::new();
    settings.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    for (role, id) in special_ids(keys) {
        let token =
            tokens.get(id as usize).with_context(|| format!("{role} is token {id} of {}", tokens.len()))?;
        settings.insert(format!("{role}_token"), (*token).into());
    }
    for (key, name) in [
        ("add_bos_token", "add_bos_token"),
        ("add_eos_token", "add_eos_token"),
        ("add_space_prefix", "add_prefix_space"),
    ] {
        if let Some(Value::Bool(flag)) = keys.get(&format!("tokenizer.ggml.{key}")) {
            settings.insert(name.to_owned(), (*flag).into());
        }
    }
    if let Ok(template) = keys.text("tokenizer.chat_template") {
        settings.insert("chat_template".to_owned(), template.into());
    }
    Ok((tokenizer, settings.into()))
}

/// A tensor of the checkpoint.
struct Weight<'a> {
    name: String,
    tensor: &'a SourceTensor,
    index: usize,
}

impl Weight<'_> {
    fn nbytes(&self, dtype: GgmlType) -> u64 {
        dtype.tensor_bytes(&self.tensor.dims).expect("the reader checked the shape")
    }
}

fn write_weights(keys: &Keys, dir: &Path, shards: usize, dtype: GgmlType) -> Result<()> {
    let mut weights = Vec::new();
    for (index, tensor) in keys.0.tensors().iter().enumerate() {
        weights.push(Weight { name: hf_name(&tensor.name)?, tensor, index });
    }
    weights.sort_by(|a, b| a.name.cmp(&b.name));
    if shards == 1 {
        return write_shard(keys, &dir.join("model.safetensors"), &weights, dtype);
    }
    let total: u64 = weights.iter().map(|w| w.nbytes(dtype)).sum();
    let mut map = BTreeMap::new();
    for (i, part) in weights.chunks(weights.len().div_ceil(shards)).enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        write_shard(keys, &dir.join(&file), part, dtype)?;
        map.extend(part.iter().map(|w| (w.name.clone(), file.clone())));
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    Ok(fs::write(dir.join("model.safetensors.index.json"), serde_json::to_vec_pretty(&index)?)?)
}

/// Name of a tensor in the checkpoint.
fn hf_name(name: &str) -> Result<String> {
    let whole = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => "",
    };
    if !whole.is_empty() {
        return Ok(whole.to_owned());
    }
    let parts = name.strip_prefix("blk.").and_then(|rest| {
        let (block, rest) = rest.split_once('.')?;
        let (module, part) = rest.rsplit_once('.')?;
        let module = match module {
            "attn_norm" => "input_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        };
        Some(format!("model.layers.{block}.{module}.{part}"))
    });
    parts.with_context(|| format!("tensor '{name}' has no place in a Llama checkpoint"))
}

/// Streams one safetensors file: length, header, data.
fn write_shard(keys: &Keys, path: &Path, weights: &[Weight], dtype: GgmlType) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0;
    for w in weights {
        let shape: Vec<u64> = w.tensor.dims.iter().rev().copied().collect();
        let end = at + w.nbytes(dtype);
        header.insert(
            w.name.clone(),
            json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = std::io::BufWriter::new(
        fs::File::create(path).with_context(|| format!("create {}", path.display()))?,
    );
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut bytes = Vec::new();
    for w in weights {
        let mut values = keys.0.read_f32(w.index)?;
        let heads = match w.name.rsplit('.').nth(1) {
            Some("q_proj") => Some(keys.heads()?),
            Some("k_proj") => Some(keys.kv_heads()?),
            _ => None,
        };
        if let Some(heads) = heads {
            let rows = *w.tensor.dims.last().expect("tensors have dimensions");
            ensure!(
                heads > 0 && rows % (2 * heads) == 0,
                "'{}': {rows} rows for {heads} heads",
                w.tensor.name
            );
            values = separate_rows(&values, heads as usize, rows as usize);
        }
        bytes.clear();
        encode(dtype, &values, &mut bytes)?;
        out.write_all(&bytes)?;
    }
    out.flush().with_context(|| format!("write {}", path.display()))
}
