//! The libraries of a GPU's driver on the host model (cpp/cuda/emulate), built here. Needs `c++`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds `libcuda.so` and `libcublas.so` in `dir` and returns it.
pub fn build(dir: &Path) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp/cuda/emulate");
    let library = |name: &str, sources: &[&str], more: &[&str]| {
        let out = dir.join(format!("{name}.so"));
        // Another process may have the old file open.
        let new = dir.join(format!("{name}.{}.tmp", std::process::id()));
        let output = Command::new("c++")
            .args(["-std=c++17", "-O2", "-g", "-fPIC", "-shared", "-ffp-contract=off"])
            .args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
            .arg(format!("-Wl,-soname,{name}.so"))
            .args(sources.iter().map(|s| source.join(s)))
            .arg("-L")
            .arg(dir)
            .args(more)
            .arg("-o")
            .arg(&new)
            .output()
            .expect("c++ starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(new, out).unwrap();
    };
    library("libcuda", &["libcuda.cpp", "machine.cpp"], &[]);
    library("libcublas", &["libcublas.cpp"], &["-lcuda", "-Wl,-rpath,$ORIGIN"]);
    dir.to_owned()
}
