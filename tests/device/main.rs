//! `littlebit-convert --device`, the real binary with feature `cuda`, on the host model of a GPU's libraries (cpp/cuda/emulate).
//! Needs `c++`, no GPU.

#![cfg(target_os = "linux")]

#[path = "../support/host_gpu.rs"]
mod host_gpu;
#[path = "../../examples/layer/mod.rs"]
#[allow(dead_code)]
mod layer;
mod layers;
mod model;
#[path = "../kernels/oracle.rs"]
#[allow(dead_code)]
mod oracle;
mod stages;
#[path = "../support/mod.rs"]
mod support;

use littlebit::factorize::device::{RESERVE, admm_bytes};
use littlebit::format::LittleBitFile;
use serde_json::Value as Json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use support::checkpoint::{SMOLLM, write_gguf};
use support::{BIN, events, ok, s, small_model, told};

/// Folder of the model's libraries.
fn libraries() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| host_gpu::build(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("host-gpu")))
}

/// Runs `littlebit-convert` on a machine whose GPU is the model, with `variables` for it.
fn run(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(BIN);
    command.args(args).env("LD_LIBRARY_PATH", libraries());
    command.envs(variables.iter().map(|(k, v)| (format!("LITTLEBIT_HOST_MODEL_{k}"), v)));
    command.output().expect("the binary starts")
}

/// Runs it and expects an exit code; returns stdout and stderr.
fn expect(code: i32, args: &[&str], variables: &[(&str, &str)]) -> [String; 2] {
    let out = run(args, variables);
    let [stdout, stderr] = [out.stdout, out.stderr].map(|x| String::from_utf8(x).unwrap());
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    [stdout, stderr]
}

/// The report at the end of `--json`, and the texts of all notes.
fn report(stdout: &str) -> (Json, Vec<String>) {
    let events = events(stdout);
    let notes = told(&events, "note").into_iter().map(str::to_owned).collect();
    (events.last().unwrap()["report"].clone(), notes)
}

/// All factors of a file, by matrix.
fn factors(path: &Path) -> Vec<littlebit::format::Factors> {
    let file = LittleBitFile::open(path).unwrap();
    file.matrices().iter().map(|m| file.read_factors(m).unwrap()).collect()
}

/// Share of equal signs.
fn agreement(a: &Path, b: &Path) -> f64 {
    let (mut same, mut all) = (0usize, 0usize);
    for (a, b) in factors(a).iter().zip(&factors(b)) {
        for (a, b) in a.slices.iter().zip(&b.slices) {
            for (a, b) in [(&a.u, &b.u), (&a.vt, &b.vt)] {
                let (a, b) = (a.to_row_major(), b.to_row_major());
                same += a.iter().zip(&b).filter(|(a, b)| a == b).count();
                all += a.len();
            }
        }
    }
    same as f64 / all as f64
}

const SMALL: [&str; 8] =
    ["--rank", "64", "--iterations", "6", "--generated-windows", "0", "--json", "--force"];

/// A model that is factorized only: as good as the CPU's, the same bytes on any number of threads, and the file says what made it.
#[test]
fn a_conversion_is_as_good_as_the_cpus() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), |_, _| {});
    let (cpu, gpu) = (dir.path().join("cpu.gguf"), dir.path().join("gpu.gguf"));
    let args = |out| [&[s(&input), out][..], &SMALL, &["--paths", "2"]].concat();
    let (a, _) = report(&ok(&args(s(&cpu))));
    let mut bytes = Vec::new();
    for threads in ["1", "3"] {
        let [stdout, _] =
            expect(0, &[&args(s(&gpu))[..], &["--device", "cuda", "-t", threads]].concat(), &[]);
        let (b, notes) = report(&stdout);
        assert_eq!((&a["device"], &b["device"]), (&"cpu".into(), &"cuda: host model".into()));
        assert!(b["method"].as_str().unwrap().ends_with(" device=cuda"), "{}", b["method"]);
        assert!(notes.len() == 1 && notes[0].contains("cuda: host model factorizes"), "{notes:?}");
        for (a, b) in a["matrices"].as_array().unwrap().iter().zip(b["matrices"].as_array().unwrap()) {
            let [x, y] = [a, b].map(|m| m["error"].as_f64().unwrap());
            assert!((x / y - 1.0).abs() < 0.01, "{}: {x} on the CPU, {y} on the model", a["name"]);
        }
        bytes.push(std::fs::read(&gpu).unwrap());
    }
    assert!(bytes[0] == bytes[1], "threads change the result");
    let share = agreement(&cpu, &gpu);
    eprintln!("equal signs: {share:.5}");
    assert!(share > 0.9);
    // A model in another form has nothing to factorize.
    let other = dir.path().join("other.littlebit");
    let [_, e] = expect(2, &[s(&gpu), s(&other), "--device", "cuda"], &[]);
    assert!(e.contains("--device means nothing"), "{e}");
}

