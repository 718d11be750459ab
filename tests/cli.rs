//! The real binary on small models: what it writes, what it prints, what it refuses.

mod support;

use littlebit::format::{LittleBitFile, factors::slice_bits, schema};
use littlebit::gguf::{Gguf, Value};
use serde_json::Value as Json;
use support::checkpoint::{SMOLLM, write_gguf};
use support::{events, fails, ok, run, s, small_model, small_tensors, untouched};

#[test]
fn writes_schema_v1() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("out.gguf");
    let stdout =
        ok(&[s(&input), s(&out), "--rank", "64", "--method", "admm", "--token-embedding-type", "f32"]);
    assert!(stdout.contains("not tuned"), "the run must end with the warning: {stdout}");

    let file = LittleBitFile::open(&out).unwrap();
    assert_eq!(file.matrices().len(), 7);
    let source = Gguf::open(&input).unwrap();
    // All KV of the source, in order, unknown ones and their odd bytes included.
    let kept: Vec<_> = file.gguf.kv.iter().filter(|(k, _)| source.get(k).is_some()).collect();
    assert_eq!(kept, source.kv.iter().collect::<Vec<_>>());
    assert_eq!(file.gguf.get("general.alignment"), Some(&Value::U32(32)));
    assert_eq!(file.gguf.get("littlebit.version"), Some(&Value::U32(1)));
    let n_params: u64 = small_tensors().iter().map(|(_, d)| d.iter().product::<u64>()).sum();
    assert_eq!(file.gguf.get("littlebit.n_params"), Some(&Value::U64(n_params)));
    let bits: u64 = file.matrices().iter().map(|m| slice_bits(m.shape.d_out, m.shape.d_in, 64)).sum();
    assert_eq!(file.factor_bits(), bits);
    let bpw = bits as f64 / file.factorized_weights() as f64;
    assert_eq!(file.gguf.get("littlebit.bpw"), Some(&Value::F32(bpw as f32)));
    for m in file.matrices() {
        assert_eq!(m.shape.rank, 64, "{}", m.name);
        assert!(file.gguf.tensor(&format!("{}.weight", m.name)).is_none());
        let factors = file.read_factors(m).unwrap();
        // The rebuilt weight resembles the original better than nothing does.
        let w = source.read_f32(source.tensor(&format!("{}.weight", m.name)).unwrap()).unwrap();
        let dense = factors.dense(0);
        let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let diff: Vec<f32> = w.iter().zip(&dense).map(|(a, b)| a - b).collect();
        let error = norm(&diff) / norm(&w);
        assert!(error < 0.9, "{}: {error}", m.name);
    }
    // Norms and embeddings are untouched bytes.
    for name in ["token_embd.weight", "blk.0.attn_norm.weight", "output_norm.weight"] {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        source.read(source.tensor(name).unwrap(), &mut a).unwrap();
        file.gguf.read(file.gguf.tensor(name).unwrap(), &mut b).unwrap();
        assert_eq!(a, b);
    }
}

/// Without a word about text a model is tuned on what it writes, where it can write.
#[test]
fn a_model_is_tuned_on_its_own_text_by_default() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (write_gguf(dir.path(), &SMOLLM), dir.path().join("out.gguf"));
    // A tiny model or not, the default amount takes long in a debug build: the beginning is enough.
    let first_stage = |more: &[&str]| {
        let mut run = std::process::Command::new(support::BIN)
            .args([s(&input), s(&out), "--json", "--force"])
            .args(more)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(run.stdout.take().unwrap()));
        let mut notes = Vec::new();
        let mut stage = Json::Null;
        for line in lines {
            let event: Json = serde_json::from_str(&line.unwrap()).unwrap();
            match event["event"].as_str().unwrap() {
                "note" => notes.push(event["text"].as_str().unwrap().to_owned()),
                "stage" => {
                    stage = event;
                    break;
                }
                _ => {}
            }
        }
        run.kill().unwrap();
        run.wait().unwrap();
        (notes, stage)
    };
    // Two pieces in a window, two windows for each for moments.
    for (more, pieces) in
        [(&[][..], 448), (&["--effort", "normal", "--work-dir", s(&dir.path().join("w"))], 768)]
    {
        let (notes, stage) = first_stage(more);
        assert!(notes.iter().any(|n| n.contains("writes text itself")), "{notes:?}");
        assert_eq!((&stage["stage"], &stage["total"]), (&Json::from("generate"), &Json::from(pieces)));
    }

    let untuned = |last: &Json| last["warning"].as_str().unwrap().contains("not tuned");
    let run = |input: &std::path::Path, more: &[&str]| {
        let stdout = ok(&[&[s(input), s(&out), "--rank", "32", "--json", "--force"], more].concat());
        let last: Json = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
        (stdout, last)
    };
    std::fs::remove_dir_all(dir.path().join("out.gguf.work")).unwrap();
    let (stdout, last) = run(&input, &["--generated-windows", "0"]);
    assert!(untuned(&last) && !stdout.contains("\"note\""), "{stdout}");
    let (stdout, last) = run(&input, &["--method", "dual-svid"]);
    assert!(untuned(&last) && !stdout.contains("\"note\""), "{stdout}");
    // One without the keys of a forward pass is compressed, and told why it is not tuned.
    let (stdout, last) = run(&small_model(dir.path(), untouched), &[]);
    assert!(
        untuned(&last) && stdout.contains("without tuning") && stdout.contains("embedding_length"),
        "{stdout}"
    );
}

