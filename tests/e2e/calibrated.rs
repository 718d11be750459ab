//! Calibrated conversions: resumed, on text of the model's own, searched for, and judged by llama.cpp.

use super::support::{self, fails, ok, s};
use super::{files, program, success, var};
use littlebit::format::LittleBitFile;
use littlebit::gguf::Gguf;
use serde_json::Value as Json;
use std::path::Path;
use std::process::Command;

/// Killed again and again, in factorization and in tuning, a calibrated conversion still gives the same bytes. LITTLEBIT_KILLS says
/// how often, 3 times if it is not set.
#[test]
fn killed_runs_go_on_to_the_same_bytes() {
    let f = files();
    let docs = var("LITTLEBIT_LLAMA_SOURCE").join("docs");
    let calibration = f.path("kill-calibration.txt");
    let text: String = std::fs::read_to_string(docs.join("build.md")).unwrap().chars().take(8000).collect();
    std::fs::write(&calibration, text).unwrap();
    let (straight, cut) = (f.path("straight.gguf"), f.path("cut.gguf"));
    let imatrix = f.path("kill.imatrix.gguf");
    let command = |out: &Path| {
        let mut c = Command::new(support::BIN);
        c.arg(f.f32()).arg(out).arg("--calibration").arg(&calibration);
        c.args(["--tensor-rule", r"blk\.([2-9]|\d\d)\.=keep", "--iterations", "4", "--effort", "fast"]);
        c.args(["--generated-windows", "0", "--tune-steps", "12", "--force", "--save-imatrix"]).arg(&imatrix);
        c
    };
    let started = std::time::Instant::now();
    success("the straight run", &mut command(&straight));
    let whole = started.elapsed();
    let kills = std::env::var("LITTLEBIT_KILLS").map_or(3, |n| n.parse().expect("a number of kills"));
    let bytes = std::fs::read(&straight).unwrap();
    let outcome = support::kills::survive(|| command(&cut), &cut, &bytes, whole, kills);
    println!("{kills} kills by stage {:?}, finished {} times", outcome.stages, outcome.finished);
    assert!(!outcome.stages.is_empty(), "the run ended before it could be killed");
    // Finished outputs other than the last were removed.
    assert!(!f.path("cut.gguf.work").exists());

    // The importance matrix is llama-imatrix's.
    let theirs = f.path("theirs.imatrix.gguf");
    let mut reference = program("LITTLEBIT_STOCK", "llama-imatrix");
    reference
        .arg("-m")
        .arg(f.f32())
        .arg("-f")
        .arg(&calibration)
        .args(["-c", "512", "-t", "2", "-o"])
        .arg(&theirs);
    success("llama-imatrix", &mut reference);
    let [ours, theirs] = [&imatrix, &theirs].map(|p| Gguf::open(p).unwrap());
    let names =
        |g: &Gguf| g.tensors.iter().map(|t| t.name.clone()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for t in &theirs.tensors {
        let own = ours.tensor(&t.name).unwrap();
        assert_eq!(own.dims.iter().product::<u64>(), t.dims.iter().product::<u64>(), "{}", t.name);
        let (a, b) = (ours.read_f32(own).unwrap(), theirs.read_f32(t).unwrap());
        let difference: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let square: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
        assert!((difference / square).sqrt() < 1e-2, "{}: {:e}", t.name, (difference / square).sqrt());
    }
}

/// Without any text the source writes some.
#[test]
fn a_model_is_calibrated_on_what_it_writes() {
    let f = files();
    let out = f.path("own-text.gguf");
    let run = |windows: &str| {
        let keep = r"blk\.([1-9]|\d\d)\.=keep";
        let size =
            ["--tensor-rule", keep, "--iterations", "2", "--effort", "fast", "--tune-steps", "2", "--force"];
        let stdout =
            ok(&[&[s(&f.f32()), s(&out), "--generated-windows", windows, "--json"], &size[..]].concat());
        let done: Json = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
        assert_eq!(done["warning"], Json::Null);
        assert_eq!(done["report"]["generated_windows"].to_string(), windows);
        let stages = done["report"]["stages"].as_array().unwrap().clone();
        assert_eq!(stages[0]["name"], "generate");
        assert!(
            stages
                .iter()
                .all(|s| s["seconds"].as_f64() > Some(0.0) && s["peak_rss"].as_u64() > Some(1 << 20))
        );
        std::fs::read(&out).unwrap()
    };
    let one = run("1");
    assert!(one == run("1"), "the same command gives other bytes");
    assert!(one != run("2"), "the text has no effect");
}

/// The smallest size that passes its gates: the lowest if that does, none if the highest does not.
#[test]
fn the_smallest_size_that_passes_is_found() {
    let f = files();
    let docs = var("LITTLEBIT_LLAMA_SOURCE").join("docs");
    let text = std::fs::read_to_string(docs.join("function-calling.md")).unwrap();
    let evaluation = f.path("search.txt");
    std::fs::write(&evaluation, text.chars().take(4000).collect::<String>()).unwrap();
    let out = f.path("search.gguf");
    let source = f.f32();
    let run = |most: &str| {
        let keep = r"blk\.([1-9]|\d\d)\.=keep";
        let out = support::run(&[
            s(&source),
            s(&out),
            "--auto-bpw",
            "0.5..1.0",
            "--max-kld",
            most,
            "--tensor-rule",
            keep,
            "--iterations",
            "2",
            "--effort",
            "fast",
            "--tune-steps",
            "1",
            "--generated-windows",
            "1",
            "--eval",
            s(&evaluation),
            "--json",
        ]);
        (out.status.code(), String::from_utf8(out.stdout).unwrap())
    };
    let (code, stdout) = run("0.000001");
    let rejected = f.path("search.gguf.rejected");
    assert_eq!((code, out.exists(), rejected.exists()), (Some(3), false, true), "{stdout}");
    assert_eq!(stdout.matches("\"text\":\"trying").count(), 1, "{stdout}");
    std::fs::remove_file(&rejected).unwrap();
    let (code, stdout) = run("1000");
    assert_eq!((code, out.exists(), rejected.exists()), (Some(0), true, false), "{stdout}");
    assert_eq!(stdout.matches("\"text\":\"trying").count(), 2, "{stdout}");
    assert_eq!(stdout.matches("\"stage\":\"sensitivity\",\"done\":1,").count(), 1, "measured more than once");
    let info: Json = serde_json::from_str(&ok(&["info", s(&out), "--json"])).unwrap();
    // Never above what was asked for; ranks of one block alone come in coarse steps.
    let bpw = info["littlebit"]["bpw"].as_f64().unwrap();
    assert!((0.45..=0.5).contains(&bpw), "{bpw}");
    assert!(!f.path("search.gguf.work").exists());
}

/// A calibrated conversion: its own figures are those of llama.cpp on the file that it wrote, and it is worth it.
#[test]
fn perplexity_of_a_calibrated_model_is_llama_cpps() {
    let f = files();
    let docs = var("LITTLEBIT_LLAMA_SOURCE").join("docs");
    let read = |name: &str| std::fs::read_to_string(docs.join(name)).unwrap();
    let (calibration, evaluation) = (f.path("calibration.txt"), f.path("evaluation.txt"));
    let cut = |text: String, n: usize| text.chars().take(n).collect::<String>();
    std::fs::write(&calibration, cut(read("build.md"), 8000)).unwrap();
    std::fs::write(&evaluation, cut(read("function-calling.md"), 8000)).unwrap();
    let out = f.path("tuned.gguf");
    let statistics = f.path("statistics");
    let run = |passes: &str, steps: &str| -> Json {
        // Measured once, then read. The first result is no good and says so.
        let first = passes == "0" && steps == "0";
        let done = support::run(&[
            s(&f.f32()),
            s(&out),
            "--max-ppl-ratio",
            if first { "1.5" } else { "1000" },
            "--force",
            "--bpw",
            "0.5",
            "--iterations",
            "4",
            "--calibration",
            s(&calibration),
            // The source writes as much again.
            "--generated-windows",
            "4",
            "--effort",
            "fast",
            "--statistics",
            s(&statistics),
            // Tuning and figures see the embeddings and the head as the file has them.
            "--token-embedding-type",
            "q4_0",
            "--block-passes",
            passes,
            "--tune-steps",
            steps,
            "--eval",
            s(&evaluation),
            "--json",
        ]);
        let stdout = String::from_utf8(done.stdout).unwrap();
        let stderr = String::from_utf8_lossy(&done.stderr);
        let rejected = f.path("tuned.gguf.rejected");
        assert_eq!(done.status.code(), Some(if first { 3 } else { 0 }), "{stderr}");
        assert_eq!((out.exists(), rejected.exists()), (!first, true), "{stderr}");
        assert_eq!(stderr.contains("evaluation.txt: perplexity is"), first, "{stderr}");
        LittleBitFile::open(if first { &rejected } else { &out }).unwrap();
        assert_eq!(stdout.contains("\"sensitivity\""), first);
        assert_eq!(stdout.contains("\"generate\""), first);
        let line = stdout.lines().last().unwrap();
        let report = serde_json::from_str::<Json>(line).unwrap()["report"].clone();
        let mut evaluation = report["evaluations"][0].clone();
        evaluation["coherence"] = report["coherence"].clone();
        evaluation
    };
    let kld = |report: &Json| report["kld"]["value"].as_f64().unwrap();
    let (plain, blocks, after) = (run("0", "0"), run("8", "0"), run("0", "20"));
    let all = [kld(&plain), kld(&blocks), kld(&after)];
    println!("divergence factorized, with tuned blocks, distilled: {all:?}");
    // How much depends on what the source happens to write: four real windows are little to tune on.
    assert!(all[1] < all[0] && all[2] < 0.98 * all[0], "each stage has to pay: {all:?}");

    let info: Json = serde_json::from_str(&ok(&["info", s(&out), "--json"])).unwrap();
    let kv = &info["littlebit"]["kv"];
    assert_eq!(kv["evaluation.text"][0], "evaluation.txt");
    support::keys_hold_evaluation(kv, 0, &after);

    // The same figures, from the file in its other form.
    let container = f.path("tuned.littlebit");
    ok(&[s(&out), s(&container), "-q"]);
    let source = f.f32();
    let verified =
        ok(&["verify", s(&container), "--against", s(&source), "--eval", s(&evaluation), "--json"]);
    let verified: Json = serde_json::from_str(&verified).unwrap();
    let again = &verified["found"]["evaluations"][0][1];
    for figure in ["perplexity", "source_perplexity", "kld", "same_top"] {
        let value = |report: &Json| report[figure]["value"].as_f64().unwrap();
        let (first, second) = (value(&after), value(again));
        // A share moves by whole tokens where two of them are nearly equal: verification rebuilds weights in f32, conversion
        // multiplied by factors.
        let unit = if figure == "same_top" { 1.0 } else { second };
        let off = (first - second).abs() / unit;
        assert!(off < 2e-3, "{figure}: {first} when converted, {second} verified");
    }
    // What both models write, and what is wrong with it: the source's own text is the measure.
    let writing = |report: &Json, of: &str, figure: &str| report["coherence"][of][figure].as_f64().unwrap();
    let found = &verified["found"];
    for figure in ["repeated_likely", "repeated_drawn", "distinct", "entropy", "surprise"] {
        let (first, second) = (writing(&after, "source", figure), writing(found, "source", figure));
        assert!((first - second).abs() < 1e-9, "{figure} of the source: {first} and {second}");
        println!("{figure}: {} (source {first})", writing(&after, "model", figure));
    }
    assert!(writing(&after, "source", "distinct") > 0.5 && writing(&after, "source", "repeated_drawn") < 0.2);
    assert!(writing(&after, "model", "surprise") > writing(&after, "source", "surprise") + 0.5);
    assert_eq!(after["coherence"]["continuations"].as_array().unwrap().len(), 12);
    assert!(!after["sample"]["source"].as_str().unwrap().is_empty());
    let strict = ["--against", s(&source), "--max-surprise", "0.1", "-q"];
    let refused = fails(3, &[&["verify", s(&out)], &strict[..]].concat());
    assert!(refused.contains("surprises the source by"), "{refused}");
    let strict = ["--against", s(&source), "--eval", s(&evaluation), "--max-kld", "0.01", "-q"];
    let refused = fails(3, &[&["verify", s(&out)], &strict[..]].concat());
    assert!(refused.contains("mean KL divergence"), "{refused}");

    let windows = after["windows"].as_u64().unwrap();
    for (build, model, ours) in [
        ("LITTLEBIT_PATCHED", &out, &after["perplexity"]),
        ("LITTLEBIT_STOCK", &f.f32(), &after["source_perplexity"]),
    ] {
        let mut ppl = program(build, "llama-perplexity");
        ppl.arg("-m").arg(model).arg("-f").arg(&evaluation).args(["-c", "512", "-t", "2", "--chunks"]);
        let out = success("llama-perplexity", ppl.arg(windows.to_string()));
        let all = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        let theirs = all.split("Final estimate: PPL = ").nth(1).expect("an estimate");
        let theirs: f64 = theirs.split_whitespace().next().unwrap().parse().unwrap();
        let ours = ours["value"].as_f64().unwrap();
        println!("perplexity: llama.cpp {theirs}, ours {ours}");
        assert!((ours / theirs - 1.0).abs() < 0.01, "{build}: {ours} against {theirs}");
    }
}