/// Text in the small model's tokens, more than a window of it.
fn text(dir: &Path) -> PathBuf {
    let path = dir.join("text.txt");
    let words: Vec<&str> = (0..2500usize).map(|i| ["a", "b", "ab"][(i * i / 3 + i / 7) % 3]).collect();
    std::fs::write(&path, words.join(" ")).unwrap();
    path
}

/// What a calibrated conversion of the small model does beside writing text of its own.
const CALIBRATED: [&str; 9] =
    ["--block-passes", "1", "--tune-steps", "3", "--rank", "32", "--effort", "fast", "--json"];

/// How often the model's functions were called, as it wrote to `file`.
fn calls(file: &Path) -> HashMap<String, usize> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|l| l.split_once(' ').unwrap());
    lines.map(|(name, n)| (name.to_owned(), n.parse().unwrap())).collect()
}

/// A calibrated model: polish, margins, moments and all products of both models on the device, too. As good as the CPU's, the same
/// bytes on any number of threads.
#[test]
fn a_calibrated_conversion_is_as_good_as_the_cpus() {
    let dir = tempfile::tempdir().unwrap();
    let input = write_gguf(dir.path(), &SMOLLM);
    let text = text(dir.path());
    let (cpu, gpu) = (dir.path().join("cpu.gguf"), dir.path().join("gpu.gguf"));
    let texts = ["--calibration", s(&text), "--generated-windows", "0", "--eval", s(&text), "--force"];
    let args = |out| [&[s(&input), out][..], &texts, &CALIBRATED].concat();
    let (a, _) = report(&ok(&args(s(&cpu))));
    let count = dir.path().join("calls");
    let mut bytes = Vec::new();
    let mut b = Json::Null;
    for threads in ["1", "3"] {
        let args = [&args(s(&gpu))[..], &["--device", "auto", "-t", threads]].concat();
        let [stdout, _] = expect(0, &args, &[("COUNT", s(&count))]);
        let (report, notes) = report(&stdout);
        // One of the device, one as the text is scored that was learned.
        assert!(notes.len() == 2 && notes[1].contains("is a text of the calibration"), "{notes:?}");
        assert!(report["device"] == "cuda: host model", "{notes:?}");
        bytes.push(std::fs::read(&gpu).unwrap());
        b = report;
    }
    assert!(bytes[0] == bytes[1], "threads change the result");
    eprintln!("equal signs: {:.5}, errors {} {}", agreement(&cpu, &gpu), a["mean_error"], b["mean_error"]);
    let figure = |r: &Json, path: &str| r.pointer(path).and_then(Json::as_f64).unwrap();
    // The source is the same model on both. The results differ as their signs do: what one layer has left wrong the next ones make up
    // for, so a sign that rounding decides moves all targets after it, and only what the whole model does is the same.
    let near = [
        ("/evaluations/0/source_perplexity/value", 1e-5),
        ("/evaluations/0/perplexity/value", 0.01),
        ("/evaluations/0/kld/value", 0.2),
    ];
    let figures = near.map(|(path, _)| [&a, &b].map(|r| figure(r, path)));
    let told: Vec<String> =
        near.iter().zip(figures).map(|((path, _), [x, y])| format!("{path}: {x} on the CPU, {y}")).collect();
    eprintln!("{}", told.join("\n"));
    for (told, ((_, tolerance), [x, y])) in told.iter().zip(near.iter().zip(figures)) {
        assert!((x / y - 1.0).abs() < *tolerance, "{told}");
    }
    // Nothing of the decoder was left to the CPU: each of its 14 layers went back and forth on the device once for every window of
    // block tuning (two a step), once for both windows of every step of distillation; four more paths are the check's.
    let calls = calls(&count);
    let windows = figure(&b, "/evaluations/0/windows") as usize;
    assert_eq!(calls["lbf_gather"], 14 * (windows.next_multiple_of(2) + 2 * 3) + 4, "{windows}: {calls:?}");
    // The source's layers in two bytes, once for every window; U and V^T in every forward and backward pass.
    assert!(calls["lbf_widen"] > 14 * windows, "{calls:?}");
    let signs = calls["lbf_sign_pairs"] + calls["lbf_sign_tile"];
    assert!(signs > 2 * 2 * calls["lbf_gather"], "{calls:?}");
}