#[test]
fn json_report_agrees_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("out.gguf");
    let stdout = ok(&[s(&input), s(&out), "--bpw", "1.5", "--json"]);
    let events = events(&stdout);
    // Why it is not tuned, then the plan.
    assert_eq!((&events[0]["event"], &events[1]["event"]), (&Json::from("note"), &Json::from("planned")));
    assert_eq!(events.iter().filter(|e| e["event"] == "matrix").count(), 7);
    let done = events.last().unwrap();
    assert_eq!(done["event"], "done");
    let report = &done["report"];
    assert_eq!(report["bytes"].as_u64().unwrap(), std::fs::metadata(&out).unwrap().len());
    let info: Json = serde_json::from_str(&ok(&["info", s(&out), "--json"])).unwrap();
    assert_eq!(info["littlebit"]["bpw"], report["bpw"]);
    assert_eq!(info["littlebit"]["bpw_file"], report["bpw_file"]);
    for (m, i) in
        report["matrices"].as_array().unwrap().iter().zip(info["littlebit"]["matrices"].as_array().unwrap())
    {
        assert_eq!(m["bits"], i["bits"]);
        assert_eq!(m["rank"], i["rank"]);
    }
    let text = ok(&["info", s(&out)]);
    assert!(text.contains("blk.0.ffn_down") && text.contains("littlebit.requires"), "{text}");
    assert!(ok(&["info", s(&input)]).contains("not a LittleBit file"));
}

#[test]
fn same_bytes_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    for extra in [&["--method", "admm"][..], &["--method", "dual-svid", "--rotate", "itq", "--paths", "2"]] {
        let mut files = Vec::new();
        for threads in ["1", "2", "3"] {
            let out = dir.path().join(format!("out{threads}.gguf"));
            let args =
                [&[s(&input), s(&out), "--rank", "32", "--seed", "7", "--force", "-t", threads], extra]
                    .concat();
            ok(&args);
            files.push(std::fs::read(out).unwrap());
        }
        assert!(files[0] == files[1] && files[0] == files[2]);
        let other = dir.path().join("other.gguf");
        ok(&[&[s(&input), s(&other), "--rank", "32", "--seed", "8", "--force"], extra].concat());
        assert!(std::fs::read(other).unwrap() != files[0], "the seed has no effect");
    }
}

#[test]
fn lossy_forms_hold_the_same_product() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let (lb, direct, later) =
        (dir.path().join("lb.gguf"), dir.path().join("d.gguf"), dir.path().join("l.gguf"));
    ok(&[s(&input), s(&lb), "--rank", "32"]);
    ok(&[s(&input), s(&direct), "--rank", "32", "--lossy", "f32"]);
    ok(&[s(&lb), s(&later), "--lossy", "f32"]);
    let (file, direct, later) =
        (LittleBitFile::open(&lb).unwrap(), Gguf::open(&direct).unwrap(), Gguf::open(&later).unwrap());
    assert!(direct.kv.iter().all(|(k, _)| !k.starts_with("littlebit.")));
    for m in file.matrices() {
        let name = format!("{}.weight", m.name);
        let want = file.read_factors(m).unwrap().dense(0);
        assert_eq!(direct.read_f32(direct.tensor(&name).unwrap()).unwrap(), want);
        assert_eq!(later.read_f32(later.tensor(&name).unwrap()).unwrap(), want);
    }
    let half = dir.path().join("h.gguf");
    for ty in ["f16", "q8_0"] {
        ok(&[s(&lb), s(&half), "--lossy", ty, "--force"]);
        let g = Gguf::open(&half).unwrap();
        // 200 columns do not fill blocks of 32: the one matrix that cannot be q8_0 is f16.
        let down = g.tensor("blk.0.ffn_down.weight").unwrap();
        assert_eq!(down.ty.name().to_string().to_lowercase(), "f16");
        let up = g.tensor("blk.0.ffn_up.weight").unwrap();
        assert_eq!(up.ty.name().to_string().to_lowercase(), ty);
        assert_eq!(g.get("general.file_type").unwrap().as_u64().map(|x| x as u32), schema::file_type(up.ty));
    }
}

