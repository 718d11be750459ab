//! The whole chain on a real model and real llama.cpp builds. Run by `scripts/test`, which sets
//!
//! | variable | what |
//! |---|---|
//! | LITTLEBIT_MODEL | SmolLM2-135M GGUF |
//! | LITTLEBIT_STOCK, LITTLEBIT_PATCHED | install prefixes of the two builds |
//! | LITTLEBIT_LLAMA_SOURCE | the pinned source tree |
//! | LITTLEBIT_PYTHON | a Python with numpy, for the pinned gguf-py |

mod calibrated;
#[path = "../support/mod.rs"]
mod support;

use littlebit::format::{LittleBitFile, schema::Part};
use littlebit::gguf::Gguf;
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use support::{ok, s};

fn var(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    PathBuf::from(value.unwrap_or_else(|| panic!("{name} is not set: run scripts/test")))
}

/// Program of the stock or patched build.
fn program(prefix: &str, name: &str) -> Command {
    Command::new(var(prefix).join("bin").join(name))
}

fn success(what: &str, command: &mut Command) -> Output {
    let out = command.output().unwrap_or_else(|e| panic!("{what}: {command:?}: {e}"));
    let log = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{what}: {command:?}\n{}\n{log}", String::from_utf8_lossy(&out.stdout));
    out
}

/// Files that several tests use, made once.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    /// SmolLM2 as F32, by stock llama-quantize.
    fn f32(&self) -> PathBuf {
        self.path("f32.gguf")
    }
    /// The F32 model at 1.0 bpw.
    fn littlebit(&self) -> PathBuf {
        self.path("lb.gguf")
    }
    /// The same factors as dense F32 weights.
    fn lossy(&self) -> PathBuf {
        self.path("lossy.gguf")
    }
}

/// Factorization alone.
const UNTUNED: [&str; 2] = ["--generated-windows", "0"];

static FILES: OnceLock<Files> = OnceLock::new();

/// A static is never dropped, and these are gigabytes.
extern "C" fn remove_files() {
    if let Some(files) = FILES.get() {
        let _ = std::fs::remove_dir_all(files.dir.path());
    }
}

fn files() -> &'static Files {
    FILES.get_or_init(|| {
        let files = Files { dir: tempfile::tempdir().unwrap() };
        // SAFETY: `remove_files` is a plain function that may run at any exit.
        assert_eq!(unsafe { libc::atexit(remove_files) }, 0);
        let mut quantize = program("LITTLEBIT_STOCK", "llama-quantize");
        quantize.arg("--allow-requantize").args([var("LITTLEBIT_MODEL"), files.f32()]).arg("F32");
        success("dequantize the model", &mut quantize);
        // Few iterations: these tests are about equality, not quality.
        let exact = ["--bpw", "1.0", "--iterations", "4", "--token-embedding-type", "f32", "-q"];
        ok(&[&[s(&files.f32()), s(&files.littlebit())], &UNTUNED[..], &exact[..]].concat());
        ok(&[s(&files.littlebit()), s(&files.lossy()), "--lossy", "f32", "-q"]);
        files
    })
}

fn part_bytes(file: &LittleBitFile) -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for m in file.matrices() {
        for part in Part::ALL {
            let t = file.part(m, part);
            let mut bytes = Vec::new();
            file.gguf.read(t, &mut bytes).unwrap();
            out.push((t.name.clone(), bytes));
        }
    }
    // Sources may list tensors in another order.
    out.sort();
    out
}

#[test]
fn one_and_two_threads_give_the_same_file() {
    let f = files();
    // Matrices of two blocks: all shapes of the model.
    let some = ["--bpw", "1.0", "--iterations", "4", "--tensor-rule", r"blk\.([2-9]|\d\d)\.=keep", "--force"];
    let convert = |threads: &str| {
        let out = f.path(&format!("threads-{threads}.gguf"));
        ok(&[&[s(&f.f32()), s(&out), "-t", threads, "-q"], &UNTUNED[..], &some[..]].concat());
        std::fs::read(out).unwrap()
    };
    assert!(convert("1") == convert("2"));
}

