//! Round trips and faults of containers, on a file with every kind of tensor.

use super::*;
use crate::bits::SignMatrix;
use crate::format::schema::{self, Part, Shape, key};
use crate::format::{FactorPath, Factors, LittleBitFile};
use crate::gguf::{GgmlType, TensorDesc, Value, Writer};
use half::f16;
use std::path::{Path, PathBuf};

const HEADS: u32 = 2;

/// Factors whose signs and scales differ everywhere.
fn factors(d_out: usize, d_in: usize, rank: usize, paths: usize, slices: usize) -> Factors {
    let scales = |n: usize, by: usize| (0..n).map(|i| f16::from_f32(((i * by) % 13) as f32 - 5.5)).collect();
    let path = |s: usize| FactorPath {
        u: SignMatrix::from_fn(d_out, rank, |i, k| (i * 7 + k * 3 + s) % 5 < 2),
        vt: SignMatrix::from_fn(rank, d_in, |k, j| (k * 11 + j + s).is_multiple_of(3)),
        h: scales(d_out, 3 + s),
        l: scales(rank, 5 + s),
        g: scales(d_in, 7 + s),
    };
    Factors { paths, slices: (0..slices).map(path).collect() }
}

/// A LittleBit GGUF of `architecture`; each matrix has its name, d_out, d_in, rank and number of experts.
fn gguf(dir: &Path, architecture: &str, paths: usize, matrices: &[(&str, [usize; 4])]) -> PathBuf {
    let kv = vec![
        ("general.architecture".to_owned(), Value::from(architecture)),
        (format!("{architecture}.attention.head_count"), Value::U32(HEADS)),
        (key::VERSION.to_owned(), Value::U32(1)),
        (key::PATHS.to_owned(), Value::U32(paths as u32)),
    ];
    let kept = [
        ("token_embd.weight", vec![32, 3], GgmlType::Q8_0),
        ("blk.0.attn_q.bias", vec![8], GgmlType::F32),
        ("blk.0.attn_k.weight", vec![5, 8], GgmlType::F16),
        ("rope_freqs.weight", vec![4], GgmlType::F32),
    ];
    let mut descriptors: Vec<TensorDesc> = kept
        .iter()
        .map(|(name, dims, ty)| TensorDesc { name: (*name).to_owned(), dims: dims.clone(), ty: *ty })
        .collect();
    let mut data: Vec<Vec<u8>> = descriptors
        .iter()
        .map(|d| (0..d.nbytes().unwrap()).map(|i| (i * 31 % 120) as u8).collect())
        .collect();
    for (name, [d_out, d_in, rank, experts]) in matrices {
        let (slices, f) = (experts * paths, factors(*d_out, *d_in, *rank, paths, experts * paths));
        let shape = Shape { d_out: *d_out, d_in: *d_in, rank: *rank, slices };
        descriptors.extend(schema::descriptors(name, &shape));
        data.extend(Part::ALL.map(|p| schema::part_bytes(&f, p)));
    }
    let mut w = Writer::new(Vec::new(), &kv, descriptors.clone(), schema::ALIGNMENT).unwrap();
    descriptors.iter().zip(&data).for_each(|(d, bytes)| w.write_tensor(&d.name, bytes).unwrap());
    let path = dir.join("m.gguf");
    std::fs::write(&path, w.finish().unwrap()).unwrap();
    path
}

fn contain(dir: &Path, gguf: &Path) -> PathBuf {
    let file = LittleBitFile::open(gguf).unwrap();
    let companions = [("config.json".to_owned(), b"{}".to_vec())];
    let bytes = write(&file, &companions, Vec::new(), |_| {}).unwrap();
    let path = dir.join("m.littlebit");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The bytes of the GGUF that `file` is.
fn as_gguf(file: &LittleBitFile) -> Vec<u8> {
    let gguf = &file.gguf;
    let descriptors: Vec<TensorDesc> = gguf
        .tensors
        .iter()
        .map(|t| TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty })
        .collect();
    let mut w = Writer::new(Vec::new(), &gguf.kv, descriptors, gguf.alignment).unwrap();
    let mut bytes = Vec::new();
    for t in &gguf.tensors {
        gguf.read(t, &mut bytes).unwrap();
        w.write_tensor(&t.name, &bytes).unwrap();
    }
    w.finish().unwrap()
}

const MATRICES: [(&str, [usize; 4]); 2] =
    [("blk.0.attn_q", [8, 10, 32, 1]), ("blk.0.ffn_up", [33, 10, 64, 1])];