#[test]
fn embedding_type_is_honoured() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("out.gguf");
    // Tied embeddings: the head's type applies unless the embeddings have their own.
    ok(&[s(&input), s(&out), "--rank", "32", "--output-tensor-type", "q8_0"]);
    assert_eq!(
        Gguf::open(&out).unwrap().tensor("token_embd.weight").unwrap().ty,
        littlebit::gguf::GgmlType::Q8_0
    );
    ok(&[s(&input), s(&out), "--rank", "32", "--token-embedding-type", "F16", "--force"]);
    let g = Gguf::open(&out).unwrap();
    assert_eq!(g.tensor("token_embd.weight").unwrap().ty, littlebit::gguf::GgmlType::F16);
    assert_eq!(g.get("general.file_type"), Some(&Value::U32(1)));
    // As floats they would be the larger part of the file; 96 columns do not fill blocks of 256.
    ok(&[s(&input), s(&out), "--rank", "32", "--force"]);
    let g = Gguf::open(&out).unwrap();
    assert_eq!(g.tensor("token_embd.weight").unwrap().ty, littlebit::gguf::GgmlType::Q8_0);
    let e = fails(2, &[s(&input), s(&out), "--token-embedding-type", "q3_K"]);
    assert!(e.contains("llama-quantize"), "{e}");
}

#[test]
fn rules_decide_on_single_weights() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("out.gguf");
    let list = dir.path().join("rules.txt");
    std::fs::write(&list, "# feed-forward part\n\nffn_=rank:96\nattn_=rank:64\n").unwrap();
    let rules = ["--tensor-rule-file", s(&list), "--tensor-rule", "ffn_down=keep"];
    let more = ["--tensor-rule", "attn_q=type:q8_0", "--bpw", "2.0"];
    let shown = ok(&[&[s(&input), "--dry-run"][..], &rules, &more].concat());
    assert!(shown.contains("rule ffn_down=keep: blk.0.ffn_down.weight"), "{shown}");
    ok(&[&[s(&input), s(&out)][..], &rules, &more].concat());
    let file = LittleBitFile::open(&out).unwrap();
    let rank = |name: &str| file.matrices().iter().find(|m| m.name == name).map(|m| m.shape.rank);
    assert_eq!(rank("blk.0.ffn_up"), Some(96));
    assert_eq!(rank("blk.0.attn_k"), Some(64));
    assert_eq!((rank("blk.0.ffn_down"), rank("blk.0.attn_q")), (None, None));
    let source = Gguf::open(&input).unwrap();
    let ty = |g: &Gguf, name: &str| g.tensor(name).unwrap().ty.name().to_string();
    let down = "blk.0.ffn_down.weight";
    assert_eq!(ty(&file.gguf, down), ty(&source, down));
    assert_eq!(ty(&file.gguf, "blk.0.attn_q.weight").to_lowercase(), "q8_0");
    let idle = fails(2, &[s(&input), "--dry-run", "--tensor-rule", "ffn_sideways=keep"]);
    assert!(idle.contains("ffn_sideways=keep"), "{idle}");
    std::fs::write(&list, "ffn_=rank:96\nattn_=rank:65\n").unwrap();
    let line = fails(2, &[s(&input), "--dry-run", "--tensor-rule-file", s(&list)]);
    assert!(line.contains("line 2") && line.contains("rank 65"), "{line}");
}

