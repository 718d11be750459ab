//! C and C++ programs against the static and the shared library, built here as a C user would build them.

use crate::fixture::{C_FLAGS, CPP_FLAGS, MATRICES, ROOT, compile, factors, model};
use littlebit::format::schema::Shape;
use littlebit::kernel::{Mode, PathRef, active, matmul};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

struct Libraries {
    dir: PathBuf,
    /// What the static library needs from the system, in rustc's words.
    native: Vec<String>,
}

/// Builds both libraries of the core, once.
fn libraries() -> &'static Libraries {
    static BUILT: OnceLock<Libraries> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
        let output = Command::new(env!("CARGO"))
            .args(["rustc", "--locked", "--no-default-features", "--lib", "--crate-type", "staticlib,cdylib"])
            .arg("--target-dir")
            .arg(&target)
            .args(["--", "--print", "native-static-libs"])
            .current_dir(ROOT)
            .output()
            .expect("cargo starts");
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{messages}");
        let native =
            messages.lines().find_map(|l| l.split_once("native-static-libs: ")).expect("a link list").1;
        let dir = target.join("debug");
        let versioned = dir.join("liblittlebit.so.0");
        let _ = std::fs::remove_file(&versioned);
        std::os::unix::fs::symlink("liblittlebit.so", versioned).unwrap();
        Libraries { dir, native: native.split_whitespace().map(str::to_owned).collect() }
    })
}

fn static_link() -> Vec<String> {
    let lib = libraries();
    let archive = lib.dir.join("liblittlebit.a").display().to_string();
    std::iter::once(archive).chain(lib.native.iter().cloned()).chain(["-lm".to_owned()]).collect()
}

fn shared_link() -> Vec<String> {
    let dir = libraries().dir.display().to_string();
    let flags = ["-L", &dir, "-Wl,-Bdynamic", "-l:liblittlebit.so", "-lm", "-pthread"];
    flags.iter().map(|s| s.to_string()).chain([format!("-Wl,-rpath,{dir}")]).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The numbers after `name:` in the program's output.
fn row(stdout: &str, name: &str) -> Vec<f32> {
    let line = stdout.lines().find_map(|l| l.strip_prefix(&format!("{name}: "))).expect(name);
    line.split(' ').map(|n| n.parse().expect("a number")).collect()
}

/// The first column of the product that the programs compute.
fn expected(which: usize, expert: usize, mode: Mode) -> Vec<f32> {
    let shape = MATRICES[which].1;
    let factors = factors(&shape, which as u64 + 1);
    let slices = &factors.slices[expert * 2..expert * 2 + 2];
    let paths: Vec<PathRef<'_>> = slices.iter().map(PathRef::from).collect();
    let x: Vec<f32> = (0..shape.d_in).map(|i| ((i * 7 % 31) as f32 - 15.0) / 16.0).collect();
    let mut y = vec![0.0; shape.d_out];
    matmul(&paths, mode, active(), &x, shape.d_in, 1, &mut y, shape.d_out, 1).unwrap();
    y
}

fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program).args(args).output().expect("the program starts")
}

/// Runs a multiply program on good and bad input.
fn exercise(program: &Path, dir: &Path) {
    let file = model(dir);
    let file = file.to_str().unwrap();
    for (which, expert, args) in [
        (0, 0, &[file][..]),
        (0, 0, &[file, "blk.0.attn_q.weight"]),
        (1, 2, &[file, "blk.0.ffn_up_exps", "2"]),
    ] {
        let out = run(program, args);
        let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
        assert!(out.status.success(), "{program:?} {args:?}: {stdout}{stderr}");
        for (name, shape) in MATRICES {
            let Shape { d_out, d_in, rank, slices } = shape;
            let experts = slices / 2;
            let line = format!("{name}: {d_out} x {d_in}, rank {rank}, paths 2, experts {experts}, ");
            assert!(stdout.contains(&line), "{line} in {stdout}");
        }
        // Nine digits give back every f32, so these are exact comparisons.
        let int = expected(which, expert, Mode::Int);
        assert_eq!(row(&stdout, "int"), int[..4]);
        assert_eq!(row(&stdout, "stages"), int[..4]);
        assert_eq!(row(&stdout, "f32"), expected(which, expert, Mode::F32)[..4]);
        let difference = row(&stdout, "relative difference of int and f32")[0];
        assert!((1e-6..1e-2).contains(&difference), "{difference}");
    }
    let not_gguf = dir.join("not.gguf");
    std::fs::write(&not_gguf, b"GGML, but not unified").unwrap();
    for (args, code, word) in [
        (&[][..], 2, "usage: multiply"),
        (&["missing.gguf"], 1, "missing.gguf: open: "),
        (&[not_gguf.to_str().unwrap()], 1, "not.gguf"),
        (&[file, "blk.9.attn_q"], 1, "no factorized matrix 'blk.9.attn_q' (status 15: not found)"),
        (&[file, "blk.0.attn_q", "1"], 1, "expert 1 of 1 (status 12: index out of range)"),
        (&[file, "blk.0.attn_q", "one"], if program.ends_with("multiply-c") { 2 } else { 1 }, "'one' is not"),
    ] {
        let out = run(program, args);
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    }
}