#[test]
fn gguf_and_safetensors_give_the_same_factors() {
    let f = files();
    let hf = f.path("hf");
    let mut example = Command::new(env!("CARGO"));
    example
        .args(["run", "--locked", "-q", "--example", "gguf_to_hf", "--"])
        .arg(var("LITTLEBIT_MODEL"))
        .arg(&hf);
    success("make the checkpoint", &mut example);
    let from_gguf = f.path("from-gguf.gguf");
    let how = [&["--rank", "64", "--iterations", "2", "--force", "-q"], &UNTUNED[..]].concat();
    ok(&[&[s(&var("LITTLEBIT_MODEL")), s(&from_gguf)], &how[..]].concat());
    let from_hf = f.path("from-hf.gguf");
    ok(&[&[s(&hf.join("model.safetensors")), s(&from_hf)], &how[..]].concat());
    let (a, b) = (LittleBitFile::open(&from_gguf).unwrap(), LittleBitFile::open(&from_hf).unwrap());
    assert_eq!(a.matrices().len(), 210);
    assert!(part_bytes(&a) == part_bytes(&b), "factors differ");
    // And the checkpoint's file runs in patched llama.cpp: its vocabulary and hyper-parameters are right.
    let mut run = program("LITTLEBIT_PATCHED", "llama-completion");
    run.arg("-m").arg(&from_hf).args(["-p", "Hello, world", "-n", "4", "-no-cnv", "--temp", "0", "-t", "2"]);
    run.stdin(std::process::Stdio::null());
    success("run the file made from safetensors", &mut run);
    for text in ["Hello, world", "  naïve — 12345\n\tfn main() { }", "日本語 😀 don't"] {
        let tokens = |model: &Path| {
            let mut t = program("LITTLEBIT_STOCK", "llama-tokenize");
            t.arg("-m").arg(model).args(["--ids", "--log-disable", "-p", text]);
            String::from_utf8(success("tokenize", &mut t).stdout).unwrap()
        };
        // The vocabulary loads without weights, so stock llama.cpp tokenizes for both.
        assert_eq!(tokens(&var("LITTLEBIT_MODEL")), tokens(&from_hf), "{text:?}");
    }
}

#[test]
fn announced_bits_are_the_files_bits() {
    let f = files();
    let info: Json = serde_json::from_str(&ok(&["info", s(&f.littlebit()), "--json"])).unwrap();
    let gguf = Gguf::open(&f.littlebit()).unwrap();
    let factor_bits: u64 =
        gguf.tensors.iter().filter(|t| Part::split(&t.name).is_some()).map(|t| 8 * t.nbytes).sum();
    let weights: u64 = {
        let source = Gguf::open(&f.f32()).unwrap();
        let gone = source.tensors.iter().filter(|t| gguf.tensor(&t.name).is_none());
        gone.map(|t| t.dims.iter().product::<u64>()).sum()
    };
    let bpw = factor_bits as f64 / weights as f64;
    assert_eq!(info["littlebit"]["bpw"].as_f64(), Some(bpw));
    assert_eq!(gguf.get("littlebit.bpw").unwrap().as_f64().map(|x| x as f32), Some(bpw as f32));
    assert!(bpw <= 1.0 && bpw > 0.99, "{bpw}");
}

#[test]
fn stock_tools_read_the_file() {
    let f = files();
    let gguf = Gguf::open(&f.littlebit()).unwrap();
    let mut dump = Command::new(var("LITTLEBIT_PYTHON"));
    let py = var("LITTLEBIT_LLAMA_SOURCE").join("gguf-py");
    dump.env("PYTHONPATH", &py).args(["-m", "gguf.scripts.gguf_dump", "--json"]).arg(f.littlebit());
    let listing: Json = serde_json::from_slice(&success("gguf-dump", &mut dump).stdout).unwrap();
    let listed = listing["tensors"].as_object().unwrap();
    assert_eq!(listed.len(), gguf.tensors.len());
    for t in &gguf.tensors {
        assert_eq!(listed[&t.name]["type"].as_str(), Some(t.ty.name().to_string().as_str()), "{}", t.name);
    }
    // Embeddings requantized by stock llama-quantize; the factors pass through byte for byte and the result runs.
    let small = f.path("requantized.gguf");
    let mut quantize = program("LITTLEBIT_STOCK", "llama-quantize");
    quantize.args(["--token-embedding-type", "q8_0"]).args([f.littlebit(), small.clone()]).arg("Q8_0");
    success("requantize the embeddings", &mut quantize);
    let (a, b) = (LittleBitFile::open(&f.littlebit()).unwrap(), LittleBitFile::open(&small).unwrap());
    assert!(part_bytes(&a) == part_bytes(&b));
    assert_eq!(b.gguf.tensor("token_embd.weight").unwrap().ty, littlebit::gguf::GgmlType::Q8_0);
    let mut run = program("LITTLEBIT_PATCHED", "llama-completion");
    run.arg("-m")
        .arg(&small)
        .args(["-p", "Hello", "-n", "2", "-no-cnv", "-t", "2"])
        .stdin(std::process::Stdio::null());
    success("run the requantized file", &mut run);
}

