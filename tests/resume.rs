//! The real binary under bad conditions: killed, interrupted, run twice, without room, with little memory.

mod support;

use littlebit::gguf::{GgmlType, TensorDesc, Value, Writer};
use serde_json::Value as Json;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::checkpoint::{SMOLLM, write_gguf};
use support::{BIN, fails, ok, run, s, small_model, untouched, weights};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until `there`, while `child` runs.
fn until(child: &mut Child, there: impl Fn() -> bool) {
    let started = Instant::now();
    while !there() {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        assert!(started.elapsed() < Duration::from_secs(300), "it does not come that far");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Fifty kills in all stages of calibrated conversions lose nothing but time.
#[test]
fn kills_at_random_moments_do_not_change_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let input = write_gguf(dir.path(), &SMOLLM);
    let (straight, out) = (dir.path().join("straight.gguf"), dir.path().join("cut.gguf"));
    let command = |out: &Path| {
        let mut c = Command::new(BIN);
        c.arg(&input).arg(out).args(["--rank", "32", "--iterations", "200", "--effort", "fast"]);
        c.args(["--generated-windows", "2", "--block-passes", "8", "--tune-steps", "25"]);
        c
    };
    let started = Instant::now();
    let done = command(&straight).arg("-q").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let whole = started.elapsed();
    let bytes = std::fs::read(&straight).unwrap();
    let outcome = support::kills::survive(|| command(&out), &out, &bytes, whole, 50);
    println!(
        "{whole:?} left alone; kills by stage {:?}, finished {} times",
        outcome.stages, outcome.finished
    );
    // Both kinds of long work were cut off.
    for stage in ["factorize", "distil"] {
        assert!(outcome.stages.contains_key(stage), "{:?}", outcome.stages);
    }
    assert_eq!(names(dir.path()), ["cut.gguf", "model.gguf", "straight.gguf"]);
}

#[test]
fn a_work_folder_serves_one_run_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let (out, work) = (dir.path().join("o.gguf"), dir.path().join("o.gguf.work"));
    let args = [s(&input), s(&out), "--rank", "32", "--iterations", "1500", "--threads", "1", "-q"];
    let mut first = Command::new(BIN).args(args).spawn().unwrap();
    until(&mut first, || work.join("run.json").exists());
    let refused = fails(2, &args);
    assert!(refused.contains("another run is at work") && refused.contains("--work-dir"), "{refused}");
    // The lock of a run that died is no obstacle.
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(work.join("lock").exists());
    ok(&args);
    assert_eq!(names(dir.path()), ["o.gguf", "small.gguf"]);
}

/// A model whose weights are zero: large on paper, a hole on disk, compressed at once.
fn hollow_model(dir: &Path) -> PathBuf {
    let kv = [
        ("general.architecture".to_owned(), Value::from("llama")),
        ("llama.block_count".to_owned(), Value::U32(6)),
    ];
    let mut tensors =
        vec![TensorDesc { name: "token_embd.weight".to_owned(), dims: vec![1024, 64], ty: GgmlType::F16 }];
    for b in 0..6 {
        for (name, dims) in [("attn_q", [1024, 1024]), ("ffn_up", [1024, 4096]), ("ffn_down", [4096, 1024])] {
            tensors.push(TensorDesc {
                name: format!("blk.{b}.{name}.weight"),
                dims: dims.to_vec(),
                ty: GgmlType::F16,
            });
        }
    }
    let data: u64 = tensors.iter().map(|t| t.nbytes().unwrap()).sum();
    let header = Writer::new(Vec::new(), &kv, tensors, 32).unwrap().into_inner();
    let path = dir.join("hollow.gguf");
    std::fs::write(&path, &header).unwrap();
    std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .set_len(header.len() as u64 + data)
        .unwrap();
    path
}

/// Other commands than conversions end cleanly, too: half-written files go.
#[test]
fn signals_end_repack_and_verify() {
    let dir = tempfile::tempdir().unwrap();
    let input = hollow_model(dir.path());
    let compressed = dir.path().join("c.gguf");
    ok(&[s(&input), s(&compressed), "--rank", "32", "-q"]);
    let dense = dir.path().join("dense.gguf");
    let before = names(dir.path());
    let repack = [s(&compressed), s(&dense), "--lossy", "f32"];
    let verify = ["verify", s(&compressed), "--against", s(&input)];
    for (args, writes) in [(&repack[..], true), (&verify[..], false)] {
        for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
            let mut command = Command::new(BIN);
            command.args(args).args(["--threads", "1"]).stdout(Stdio::null()).stderr(Stdio::piped());
            // SAFETY: `signal` may be called between fork and exec.
            unsafe {
                command.pre_exec(move || match libc::signal(signal, libc::SIG_DFL) {
                    libc::SIG_ERR => Err(std::io::Error::last_os_error()),
                    _ => Ok(()),
                });
            }
            let mut child = command.spawn().unwrap();
            let begun = Instant::now();
            let temporary = || names(dir.path()).iter().any(|n| n.starts_with(".dense.gguf.tmp-"));
            // Verification leaves no trace of itself; it blocks its signals within a few milliseconds.
            until(
                &mut child,
                || if writes { temporary() } else { begun.elapsed() > Duration::from_millis(60) },
            );
            // SAFETY: the child is ours and was not waited for, so its number is still its own.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
            let ended = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(code), "{args:?}: {said}");
            assert!(said.contains("interrupted; nothing was written"), "{said}");
            assert_eq!(names(dir.path()), before, "{args:?}");
        }
    }
}