#[test]
fn a_file_is_as_small_as_asked_and_as_large_as_announced() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("out.gguf");
    let bytes_of = |args: &[&str]| -> u64 {
        let shown: Json = serde_json::from_str(&ok(args)).unwrap();
        shown["plan"]["file_bytes"].as_u64().unwrap()
    };
    let smallest = bytes_of(&[s(&input), "--dry-run", "--json", "--rank", "32"]);
    let mut last = 0;
    for limit in [smallest, smallest + 3000, smallest + 20_000] {
        let size = limit.to_string();
        let announced = bytes_of(&[s(&input), "--dry-run", "--json", "--target-size", &size]);
        ok(&[s(&input), s(&out), "--target-size", &size, "--force"]);
        let real = std::fs::metadata(&out).unwrap().len();
        assert_eq!(real, announced);
        assert!(real <= limit && real > last, "{real} bytes for {limit}");
        last = real;
    }
    let refused = fails(2, &[s(&input), "--dry-run", "--target-size", &(smallest - 1).to_string()]);
    assert!(refused.contains(&smallest.to_string()), "{refused}");
}

#[test]
fn refuses_bad_requests() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("out.gguf");
    let bad = |code: i32, extra: &[&str], word: &str| {
        let e = fails(code, &[&[s(&input), s(&out)], extra].concat());
        assert!(e.contains(word), "{extra:?}: {e}");
        assert!(!out.exists(), "{extra:?} left an output");
    };
    bad(2, &["--bpw", "0"], "bpw");
    bad(2, &["--bpw=-1"], "bpw");
    bad(2, &["--bpw", "nan"], "bpw");
    bad(2, &["--bpw", "1e9"], "bpw");
    bad(2, &["--rank", "33"], "32");
    bad(2, &["--rank", "0"], "rank");
    bad(2, &["--rank", "32", "--bpw", "1"], "cannot be used with");
    bad(2, &["--paths", "3"], "paths");
    bad(2, &["--method", "magic"], "admm");
    bad(2, &["--rotate", "itq"], "dual-svid");
    bad(2, &["--threads", "0"], "threads");
    bad(2, &["--lossy", "q3_K"], "llama-quantize");
    bad(2, &["--generated-windows", "2", "--max-kld", "1"], "--eval");
    bad(2, &["--generated-windows", "2", "--eval", "t.txt", "--min-same-top", "1.5"], "0 to 1");
    bad(2, &["--generated-windows", "0", "--coherence"], "--calibration");
    bad(2, &["--generated-windows", "0", "--max-surprise", "1"], "verify");
    // A model that cannot write either: it says what is missing.
    bad(1, &["--coherence"], "llama.embedding_length is missing");
    let nothing = ["--generated-windows", "0", "--eval", "t.txt", "--max-ppl-ratio", "1.1"];
    bad(2, &nothing, "--eval needs text: --calibration FILE..., or --generated-windows above 0");
    bad(2, &["--max-memory", "12parsecs"], "unit");
    bad(1, &["--imatrix", "/no/such/file"], "/no/such/file");
    let e = fails(2, &[s(&input)]);
    assert!(e.contains("output"), "{e}");
    let e = fails(1, &["/no/such/model.gguf", s(&out)]);
    assert!(e.contains("/no/such/model.gguf"), "{e}");
}

#[test]
fn never_overwrites_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let before = std::fs::read(&input).unwrap();
    let e = fails(2, &[s(&input), s(&input), "--force"]);
    assert!(e.contains("same file"), "{e}");
    let link = dir.path().join("link.gguf");
    std::os::unix::fs::symlink(&input, &link).unwrap();
    fails(2, &[s(&input), s(&link), "--force"]);
    assert_eq!(std::fs::read(&input).unwrap(), before);

    let out = dir.path().join("out.gguf");
    std::fs::write(&out, "precious").unwrap();
    let e = fails(2, &[s(&input), s(&out), "--rank", "32"]);
    assert!(e.contains("--force"), "{e}");
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    ok(&[s(&input), s(&out), "--rank", "32", "--force"]);
    LittleBitFile::open(&out).unwrap();
    // Compressing the result again makes no sense.
    let e = fails(1, &[s(&out), s(&dir.path().join("again.gguf"))]);
    assert!(e.contains("already a LittleBit file"), "{e}");
}

#[test]
fn unwritable_output_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let e = fails(1, &[s(&input), "/no/such/dir/out.gguf", "--rank", "32"]);
    assert!(e.contains("/no/such/dir/out.gguf"), "{e}");
    let e = fails(2, &[s(&input), s(dir.path()), "--rank", "32", "--force"]);
    assert!(e.contains("directory"), "{e}");
    // A device is no place for a model.
    let e = fails(1, &[s(&input), "/proc/out.gguf", "--rank", "32"]);
    assert!(e.contains("/proc/out.gguf"), "{e}");
}