#[test]
fn kept_weights_are_rounded_no_worse_than_by_llama_quantize() {
    let f = files();
    let source = Gguf::open(&f.f32()).unwrap();
    for (theirs, ours, name) in [
        ("Q4_0", "q4_0", "blk.3.attn_q.weight"),
        ("Q5_0", "q5_0", "blk.3.attn_q.weight"),
        ("Q4_K_S", "q4_K", "blk.20.ffn_down.weight"),
        ("Q6_K", "q6_K", "blk.20.ffn_down.weight"),
    ] {
        let (other, own) = (f.path("theirs.gguf"), f.path("ours.gguf"));
        let mut quantize = program("LITTLEBIT_STOCK", "llama-quantize");
        success(theirs, quantize.args([f.f32(), other.clone()]).arg(theirs));
        let rule = format!("{name}=type:{ours}");
        let more = ["--rank", "32", "--iterations", "1", "--force", "-q", "--tensor-rule", &rule];
        ok(&[&[s(&f.f32()), s(&own)], &UNTUNED[..], &more[..]].concat());
        let exact = source.read_f32(source.tensor(name).unwrap()).unwrap();
        let error = |path: &Path| -> f64 {
            let g = Gguf::open(path).unwrap();
            let t = g.tensor(name).unwrap();
            assert_eq!(t.ty.name().to_string().to_lowercase(), ours.to_lowercase());
            let pairs = g.read_f32(t).unwrap();
            pairs.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let (a, b) = (error(&own), error(&other));
        assert!(a <= b, "{ours}: {a} against llama-quantize's {b}");
    }
}

#[test]
fn stock_llama_refuses_and_says_why() {
    let f = files();
    let mut run = program("LITTLEBIT_STOCK", "llama-completion");
    run.arg("-m").arg(f.littlebit()).args(["-p", "Hello", "-n", "2", "-no-cnv", "-v"]);
    let out = run.stdin(std::process::Stdio::null()).output().unwrap();
    let log = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success(), "{log}");
    assert!(log.contains("littlebit.requires"), "{log}");
    assert!(log.contains("llama.cpp with the littlebit patches"), "{log}");
    assert!(log.contains("not found"), "{log}");
}

/// Logits of a 36-token prompt and 4 decodes.
fn logits(prefix: &str, model: &Path, out: &Path, lowering: Option<&str>, extra: &[&str]) {
    let mut dump = program(prefix, "littlebit-logits");
    dump.arg("dump")
        .arg("-m")
        .arg(model)
        .arg("-o")
        .arg(out)
        .args(["--prompt", "36", "--decode", "4"])
        .args(extra);
    if let Some(l) = lowering {
        dump.env("LITTLEBIT_LOWERING", l);
    }
    success("logits", &mut dump);
}

