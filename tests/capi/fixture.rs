//! A small LittleBit GGUF with an odd shape and a stack of experts, and the compilers.

use half::f16;
use littlebit::bits::SignMatrix;
use littlebit::format::schema::{self, Part, Shape};
use littlebit::format::{FactorPath, Factors};
use littlebit::gguf::{Value, Writer};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");
pub const C_FLAGS: &[&str] = &["-Wall", "-Wextra", "-Wpedantic", "-Werror"];
pub const CPP_FLAGS: &[&str] = &["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// Names and shapes of the model: two paths each, the second matrix with three experts.
pub const MATRICES: [(&str, Shape); 2] = [
    ("blk.0.attn_q", Shape { d_out: 70, d_in: 45, rank: 64, slices: 2 }),
    ("blk.0.ffn_up_exps", Shape { d_out: 33, d_in: 100, rank: 32, slices: 6 }),
];

/// Deterministic numbers in [-0.5, 0.5).
pub fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

pub fn factors(shape: &Shape, seed: u64) -> Factors {
    let mut next = numbers(seed);
    let mut slice = || {
        let mut signs = |rows, cols| SignMatrix::from_fn(rows, cols, |_, _| next() >= 0.0);
        let (u, vt) = (signs(shape.d_out, shape.rank), signs(shape.rank, shape.d_in));
        let mut scales = |n| (0..n).map(|_| f16::from_f32(1.0 + next())).collect();
        FactorPath { u, vt, h: scales(shape.d_out), l: scales(shape.rank), g: scales(shape.d_in) }
    };
    Factors { paths: 2, slices: (0..shape.slices).map(|_| slice()).collect() }
}

/// Writes the model into `dir`.
pub fn model(dir: &Path) -> PathBuf {
    let kv = [
        ("general.architecture", Value::Str(b"llama".to_vec())),
        (schema::key::VERSION, Value::U32(schema::VERSION)),
        (schema::key::PATHS, Value::U32(2)),
    ]
    .map(|(k, v)| (k.to_owned(), v));
    let descs = MATRICES.iter().flat_map(|(name, shape)| schema::descriptors(name, shape)).collect();
    let mut w = Writer::new(Vec::new(), &kv, descs, schema::ALIGNMENT).unwrap();
    for (i, (name, shape)) in MATRICES.iter().enumerate() {
        let factors = factors(shape, i as u64 + 1);
        for part in Part::ALL {
            w.write_tensor(&format!("{name}{}", part.suffix()), &schema::part_bytes(&factors, part)).unwrap();
        }
    }
    let path = dir.join("small.gguf");
    std::fs::write(&path, w.finish().unwrap()).unwrap();
    path
}

/// Compiles `source` with the project's headers; panics with the compiler's messages.
pub fn compile(compiler: &str, flags: &[&str], source: &Path, out: &Path, link: &[String]) {
    let mut command = Command::new(compiler);
    command
        .args(flags)
        .arg("-I")
        .arg(Path::new(ROOT).join("include"))
        .arg("-I")
        .arg(Path::new(ROOT).join("cpp"));
    let output = command.arg(source).arg("-o").arg(out).args(link).output().expect("the compiler starts");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{messages}");
}
