//! Forms of a compressed model, on the real binary: LittleBit GGUF, `.littlebit`, checkpoints of LittleBit and NanoQuant.

mod support;

use littlebit::bits::SignMatrix;
use littlebit::format::{LittleBitFile, container};
use littlebit::gguf::{GgmlType, Gguf, Value};
use littlebit::source::hf::separate_rows;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use support::checkpoint::{SMOLLM, Shape, write_checkpoint, write_gguf};
use support::{fails, ok, s, small_model, untouched};

#[test]
fn gguf_and_container_are_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let input = write_gguf(dir.path(), &SMOLLM);
    let (gguf, there, back, direct) =
        (path("a.gguf"), path("a.littlebit"), path("b.gguf"), path("b.LittleBit"));
    for paths in ["1", "2"] {
        let compress = ["--rank", "32", "--method", "dual-svid", "--paths", paths, "--force", "-q"];
        ok(&[&[s(&input), s(&gguf)], &compress[..]].concat());
        let said = ok(&[s(&gguf), s(&there), "--force", "-q"]);
        assert!(said.contains("a.littlebit"), "{said}");
        ok(&[s(&there), s(&back), "--force", "-q"]);
        assert!(fs::read(&gguf).unwrap() == fs::read(&back).unwrap(), "{paths} paths");
        ok(&[&[s(&input), s(&direct)], &compress[..]].concat());
        assert!(fs::read(&there).unwrap() == fs::read(&direct).unwrap(), "{paths} paths");
        // Both say the same of themselves.
        let info =
            |p: &Path| -> serde_json::Value { serde_json::from_str(&ok(&["info", s(p), "--json"])).unwrap() };
        let (a, b) = (info(&gguf), info(&there));
        assert_eq!((&a["form"], &b["form"]), (&"GGUF".into(), &".littlebit".into()));
        assert_eq!(a["littlebit"], b["littlebit"]);
        // And are rebuilt to the same weights.
        let (dense, again) = (path("dense.gguf"), path("again.gguf"));
        ok(&[s(&gguf), s(&dense), "--lossy", "f16", "--force", "-q"]);
        ok(&[s(&there), s(&again), "--lossy", "f16", "--force", "-q"]);
        assert!(fs::read(&dense).unwrap() == fs::read(&again).unwrap());
    }
    let left = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.starts_with('.') && !name.ends_with(".work")));
}

#[test]
fn a_checkpoint_becomes_a_container_with_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_checkpoint(dir.path(), &SMOLLM, 1);
    let out = dir.path().join("out.littlebit");
    ok(&[s(&checkpoint), s(&out), "--rank", "32", "--method", "dual-svid", "-q"]);
    let bytes = fs::read(&out).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let inside = tensors.tensor(&format!("littlebit.files.{name}")).unwrap();
        assert!(inside.data() == fs::read(checkpoint.join(name)).unwrap(), "{name}");
    }
    assert!(tensors.tensor("model.layers.1.self_attn.q_proj.U_packed").is_ok());
}

#[test]
fn requests_without_meaning_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let (gguf, out) = (dir.path().join("a.gguf"), dir.path().join("o.littlebit"));
    ok(&[s(&input), s(&gguf), "--rank", "32", "-q"]);
    let e = fails(2, &[s(&gguf), s(&out), "--bpw", "1"]);
    assert!(e.contains("already compressed, so --bpw means nothing"), "{e}");
    let e = fails(2, &[s(&gguf), s(&out), "--lossy", "f16"]);
    assert!(e.contains("choose one"), "{e}");
    let e = fails(2, &[s(&input), s(&out), "--target-size", "1M"]);
    assert!(e.contains("--target-size"), "{e}");
    let e = fails(2, &[s(&gguf), s(&gguf), "--force"]);
    assert!(e.contains("same file"), "{e}");
    let e = fails(2, &[s(&gguf), s(&input)]);
    assert!(e.contains("--force"), "{e}");
    assert!(!out.exists());
    // Other types of embeddings are a form of their own.
    let small = dir.path().join("embeddings-f16.gguf");
    ok(&[s(&gguf), s(&small), "--token-embedding-type", "f16", "-q"]);
    let (a, b) = (LittleBitFile::open(&gguf).unwrap(), LittleBitFile::open(&small).unwrap());
    assert_eq!(b.gguf.tensor("token_embd.weight").unwrap().ty, GgmlType::F16);
    let m = &a.matrices()[0];
    assert_eq!(a.read_factors(m).unwrap(), b.read_factors(b.find(&m.name).unwrap()).unwrap());
    let info: serde_json::Value = serde_json::from_str(&ok(&["info", s(&small), "--json"])).unwrap();
    let (said, counted) = (&info["littlebit"]["kv"]["bpw_file"], &info["littlebit"]["bpw_file"]);
    assert!((said.as_f64().unwrap() - counted.as_f64().unwrap()).abs() < 1e-5, "{said} {counted}");
}