/// Runs `script` with a tmpfs of these options at `disk`, in a mount namespace of its own.
fn on_a_small_disk(disk: &Path, options: &str, script: &str) -> (Option<i32>, String, String) {
    std::fs::create_dir_all(disk).unwrap();
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    let flags: &[&str] = if root { &["--mount"] } else { &["--user", "--map-root-user", "--mount"] };
    let script = format!("mount -t tmpfs -o {options} none {} && {script}", s(disk));
    let out = Command::new("unshare").args(flags).args(["sh", "-c", &script]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

#[test]
fn a_disk_that_is_too_small_is_noticed_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let disk = dir.path().join("small-disk");
    let script =
        format!("{BIN} {} {1}/out.gguf --rank 32; code=$?; ls -A {1}; exit $code", s(&input), s(&disk));
    let (code, left, said) = on_a_small_disk(&disk, "size=16k", &script);
    assert_eq!((code, left.as_str()), (Some(1), ""), "{said}");
    for text in ["the output", "finished pieces", "are missing", "--work-dir"] {
        assert!(said.contains(text), "{said}");
    }
    // Other forms of a compressed model likewise.
    let compressed = dir.path().join("c.gguf");
    ok(&[s(&input), s(&compressed), "--rank", "32", "-q"]);
    let script = format!(
        "{BIN} {} {1}/f32.gguf --lossy f32; code=$?; ls -A {1}; exit $code",
        s(&compressed),
        s(&disk)
    );
    let (code, left, said) = on_a_small_disk(&disk, "size=64k", &script);
    assert_eq!((code, left.as_str()), (Some(1), ""), "{said}");
    assert!(said.contains("the output") && said.contains("are missing"), "{said}");
}

#[test]
fn a_disk_that_fills_up_names_the_tensor_and_keeps_finished_work() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let disk = dir.path().join("small-disk");
    // Room enough, but for few files: the folder, lock and fingerprint in it, and three more.
    let run = format!("{BIN} {} {}/out.gguf --rank 32", s(&input), s(&disk));
    let script = format!(
        "{run}; code=$?; ls -A {0}; mount -o remount,nr_inodes=100 {0} && {run} -q && ls -A {0}; exit $code",
        s(&disk)
    );
    let (code, left, said) = on_a_small_disk(&disk, "size=1m,nr_inodes=7", &script);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("No space left") && said.contains("the factors of 'blk.0."), "{said}");
    assert!(said.contains("finished work is kept in"), "{said}");
    // First only the work, after more space was made only the output.
    assert!(left.starts_with("out.gguf.work\n"), "{left}");
    assert_eq!(left.lines().last(), Some("out.gguf"), "{left}");
    assert_eq!(left.matches("out.gguf.work").count(), 1, "{left}");
}

/// A limit on the size of files is an error like a full disk, not the end of the process.
#[test]
fn a_limit_on_files_names_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let out = dir.path().join("o.gguf");
    for (most, what) in [(1500, "the factors of 'blk.0."), (16 << 10, "o.gguf: write")] {
        let mut command = Command::new(BIN);
        command.args([s(&input), s(&out), "--rank", "32"]);
        // SAFETY: setrlimit may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
                match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let ended = command.output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{most}: {said}");
        assert!(said.contains("File too large") && said.contains(what), "{most}: {said}");
        assert!(names(dir.path()).iter().all(|n| n == "small.gguf" || n == "o.gguf.work"), "{said}");
    }
    ok(&[s(&input), s(&out), "--rank", "32", "-q"]);
    assert_eq!(names(dir.path()), ["o.gguf", "small.gguf"]);
}

/// Whatever becomes of a run, files that others have in its work folder stay.
#[test]
fn a_work_folder_of_others_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let (out, mine) = (dir.path().join("o.gguf"), dir.path().join("mine"));
    std::fs::create_dir(&mine).unwrap();
    std::fs::write(mine.join("thesis.txt"), "three years").unwrap();
    let said = fails(2, &[s(&input), s(&out), "--rank", "32", "--work-dir", s(&mine)]);
    assert!(said.contains("holds 'thesis.txt'") && said.contains("--work-dir"), "{said}");
    // The folder of the model, too.
    fails(2, &[s(&input), s(&out), "--rank", "32", "--work-dir", s(dir.path())]);
    assert_eq!(names(dir.path()), ["mine", "small.gguf"]);
    assert_eq!(names(&mine), ["thesis.txt"]);
    // An empty one serves.
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    ok(&[s(&input), s(&out), "--rank", "32", "-q", "--work-dir", s(&empty)]);
    assert_eq!(names(dir.path()), ["mine", "o.gguf", "small.gguf"]);
}

