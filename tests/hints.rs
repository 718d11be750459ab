//! The real binary on requests that go wrong: every error comes with what to do about it, and that fits its cause.

mod support;

use littlebit::gguf::{GgmlType, Gguf, TensorDesc, Value, Writer};
use std::fs;
use std::path::Path;
use support::checkpoint::{SMOLLM, write_gguf};
use support::{BIN, fails, ok, run, s, small_model, untouched};

/// Runs with `args`, expects `code`, an error with all of `words`, and no file called `o.gguf` nor a work folder in `dir`.
fn refused(dir: &Path, code: i32, args: &[&str], words: &[&str]) -> String {
    let said = fails(code, args);
    for word in words {
        assert!(said.contains(word), "{args:?} does not say '{word}': {said}");
    }
    assert!(!said.contains("does not hold together"), "{said}");
    assert!(!dir.join("o.gguf").exists() && !dir.join("o.gguf.work").exists(), "{args:?} left something");
    said
}

/// An imatrix of one weight with so many columns.
fn imatrix(path: &Path, name: &str, columns: u64) {
    let describe =
        |end: &str, n: u64| TensorDesc { name: format!("{name}.{end}"), dims: vec![n, 1], ty: GgmlType::F32 };
    let kv = [("general.type".to_owned(), Value::Str(b"imatrix".to_vec()))];
    let descriptors = vec![describe("in_sum2", columns), describe("counts", 1)];
    let mut w = Writer::new(Vec::new(), &kv, descriptors, 32).unwrap();
    for n in [columns, 1] {
        let ones: Vec<u8> = (0..n).flat_map(|_| 1f32.to_le_bytes()).collect();
        w.write_tensor(&format!("{name}.{}", if n == 1 { "counts" } else { "in_sum2" }), &ones).unwrap();
    }
    fs::write(path, w.finish().unwrap()).unwrap();
}

#[test]
fn flags_that_need_text_are_refused_without() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("o.gguf");
    let none = [s(&input), s(&out), "--rank", "32", "--generated-windows", "0"];
    for (flag, more) in [
        ("--eval", &["--eval", "/nonexistent"][..]),
        ("--eval", &["--eval", "/nonexistent", "--max-ppl-ratio", "1.1"]),
        ("--statistics", &["--statistics", "stats"]),
        ("--save-imatrix", &["--save-imatrix", "i.gguf"]),
        ("--tune-steps", &["--tune-steps", "3"]),
        ("--block-passes", &["--block-passes", "1"]),
        ("--time-budget", &["--time-budget", "1s"]),
        ("--effort", &["--effort", "best"]),
        ("--drift-correction", &["--drift-correction", "0.123"]),
        ("--residual-correction", &["--residual-correction", "0.123"]),
        ("--polish-rounds", &["--polish-rounds", "17"]),
        ("--absorb-passes", &["--absorb-passes", "1"]),
    ] {
        let words = format!("{flag} needs text: --calibration FILE..., or --generated-windows above 0");
        refused(dir.path(), 2, &[&none[..], more].concat(), &[&words]);
    }
    let auto = [s(&input), s(&out), "--generated-windows", "0", "--auto-bpw", "0.5..1"];
    refused(dir.path(), 2, &auto, &["--auto-bpw needs text"]);
    // A model that cannot write: it lacks the keys of a forward pass.
    refused(
        dir.path(),
        1,
        &[s(&input), s(&out), "--effort", "best"],
        &["embedding_length", "no forward pass"],
    );
    // By itself it says what is so anyway.
    ok(&none);
}

/// The library refuses it too: a gate that nothing measures lets everything pass.
#[test]
fn gates_are_not_skipped_without_calibration() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("o.gguf");
    let source = littlebit::source::open(&input).unwrap();
    let options = littlebit::job::Options {
        budget: littlebit::job::layout::Budget::Target(littlebit::plan::Target::Rank(32)),
        rules: Vec::new(),
        paths: 1,
        method: littlebit::factorize::Method::Admm,
        rotate: None,
        iterations: None,
        seed: 0,
        threads: 1,
        device: littlebit::factorize::device::Choice::Cpu,
        imatrix: None,
        calibration: None,
        token_embedding_type: None,
        output_tensor_type: None,
        lossy: None,
        container: false,
        work_dir: None,
        max_memory: None,
        force: false,
        gates: littlebit::verify::Gates { kld: Some(1.0), ..Default::default() },
    };
    let e = littlebit::job::convert(source.as_ref(), &out, &options, |_| {}).unwrap_err();
    assert!(matches!(e, littlebit::error::Error::Usage(_)), "{e}");
    assert!(e.to_string().contains("gates") && !out.exists(), "{e}");
}