/// Logits of both files, position by position, as they were written.
fn read_logits(path: &Path) -> Vec<f32> {
    std::fs::read(path)
        .unwrap()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

/// Normalized mean squared error: |a - b|^2 / |b|^2.
fn nmse(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    assert!(b.iter().all(|x| x.is_finite()));
    let diff: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    diff / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

#[test]
fn patched_llama_computes_what_the_dense_model_computes() {
    let f = files();
    let reference = f.path("reference.f32");
    logits("LITTLEBIT_STOCK", &f.lossy(), &reference, None, &["-t", "2"]);
    let want = read_logits(&reference);
    // The last bar is ggml's own: 8-bit activations in blocks of 32, twice in each of 210 matrices.
    let bars = [("portable-f32", 1e-8), ("native-f32", 1e-8), ("native", 1e-4), ("portable", 3e-2)];
    println!("| lowering | mmap | threads | NMSE | bar |\n|---|---|---|---|---|");
    for (lowering, bar) in bars {
        let mut first: Option<Vec<f32>> = None;
        for (mmap, threads) in [(true, "1"), (true, "2"), (false, "1"), (false, "2")] {
            let out = f.path("patched.f32");
            let mut extra = vec!["-t", threads];
            if !mmap {
                extra.push("--no-mmap");
            }
            logits("LITTLEBIT_PATCHED", &f.littlebit(), &out, Some(lowering), &extra);
            let got = read_logits(&out);
            let error = nmse(&got, &want);
            println!("| {lowering} | {mmap} | {threads} | {error:.2e} | {bar:.0e} |");
            assert!(error <= bar, "{lowering}, mmap {mmap}, {threads} threads: NMSE {error}");
            // Mapping is a matter of memory, not of arithmetic.
            if threads == "1" {
                match &first {
                    None => first = Some(got),
                    Some(one) => assert!(*one == got, "{lowering}: mmap changes the logits"),
                }
            }
        }
    }
}

#[test]
fn patched_llama_refuses_what_it_cannot_run() {
    let f = files();
    let good = std::fs::read(f.littlebit()).unwrap();
    let bad = f.path("bad.gguf");
    let refuse = |what: &str, words: &[&str], env: Option<&str>| {
        let mut run = program("LITTLEBIT_PATCHED", "llama-completion");
        run.arg("-m")
            .arg(&bad)
            .args(["-p", "Hello", "-n", "2", "-no-cnv"])
            .stdin(std::process::Stdio::null());
        if let Some(l) = env {
            run.env("LITTLEBIT_LOWERING", l);
        }
        let out = run.output().unwrap();
        let log = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            !out.status.success() && out.status.code().is_some(),
            "{what} must fail without a crash: {log}"
        );
        for word in words {
            assert!(log.contains(word), "{what}: no '{word}' in {log}");
        }
    };
    let find = |needle: &[u8]| good.windows(needle.len()).position(|w| w == needle).unwrap();
    let version = find(b"littlebit.version") + "littlebit.version".len() + 4;
    let mut bytes = good.clone();
    bytes[version] = 9;
    std::fs::write(&bad, &bytes).unwrap();
    refuse("a future version", &["littlebit", "version"], None);
    let mut bytes = good.clone();
    let part = find(b"blk.3.ffn_up.lb_g");
    bytes[part + 16] = b'q';
    std::fs::write(&bad, &bytes).unwrap();
    refuse("a missing factor", &["blk.3.ffn_up.lb_g"], None);
    std::fs::write(&bad, &good).unwrap();
    refuse("an unknown lowering", &["LITTLEBIT_LOWERING"], Some("warp"));
}

#[test]
fn other_tools_of_the_patched_build_work() {
    let f = files();
    let mut bench = program("LITTLEBIT_PATCHED", "llama-bench");
    bench.arg("-m").arg(f.littlebit()).args(["-p", "8", "-n", "4", "-r", "1", "-t", "2", "-o", "json"]);
    let report: Json = serde_json::from_slice(&success("llama-bench", &mut bench).stdout).unwrap();
    let source = Gguf::open(&f.f32()).unwrap();
    let n_params: u64 = source.tensors.iter().map(|t| t.dims.iter().product::<u64>()).sum();
    assert_eq!(report[0]["model_n_params"].as_u64(), Some(n_params), "params of the logical model");
    // Shards keep their factors.
    let shards = f.path("shard");
    let mut split = program("LITTLEBIT_STOCK", "llama-gguf-split");
    split.args(["--split", "--split-max-tensors", "400"]).arg(f.littlebit()).arg(&shards);
    success("gguf-split", &mut split);
    let first = std::fs::read_dir(f.dir.path()).unwrap().map(|e| e.unwrap().path());
    let first = { first }.find(|p| s(p).contains("shard-00001-of")).expect("a first shard");
    let (a, b) = (f.path("whole.f32"), f.path("shards.f32"));
    logits("LITTLEBIT_PATCHED", &f.littlebit(), &a, None, &["-t", "2"]);
    logits("LITTLEBIT_PATCHED", &first, &b, None, &["-t", "2"]);
    assert!(read_logits(&a) == read_logits(&b));
    // Perplexity of a few hundred tokens, several sequences at once.
    let text = f.path("text.txt");
    std::fs::write(&text, "The quick brown fox jumps over the lazy dog. ".repeat(60)).unwrap();
    let mut ppl = program("LITTLEBIT_PATCHED", "llama-perplexity");
    ppl.arg("-m").arg(f.littlebit()).arg("-f").arg(&text).args(["-c", "64", "-b", "256", "-t", "2"]);
    let out = success("llama-perplexity", &mut ppl);
    let all = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(all.contains("Final estimate: PPL ="), "{all}");
}