#[test]
fn the_way_back_gives_the_same_bytes() {
    let experts: [(&str, [usize; 4]); 1] = [("blk.0.ffn_up_exps", [8, 10, 32, 3])];
    for (architecture, paths, matrices) in [
        ("llama", 1, &MATRICES[..]),
        ("llama", 2, &MATRICES[..]),
        ("qwen3", 1, &MATRICES[..]),
        ("gemma3", 1, &MATRICES[..]),
        ("llama", 2, &experts[..]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let gguf = gguf(dir.path(), architecture, paths, matrices);
        let path = contain(dir.path(), &gguf);
        assert!(is_container(&path) && !is_container(&gguf));
        let file = open(&path).unwrap();
        assert!(as_gguf(&file) == std::fs::read(&gguf).unwrap(), "{architecture}, {paths} paths");
        assert_eq!(file.gguf.file_len, std::fs::metadata(&path).unwrap().len());
    }
}

#[test]
fn official_names_packing_and_row_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = contain(dir.path(), &gguf(dir.path(), "llama", 2, &MATRICES));
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let q = "model.layers.0.self_attn.q_proj";
    let want = factors(8, 10, 32, 2, 2);
    // Heads of four rows: rows 0 1 2 3 here are rows 0 2 1 3 of the GGUF.
    let from = |row: usize| row / 4 * 4 + [0, 2, 1, 3][row % 4];
    for (suffix, p) in [("", &want.slices[0]), ("_R", &want.slices[1])] {
        let get = |name: String| tensors.tensor(&format!("{q}.{name}")).unwrap();
        let packed = get(format!("U{suffix}_packed"));
        assert_eq!(packed.shape(), [8, 1]);
        for row in 0..8 {
            let word = u32::from_le_bytes(packed.data()[4 * row..4 * row + 4].try_into().unwrap());
            (0..32).for_each(|k| assert_eq!(word >> k & 1 == 0, p.u.is_plus(from(row), k)));
            let h = get(format!("u1{suffix}"));
            assert_eq!(h.shape(), [1, 8]);
            assert_eq!(f16::from_le_bytes([h.data()[2 * row], h.data()[2 * row + 1]]), p.h[from(row)]);
        }
        let shape = get(format!("V{suffix}_shape"));
        assert_eq!(shape.data(), [32i64.to_le_bytes(), 10i64.to_le_bytes()].concat());
        assert_eq!(get(format!("v1{suffix}")).shape(), [1, 32]);
        assert!(get(format!("u2{suffix}")).data().chunks(2).all(|b| b == f16::ONE.to_le_bytes()));
        assert_eq!(get(format!("v2{suffix}")).shape(), [1, 10]);
    }
    // A kept matrix and a bias are in the same order, blocks of a quantized type are bytes, row by row.
    let k = tensors.tensor("model.layers.0.self_attn.k_proj.weight").unwrap();
    let original: Vec<u8> = (0..80).map(|i| (i * 31 % 120) as u8).collect();
    assert_eq!(k.shape(), [8, 5]);
    assert_eq!(k.data()[10..20], original[20..30]);
    let embeddings = tensors.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!((embeddings.dtype(), embeddings.shape()), (safetensors::Dtype::U8, &[3, 34][..]));
    assert_eq!(tensors.tensor("littlebit.files.config.json").unwrap().data(), b"{}");
}

/// Message of the error with which the container is refused once `edit` has changed it.
fn fault(edit: impl FnOnce(&mut serde_json::Value, &mut Vec<u8>)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = contain(dir.path(), &gguf(dir.path(), "llama", 1, &MATRICES));
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut data = bytes[8 + length..].to_vec();
    edit(&mut header, &mut data);
    let text = header.to_string();
    std::fs::write(&path, [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &data].concat()).unwrap();
    match open(&path) {
        Err(e) => e.to_string(),
        Ok(file) => {
            let read = file.matrices().iter().try_for_each(|m| file.read_factors(m).map(|_| ()));
            read.expect_err("a fault is found").to_string()
        }
    }
}

#[test]
fn faults_are_named() {
    let q = "model.layers.0.self_attn.q_proj";
    let at = |header: &serde_json::Value, name: &str| {
        header[format!("{q}.{name}")]["data_offsets"][0].as_u64().unwrap() as usize
    };
    let message = fault(|h, _| h["__metadata__"]["version"] = "2.0".into());
    assert!(message.contains("version 2.0") && message.contains("newer littlebit"), "{message}");
    assert!(fault(|h, _| h["__metadata__"]["version"] = "1".into()).contains("MAJOR.MINOR"));
    assert!(fault(|h, _| h["__metadata__"]["names"] = "other".into()).contains("this build reads"));
    assert!(fault(|h, _| h["__metadata__"]["format"] = "pt".into()).contains("format is Some(\"pt\")"));
    let message = fault(|h, _| {
        let header = h.as_object_mut().unwrap();
        let entry = header.remove(&format!("{q}.u1")).unwrap();
        header.insert(format!("{q}.x1"), entry);
    });
    assert!(message.contains(&format!("tensor '{q}.u1': missing")), "{message}");
    let message = fault(|h, _| {
        let header = h.as_object_mut().unwrap();
        let entry = header.remove("littlebit.files.config.json").unwrap();
        header.insert("stranger".to_owned(), entry);
    });
    assert!(message.contains("'stranger'") && message.contains("no such tensor"), "{message}");
    let message = fault(|h, _| h[format!("{q}.v2")]["dtype"] = "BF16".into());
    assert!(message.contains("v2") && message.contains("implies F16"), "{message}");
    let message = fault(|h, data| {
        let at = at(h, "U_shape");
        data[at] = 9;
    });
    assert!(message.contains("U_shape") && message.contains("[9, 32]"), "{message}");
    // d_in is 10, so bit 10 belongs to no column.
    let message = fault(|h, data| {
        let at = at(h, "V_packed");
        data[at + 4 + 1] |= 4;
    });
    assert!(message.contains("row 1 has a bit beyond its 10 columns"), "{message}");
    let message = fault(|h, data| {
        let at = at(h, "v2");
        data[at..at + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    });
    assert!(message.contains("blk.0.attn_q.lb_g") && message.contains("inf"), "{message}");
}

#[test]
fn later_minor_versions_may_add_reserved_names() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = gguf(dir.path(), "llama", 1, &MATRICES);
    let path = contain(dir.path(), &gguf);
    let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()[8..]).into_owned();
    assert!(text.contains(r#""version":"1.0""#));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(5).position(|w| w == b"\"1.0\"").unwrap();
    bytes[at + 3] = b'7';
    let at = bytes.windows(12).position(|w| w == b"files.config").unwrap();
    bytes[at..at + 5].copy_from_slice(b"trees");
    std::fs::write(&path, bytes).unwrap();
    assert!(as_gguf(&open(&path).unwrap()) == std::fs::read(&gguf).unwrap());
}