/// A run whose work folder holds only part of the matrices gives the bytes of one that was never cut off.
#[test]
fn goes_on_from_finished_work() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let (straight, out, work) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"), dir.path().join("w"));
    ok(&[s(&input), s(&straight), "--rank", "32", "--method", "dual-svid"]);
    // The file cannot be made, all records can.
    let device = std::path::Path::new("/dev/full/out.gguf");
    let e =
        fails(1, &[s(&input), s(device), "--rank", "32", "--method", "dual-svid", "--work-dir", s(&work)]);
    assert!(e.contains("out.gguf"), "{e}");
    assert!(!work.exists(), "nothing was finished, and a folder was left");
    let args = [s(&input), s(&out), "--method", "dual-svid", "--work-dir", s(&work)];
    for keep in 0..3 {
        let mut child = std::process::Command::new(support::BIN)
            .args(args)
            .args(["--rank", "32", "--force"])
            .spawn()
            .unwrap();
        let records = || std::fs::read_dir(&work).map_or(0, |d| d.count());
        while records() < 3 + 2 * keep && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        let _ = child.kill();
        child.wait().unwrap();
        if out.exists() {
            break;
        }
        let e = fails(2, &[&args[..], &["--rank", "64", "--force"]].concat());
        assert!(e.contains("size was 'rank 32', is 'rank 64'") && e.contains("--work-dir"), "{e}");
    }
    ok(&[&args[..], &["--rank", "32", "--force"]].concat());
    assert_eq!(std::fs::read(&straight).unwrap(), std::fs::read(&out).unwrap());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(!work.exists() && left.len() == 3, "{left:?}");
}

/// Ctrl-C and SIGTERM end a run at once; what is finished stays, what is half-written goes.
#[test]
fn signals_keep_finished_work() {
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let (out, work) = (dir.path().join("o.gguf"), dir.path().join("o.gguf.work"));
    let args = [s(&input), s(&out), "--rank", "32", "--iterations", "1500", "--threads", "1"];
    let mut records = 0;
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let mut command = std::process::Command::new(support::BIN);
        command.args(args).stderr(std::process::Stdio::piped());
        // A test run in the background has its SIGINT ignored, which the program would inherit and obey.
        // SAFETY: `signal` may be called between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::signal(signal, libc::SIG_DFL) {
                libc::SIG_ERR => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let child = command.spawn().unwrap();
        let count = || {
            let all = std::fs::read_dir(&work).into_iter().flatten().flatten();
            all.filter(|f| f.path().extension().is_some_and(|e| e == "rec")).count()
        };
        while count() <= records {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        records = count();
        // SAFETY: the child is ours and was not waited for, so its number is still its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{said}");
        assert!(said.contains("finished work is kept in") && said.contains("o.gguf.work"), "{said}");
        let names =
            std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        assert_eq!(names, ["o.gguf.work", "small.gguf"]);
    }
    ok(&[&args[..], &["-q"]].concat());
    let straight = dir.path().join("straight.gguf");
    ok(&[s(&input), s(&straight), "--rank", "32", "--iterations", "1500", "-q"]);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&straight).unwrap());
}

#[test]
fn non_finite_weights_are_named() {
    for (bad, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "inf")] {
        let dir = tempfile::tempdir().unwrap();
        let input = small_model(dir.path(), |name, v| {
            if name == "blk.0.ffn_up.weight" {
                v[777] = bad;
            }
        });
        let out = dir.path().join("out.gguf");
        let e = fails(1, &[s(&input), s(&out), "--rank", "32"]);
        assert!(e.contains("blk.0.ffn_up.weight") && e.contains("777"), "{e}");
        assert!(e.to_lowercase().contains(&word.to_lowercase()), "{e}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }
}

#[test]
fn odd_weights_convert() {
    // Zero, constant, rank one, tiny, huge: all finite, all representable.
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), |name, v| match name {
        "blk.0.attn_q.weight" => v.fill(0.0),
        "blk.0.attn_k.weight" => v.fill(0.25),
        "blk.0.attn_v.weight" => v.iter_mut().enumerate().for_each(|(i, x)| *x = (i / 96) as f32 - 20.0),
        "blk.0.ffn_up.weight" => v.iter_mut().for_each(|x| *x *= 1e-3),
        "blk.0.ffn_gate.weight" => v.iter_mut().for_each(|x| *x *= 1e3),
        _ => {}
    });
    for method in ["admm", "dual-svid"] {
        let out = dir.path().join(format!("{method}.gguf"));
        ok(&[s(&input), s(&out), "--rank", "32", "--method", method]);
        let file = LittleBitFile::open(&out).unwrap();
        let zero = file.read_factors(file.find("blk.0.attn_q").unwrap()).unwrap().dense(0);
        assert!(zero.iter().all(|x| *x == 0.0), "{method}: a zero matrix must stay zero");
    }
}