/// A GPU that fails while it multiplies for the decoder: one line that names the layer, and the same command goes on to the same
/// bytes; with `auto` the CPU goes on alone.
#[test]
fn a_device_that_fails_in_calibration_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let input = write_gguf(dir.path(), &SMOLLM);
    let [whole, out, alone] = ["whole", "out", "alone"].map(|f| dir.path().join(f));
    let texts = ["--generated-windows", "4"];
    let args = |out, device| [&[s(&input), out, "--device", device][..], &texts, &CALIBRATED].concat();
    let count = dir.path().join("calls");
    expect(0, &args(s(&whole), "cuda"), &[("COUNT", s(&count))]);
    let calls = calls(&count);
    // In the text of the source, in the polish, in the tuning of a block, in the last step of the distillation.
    let last = format!("lbf_gather:{}", calls["lbf_gather"] - 1);
    for (refused, kept) in
        [("lbf_widen:3", false), ("lbf_descend:6", true), ("lbf_gather:20", true), (last.as_str(), true)]
    {
        let [stdout, e] = expect(1, &args(s(&out), "cuda"), &[("REFUSE", refused)]);
        let function = refused.split(':').next().unwrap();
        assert!(
            e.contains("matrix 'blk.") && e.contains(function) && e.contains("on cuda: host model"),
            "{e}"
        );
        assert_eq!(stdout.contains("finished work is kept"), kept, "{refused}: {stdout}");
        assert!(!out.exists());
    }
    expect(0, &args(s(&out), "cuda"), &[]);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "resumed to other bytes");
    let [stdout, _] = expect(0, &args(s(&alone), "auto"), &[("REFUSE", "lbf_gather:20")]);
    let (_, notes) = report(&stdout);
    assert_eq!(notes.iter().filter(|n| n.contains("the CPU goes on from 'blk.")).count(), 1, "{notes:?}");
}

/// Matrices that do not fit are the CPU's, the others the GPU's; a line says which.
#[test]
fn what_does_not_fit_goes_to_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), |_, _| {});
    let [all, none, some] = ["all", "none", "some"].map(|f| dir.path().join(f));
    let args = |out| [&[s(&input), out, "--device", "cuda"][..], &SMALL].concat();
    expect(0, &args(s(&all)), &[]);
    let [_, _] = expect(0, &args(s(&none)), &[("MEMORY", "90000000")]);
    let cpu = dir.path().join("cpu");
    ok(&[&[s(&input), s(&cpu)][..], &SMALL].concat());
    assert_eq!(factors(&none), factors(&cpu));
    // The matrices of the feed-forward part take more than those of attention.
    let [small, large] = [96, 200].map(|m| admm_bytes(m, 96, 64));
    let memory = (RESERVE + (small + large) / 2).to_string();
    let [stdout, _] = expect(0, &args(s(&some)), &[("MEMORY", &memory)]);
    let (_, notes) = report(&stdout);
    let left: Vec<&String> = notes.iter().filter(|n| n.contains("goes to the CPU")).collect();
    assert_eq!(left.len(), 3, "{notes:?}");
    for name in ["ffn_gate", "ffn_up", "ffn_down"] {
        assert!(left.iter().any(|n| n.contains(name)), "{left:?}");
    }
    let file = LittleBitFile::open(&some).unwrap();
    for (m, (some, (all, none))) in
        file.matrices().iter().zip(factors(&some).iter().zip(factors(&all).iter().zip(&factors(&none))))
    {
        assert_eq!(some, if m.name.contains("ffn") { none } else { all }, "{}", m.name);
    }
}

