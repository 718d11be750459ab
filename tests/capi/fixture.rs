//! A small LittleBit GGUF with an odd shape and a stack of experts, and the compilers.

use half::f16;
use littlebit::bits::SignMatrix;
use littlebit::capi::*;
use littlebit::format::schema::{self, Part, Shape};
use littlebit::format::{FactorPath, Factors};
use littlebit::gguf::{Value, Writer};
use std::ffi::{CStr, CString};
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
        ("general.alignment", Value::U32(schema::ALIGNMENT as u32)),
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

/// The model, open through the C ABI, in a directory of its own.
pub struct Model {
    pub raw: *mut lb_model,
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Model {
    pub fn new() -> Self {
        Self::edited(|_| ())
    }

    /// The model after `edit` of its file.
    pub fn edited(edit: impl FnOnce(&mut Vec<u8>)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = model(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        edit(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let mut raw = std::ptr::null_mut();
        // SAFETY: a C string and a place for the handle.
        assert_eq!(unsafe { lb_model_open(c_string(&path).as_ptr(), &mut raw) }, LB_OK, "{}", message());
        Model { raw, path, _dir: dir }
    }

    pub fn matrix(&self, index: usize) -> *const lb_matrix {
        let mut matrix = std::ptr::null();
        // SAFETY: an open model.
        assert_eq!(unsafe { lb_model_matrix(self.raw, index, &mut matrix) }, LB_OK, "{}", message());
        matrix
    }

    pub fn info(&self, index: usize) -> lb_matrix_info {
        // SAFETY: zero is a value of every field.
        let mut info: lb_matrix_info = unsafe { std::mem::zeroed() };
        info.struct_size = size_of::<lb_matrix_info>() as u32;
        // SAFETY: a matrix of an open model.
        assert_eq!(unsafe { lb_matrix_get_info(self.matrix(index), &mut info) }, LB_OK, "{}", message());
        info
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: opened once, freed once.
        unsafe { lb_model_free(self.raw) };
    }
}

/// An empty stage with its size set.
pub fn blank_stage() -> lb_stage {
    let null = std::ptr::null();
    let struct_size = size_of::<lb_stage>() as u32;
    lb_stage {
        struct_size,
        reserved: 0,
        rows: 0,
        cols: 0,
        tile: null,
        tile_size: 0,
        pre: null.cast(),
        post: null.cast(),
    }
}

pub fn stage(model: &Model, index: usize, expert: u32, path: u32, half: u32) -> lb_stage {
    let mut stage = blank_stage();
    // SAFETY: a matrix of an open model.
    let status = unsafe { lb_matrix_stage(model.matrix(index), expert, path, half, &mut stage) };
    assert_eq!(status, LB_OK, "{}", message());
    stage
}

pub fn work_size(stage: &lb_stage, mode: u32, n: usize) -> usize {
    let mut size = 0;
    // SAFETY: a valid stage.
    assert_eq!(unsafe { lb_stage_work_size(stage, mode, n, &mut size) }, LB_OK, "{}", message());
    size
}

pub fn c_string(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

/// The message of this thread's last failure.
pub fn message() -> String {
    // SAFETY: a C string of this thread, copied before the next call.
    unsafe { CStr::from_ptr(lb_last_error_message()) }.to_str().unwrap().to_owned()
}
