//! The golden bytes of `specs/format.md` and `specs/littlebit-file.md`: decoded, checked against the text, and written
//! again. With LITTLEBIT_BLESS=1 the blocks of the specifications are rewritten from the code.

use half::f16;
use littlebit::bits::SignMatrix;
use littlebit::format::schema::{self, Part, Shape};
use littlebit::format::{FactorPath, Factors, LittleBitFile, container};
use littlebit::gguf::{GgmlType, TensorDesc, Value, Writer};

const FORMAT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/specs/format.md");
const CONTAINER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/specs/littlebit-file.md");

fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    let (mut previous_zero, mut starred) = (false, false);
    for (i, line) in bytes.chunks(32).enumerate() {
        let zero = line.len() == 32 && line.iter().all(|b| *b == 0);
        if zero && previous_zero {
            if !starred {
                out += "*\n";
            }
            starred = true;
            continue;
        }
        (previous_zero, starred) = (zero, false);
        let hex: Vec<String> = line.iter().map(|b| format!("{b:02x}")).collect();
        out += &format!("{:04x}: {}\n", i * 32, hex.join(" "));
    }
    out + &format!("{:04x}: end\n", bytes.len())
}

fn undump(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines().filter(|l| *l != "*") {
        let (offset, hex) = line.split_once(": ").expect("offset: bytes");
        bytes.resize(usize::from_str_radix(offset, 16).unwrap(), 0);
        if hex != "end" {
            bytes.extend(hex.split(' ').map(|b| u8::from_str_radix(b, 16).unwrap()));
        }
    }
    bytes
}

/// The fenced block called `name` in the specification `spec`; rewritten first when blessing.
fn block(spec: &str, name: &str, fresh: &[u8]) -> Vec<u8> {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = LOCK.lock().unwrap();
    let text = std::fs::read_to_string(spec).unwrap();
    let fence = format!("```{name}\n");
    let start = text.find(&fence).expect("the block is in the specification") + fence.len();
    let end = start + text[start..].find("```").unwrap();
    if std::env::var_os("LITTLEBIT_BLESS").is_some() {
        std::fs::write(spec, format!("{}{}{}", &text[..start], dump(fresh), &text[end..])).unwrap();
        return fresh.to_vec();
    }
    undump(&text[start..end])
}

fn factors() -> Factors {
    let path = FactorPath {
        vt: SignMatrix::from_fn(32, 10, |r, c| (7 * r + 3 * c) % 5 < 2),
        u: SignMatrix::from_fn(3, 32, |r, c| (r + c) % 3 == 0),
        g: (0..10).map(|i| f16::from_f32(1.0 + i as f32 / 8.0)).collect(),
        l: (0..32).map(|i| f16::from_f32((i + 1) as f32 / 32.0)).collect(),
        h: (0..3).map(|i| f16::from_f32(2.0 - i as f32 / 2.0)).collect(),
    };
    Factors { paths: 1, slices: vec![path] }
}

fn golden_file() -> Vec<u8> {
    let f = factors();
    let shape = Shape { d_out: 3, d_in: 10, rank: 32, slices: 1 };
    let mut descs = schema::descriptors("blk.0.ffn_up", &shape);
    descs.push(TensorDesc { name: "output_norm.weight".into(), dims: vec![10], ty: GgmlType::F32 });
    let kv = vec![
        ("general.architecture".to_owned(), Value::Str(b"llama".to_vec())),
        ("littlebit.version".to_owned(), Value::U32(1)),
        ("littlebit.paths".to_owned(), Value::U32(1)),
        ("littlebit.n_params".to_owned(), Value::U64(40)),
    ];
    let mut w = Writer::new(Vec::new(), &kv, descs, schema::ALIGNMENT).unwrap();
    for part in Part::ALL {
        w.write_tensor(&format!("blk.0.ffn_up{}", part.suffix()), &schema::part_bytes(&f, part)).unwrap();
    }
    let norm: Vec<u8> = std::iter::repeat_n(0.5f32.to_le_bytes(), 10).flatten().collect();
    w.write_tensor("output_norm.weight", &norm).unwrap();
    w.finish().unwrap()
}

#[test]
fn golden_tile() {
    let m = SignMatrix::from_fn(3, 10, |r, c| r == 2 || (r == 0 && c % 2 == 0));
    let golden = block(FORMAT, "golden-tile", m.as_bytes());
    assert_eq!(golden, m.as_bytes());
    // Decoded by the rule in the text alone: byte[row/32][col/8][row%32], LSB first.
    for row in 0..3 {
        for col in 0..10 {
            let bit = golden[(col / 8) * 32 + row] >> (col % 8) & 1;
            let want = ["+-+-+-+-+-", "----------", "++++++++++"][row].as_bytes()[col] == b'+';
            assert_eq!(bit == 1, want, "({row}, {col})");
        }
    }
}