#[test]
fn a_file_of_another_kind_gets_the_advice_of_its_role() {
    let dir = tempfile::tempdir().unwrap();
    let (input, model) = (small_model(dir.path(), untouched), write_gguf(dir.path(), &SMOLLM));
    let path = |name: &str| dir.path().join(name);
    let (out, text, empty, binary) = (path("o.gguf"), path("t.txt"), path("empty"), path("latin1.txt"));
    fs::write(&text, "plain words, not statistics").unwrap();
    fs::write(&empty, "").unwrap();
    fs::write(&binary, b"caf\xe9").unwrap();
    let foreign = path("foreign.gguf");
    imatrix(&foreign, "blk.9.attn_q.weight", 8);
    let make = "hint: make an importance matrix of this model: llama-imatrix -m MODEL -f TEXT -o FILE";
    for file in [&foreign, &text, &empty] {
        let args = [s(&input), s(&out), "--rank", "32", "--imatrix", s(file)];
        refused(dir.path(), 1, &args, &[s(file), make]);
    }
    let own = ["--generated-windows", "1", "--effort", "fast", "--tune-steps", "0", "--rank", "32", "-q"];
    let calibrated = |more: &[&str], words: &[&str]| {
        refused(dir.path(), 1, &[&[s(&model), s(&out)], &own[..], more].concat(), words);
    };
    calibrated(&["--calibration", s(&binary)], &["byte 3", "hint: give plain text in UTF-8"]);
    calibrated(&["--eval", s(&binary)], &["byte 3", "hint: give plain text in UTF-8"]);
    calibrated(&["--calibration", s(&text)], &["tokens, shorter than one window of 512"]);
    calibrated(&["--statistics", s(&text)], &["t.txt", "hint: name another file for --statistics"]);
    let work = path("work");
    fs::create_dir(&work).unwrap();
    fs::write(work.join("run.json"), "[1, 2]").unwrap();
    let args = [s(&input), s(&out), "--rank", "32", "--work-dir", s(&work)];
    refused(dir.path(), 1, &args, &["run.json", "name another --work-dir"]);
    assert_eq!(fs::read_to_string(work.join("run.json")).unwrap(), "[1, 2]");
}

#[test]
fn models_that_are_not_read_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let out = path("o.gguf");
    // Not a fault of the file: a type that loses too much to be compressed again.
    let quantized = path("iq2.gguf");
    let kv = [
        ("general.architecture".to_owned(), Value::Str(b"llama".to_vec())),
        ("llama.block_count".to_owned(), Value::U32(1)),
    ];
    let name = "blk.0.attn_q.weight";
    let one = TensorDesc { name: name.to_owned(), dims: vec![256, 64], ty: GgmlType::IQ2_XXS };
    let mut w = Writer::new(Vec::new(), &kv, vec![one], 32).unwrap();
    w.write_tensor(name, &[0; 64 * 66]).unwrap();
    fs::write(&quantized, w.finish().unwrap()).unwrap();
    let said = refused(dir.path(), 1, &[s(&quantized), s(&out)], &[name, "IQ2_XXS", "llama-quantize"]);
    assert!(!said.contains("hint:"), "{said}");
    let pickle = path("pytorch_model.bin");
    for content in [&b"PK\x03\x04rest"[..], b"\x80\x02rest", b"anything", b""] {
        fs::write(&pickle, content).unwrap();
        let said = refused(dir.path(), 1, &[s(&pickle), s(&out)], &["PyTorch files", "safetensors"]);
        assert!(!said.contains("hint:"), "{said}");
    }
    refused(
        dir.path(),
        1,
        &["no-such-owner/Llama-3.2-1B", s(&out)],
        &["hint: check the path; models are not downloaded", "hf download no-such-owner/Llama-3.2-1B"],
    );
    let said = refused(dir.path(), 1, &["no-such-folder/a.gguf", s(&out)], &["hint: check the path"]);
    assert!(!said.contains("downloaded"), "{said}");
    // A compressed model without its end is one, and its own reader says what is wrong.
    let (input, whole, cut) =
        (small_model(dir.path(), untouched), path("a.littlebit"), path("cut.littlebit"));
    ok(&[s(&input), s(&whole), "--rank", "32", "-q"]);
    let bytes = fs::read(&whole).unwrap();
    for end in [bytes.len() - 100, 200, 9, 1, 0] {
        fs::write(&cut, &bytes[..end]).unwrap();
        let said = refused(dir.path(), 1, &["info", s(&cut)], &["cut.littlebit: byte"]);
        assert!(!said.contains("GGUF"), "{said}");
    }
}