/// Errors of the disk, when bytes are written and when they are flushed: the tensor is named, what is finished stays, nothing is
/// half there, and the same command goes on once the disk is well.
#[test]
fn a_failing_disk_names_the_tensor_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let shim = dir.path().join("failing-disk.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/failing_disk.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-O1", "-o"]);
    let built = cc.arg(&shim).arg(&source).arg("-ldl").status().unwrap();
    assert!(built.success());
    let input = small_model(dir.path(), untouched);
    let straight = dir.path().join("straight.gguf");
    ok(&[s(&input), s(&straight), "--rank", "32", "-q"]);
    let out = dir.path().join("o.gguf");
    let records = || std::fs::read_dir(dir.path().join("o.gguf.work")).unwrap().count();
    let mut finished = 0;
    for (call, path, after, what) in [
        // The first record is what the run is.
        ("write", "o.gguf.work/", "3", "the factors of 'blk.0."),
        ("fsync", "o.gguf.work/", "3", "the factors of 'blk.0."),
        ("write", ".o.gguf.tmp-", "0", "o.gguf: write"),
        ("fsync", ".o.gguf.tmp-", "0", "o.gguf: flush to disk"),
    ] {
        let mut command = Command::new(BIN);
        command.args([s(&input), s(&out), "--rank", "32"]).env("LD_PRELOAD", &shim);
        command.envs([("FAIL_CALL", call), ("FAIL_PATH", path), ("FAIL_AFTER", after)]);
        let ended = command.output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{call} {path}: {said}");
        for text in ["Input/output error", what, "finished work is kept in", "the same command goes on"] {
            assert!(said.contains(text), "{call} {path}: {said}");
        }
        let left = names(dir.path());
        let expected = ["failing-disk.so", "o.gguf.work", "small.gguf", "straight.gguf"];
        assert_eq!(left, expected, "{call} {path}: {said}");
        assert!(records() >= finished, "{call} {path}: {said}");
        finished = records();
    }
    ok(&[s(&input), s(&out), "--rank", "32", "-q"]);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&straight).unwrap());
}

/// One block of random weights, large enough that memory is theirs.
fn middling_model(dir: &Path) -> PathBuf {
    let kv = [("general.architecture".to_owned(), Value::from("llama"))];
    let all = [
        ("attn_q", [1024u64, 1024]),
        ("attn_output", [1024, 1024]),
        ("ffn_gate", [1024, 4096]),
        ("ffn_up", [1024, 4096]),
        ("ffn_down", [4096, 1024]),
    ];
    let desc = |(name, dims): &(&str, [u64; 2])| TensorDesc {
        name: format!("blk.0.{name}.weight"),
        dims: dims.to_vec(),
        ty: GgmlType::F32,
    };
    let mut w = Writer::new(Vec::new(), &kv, all.iter().map(desc).collect(), 32).unwrap();
    for (i, t) in all.iter().enumerate() {
        let values = weights(t.1[1] as usize, t.1[0] as usize, i as u64 + 3);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        w.write_tensor(&desc(t).name, &bytes).unwrap();
    }
    let path = dir.join("middling.gguf");
    std::fs::write(&path, w.finish().unwrap()).unwrap();
    path
}

#[test]
fn memory_stays_within_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let input = middling_model(dir.path());
    let out = |name: &str| dir.path().join(name);
    let convert = |name: &str, more: &[&str]| -> u64 {
        let fixed = ["--rank", "32", "--method", "dual-svid", "--threads", "4", "--json"];
        let said = ok(&[&[s(&input), s(&out(name))], &fixed[..], more].concat());
        let done: Json = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        done["peak_rss_bytes"].as_u64().unwrap()
    };
    let free = convert("free.gguf", &[]);
    let limit = 200 << 20;
    let limited = convert("limited.gguf", &["--max-memory", "200Mi"]);
    println!("peak {} MiB without a limit, {} MiB with one of 200", free >> 20, limited >> 20);
    assert!(limited <= limit && limited < free, "{limited} of {limit}, {free} without");
    // What is done at once does not matter to the result.
    assert!(std::fs::read(out("free.gguf")).unwrap() == std::fs::read(out("limited.gguf")).unwrap());
    let refused = fails(2, &[s(&input), s(&out("no.gguf")), "--rank", "32", "--max-memory", "100M"]);
    assert!(refused.contains("--max-memory") && refused.contains("Give at least"), "{refused}");
    assert!(!out("no.gguf").exists() && !out("no.gguf.work").exists());
    // Of a calibrated run the stage is named.
    let small = write_gguf(dir.path(), &SMOLLM);
    let own = ["--generated-windows", "4", "--effort", "fast", "--tune-steps", "1", "--rank", "32"];
    let refused = fails(2, &[&[s(&small), s(&out("no.gguf")), "--max-memory", "180M"], &own[..]].concat());
    assert!(refused.contains("stage '") && refused.contains("Give at least"), "{refused}");
    let ended = run(&[&[s(&small), s(&out("yes.gguf")), "--max-memory", "2G", "-q"], &own[..]].concat());
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}