#[test]
fn golden_gguf() {
    let fresh = golden_file();
    let golden = block(FORMAT, "golden-file", &fresh);
    assert_eq!(golden, fresh);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("golden.gguf");
    std::fs::write(&path, &golden).unwrap();
    let file = LittleBitFile::open(&path).unwrap();
    let m = file.find("blk.0.ffn_up.weight").unwrap();
    let got = file.read_factors(m).unwrap();
    assert_eq!(got, factors());
    // The dense product straight from the formula.
    let dense = got.dense(0);
    for o in 0..3 {
        for i in 0..10 {
            let mut sum = 0f64;
            for k in 0..32 {
                let u = if (o + k) % 3 == 0 { 1.0 } else { -1.0 };
                let v = if (7 * k + 3 * i) % 5 < 2 { 1.0 } else { -1.0 };
                sum += u * v * (k + 1) as f64 / 32.0;
            }
            let want = (2.0 - o as f64 / 2.0) * sum * (1.0 + i as f64 / 8.0);
            assert!((f64::from(dense[o * 10 + i]) - want).abs() < 1e-6 * (1.0 + want.abs()));
        }
    }
}

#[test]
fn golden_container() {
    let dir = tempfile::tempdir().unwrap();
    let (gguf, path) = (dir.path().join("golden.gguf"), dir.path().join("golden.littlebit"));
    std::fs::write(&gguf, golden_file()).unwrap();
    let file = LittleBitFile::open(&gguf).unwrap();
    let fresh = container::write(&file, &[], Vec::new(), |_| {}).unwrap();
    let golden = block(CONTAINER, "golden-container", &fresh);
    assert_eq!(golden, fresh);
    std::fs::write(&path, &golden).unwrap();
    let file = container::open(&path).unwrap();
    assert_eq!(file.read_factors(file.find("blk.0.ffn_up").unwrap()).unwrap(), factors());
    // The signs by the rule in the text alone: bit c % 32 of word c / 32, 1 is -1.
    let tensors = safetensors::SafeTensors::deserialize(&golden).unwrap();
    let word = |name: &str, row: usize| {
        let data = tensors.tensor(&format!("model.layers.0.mlp.up_proj.{name}")).unwrap().data();
        u32::from_le_bytes(data[4 * row..4 * row + 4].try_into().unwrap())
    };
    for (o, k) in (0..3).flat_map(|o| (0..32).map(move |k| (o, k))) {
        assert_eq!(word("U_packed", o) >> k & 1 == 0, (o + k) % 3 == 0);
    }
    for (k, i) in (0..32).flat_map(|k| (0..10).map(move |i| (k, i))) {
        assert_eq!(word("V_packed", k) >> i & 1 == 0, (7 * k + 3 * i) % 5 < 2);
    }
    assert!((0..32).all(|k| word("V_packed", k) >> 10 == 0));
}

/// Every fault that section 4 of the specification names.
#[test]
fn faults_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = golden_file();
    let path = dir.path().join("bad.gguf");
    let find =
        |needle: &[u8]| good.windows(needle.len()).position(|w| w == needle).expect("needle is in the file");
    let refuse = |what: &str, edit: &dyn Fn(&mut Vec<u8>), word: &str| {
        let mut bytes = good.clone();
        edit(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let result =
            LittleBitFile::open(&path).and_then(|f| f.read_factors(f.find("blk.0.ffn_up").expect("there")));
        let e = result.expect_err(what).to_string();
        assert!(e.contains(word) && e.contains("bad.gguf"), "{what}: {e}");
    };
    let version = find(b"littlebit.version") + "littlebit.version".len() + 4;
    refuse("future version", &|b| b[version] = 2, "newer littlebit");
    let paths = find(b"littlebit.paths") + "littlebit.paths".len() + 4;
    refuse("three paths", &|b| b[paths] = 3, "littlebit.paths");
    refuse("uneven paths", &|b| b[paths] = 2, "split");
    for part in Part::ALL {
        let at = find(part.suffix().as_bytes()) + 4;
        refuse("missing part", &|b| b[at] = b'x', "lb_");
        // The type id follows the suffix, n_dims and the dimensions.
        let dims = if matches!(part, Part::U | Part::V) { 4 } else { 2 };
        let ty = at + 1 + 4 + 8 * dims;
        let other = if matches!(part, Part::U | Part::V) { 24u8 } else { 1 };
        assert_eq!(good[ty], other);
        if matches!(part, Part::U | Part::V) {
            refuse("shape", &|b| b.swap(at + 1 + 4, at + 1 + 4 + 16), "shape");
        }
    }
    let start = LittleBitFile::open(&{
        let p = dir.path().join("good.gguf");
        std::fs::write(&p, &good).unwrap();
        p
    })
    .unwrap();
    let m = start.find("blk.0.ffn_up").unwrap();
    let offset = |part| start.part(m, part).offset as usize;
    let (v, u, g) = (offset(Part::V), offset(Part::U), offset(Part::G));
    // Column 10 of V is bit 2 of the second byte column; row 3 of U is padding.
    refuse("padding column", &|b| b[v + 32] |= 4, "padding");
    refuse("padding row", &|b| b[u + 3] |= 1, "padding");
    refuse("NaN scale", &|b| b[g..g + 2].copy_from_slice(&[0x00, 0x7e]), "NaN");
    refuse("infinite scale", &|b| b[g..g + 2].copy_from_slice(&[0x00, 0x7c]), "inf");
}