/// Copies a model without its vocabulary.
fn without_tokens(model: &Path, copy: &Path) {
    let file = Gguf::open(model).unwrap();
    let kv: Vec<_> = file.kv.iter().filter(|(k, _)| k != "tokenizer.ggml.tokens").cloned().collect();
    let descriptors = file.tensors.iter();
    let descriptors =
        descriptors.map(|t| TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty });
    let mut w = Writer::new(Vec::new(), &kv, descriptors.collect(), 32).unwrap();
    let mut bytes = Vec::new();
    for t in &file.tensors {
        file.read(t, &mut bytes).unwrap();
        w.write_tensor(&t.name, &bytes).unwrap();
    }
    fs::write(copy, w.finish().unwrap()).unwrap();
}

#[test]
fn verify_reads_texts_first_and_gives_advice_that_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = path("short.txt");
    fs::write(&text, "too short").unwrap();
    let (input, out) = (small_model(dir.path(), untouched), path("small-lb.gguf"));
    ok(&[s(&input), s(&out), "--rank", "32", "-q"]);
    let e = fails(1, &["verify", s(&out), "--against", s(&input), "--eval", s(&text)]);
    assert!(e.contains("tokenizer.ggml.tokens") && e.contains("hint: leave out --eval"), "{e}");
    assert!(!e.contains("--imatrix") && !e.contains("tensors "), "{e}");
    let (model, out) = (write_gguf(dir.path(), &SMOLLM), path("model-lb.gguf"));
    let mute = path("mute.gguf");
    without_tokens(&model, &mute);
    let e = fails(1, &[s(&mute), s(&path("o.gguf")), "--calibration", s(&text), "-q"]);
    assert!(e.contains("tokenizer.ggml.tokens") && e.contains("hint: give statistics with --imatrix"), "{e}");
    ok(&[s(&model), s(&out), "--rank", "32", "-q"]);
    let e = fails(1, &["verify", s(&out), "--against", s(&model), "--eval", s(&text)]);
    assert!(e.contains("tokens, shorter than one window of 512"), "{e}");
    assert!(!e.contains("tensors "), "tensors were compared first: {e}");
}

#[test]
fn folders_of_all_files_are_looked_for_first() {
    let dir = tempfile::tempdir().unwrap();
    let input = write_gguf(dir.path(), &SMOLLM);
    let path = |name: &str| dir.path().join(name);
    let (out, there, here) = (path("o.gguf"), path("none"), path("f.json"));
    let own = ["--generated-windows", "1", "--effort", "fast", "--tune-steps", "0", "--rank", "32"];
    let missing = ["its folder", "is missing", "hint: make the folder first (mkdir -p"];
    let inside = |name: &str| s(&there.join(name)).to_owned();
    let said = refused(dir.path(), 1, &[s(&input), &inside("p.gguf"), "--rank", "32"], &missing);
    assert!(!said.contains(".work"), "{said}");
    for (flag, name) in [("--report", "r.html"), ("--save-imatrix", "i.gguf"), ("--statistics", "stats")] {
        let file = inside(name);
        let args = [&[s(&input), s(&out), flag, &file], &own[..]].concat();
        let said = refused(dir.path(), 1, &args, &[&missing[..], &[file.as_str()]].concat());
        assert!(!said.contains("generate"), "the work began: {said}");
    }
    fs::write(&here, "").unwrap();
    let below = here.join("o.gguf");
    refused(dir.path(), 1, &[s(&input), s(&below), "--rank", "32"], &["is no folder"]);
}

