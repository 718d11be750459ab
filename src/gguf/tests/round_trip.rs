//! What the writer writes, the reader reads, and an independent reader agrees.

use super::Scratch;
use crate::gguf::{Array, GgmlType, Gguf, TensorDesc, Value, Writer};
use gguf_rs_lib::format::metadata::MetadataValue;
use gguf_rs_lib::reader::open_gguf_file;
use proptest::collection::vec;
use proptest::prelude::*;

/// The bytes of a file with these keys and tensors.
fn write(kv: &[(String, Value)], tensors: &[(TensorDesc, Vec<u8>)], alignment: u64) -> Vec<u8> {
    let descs = tensors.iter().map(|(d, _)| d.clone()).collect();
    let mut w = Writer::new(Vec::new(), kv, descs, alignment).unwrap();
    for (d, bytes) in tensors {
        w.write_tensor(&d.name, bytes).unwrap();
    }
    w.finish().unwrap()
}

/// The bytes of a copy of `g` through the writer.
fn copy(g: &Gguf) -> Vec<u8> {
    let tensors: Vec<_> = g
        .tensors
        .iter()
        .map(|t| {
            let mut bytes = Vec::new();
            g.read(t, &mut bytes).unwrap();
            (TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty }, bytes)
        })
        .collect();
    write(&g.kv, &tensors, g.alignment)
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        vec(any::<u8>(), 0..40).prop_map(Value::Str),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i16>(), 0..9).prop_map(Array::I16),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(any::<f32>(), 0..9).prop_map(Array::F32),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(vec(any::<u8>(), 0..9), 0..9).prop_map(Array::Str),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
        vec(any::<f64>(), 0..9).prop_map(Array::F64),
    ]
}

/// Keys with distinct names.
fn kv() -> impl Strategy<Value = Vec<(String, Value)>> {
    let value = prop_oneof![scalar(), array().prop_map(Value::Array)];
    vec(("[a-z.é]{1,12}", value), 0..8).prop_map(|pairs| {
        pairs.into_iter().enumerate().map(|(i, (key, value))| (format!("{key}{i}"), value)).collect()
    })
}

