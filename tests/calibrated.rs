//! The real binary on calibrated conversions of a small model: what their result depends on, and what they tell.

mod support;

use littlebit::gguf::{Gguf, TensorDesc, Value, Writer};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::checkpoint::{SMOLLM, write_gguf};
use support::{BIN, events, fails, ok, s, told};

/// A text of so many words of the test model.
fn text(dir: &Path, words: u32) -> PathBuf {
    let path = dir.join("text.txt");
    let words: Vec<&str> = (0..words).map(|i| ["a", "ab", "b"][(i * i % 11 % 7 % 3) as usize]).collect();
    std::fs::write(&path, words.join(" ")).unwrap();
    path
}

/// Factors depend on the embeddings and the head that the output will hold, so a work folder is of one type of them.
#[test]
fn other_types_of_embeddings_and_head_are_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let (input, text) = (write_gguf(dir.path(), &SMOLLM), text(dir.path(), 1400));
    let (out, work) = (dir.path().join("o.gguf"), dir.path().join("o.gguf.work"));
    let args =
        [s(&input), s(&out), "--rank", "32", "--calibration", s(&text), "--generated-windows", "0", "-q"];
    let mut first = Command::new(BIN).args(args).args(["--tune-steps", "2000"]).spawn().unwrap();
    let begun = Instant::now();
    while !work.join("matrix-0.rec").exists() {
        assert!(first.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(2));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    for (flag, what) in
        [("--token-embedding-type", "token embedding type"), ("--output-tensor-type", "output tensor type")]
    {
        let said = fails(2, &[&args[..], &[flag, "f16"]].concat());
        assert!(said.contains(&format!("{what} was 'the source's', is 'F16'")), "{said}");
    }
    ok(&[&args[..], &["--tune-steps", "1"]].concat());
}

/// Also where memory is so short that not all windows for moments fit.
#[test]
fn threads_do_not_change_the_bytes_of_a_calibrated_model() {
    let dir = tempfile::tempdir().unwrap();
    let (input, text) = (write_gguf(dir.path(), &SMOLLM), text(dir.path(), 24_000));
    let fixed = ["--rank", "32", "--calibration", s(&text), "--generated-windows", "0", "--effort", "fast"];
    let more = ["--block-passes", "1", "--tune-steps", "2", "--json"];
    let run = |name: &str, threads: &str, memory: &[&str]| {
        let out = dir.path().join(name);
        let said = ok(&[&[s(&input), s(&out), "--threads", threads], &fixed[..], &more, memory].concat());
        (std::fs::read(&out).unwrap(), said)
    };
    let free = run("1.gguf", "1", &[]).0;
    assert!(free == run("3.gguf", "3", &[]).0);
    let out = dir.path().join("no.gguf");
    // First of a matrix, then of a stage.
    let refused = |memory: u64| -> u64 {
        let memory = format!("{memory}M");
        let said = fails(2, &[&[s(&input), s(&out), "--max-memory", &memory], &fixed[..], &more].concat());
        let least = said.split("Give at least ").nth(1).and_then(|t| t.split('M').next());
        least.expect(&said).parse().expect(&said)
    };
    let least = refused(refused(1));
    let limit = format!("{}M", least + 25);
    let (bytes, said) = run("1-limited.gguf", "1", &["--max-memory", &limit]);
    assert!(bytes != free, "the limit leaves all windows where they are");
    assert!(!said.contains("is enough for"), "{said}");
    assert!(bytes == run("3-limited.gguf", "3", &["--max-memory", &limit]).0);
    // The least is enough for one thread; the others do not begin.
    let said = run("least.gguf", "3", &["--max-memory", &format!("{least}M")]).1;
    assert!(told(&events(&said), "note").contains(&"--max-memory is enough for 1 of 3 threads"), "{said}");
}

#[test]
fn a_time_budget_that_is_spent_leaves_distillation_out_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (input, text) = (write_gguf(dir.path(), &SMOLLM), text(dir.path(), 1400));
    let out = dir.path().join("o.gguf");
    let args = [s(&input), s(&out), "--rank", "32", "--calibration", s(&text), "--generated-windows", "0"];
    let run = |more: &[&str]| {
        let events = events(&ok(&[&args[..], &["--force", "--json"], more].concat()));
        let spent = told(&events, "note")
            .iter()
            .any(|n| n.contains("nothing of --time-budget is left for distillation"));
        (spent, events.iter().any(|e| e["event"] == "stage" && e["stage"] == "distil"))
    };
    assert_eq!(run(&["--time-budget", "0.01s"]), (true, false));
    let begun = Instant::now();
    assert_eq!(run(&["--time-budget", "6s"]), (false, true));
    assert!(begun.elapsed() >= Duration::from_secs(6));
}