#[test]
fn work_that_does_not_exist_is_not_promised() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = std::process::Command::new(BIN).args(["info", s(&input)]).stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("hint: make room") && !said.contains("goes on"), "{said}");
    assert!(!said.contains("--work-dir"), "{said}");
}

#[test]
fn habits_of_llama_quantize_are_met_with_the_way_here() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("o.gguf");
    let way = "littlebit-convert: hint: there is no type to name: littlebit-convert IN OUT --bpw 1.0";
    for more in [
        &["Q4_K_M"][..],
        &["q8_0"],
        &["IQ2_XXS"],
        &["--type", "Q4_K_M"],
        &["--type=Q4_K_M"],
        &["--allow-requantize"],
        &["--tensor-type", "attn_v=q8_0"],
        &["--leave-output-tensor"],
        &["--pure"],
    ] {
        let said = refused(dir.path(), 2, &[&[s(&input), s(&out)], more].concat(), &[way]);
        assert!(said.starts_with("error: ") && said.matches("hint:").count() == 1, "{said}");
    }
    // Not for mistakes of another kind.
    for more in [&["--rank", "32", "--bpw", "1"][..], &["--bqw", "1"], &["third.gguf"]] {
        let said = fails(2, &[&[s(&input), s(&out)], more].concat());
        assert!(!said.contains(way), "{more:?}: {said}");
    }
    let said = fails(2, &[s(&input), s(&out), "--tensor-rule", "attn_v=q8_0"]);
    assert!(said.contains("write type:q8_0"), "{said}");
}

#[test]
fn the_memory_that_is_asked_for_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("o.gguf");
    let with = |memory: &str| [s(&input), s(&out), "--rank", "32", "--max-memory", memory].map(str::to_owned);
    let said = {
        let args = with("1M");
        refused(dir.path(), 2, &args.each_ref().map(String::as_str), &["Give at least "])
    };
    let least = said.split("Give at least ").nth(1).unwrap().split(';').next().unwrap();
    let number: u64 = least.strip_suffix('M').expect(least).parse().unwrap();
    let short = with(&format!("{}M", number - 1));
    refused(dir.path(), 2, &short.each_ref().map(String::as_str), &["Give at least "]);
    ok(&with(least).each_ref().map(String::as_str));
}

#[test]
fn an_untuned_run_says_so_at_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("o.gguf");
    let said = |more: &[&str]| {
        let ended = run(&[&[s(&input), s(&out), "--rank", "32", "--force"], more].concat());
        assert!(ended.status.success());
        String::from_utf8(ended.stderr).unwrap()
    };
    let shown = said(&[]);
    let warning = shown.find("warning: without text to tune on").expect(&shown);
    assert!(warning < shown.find("blk.0.attn_q").expect(&shown), "{shown}");
    for quiet in ["-q", "--json"] {
        assert!(!said(&[quiet]).contains("warning"), "{quiet}");
    }
}

#[test]
fn help_names_the_program_its_gates_and_signals() {
    let help = ok(&["--help"]);
    let gates = help.split("\nGates:\n").nth(1).expect("a heading of their own");
    for flag in ["--max-ppl-ratio", "--max-kld", "--min-same-top", "--max-repetition", "--max-surprise"] {
        assert!(gates.contains(flag), "{flag}");
    }
    assert!(help.contains("130, 143 interrupted"), "{help}");
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("other-name");
    std::os::unix::fs::symlink(BIN, &link).unwrap();
    let out = std::process::Command::new(&link).arg("--help").output().unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    assert!(out.contains("Usage: littlebit-convert ") && !out.contains("other-name"), "{out}");
    let input = small_model(dir.path(), untouched);
    for size in ["1T", "1Ti"] {
        ok(&[s(&input), "--dry-run", "--target-size", size]);
    }
}
