//! `--lossy` with every small type, by the real binary: types as asked for or as documented, values within their rounding.

mod support;

use littlebit::format::schema;
use littlebit::gguf::{GgmlType, Gguf, TensorDesc, Value, Writer};
use std::path::{Path, PathBuf};
use support::{ok, s, weights};

/// Weights whose rows fill blocks of 256, blocks of 32 only, and none.
const MATRICES: [(&str, u64, u64); 4] =
    [("attn_q", 256, 64), ("attn_output", 64, 256), ("ffn_up", 256, 200), ("ffn_down", 200, 256)];

fn model(dir: &Path) -> PathBuf {
    let kv = [
        ("general.architecture".to_owned(), Value::Str(b"llama".to_vec())),
        ("general.name".to_owned(), Value::Str(b"wide".to_vec())),
        ("llama.block_count".to_owned(), Value::U32(1)),
    ];
    let desc = |name: &str, dims: &[u64]| TensorDesc {
        name: name.to_owned(),
        dims: dims.to_vec(),
        ty: GgmlType::F32,
    };
    let mut all = vec![desc("token_embd.weight", &[256, 40]), desc("blk.0.attn_norm.weight", &[256])];
    all.extend(MATRICES.map(|(name, d_in, d_out)| desc(&format!("blk.0.{name}.weight"), &[d_in, d_out])));
    let mut w = Writer::new(Vec::new(), &kv, all.clone(), 32).unwrap();
    for (i, t) in all.iter().enumerate() {
        let values = weights(t.dims.get(1).copied().unwrap_or(1) as usize, t.dims[0] as usize, i as u64 + 1);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        w.write_tensor(&t.name, &bytes).unwrap();
    }
    let path = dir.join("wide.gguf");
    std::fs::write(&path, w.finish().unwrap()).unwrap();
    path
}

/// Values in one block of a type, the largest error as a share of the block's largest value, and the largest relative error of all
/// values of a matrix.
///
/// Of `q8_0` it is half a 127th, and a scale that f16 rounds moves the largest value by a 16th of a step. The steps of the other
/// symmetric types are a 32nd, a 16th and an 8th of the largest value, which a value of the other sign may miss by a whole one;
/// `q4_K` has a 15th of the range, up to twice the largest value. Scales that come nearest in least squares cut off a little more.
fn rounding(ty: GgmlType) -> (usize, f64, f64) {
    match ty {
        GgmlType::F16 => (1, 1.0 / 2048.0, 4e-4),
        GgmlType::BF16 => (1, 1.0 / 256.0, 3e-3),
        GgmlType::Q8_0 => (32, 0.57 / 127.0, 8e-3),
        GgmlType::Q6_K => (256, 1.1 / 32.0, 0.03),
        GgmlType::Q5_0 => (32, 1.25 / 16.0, 0.06),
        GgmlType::Q4_0 => (32, 1.25 / 8.0, 0.12),
        GgmlType::Q4_K => (256, 2.0 / 15.0, 0.1),
        _ => panic!("{ty} was not asked for"),
    }
}

/// Relative error of `got` after a check of every block.
fn error(name: &str, ty: GgmlType, want: &[f32], got: &[f32]) -> f64 {
    assert_eq!(want.len(), got.len());
    let (block, most, whole) = rounding(ty);
    for (i, (w, g)) in want.chunks(block).zip(got.chunks(block)).enumerate() {
        let largest = w.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
        let off = w.iter().zip(g).fold(0f64, |m, (w, g)| m.max(f64::from((w - g).abs())));
        // Half of the smallest number that f16 holds comes on top, for values near 0.
        assert!(off <= most * largest + 3e-8, "{name} as {ty}, block {i}: off by {off} of {largest}");
    }
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let off = square(&mut want.iter().zip(got).map(|(w, g)| w - g));
    let relative = (off / square(&mut want.iter().copied())).sqrt();
    assert!(relative > 0.0 && relative < whole, "{name} as {ty}: {relative}");
    relative
}

#[test]
fn small_types_hold_the_product_within_their_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let input = model(dir.path());
    let path = |name: &str| dir.path().join(name);
    let (compressed, exact) = (path("lb.gguf"), path("f32.gguf"));
    let own = ["--rank", "64", "--method", "dual-svid", "-q"];
    ok(&[&[s(&input), s(&compressed)], &own[..]].concat());
    ok(&[&[s(&input), s(&exact), "--lossy", "f32"], &own[..]].concat());
    let exact = Gguf::open(&exact).unwrap();
    let read = |g: &Gguf, name: &str| g.read_f32(g.tensor(name).unwrap()).unwrap();
    let mut errors = Vec::new();
    // The type asked for, that of rows of 64, and that of rows of 200.
    type T = GgmlType;
    for (asked, ty, by_32, odd) in [
        ("bf16", T::BF16, T::BF16, T::BF16),
        ("q6_K", T::Q6_K, T::Q8_0, T::F16),
        ("q5_0", T::Q5_0, T::Q5_0, T::F16),
        ("q4_K", T::Q4_K, T::Q5_0, T::F16),
        ("q4_0", T::Q4_0, T::Q4_0, T::F16),
    ] {
        let (direct, later) = (path(&format!("{asked}-direct.gguf")), path(&format!("{asked}-later.gguf")));
        ok(&[&[s(&input), s(&direct), "--lossy", asked], &own[..]].concat());
        // In any case, and from the factors.
        ok(&[s(&compressed), s(&later), "--lossy", &asked.to_uppercase(), "-q"]);
        let (direct, later) = (Gguf::open(&direct).unwrap(), Gguf::open(&later).unwrap());
        assert_eq!(
            direct.get("general.file_type"),
            schema::file_type(ty).map(Value::U32).as_ref(),
            "{asked}"
        );
        assert!(direct.kv.iter().all(|(k, _)| !k.starts_with("littlebit.")), "{asked}");
        for (matrix, d_in, _) in MATRICES {
            let name = format!("blk.0.{matrix}.weight");
            let want = match d_in {
                256 => ty,
                64 => by_32,
                _ => odd,
            };
            let tensor = direct.tensor(&name).unwrap();
            assert_eq!((tensor.ty, later.tensor(&name).unwrap().ty), (want, want), "{asked} {name}");
            let (got, repacked) = (read(&direct, &name), read(&later, &name));
            assert_eq!(got, repacked, "{asked} {name}: from the factors other values");
            let error = error(&name, want, &read(&exact, &name), &got);
            if matrix == "ffn_up" {
                errors.push(error);
            }
        }
        // A vector stays what it was.
        let norm = "blk.0.attn_norm.weight";
        assert_eq!(direct.tensor(norm).unwrap().ty, GgmlType::F32);
        assert_eq!(read(&direct, norm), read(&exact, norm));
    }
    // Fewer bits, larger errors; q4_K has the smaller of the two of four bits.
    assert!(errors.is_sorted(), "{errors:?}");
}