#[test]
fn truncated_gguf_is_refused_at_every_byte_of_its_header() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let bytes = std::fs::read(&input).unwrap();
    let header = Gguf::open(&input).unwrap().data_offset as usize;
    let (cut, out) = (dir.path().join("cut.gguf"), dir.path().join("out.gguf"));
    // A process per byte would take minutes: a process for every 16th, the library for all of them.
    for n in 0..header + 64 {
        std::fs::write(&cut, &bytes[..n]).unwrap();
        let e = Gguf::open(&cut).expect_err("a truncated file was accepted").to_string();
        assert!(e.contains("cut.gguf") && e.contains("byte"), "{n}: {e}");
        if n % 16 == 0 {
            let e = fails(1, &[s(&cut), s(&out)]);
            assert!(e.contains("cut.gguf"), "{n}: {e}");
        }
    }
    assert!(!out.exists());
}

#[test]
fn reports_are_written_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let path = |name: &str| dir.path().join(name);
    let (out, page, json, card) = (path("o.gguf"), path("o.html"), path("o.json"), path("README.md"));
    let reports = ["--report", s(&page), "--report", s(&json), "--report", s(&card)];
    let said = ok(&[&[s(&input), s(&out), "--rank", "32", "--json"], &reports[..]].concat());
    let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(written, last["report"]);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.matches("blk.0.ffn_up").count() > 0);
    // It is made to be published.
    assert!(!page.contains(s(dir.path())), "the page shows a folder");
    let card = std::fs::read_to_string(card).unwrap();
    assert!(card.starts_with("---\n") && card.contains("o.gguf") && !card.contains(s(dir.path())));
    let bad = |name: &str, word: &str| {
        let e = fails(2, &[s(&input), s(&path("p.gguf")), "--rank", "32", "--report", s(&path(name))]);
        assert!(e.contains(word) && !path("p.gguf").exists(), "{e}");
    };
    bad("x.pdf", ".html");
    bad("o.json", "--force");
    bad("small.gguf", ".html");
}

#[test]
fn help_and_version() {
    let help = ok(&["--help"]);
    for word in ["--bpw", "--imatrix", "--lossy", "Examples:", "Exit codes"] {
        assert!(help.contains(word), "{word}");
    }
    let version = ok(&["--version"]);
    assert!(version.contains(env!("CARGO_PKG_VERSION")) && version.contains("scalar)"), "{version}");
    // Both are made of the flags themselves.
    let (page, script) = (ok(&["man"]), ok(&["completions", "bash"]));
    for word in ["calibration", "effort", "verify"] {
        assert!(page.contains(word) && script.contains(word), "{word}");
    }
    assert!(page.contains(".TH littlebit-convert"), "{page:.200}");
    assert!(fails(2, &["completions", "dos"]).contains("bash"));
    assert_eq!(run(&[]).status.code(), Some(2));
    let plan =
        ok(&[s(&small_model(tempfile::tempdir().unwrap().path(), untouched)), "--dry-run", "--bpw", "1.5"]);
    assert!(plan.contains("7 matrices"), "{plan}");
}

/// A build without CUDA says so; the GPU that may be there goes with the build that has it.
#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_the_build_has_not_is_an_error_or_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let (cpu, auto) = (dir.path().join("cpu.gguf"), dir.path().join("auto.gguf"));
    let e = fails(2, &[s(&input), s(&cpu), "--rank", "32", "--device", "cuda"]);
    assert!(e.contains("--device cuda: ") && e.contains("--features cuda") && e.lines().count() == 1, "{e}");
    assert!(fails(2, &[s(&input), s(&cpu), "--device", "gpu"]).contains("there are cpu, cuda and auto"));
    ok(&[s(&input), "--rank", "32", "--device", "cuda", "--dry-run"]);
    ok(&[s(&input), s(&cpu), "--rank", "32"]);
    let out = run(&[s(&input), s(&auto), "--rank", "32", "--device", "auto"]);
    assert!(out.status.success());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(said.lines().filter(|l| l.contains("the CPU factorizes")).count(), 1, "{said}");
    assert!(std::fs::read(cpu).unwrap() == std::fs::read(auto).unwrap());
}
