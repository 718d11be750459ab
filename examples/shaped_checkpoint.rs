//! A checkpoint with the shapes of a large model and random weights, for measuring conversions of models that do not fit
//! on the machine at hand: one shard a layer, of which only some hold data. The rest are holes, which take no disk.
//!
//! `cargo run --release --example shaped_checkpoint -- OUT_DIR [--layers N] [--filled N] [--width N] [--feed-forward N]
//! [--heads N] [--kv-heads N] [--vocabulary N]`; the defaults are Llama 3's 70B, with 2 layers.

use anyhow::{Context, Result};
use clap::Parser;
use littlebit::source::hf::pre_tokenizer;
use serde_json::{Map, Value as Json, json};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

#[derive(Parser)]
#[command(about = "Writes a checkpoint with the shapes of a large model")]
struct Args {
    /// Directory to create.
    output: PathBuf,
    /// Layers of the model; the real one has 80.
    #[arg(long, default_value_t = 2)]
    layers: usize,
    /// Layers with random weights; the others are zero.
    #[arg(long, default_value_t = usize::MAX)]
    filled: usize,
    #[arg(long, default_value_t = 8192)]
    width: usize,
    #[arg(long, default_value_t = 28672)]
    feed_forward: usize,
    #[arg(long, default_value_t = 64)]
    heads: usize,
    #[arg(long, default_value_t = 8)]
    kv_heads: usize,
    #[arg(long, default_value_t = 128_256)]
    vocabulary: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let dir = &args.output;
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let json = |name: &str, value: &Json| {
        fs::write(dir.join(name), serde_json::to_vec_pretty(value)?).with_context(|| format!("write {name}"))
    };
    json("config.json", &config(&args))?;
    let (tokenizer, settings) = tokenizer();
    json("tokenizer.json", &tokenizer)?;
    json("tokenizer_config.json", &settings)?;
    let shards: Vec<Vec<(String, Vec<usize>)>> =
        (0..args.layers).map(|i| layer(&args, i)).chain([ends(&args)]).collect();
    let mut map = Map::new();
    for (i, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let filled = i < args.layers && i < args.filled;
        write_shard(&dir.join(&name), tensors, filled.then_some(i as u64 + 1))?;
        map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), Json::from(name.as_str()))));
    }
    json("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": map}))
}

fn config(args: &Args) -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": args.width, "intermediate_size": args.feed_forward, "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads, "num_key_value_heads": args.kv_heads, "vocab_size": args.vocabulary,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "bos_token_id": 0, "eos_token_id": 1,
    })
}

/// A byte-level tokenizer of a few tokens; ids beyond them stand for nothing.
fn tokenizer() -> (Json, Json) {
    let (normalizer, steps, ignore_merges) = pre_tokenizer::definition("smollm").expect("it is known");
    let control = ["<|begin|>", "<|end|>"];
    let mut vocab = Map::new();
    for (id, token) in control.iter().copied().chain(["a", "b", "\u{120}", "ab"]).enumerate() {
        vocab.insert(token.to_owned(), id.into());
    }
    let added: Vec<Json> = control
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": steps, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocab, "merges": ["a b"]
        }
    });
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": control[0], "eos_token": control[1],
        "add_bos_token": true
    });
    (tokenizer, settings)
}

/// Names and shapes of the tensors of a layer.
fn layer(args: &Args, i: usize) -> Vec<(String, Vec<usize>)> {
    let (d, ff) = (args.width, args.feed_forward);
    let kv = d / args.heads * args.kv_heads;
    [
        ("input_layernorm", vec![d]),
        ("mlp.down_proj", vec![d, ff]),
        ("mlp.gate_proj", vec![ff, d]),
        ("mlp.up_proj", vec![ff, d]),
        ("post_attention_layernorm", vec![d]),
        ("self_attn.k_proj", vec![kv, d]),
        ("self_attn.o_proj", vec![d, d]),
        ("self_attn.q_proj", vec![d, d]),
        ("self_attn.v_proj", vec![kv, d]),
    ]
    .into_iter()
    .map(|(module, shape)| (format!("model.layers.{i}.{module}.weight"), shape))
    .collect()
}

/// Those outside of the layers.
fn ends(args: &Args) -> Vec<(String, Vec<usize>)> {
    let (d, v) = (args.width, args.vocabulary);
    vec![
        ("lm_head.weight".to_owned(), vec![v, d]),
        ("model.embed_tokens.weight".to_owned(), vec![v, d]),
        ("model.norm.weight".to_owned(), vec![d]),
    ]
}

/// A file of bfloat16 tensors: random from `seed`, or a hole.
fn write_shard(path: &Path, tensors: &[(String, Vec<usize>)], seed: Option<u64>) -> Result<()> {
    let (mut header, mut at) = (Map::new(), 0u64);
    for (name, shape) in tensors {
        let end = at + 2 * shape.iter().product::<usize>() as u64;
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    if let Some(seed) = seed {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..at / 8 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let mut four = [0u8; 8];
            for (to, part) in four.chunks_exact_mut(2).zip(x.to_le_bytes().chunks_exact(2)) {
                // Uniform in +-0.035, about the spread of such models' weights.
                let value = f32::from(i16::from_le_bytes([part[0], part[1]])) * (0.035 / 32768.0);
                to.copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
            }
            out.write_all(&four)?;
        }
    }
    let file = out.into_inner().map_err(|e| e.into_error())?;
    Ok(file.set_len(8 + header.len() as u64 + at)?)
}