/// How a test checkpoint is written.
#[derive(Clone, Copy)]
struct Variant {
    packed: bool,
    paths: usize,
    dtype: Dtype,
    nanoquant: bool,
    /// NanoQuant only: whether there is a scale in the middle.
    middle: bool,
}

const OFFICIAL: Variant =
    Variant { packed: true, paths: 1, dtype: Dtype::BF16, nanoquant: false, middle: true };

/// Numbers that differ, by a linear congruence.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    fn signs(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| if self.next() < 0.5 { -1.0 } else { 1.0 }).collect()
    }

    /// Values that bfloat16 holds.
    fn scales(&mut self, n: usize, by: f32) -> Vec<f32> {
        (0..n).map(|_| f32::from_bits((by * (self.next() + 0.25)).to_bits() & 0xffff_0000)).collect()
    }
}

fn floats(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// Row-major words as the format's description has them, independent of the crate's packing: 1 is -1.
fn words(signs: &[f32], cols: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for row in signs.chunks(cols) {
        for group in row.chunks(32) {
            let word: u32 = group.iter().enumerate().map(|(j, x)| u32::from(*x < 0.0) << j).sum();
            out.extend(word.to_le_bytes());
        }
    }
    out
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Replaces the weights of all layers of the checkpoint by random factors. Returns the dense products by module.
fn factorize(checkpoint: &Path, v: Variant, scale: f32) -> BTreeMap<String, Vec<f32>> {
    let file = checkpoint.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let (mut tensors, mut products, mut numbers) = (Tensors::new(), BTreeMap::new(), Numbers(7));
    // In one order, so that every run has the same factors.
    let all: BTreeMap<_, _> = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().collect();
    for (name, t) in all {
        let module = name.strip_suffix(".weight").filter(|m| m.ends_with("_proj"));
        let Some(module) = module else {
            tensors.insert(name.clone(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
            continue;
        };
        let (d_out, d_in) = (t.shape()[0], t.shape()[1]);
        let mut w = vec![0.0; d_out * d_in];
        let mut put = |name: String, dtype, shape: &[usize], bytes| {
            tensors.insert(format!("{module}.{name}"), (dtype, shape.to_vec(), bytes));
        };
        for path in 0..v.paths {
            // More than one word a row, not a multiple of 32, another rank for each side of the attention.
            let r = 40 + 8 * path + if name.contains("k_proj") { 24 } else { 0 };
            let (u, vt) = (numbers.signs(d_out * r), numbers.signs(r * d_in));
            let (u1, v2) = (numbers.scales(d_out, scale), numbers.scales(d_in, 1.0));
            let (u2, v1) = (numbers.scales(r, 1.0), numbers.scales(r, 1.0));
            let residual = if path == 0 { "" } else { "_R" };
            let l: Vec<f32> = match (v.nanoquant, v.middle) {
                (true, false) => vec![1.0; r],
                (true, true) => u2.clone(),
                _ => u2.iter().zip(&v1).map(|(a, b)| a * b).collect(),
            };
            for (side, signs, rows, cols) in [("U", &u, d_out, r), ("V", &vt, r, d_in)] {
                if v.packed {
                    let shape = [rows as i64, cols as i64].iter().flat_map(|n| n.to_le_bytes()).collect();
                    put(
                        format!("{side}{residual}_packed"),
                        Dtype::I32,
                        &[rows, cols.div_ceil(32)],
                        words(signs, cols),
                    );
                    put(format!("{side}{residual}_shape"), Dtype::I64, &[2], shape);
                } else {
                    // Latents; 0 is +1.
                    let latent: Vec<f32> = signs
                        .iter()
                        .map(|x| if *x > 0.0 && numbers.next() < 0.2 { 0.0 } else { x * 0.75 })
                        .collect();
                    put(format!("{side}{residual}"), v.dtype, &[rows, cols], floats(v.dtype, &latent));
                }
            }
            if v.nanoquant {
                put("scale_post".into(), v.dtype, &[d_out], floats(v.dtype, &u1));
                put("scale_pre".into(), v.dtype, &[d_in], floats(v.dtype, &v2));
                if v.middle {
                    put("scale_mid".into(), v.dtype, &[r], floats(v.dtype, &u2));
                }
            } else {
                for (name, values) in [("u1", &u1), ("u2", &u2), ("v1", &v1), ("v2", &v2)] {
                    put(format!("{name}{residual}"), v.dtype, &[1, values.len()], floats(v.dtype, values));
                }
            }
            for (i, row) in w.chunks_mut(d_in).enumerate() {
                for (j, x) in row.iter_mut().enumerate() {
                    let sum: f64 = (0..r).map(|k| f64::from(u[i * r + k] * l[k] * vt[k * d_in + j])).sum();
                    *x += (f64::from(u1[i]) * sum * f64::from(v2[j])) as f32;
                }
            }
        }
        if !v.nanoquant {
            put("_eff_bit_target".into(), Dtype::F32, &[], (-1f32).to_le_bytes().to_vec());
            put("_split_dim_final".into(), Dtype::I64, &[], 40i64.to_le_bytes().to_vec());
        }
        products.insert(module.to_owned(), w);
    }
    write(&file, &tensors);
    fs::write(checkpoint.join("littlebit_config.json"), r#"{"quant_func":"STEBinary","eff_bit":1.0}"#)
        .unwrap();
    products
}

fn write(file: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Changes the tensors of a checkpoint.
fn edit(checkpoint: &Path, change: impl FnOnce(&mut Tensors)) {
    let file = checkpoint.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let mut tensors: Tensors = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    change(&mut tensors);
    write(&file, &tensors);
}

fn checkpoint(dir: &Path, v: Variant, scale: f32) -> (PathBuf, BTreeMap<String, Vec<f32>>) {
    let path =
        write_checkpoint(dir, &Shape { tied: false, biases: true, matrices: GgmlType::BF16, ..SMOLLM }, 1);
    let products = factorize(&path, v, scale);
    (path, products)
}

/// The GGUF's name of a module of a checkpoint, and its rotary heads.
fn gguf_name(module: &str) -> (String, Option<usize>) {
    let (n, part) = module.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let (part, heads) = match part {
        "self_attn.q_proj" => ("attn_q", Some(SMOLLM.heads)),
        "self_attn.k_proj" => ("attn_k", Some(SMOLLM.kv_heads)),
        "self_attn.v_proj" => ("attn_v", None),
        "self_attn.o_proj" => ("attn_output", None),
        "mlp.gate_proj" => ("ffn_gate", None),
        "mlp.up_proj" => ("ffn_up", None),
        other => (other.strip_prefix("mlp.").map(|_| "ffn_down").unwrap(), None),
    };
    (format!("blk.{n}.{part}"), heads)
}

/// Compares the factors of `file` with dense products in the checkpoint's order.
fn compare(file: &LittleBitFile, products: &BTreeMap<String, Vec<f32>>) {
    assert_eq!(file.matrices().len(), products.len());
    for (module, want) in products {
        let (name, heads) = gguf_name(module);
        let m = file.find(&name).unwrap();
        let mut got = file.read_factors(m).unwrap().dense(0);
        if let Some(heads) = heads {
            got = separate_rows(&got, heads, m.shape.d_out);
        }
        let square: f64 = want.iter().map(|x| f64::from(*x).powi(2)).sum();
        let off: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        assert!((off / square).sqrt() < 1e-3, "{module}: {}", (off / square).sqrt());
    }
}

#[test]
fn checkpoints_of_factors_are_imported() {
    for v in [
        OFFICIAL,
        Variant { paths: 2, dtype: Dtype::F32, ..OFFICIAL },
        Variant { packed: false, paths: 2, ..OFFICIAL },
        Variant { packed: false, dtype: Dtype::F32, ..OFFICIAL },
        Variant { nanoquant: true, ..OFFICIAL },
        Variant { nanoquant: true, middle: false, ..OFFICIAL },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (path, products) = checkpoint(dir.path(), v, 0.02);
        let (gguf, there, back) =
            (dir.path().join("o.gguf"), dir.path().join("o.littlebit"), dir.path().join("b.gguf"));
        ok(&[s(&path), s(&gguf), "-q"]);
        let file = LittleBitFile::open(&gguf).unwrap();
        compare(&file, &products);
        // Embeddings and head are floats in a checkpoint; their rows are too short for q6_K here.
        assert_eq!(file.gguf.tensor("token_embd.weight").unwrap().ty, GgmlType::F16);
        let said = file.gguf.get("littlebit.method").and_then(Value::as_str).unwrap().to_owned();
        assert!(said.contains(if v.nanoquant { "NanoQuant" } else { "LittleBit" }), "{said}");
        // The same through a container, which keeps the floats and the files.
        ok(&[s(&path), s(&there), "-q"]);
        let file = container::open(&there).unwrap();
        compare(&file, &products);
        assert_eq!(file.gguf.tensor("token_embd.weight").unwrap().ty, GgmlType::BF16);
        let bytes = fs::read(&there).unwrap();
        assert!(
            SafeTensors::deserialize(&bytes).unwrap().tensor("littlebit.files.littlebit_config.json").is_ok()
        );
        ok(&[s(&there), s(&back), "-q"]);
        compare(&LittleBitFile::open(&back).unwrap(), &products);
        // Rebuilt, it is an ordinary model.
        let dense = dir.path().join("dense.gguf");
        ok(&[s(&path), s(&dense), "--lossy", "f32", "-q"]);
        assert!(Gguf::open(&dense).unwrap().tensor("blk.0.attn_q.weight").is_some());
    }
}

#[test]
fn scales_beyond_f16_find_another_gauge() {
    let dir = tempfile::tempdir().unwrap();
    // h is below the smallest f16, the product is not.
    let (path, mut products) = checkpoint(dir.path(), OFFICIAL, 1e-9);
    edit(&path, |tensors| {
        for (name, (_, _, data)) in tensors.iter_mut().filter(|(name, _)| name.ends_with(".v1")) {
            let module = name.strip_suffix(".v1").unwrap();
            for value in data.chunks_mut(2) {
                let x = f32::from_bits(u32::from(u16::from_le_bytes([value[0], value[1]])) << 16);
                value.copy_from_slice(&floats(Dtype::BF16, &[x * 1_048_576.0]));
            }
            products.get_mut(module).unwrap().iter_mut().for_each(|x| *x *= 1_048_576.0);
        }
    });
    let gguf = dir.path().join("o.gguf");
    ok(&[s(&path), s(&gguf), "-q"]);
    compare(&LittleBitFile::open(&gguf).unwrap(), &products);
}

#[test]
fn faulty_checkpoints_are_refused_by_tensor() {
    let module = "model.layers.1.mlp.down_proj";
    let refuse = |change: &dyn Fn(&mut Tensors), words: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = checkpoint(dir.path(), OFFICIAL, 0.02);
        edit(&path, change);
        let out = dir.path().join("o.gguf");
        let e = fails(1, &[s(&path), s(&out), "-q"]);
        words.iter().for_each(|w| assert!(e.contains(w), "{w}: {e}"));
        assert!(!out.exists());
    };
    let key = |name: &str| format!("{module}.{name}");
    refuse(&|t| drop(t.remove(&key("v1"))), &["down_proj.v1", "missing"]);
    refuse(&|t| drop(t.remove(&key("V_shape"))), &["down_proj.V_shape", "missing"]);
    refuse(&|t| t.get_mut(&key("U_shape")).unwrap().2[0] = 3, &["U_shape", "[48, r] is needed"]);
    refuse(&|t| t.get_mut(&key("U_shape")).unwrap().2[15] = 0x80, &["U_shape", "[48, r] is needed"]);
    refuse(&|t| t.get_mut(&key("U_shape")).unwrap().2[8] = 72, &["U_packed", "implies I32 [48, 3]"]);
    refuse(
        &|t| t.get_mut(&key("u1")).unwrap().2[..2].copy_from_slice(&[0x80, 0x7f]),
        &["down_proj.u1", "value 0"],
    );
    let stranger = |t: &mut Tensors| {
        let copy = t[&key("u1")].clone();
        t.insert(key("u3"), copy);
    };
    refuse(&stranger, &["down_proj.u3", "no such tensor"]);
    let head = |t: &mut Tensors| {
        t.remove("lm_head.weight");
        for name in ["U_packed", "U_shape", "V_packed", "V_shape", "u1", "u2", "v1", "v2"] {
            let copy = t[&format!("model.layers.0.self_attn.o_proj.{name}")].clone();
            t.insert(format!("lm_head.{name}"), copy);
        }
    };
    refuse(&head, &["lm_head"]);
}

#[test]
fn packing_of_the_crate_is_that_of_the_description() {
    let mut numbers = Numbers(3);
    let signs = numbers.signs(7 * 70);
    let mine: Vec<u8> =
        SignMatrix::from_row_major(7, 70, &signs).to_words().iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!(mine, words(&signs, 70));
}