/// Tensors with distinct names, whole blocks in a row, and data.
fn tensors() -> impl Strategy<Value = Vec<(TensorDesc, Vec<u8>)>> {
    let one = (proptest::sample::select(GgmlType::ALL), 1..4u64, vec(1..4u64, 0..4), any::<u8>());
    vec(one, 0..6).prop_map(|tensors| {
        let with_data = |(i, (ty, blocks, rest, byte)): (usize, (GgmlType, u64, Vec<u64>, u8))| {
            let ne0 = blocks * ty.block().unwrap().0;
            let dims = [vec![ne0], rest].concat();
            let desc = TensorDesc { name: format!("t{i}.weight"), dims, ty };
            let n = desc.nbytes().unwrap();
            (desc, (0..n).map(|j| byte.wrapping_mul(31).wrapping_add(j as u8)).collect())
        };
        tensors.into_iter().enumerate().map(with_data).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read(mut kv in kv(), tensors in tensors(), alignment in proptest::sample::select(&[32u32, 8, 64, 256])) {
        if alignment != 32 {
            kv.push(("general.alignment".to_owned(), Value::U32(alignment)));
        }
        let bytes = write(&kv, &tensors, alignment.into());
        let s = Scratch::new();
        let g = s.open(&bytes).unwrap();
        // Compared as text, in which a NaN equals itself.
        prop_assert_eq!(format!("{:?}", &g.kv), format!("{:?}", &kv));
        prop_assert_eq!(g.tensors.len(), tensors.len());
        let mut data = Vec::new();
        for (t, (desc, expected)) in g.tensors.iter().zip(&tensors) {
            prop_assert_eq!((&t.name, &t.dims, t.ty), (&desc.name, &desc.dims, desc.ty));
            prop_assert_eq!(t.offset % u64::from(alignment), 0);
            g.read(t, &mut data).unwrap();
            prop_assert_eq!(&data, expected);
        }
        prop_assert!(copy(&g) == bytes);
    }
}

/// Whether the other crate's value says the same.
fn same(ours: &Value, theirs: &MetadataValue) -> bool {
    let elements: Vec<Value> = match ours {
        Value::Array(Array::U8(v)) => v.iter().map(|x| Value::U8(*x)).collect(),
        Value::Array(Array::I32(v)) => v.iter().map(|x| Value::I32(*x)).collect(),
        Value::Array(Array::F32(v)) => v.iter().map(|x| Value::F32(*x)).collect(),
        Value::Array(Array::Bool(v)) => v.iter().map(|x| Value::Bool(*x)).collect(),
        Value::Array(Array::Str(v)) => v.iter().map(|x| Value::Str(x.clone())).collect(),
        Value::Array(other) => panic!("no {other:?} in this test"),
        _ => Vec::new(),
    };
    match (ours, theirs) {
        (Value::U8(a), MetadataValue::U8(b)) => a == b,
        (Value::I8(a), MetadataValue::I8(b)) => a == b,
        (Value::U16(a), MetadataValue::U16(b)) => a == b,
        (Value::I16(a), MetadataValue::I16(b)) => a == b,
        (Value::U32(a), MetadataValue::U32(b)) => a == b,
        (Value::I32(a), MetadataValue::I32(b)) => a == b,
        (Value::U64(a), MetadataValue::U64(b)) => a == b,
        (Value::I64(a), MetadataValue::I64(b)) => a == b,
        (Value::F32(a), MetadataValue::F32(b)) => a == b,
        (Value::F64(a), MetadataValue::F64(b)) => a == b,
        (Value::Bool(a), MetadataValue::Bool(b)) => a == b,
        (Value::Str(a), MetadataValue::String(b)) => a == b.as_bytes(),
        (Value::Array(_), MetadataValue::Array(b)) => {
            elements.len() == b.values.len() && elements.iter().zip(&b.values).all(|(a, b)| same(a, b))
        }
        _ => false,
    }
}

#[test]
fn an_independent_reader_agrees() {
    let kv: Vec<(String, Value)> = [
        ("general.architecture", "llama".into()),
        ("general.alignment", Value::U32(64)),
        ("a.u8", Value::U8(200)),
        ("a.i8", Value::I8(-3)),
        ("a.u16", Value::U16(60_000)),
        ("a.i16", Value::I16(-30_000)),
        ("a.i32", Value::I32(-7)),
        ("a.u64", Value::U64(1 << 60)),
        ("a.i64", Value::I64(-(1 << 60))),
        ("a.f32", Value::F32(1e-5)),
        ("a.f64", Value::F64(-0.1)),
        ("a.bool", Value::Bool(true)),
        ("a.tokens", Value::Array(Array::Str(vec![b"one".to_vec(), "zwö".into(), Vec::new()]))),
        ("a.bytes", Value::Array(Array::U8(vec![1, 2, 255]))),
        ("a.types", Value::Array(Array::I32(vec![1, -2]))),
        ("a.scores", Value::Array(Array::F32(vec![0.5, -1.5]))),
        ("a.flags", Value::Array(Array::Bool(vec![true, false]))),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v))
    .collect();
    let tensors: Vec<_> = [
        ("f32", GgmlType::F32, vec![5, 3]),
        ("f16", GgmlType::F16, vec![7]),
        ("bf16", GgmlType::BF16, vec![3, 3, 3]),
        ("i8", GgmlType::I8, vec![32, 2, 1, 2]),
        ("q4_1", GgmlType::Q4_1, vec![64, 3]),
        ("q8_0", GgmlType::Q8_0, vec![32, 5]),
        ("q6_k", GgmlType::Q6_K, vec![512, 2]),
    ]
    .into_iter()
    .map(|(name, ty, dims)| {
        let desc = TensorDesc { name: name.to_owned(), dims, ty };
        let bytes = (0..desc.nbytes().unwrap()).map(|i| (i * 7) as u8).collect();
        (desc, bytes)
    })
    .collect();
    let s = Scratch::new();
    s.open(&write(&kv, &tensors, 64)).unwrap();
    let mut oracle = open_gguf_file(&s.path).unwrap();
    assert_eq!(oracle.metadata().len(), kv.len());
    for (key, value) in &kv {
        let theirs = oracle.metadata().get(key);
        assert!(theirs.is_some_and(|v| same(value, v)), "{key}: {value:?}, {theirs:?}");
    }
    assert_eq!(oracle.tensor_alignment(), 64);
    assert_eq!(oracle.tensor_names(), tensors.iter().map(|(d, _)| d.name.as_str()).collect::<Vec<_>>());
    for (desc, bytes) in &tensors {
        let info = oracle.get_tensor_info(&desc.name).unwrap();
        assert_eq!(info.shape.dims(), desc.dims);
        assert_eq!(info.tensor_type as u32, desc.ty.0);
        let data = oracle.load_tensor_data(&desc.name).unwrap().unwrap();
        assert!(data.as_slice() == bytes, "{}", desc.name);
    }
}

/// What the writer must refuse, and a part of its reason.
#[test]
fn the_writer_refuses_what_the_reader_would() {
    let desc = |name: &str, dims: &[u64], ty| TensorDesc { name: name.to_owned(), dims: dims.to_vec(), ty };
    let key = |k: &str, v| (k.to_owned(), v);
    let refused = |what: &str, kv: &[(String, Value)], tensors: Vec<TensorDesc>, alignment| {
        let said = Writer::new(Vec::new(), kv, tensors, alignment).unwrap_err().to_string();
        assert!(said.contains(what), "{said}");
    };
    let two = [key("k", Value::U8(1)), key("k", Value::U8(2))];
    refused("appears twice", &two, vec![], 32);
    refused("is empty", &[key("", Value::U8(1))], vec![], 32);
    refused("must be a u32", &[key("general.alignment", Value::I32(32))], vec![], 32);
    refused("disagrees", &[key("general.alignment", Value::U32(64))], vec![], 32);
    refused("disagrees", &[key("general.alignment", Value::U32(48))], vec![], 48);
    refused("disagrees", &[], vec![], 64);
    refused("longer than 63", &[], vec![desc(&"n".repeat(64), &[1], GgmlType::F32)], 32);
    refused("appears twice", &[], vec![desc("t", &[1], GgmlType::F32), desc("t", &[1], GgmlType::F32)], 32);
    refused("1 to 4 dimensions", &[], vec![desc("t", &[], GgmlType::F32)], 32);
    refused("1 to 4 dimensions", &[], vec![desc("t", &[1; 5], GgmlType::F32)], 32);
    refused("fill the type's blocks", &[], vec![desc("t", &[31], GgmlType::Q8_0)], 32);
    refused("fill the type's blocks", &[], vec![desc("t", &[1 << 63], GgmlType::F32)], 32);
    refused("fill the type's blocks", &[], vec![desc("t", &[32], GgmlType(4))], 32);
    let huge = desc("t", &[1 << 61], GgmlType::F32);
    refused(
        "size overflows",
        &[],
        vec![huge.clone(), desc("u", &[1 << 61], GgmlType::F32), TensorDesc { name: "v".into(), ..huge }],
        32,
    );

    let mut w = Writer::new(Vec::new(), &[], vec![desc("t", &[2], GgmlType::F32)], 32).unwrap();
    for (name, n) in [("u", 8), ("t", 7), ("t", 9)] {
        let said = w.write_tensor(name, &vec![0; n]).unwrap_err().to_string();
        assert!(said.contains("expected Some(8) bytes of tensor 't'"), "{said}");
    }
    w.write_tensor("t", &[0; 8]).unwrap();
    assert!(w.write_tensor("t", &[0; 8]).unwrap_err().to_string().contains("was not announced"));
    let unfinished = Writer::new(Vec::new(), &[], vec![desc("t", &[2], GgmlType::F32)], 32).unwrap();
    assert!(unfinished.finish().unwrap_err().to_string().contains("announced and not written"));
}