fn c_example(flags: &[&str], link: &[String]) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("multiply-c");
    let source = Path::new(ROOT).join("cpp/examples/multiply.c");
    compile("cc", &[&["-std=c99", "-O1"], C_FLAGS, flags].concat(), &source, &program, link);
    exercise(&program, dir.path());
}

fn cpp_example(link: &[String]) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("multiply-cpp");
    let source = Path::new(ROOT).join("cpp/examples/multiply.cpp");
    compile("c++", &[CPP_FLAGS, &["-O1"]].concat(), &source, &program, link);
    exercise(&program, dir.path());
}

#[test]
fn c_example_runs_with_the_static_library() {
    c_example(&[], &static_link());
}

#[test]
fn c_example_runs_with_the_shared_library() {
    c_example(&[], &shared_link());
}

#[test]
fn cpp_example_runs_with_the_static_library() {
    cpp_example(&static_link());
}

#[test]
fn cpp_example_runs_with_the_shared_library() {
    cpp_example(&shared_link());
}

/// The C program and the library's use of its memory under AddressSanitizer (with leaks) and UBSan.
#[test]
fn c_example_is_clean_under_sanitizers() {
    const FLAGS: &[&str] = &["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("probe.c"), dir.path().join("probe"));
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let compiled = Command::new("cc").args(FLAGS).arg(&source).arg("-o").arg(&program).output().unwrap();
    if !compiled.status.success() || !run(&program, &[]).status.success() {
        eprintln!("skipped: cc has no working sanitizers here: {}", text(&compiled.stderr));
        return;
    }
    c_example(FLAGS, &static_link());
}

/// Symbols that the shared library offers: the functions of the header, no more.
#[test]
fn shared_library_exports_the_interface_alone() {
    let library = libraries().dir.join("liblittlebit.so");
    let out = Command::new("nm").args(["-D", "--defined-only"]).arg(&library).output().expect("nm starts");
    assert!(out.status.success());
    let stdout = text(&out.stdout);
    let exported: BTreeSet<&str> = stdout.lines().filter_map(|l| l.split_whitespace().last()).collect();
    let header = std::fs::read_to_string(Path::new(ROOT).join("include/littlebit.h")).unwrap();
    let declared: BTreeSet<&str> = header
        .lines()
        .filter(|l| !l.starts_with([' ', '/', '#', '}']) && !l.starts_with("typedef"))
        .filter_map(|l| l[..l.find('(')?].rsplit([' ', '*']).next())
        .collect();
    assert_eq!(exported, declared);
    assert!(declared.len() >= 19, "{declared:?}");
}

#[test]
fn shared_library_has_its_soname() {
    let library = libraries().dir.join("liblittlebit.so");
    let out = Command::new("readelf").arg("-d").arg(&library).output().expect("readelf starts");
    assert!(text(&out.stdout).contains("Library soname: [liblittlebit.so.0]"));
}

/// The link list in the specification is rustc's.
#[test]
fn static_link_list_is_documented() {
    let spec = std::fs::read_to_string(Path::new(ROOT).join("specs/c-abi.md")).unwrap();
    for library in &libraries().native {
        assert!(spec.contains(library.as_str()), "{library} is not in specs/c-abi.md");
    }
}
