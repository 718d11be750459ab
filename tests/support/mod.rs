//! Small models for tests of the real binary.
#![allow(dead_code)]

pub mod checkpoint;
pub mod kills;

use littlebit::gguf::{GgmlType, TensorDesc, Value, Writer};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program under test.
pub const BIN: &str = env!("CARGO_BIN_EXE_littlebit-convert");

/// Runs `littlebit-convert` with `args`.
pub fn run(args: &[&str]) -> Output {
    Command::new(BIN).args(args).output().expect("the binary starts")
}

/// Runs and expects success; returns stdout.
pub fn ok(args: &[&str]) -> String {
    let out = run(args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?} failed: {stderr}");
    String::from_utf8(out.stdout).expect("stdout is UTF-8")
}

/// Runs and expects exit code `code`; returns stderr.
pub fn fails(code: i32, args: &[&str]) -> String {
    let out = run(args);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// `path` as an argument.
pub fn s(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// Deterministic values, roughly Gaussian, with structure so that low rank finds something.
pub fn weights(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..rows * cols).map(|_| 0.1 * (uniform() + uniform() + uniform())).collect()
}

/// Names and ne of a one-block model of the llama family, odd shapes on purpose.
pub fn small_tensors() -> Vec<(String, Vec<u64>)> {
    let mut t = vec![("token_embd.weight".to_owned(), vec![96, 40])];
    for (name, dims) in [
        ("attn_norm.weight", vec![96]),
        ("attn_q.weight", vec![96, 96]),
        ("attn_k.weight", vec![96, 48]),
        ("attn_v.weight", vec![96, 48]),
        ("attn_output.weight", vec![96, 96]),
        ("ffn_norm.weight", vec![96]),
        ("ffn_gate.weight", vec![96, 200]),
        ("ffn_up.weight", vec![96, 200]),
        ("ffn_down.weight", vec![200, 96]),
    ] {
        t.push((format!("blk.0.{name}"), dims));
    }
    t.push(("output_norm.weight".to_owned(), vec![96]));
    t
}

/// For [`small_model`] as it is.
pub fn untouched(_: &str, _: &mut Vec<f32>) {}

/// Writes the small model as F32; `edit` may change the values of a tensor.
pub fn small_model(dir: &Path, mut edit: impl FnMut(&str, &mut Vec<f32>)) -> PathBuf {
    let path = dir.join("small.gguf");
    let kv = vec![
        ("general.architecture".to_owned(), Value::Str(b"llama".to_vec())),
        ("general.name".to_owned(), Value::Str(b"small".to_vec())),
        ("general.file_type".to_owned(), Value::U32(0)),
        ("llama.block_count".to_owned(), Value::U32(1)),
        (
            "llama.unknown_array".to_owned(),
            Value::Array(littlebit::gguf::Array::Str(vec![b"a".to_vec(), vec![0xff]])),
        ),
    ];
    let tensors = small_tensors();
    let descs = tensors
        .iter()
        .map(|(name, dims)| TensorDesc { name: name.clone(), dims: dims.clone(), ty: GgmlType::F32 })
        .collect();
    let mut w = Writer::new(Vec::new(), &kv, descs, 32).unwrap();
    for (i, (name, dims)) in tensors.iter().enumerate() {
        let mut v = weights(dims.get(1).copied().unwrap_or(1) as usize, dims[0] as usize, i as u64 + 1);
        edit(name, &mut v);
        let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
        w.write_tensor(name, &bytes).unwrap();
    }
    std::fs::write(&path, w.finish().unwrap()).unwrap();
    path
}

/// Events of a run with `--json`.
pub fn events(said: &str) -> Vec<Json> {
    said.lines().map(|l| serde_json::from_str(l).expect(l)).collect()
}

/// Texts of the events of one kind.
pub fn told<'a>(events: &'a [Json], kind: &str) -> Vec<&'a str> {
    events.iter().filter(|e| e["event"] == kind).map(|e| e["text"].as_str().unwrap()).collect()
}

/// Asserts that the keys of a file (`littlebit.kv` of `info --json`) hold the figures of evaluation number `i` as the report has
/// them.
pub fn keys_hold_evaluation(kv: &Json, i: usize, evaluation: &Json) {
    for (key, path) in [
        ("perplexity", "/perplexity/value"),
        ("perplexity_error", "/perplexity/error"),
        ("source_perplexity", "/source_perplexity/value"),
        ("source_perplexity_error", "/source_perplexity/error"),
        ("kld", "/kld/value"),
        ("kld_error", "/kld/error"),
        ("kld_median", "/kld_median"),
        ("kld_999", "/kld_999"),
        ("same_top", "/same_top/value"),
        ("same_top_error", "/same_top/error"),
    ] {
        let stored = kv[format!("evaluation.{key}")][i].as_f64().unwrap_or_else(|| panic!("{key} in {kv}"));
        let exact = evaluation.pointer(path).and_then(Json::as_f64).expect(path);
        assert!((stored - exact).abs() <= 1e-6 * exact.abs(), "{key}: {stored} against {exact}");
    }
}