/// A GPU that computes wrongly, refuses, is too old, or lacks its libraries: one line, and with `auto` the CPU's bytes.
#[test]
fn a_device_that_cannot_be_used_is_an_error_or_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), |_, _| {});
    let (cpu, out) = (dir.path().join("cpu.gguf"), dir.path().join("out.gguf"));
    ok(&[&[s(&input), s(&cpu)][..], &SMALL].concat());
    let cpu = std::fs::read(cpu).unwrap();
    let libraries = tempfile::tempdir().unwrap();
    let only_driver = libraries.path();
    std::fs::copy(self::libraries().join("libcuda.so"), only_driver.join("libcuda.so")).unwrap();
    let empty = dir.path();
    let model = self::libraries();
    for (folder, variable, code, words) in [
        (model, Some(("FAULT", "cublasSgemm")), 1, "computes something else than the CPU"),
        (model, Some(("FAULT", "lbf_descend")), 1, "signs of the descent"),
        (model, Some(("REFUSE", "cublasSgemm")), 1, "cublasSgemm"),
        (model, Some(("REFUSE", "cuModuleLoadData")), 1, "cuModuleLoadData"),
        (model, Some(("REFUSE", "cuInit")), 2, "cuInit"),
        (model, Some(("OLD", "1")), 2, "compute capability 7.0"),
        (only_driver, None, 2, "cuBLAS (libcublas.so.13) is not on this machine"),
        (empty, None, 2, "libcuda.so.1) is not on this machine"),
    ] {
        if folder == empty && Path::new("/dev/nvidiactl").exists() {
            continue;
        }
        let run = |device: &str| {
            let mut command = Command::new(BIN);
            command.args([s(&input), s(&out), "--device", device]).args(SMALL);
            command.env("LD_LIBRARY_PATH", folder);
            command.envs(variable.map(|(k, v)| (format!("LITTLEBIT_HOST_MODEL_{k}"), v)));
            let out = command.output().unwrap();
            (out.status.code(), [out.stdout, out.stderr].map(|x| String::from_utf8(x).unwrap()))
        };
        let (status, [_, e]) = run("cuda");
        let errors: Vec<&str> = e.lines().filter(|l| !l.contains(" hint: ")).collect();
        assert_eq!((status, errors.len()), (Some(code), 1), "{words}: {e}");
        assert!(
            errors[0].starts_with("littlebit-convert: error: --device cuda: ") && errors[0].contains(words),
            "{e}"
        );
        assert!(!out.exists() && !e.contains("panicked"));
        let (status, [stdout, e]) = run("auto");
        assert_eq!((status, e.as_str()), (Some(0), ""));
        let (report, notes) = report(&stdout);
        assert!(
            notes.len() == 1 && notes[0].contains(words) && notes[0].contains("the CPU factorizes"),
            "{notes:?}"
        );
        assert_eq!(report["device"], "cpu");
        assert!(std::fs::read(&out).unwrap() == cpu, "{words}: other bytes than the CPU's");
        std::fs::remove_file(&out).unwrap();
    }
    // A plan needs no device.
    let mut plan = Command::new(BIN);
    plan.args([s(&input), "--device", "cuda", "--dry-run"]).env("LD_LIBRARY_PATH", empty);
    assert!(plan.output().unwrap().status.success());
    let [_, e] = expect(2, &[s(&input), "x.gguf", "--device", "cuda", "--method", "dual-svid"], &[]);
    assert!(e.contains("--method admm"), "{e}");
}

/// A GPU that fails in the middle: finished matrices are kept and the same command ends with the same bytes; `auto` goes on alone.
#[test]
fn a_device_that_fails_on_the_way_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), |_, _| {});
    let [whole, out, alone] = ["whole", "out", "alone"].map(|f| dir.path().join(f));
    let args = |out, device| [&[s(&input), out, "-t", "1", "--device", device][..], &SMALL].concat();
    expect(0, &args(s(&whole), "cuda"), &[]);
    let late = [("REFUSE", "cuLaunchKernel:600")];
    let [stdout, e] = expect(1, &args(s(&out), "cuda"), &late);
    assert!(e.contains("matrix 'blk.0.") && e.contains("on cuda: host model") && e.contains("hint: "), "{e}");
    assert!(stdout.contains("finished work is kept") && !out.exists(), "{stdout}");
    let records = std::fs::read_dir(dir.path().join("out.work")).unwrap().count();
    assert!(records > 2, "no finished matrices");
    // The CPU's run is another one.
    let [_, e] = expect(2, &args(s(&out), "cpu"), &[]);
    assert!(e.contains("device was 'cuda'"), "{e}");
    expect(0, &args(s(&out), "cuda"), &[]);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "resumed to other bytes");
    let [stdout, _] = expect(0, &args(s(&alone), "auto"), &late);
    let (_, notes) = report(&stdout);
    assert_eq!(notes.iter().filter(|n| n.contains("the CPU goes on from")).count(), 1, "{notes:?}");
    assert_eq!(LittleBitFile::open(&alone).unwrap().matrices().len(), 7);
}