/// What a dry run shows is what a run does, once the source is measured.
#[test]
fn a_dry_run_knows_measured_sensitivities() {
    let dir = tempfile::tempdir().unwrap();
    let (input, text) = (write_gguf(dir.path(), &SMOLLM), text(dir.path(), 1400));
    let (out, statistics) = (dir.path().join("o.gguf"), dir.path().join("statistics"));
    let fixed = ["--bpw", "8", "--calibration", s(&text), "--generated-windows", "0", "--json"];
    let fixed =
        [&fixed[..], &["--statistics", s(&statistics), "--tune-steps", "0", "--block-passes", "0"]].concat();
    let plan = |more: &[&str]| {
        let said = ok(&[&[s(&input)], &fixed[..], more].concat());
        let planned = events(&said).into_iter().find(|e| e["event"] == "planned").expect(&said);
        (planned["plan"]["entries"].clone(), planned["plan"]["measured"].clone())
    };
    let before = plan(&["--dry-run"]);
    assert!(!statistics.exists());
    let of_run = plan(&[s(&out)]);
    let after = plan(&["--dry-run"]);
    assert_eq!((&before.1, &after.1), (&Json::from(false), &Json::from(true)));
    assert_eq!(of_run.0, after.0);
    assert_ne!(before.0, after.0, "measurements have no effect");
    let said = fails(2, &[&[s(&input), "--dry-run", "--seed", "7"], &fixed[..]].concat());
    assert!(said.contains("statistics in ") && said.contains("seed was '0', is '7'"), "{said}");
}

/// Copies a model as one of another architecture.
fn of_architecture(model: &Path, copy: &Path, name: &str) {
    let file = Gguf::open(model).unwrap();
    let kv: Vec<_> = file
        .kv
        .iter()
        .map(|(k, v)| match k.as_str() {
            "general.architecture" => (k.clone(), Value::from(name)),
            _ => (k.replace("llama.", &format!("{name}.")), v.clone()),
        })
        .collect();
    let tensors = file.tensors.iter();
    let tensors = tensors.map(|t| TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty });
    let mut w = Writer::new(Vec::new(), &kv, tensors.collect(), 32).unwrap();
    let mut bytes = Vec::new();
    for t in &file.tensors {
        file.read(t, &mut bytes).unwrap();
        w.write_tensor(&t.name, &bytes).unwrap();
    }
    std::fs::write(copy, w.finish().unwrap()).unwrap();
}

/// A family without a forward pass is compressed all the same, and told what it goes without.
#[test]
fn another_family_is_told_what_it_misses() {
    let dir = tempfile::tempdir().unwrap();
    let (llama, text) = (write_gguf(dir.path(), &SMOLLM), text(dir.path(), 1400));
    let (input, out) = (dir.path().join("falcon.gguf"), dir.path().join("o.gguf"));
    of_architecture(&llama, &input, "falcon");
    let misses = "no forward pass for architecture 'falcon'";
    let left_out = "it can be compressed with an imatrix, but not calibrated, tuned or evaluated";
    let events = events(&ok(&[s(&input), s(&out), "--rank", "32", "--json"]));
    let notes = told(&events, "note");
    assert!(
        notes.iter().any(|n| n.contains("without tuning") && n.contains(misses) && n.contains(left_out)),
        "{notes:?}"
    );
    let last = events.last().unwrap();
    assert!(last["warning"].as_str().unwrap().contains("not tuned"), "{last}");
    assert_eq!(last["report"]["matrices"].as_array().unwrap().len(), 14);
    let file = littlebit::format::LittleBitFile::open(&out).unwrap();
    assert_eq!(
        (file.matrices().len(), file.gguf.get("general.architecture")),
        (14, Some(&Value::from("falcon")))
    );
    // An importance matrix helps, text does not.
    let imatrix = dir.path().join("imatrix.gguf");
    let short = ["--generated-windows", "1", "--effort", "fast", "--tune-steps", "0", "--rank", "32", "-q"];
    let measured = dir.path().join("llama-lb.gguf");
    ok(&[&[s(&llama), s(&measured), "--save-imatrix", s(&imatrix)], &short[..]].concat());
    ok(&[s(&input), s(&out), "--rank", "32", "--imatrix", s(&imatrix), "--force", "-q"]);
    for flags in [&["--calibration", s(&text)][..], &["--effort", "fast"]] {
        let said = fails(1, &[&[s(&input), s(&dir.path().join("no.gguf"))], flags].concat());
        assert!(said.contains(misses) && said.contains(left_out), "{flags:?}: {said}");
    }
    // Nor can verify compare on text.
    let said = fails(1, &["verify", s(&out), "--against", s(&input), "--eval", s(&text)]);
    assert!(said.contains(misses), "{said}");
}
