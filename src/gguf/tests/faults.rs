//! Every fault of a header ends in an error that names the byte at which it stands.

use super::Scratch;
use crate::error::Error;
use crate::gguf::{DEFAULT_ALIGNMENT, Value};

/// Header fields put together by hand, so that each can be wrong.
#[derive(Clone)]
struct Raw {
    magic: [u8; 4],
    version: u32,
    n_tensors: u64,
    n_kv: u64,
    kv: Vec<u8>,
    tensors: Vec<u8>,
    /// Bytes after the header, from its aligned end.
    data: usize,
}

fn text(s: &[u8]) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s].concat()
}

/// A key with a value of type `ty` whose bytes are `value`.
fn pair(key: &[u8], ty: u32, value: &[u8]) -> Vec<u8> {
    [text(key), ty.to_le_bytes().to_vec(), value.to_vec()].concat()
}

/// A tensor's descriptor.
fn tensor(name: &[u8], dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
    [
        text(name),
        (dims.len() as u32).to_le_bytes().to_vec(),
        dims_bytes,
        ty.to_le_bytes().to_vec(),
        offset.to_le_bytes().to_vec(),
    ]
    .concat()
}

impl Raw {
    fn empty() -> Self {
        Raw { magic: *b"GGUF", version: 3, n_tensors: 0, n_kv: 0, kv: vec![], tensors: vec![], data: 0 }
    }

    /// One key.
    fn kv(key: &[u8], ty: u32, value: &[u8]) -> Self {
        Raw { n_kv: 1, kv: pair(key, ty, value), ..Raw::empty() }
    }

    /// Tensors and `data` bytes.
    fn tensors(tensors: &[Vec<u8>], data: usize) -> Self {
        Raw { n_tensors: tensors.len() as u64, tensors: tensors.concat(), data, ..Raw::empty() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = [
            &self.magic[..],
            &self.version.to_le_bytes(),
            &self.n_tensors.to_le_bytes(),
            &self.n_kv.to_le_bytes(),
            &self.kv,
            &self.tensors,
        ]
        .concat();
        if self.data > 0 {
            out.resize(out.len().next_multiple_of(DEFAULT_ALIGNMENT as usize) + self.data, 0);
        }
        out
    }
}

/// Byte at which the first key or tensor starts.
const BODY: u64 = 24;

const U8: u32 = 0;
const U32: u32 = 4;
const I32: u32 = 5;
const BOOL: u32 = 7;
const STR: u32 = 8;
const ARRAY: u32 = 9;
const F32: u32 = 0;

fn array(element: u32, n: u64, bytes: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &n.to_le_bytes(), bytes].concat()
}

/// Expects the error `what` at byte `at`.
fn refused(scratch: &Scratch, at: u64, what: &str, bytes: &[u8]) {
    match scratch.open(bytes) {
        Ok(_) => panic!("opens, expected '{what}'"),
        Err(Error::Malformed { offset, what: said, .. }) => {
            assert!(said.contains(what), "'{said}' instead of '{what}'");
            assert_eq!(offset, at, "{said}");
        }
        Err(other) => panic!("{other} instead of '{what}'"),
    }
}

#[test]
fn the_smallest_file_opens() {
    let g = Scratch::new().open(&Raw::empty().bytes()).unwrap();
    assert!(g.kv.is_empty() && g.tensors.is_empty());
    assert_eq!((g.alignment, g.data_offset, g.file_len), (32, 32, 24));
}

#[test]
fn magic_and_versions() {
    let s = Scratch::new();
    let magic = |magic: &[u8; 4]| Raw { magic: *magic, ..Raw::empty() }.bytes();
    refused(&s, 0, "not a GGUF file", &magic(b"GGML"));
    refused(&s, 0, "a big-endian file", &magic(b"FUGG"));
    refused(&s, 0, "not a GGUF file", b"PK\x03\x04 is a zip");
    for (version, what) in [
        (0, "version 0: this build reads version 3"),
        (1, "an old format"),
        (2, "an old format"),
        (4, "this build reads version 3"),
        (3u32.swap_bytes(), "big-endian"),
        (u32::MAX, "this build reads version 3"),
    ] {
        refused(&s, 4, what, &Raw { version, ..Raw::empty() }.bytes());
    }
}

#[test]
fn counts_that_the_file_cannot_hold() {
    let s = Scratch::new();
    for n in [1, 1 << 61, u64::MAX, i64::MAX as u64] {
        refused(&s, 8, "tensor count is", &Raw { n_tensors: n, ..Raw::empty() }.bytes());
        refused(&s, 16, "key count is", &Raw { n_kv: n, ..Raw::empty() }.bytes());
    }
    // Room for the announced key, but no key.
    let short = Raw { n_kv: 2, ..Raw::kv(b"key", U8, &[7; 20]) };
    refused(&s, BODY + 16, "a key is", &short.bytes());
}

#[test]
fn strings() {
    let s = Scratch::new();
    for n in [40, 1 << 63, u64::MAX] {
        let key = Raw { n_kv: 1, kv: [n.to_le_bytes().to_vec(), vec![b'k'; 20]].concat(), ..Raw::empty() };
        refused(&s, BODY, "a key is", &key.bytes());
        let value = Raw::kv(b"key", STR, &[n.to_le_bytes().to_vec(), vec![b'v'; 20]].concat());
        refused(&s, BODY + 15, "the value of 'key' is", &value.bytes());
    }
    refused(&s, BODY, "key 0 is empty", &Raw::kv(b"", U8, &[1]).bytes());
    refused(&s, BODY, "key 0 is not UTF-8", &Raw::kv(b"\xff\xfe", U8, &[1]).bytes());
    refused(&s, BODY, "a key is 65536 bytes", &Raw::kv(&[b'k'; 65_536], U8, &[1]).bytes());
    let twice = [pair(b"key", U8, &[1]), pair(b"key", U8, &[1])].concat();
    refused(&s, BODY + 16, "key 'key' appears twice", &Raw { n_kv: 2, kv: twice, ..Raw::empty() }.bytes());
    // Values may be any bytes.
    let g = s.open(&Raw::kv(b"k\0ey", STR, &text(b"a\0\xff")).bytes()).unwrap();
    assert_eq!(g.get("k\0ey"), Some(&Value::Str(b"a\0\xff".to_vec())));
}

#[test]
fn values_and_arrays() {
    let s = Scratch::new();
    for ty in [13, 255, u32::MAX] {
        refused(&s, BODY + 11, "unknown type", &Raw::kv(b"key", ty, &[0; 8]).bytes());
        let value = array(ty, 1, &[0; 8]);
        refused(&s, BODY + 15, "unknown element type", &Raw::kv(b"key", ARRAY, &value).bytes());
    }
    refused(&s, BODY + 15, "a bool is 2", &Raw::kv(b"key", BOOL, &[2]).bytes());
    refused(&s, BODY + 29, "a bool is 2", &Raw::kv(b"key", ARRAY, &array(BOOL, 3, &[0, 1, 2])).bytes());
    for n in [2, 1 << 62, u64::MAX] {
        for ty in [I32, STR, 12] {
            let value = array(ty, n, &[0; 7]);
            refused(&s, BODY + 19, "the array 'key' is", &Raw::kv(b"key", ARRAY, &value).bytes());
        }
    }
    let mut nested = Vec::new();
    for _ in 0..100_000 {
        nested.extend(array(ARRAY, 1, &[]));
    }
    refused(&s, BODY + 15, "holds arrays", &Raw::kv(b"key", ARRAY, &nested).bytes());
}

#[test]
fn alignments() {
    let s = Scratch::new();
    let at = BODY + 8 + "general.alignment".len() as u64;
    let alignment = |ty: u32, bytes: &[u8]| Raw::kv(b"general.alignment", ty, bytes).bytes();
    for (value, what) in [(0, "is 0, not a power of two"), (3, "is 3, not a power of two"), (48, "is 48")] {
        refused(&s, at, what, &alignment(U32, &u32::to_le_bytes(value)));
    }
    refused(&s, at, "is not a u32", &alignment(I32, &32i32.to_le_bytes()));
    refused(&s, at, "is not a u32", &alignment(STR, &text(b"32")));
    assert_eq!(s.open(&alignment(U32, &64u32.to_le_bytes())).unwrap().alignment, 64);
    // Padding up to 1 GiB: harmless without tensors, beyond the file with one.
    let far = Raw::kv(b"general.alignment", U32, &(1u32 << 30).to_le_bytes());
    assert_eq!(s.open(&far.bytes()).unwrap().data_offset, 1 << 30);
    let far = Raw { n_tensors: 1, tensors: tensor(b"t", &[1], F32, 0), data: 4, ..far };
    let field = at + 8 + 9 + 4 + 8 + 4;
    refused(&s, field, "truncated file", &far.bytes());
}

#[test]
fn shapes_and_types() {
    let s = Scratch::new();
    let one = |dims: &[u64], ty: u32| Raw::tensors(&[tensor(b"t", dims, ty, 0)], 64).bytes();
    for n in [0, 5] {
        refused(&s, BODY + 9, "dimensions, 1 to 4 are allowed", &one(&vec![1; n], F32));
    }
    let endless = [text(b"t"), u32::MAX.to_le_bytes().to_vec(), vec![1; 60]].concat();
    refused(&s, BODY + 9, "has 4294967295 dimensions", &Raw::tensors(&[endless], 0).bytes());
    for dims in [
        &[1 << 63][..],
        &[u64::MAX],
        &[1 << 32, 1 << 32],
        &[1 << 32, 1 << 31],
        &[1 << 62, 2],
        &[0, 1 << 63],
        &[1 << 16, 1 << 16, 1 << 16, 1 << 16],
    ] {
        refused(&s, BODY + 13, "overflow", &one(dims, F32));
    }
    refused(&s, BODY + 21, "or overflow", &one(&[1 << 62], F32));
    for ty in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
        refused(&s, BODY + 21, "unknown or removed type id", &one(&[32], ty));
    }
    for (ty, n) in [(2, 31), (8, 33), (12, 128), (14, 255)] {
        refused(&s, BODY + 21, "do not fill", &one(&[n], ty));
    }
    // A dimension of zero is what ggml allows: a tensor without data.
    let g = s.open(&one(&[8, 0], F32)).unwrap();
    assert_eq!((g.tensors[0].nbytes, g.read_f32(&g.tensors[0]).unwrap().len()), (0, 0));
}

#[test]
fn tensor_names() {
    let s = Scratch::new();
    let one = |name: &[u8]| Raw::tensors(&[tensor(name, &[8], F32, 0)], 32).bytes();
    assert_eq!(s.open(&one(&[b'n'; 63])).unwrap().tensors[0].name.len(), 63);
    refused(&s, BODY, "has 64 bytes, ggml allows 63", &one(&[b'n'; 64]));
    refused(&s, BODY, "is not UTF-8", &one(b"\xc3"));
    let twice = [tensor(b"t", &[8], F32, 0), tensor(b"t", &[8], F32, 32)];
    refused(&s, BODY + 33, "tensor 't' appears twice", &Raw::tensors(&twice, 64).bytes());
}

#[test]
fn offsets() {
    let s = Scratch::new();
    // Two tensors of 32 bytes; the offset fields stand at the ends of their descriptors of 33 bytes.
    let two = |a: u64, b: u64, data: usize| {
        Raw::tensors(&[tensor(b"a", &[8], F32, a), tensor(b"b", &[8], F32, b)], data).bytes()
    };
    let (first, second) = (BODY + 25, BODY + 33 + 25);
    assert!(s.open(&two(0, 32, 64)).is_ok());
    refused(&s, first, "data offset is 1, expected 0", &two(1, 32, 64));
    refused(&s, first, "data offset is 32, expected 0", &two(32, 0, 64));
    refused(&s, second, "data offset is 0, expected 32", &two(0, 0, 64));
    refused(&s, second, "data offset is 16, expected 32", &two(0, 16, 64));
    refused(&s, second, "data offset is 64, expected 32", &two(0, 64, 128));
    refused(&s, second, "expected 32", &two(0, u64::MAX - 31, 64));
    refused(&s, second, "truncated file", &two(0, 32, 63));
    refused(&s, first, "truncated file", &two(0, 32, 31));
    // A tensor of almost 2^64 bytes: more than the file, and the next offset would overflow.
    let huge = [tensor(b"a", &[(1 << 62) - 1], F32, 0), tensor(b"b", &[8], F32, 0)];
    refused(&s, first, "data offset overflows", &Raw::tensors(&huge, 64).bytes());
}

#[test]
fn truncation_at_every_byte() {
    let s = Scratch::new();
    let whole = Raw {
        n_kv: 3,
        kv: [
            pair(b"text", STR, &text(b"value")),
            pair(b"array", ARRAY, &array(STR, 2, &[text(b"x"), text(b"yz")].concat())),
            pair(b"number", U32, &[1, 2, 3, 4]),
        ]
        .concat(),
        ..Raw::tensors(&[tensor(b"a", &[8, 2], F32, 0), tensor(b"b", &[32], 8, 64)], 64 + 34)
    }
    .bytes();
    assert!(s.open(&whole).is_ok());
    for n in 0..whole.len() {
        match s.open(&whole[..n]) {
            Err(Error::Malformed { offset, .. }) => assert!(offset <= n as u64, "{n} bytes: offset {offset}"),
            Err(other) => panic!("{n} bytes: {other}"),
            Ok(_) => panic!("{n} bytes open"),
        }
    }
}

#[test]
fn any_changed_byte_opens_or_is_refused() {
    let s = Scratch::new();
    let whole = Raw {
        n_kv: 2,
        kv: [pair(b"text", STR, &text(b"value")), pair(b"array", ARRAY, &array(I32, 2, &[7; 8]))].concat(),
        ..Raw::tensors(&[tensor(b"a", &[8, 2], F32, 0), tensor(b"b", &[32], 8, 64)], 64 + 34)
    }
    .bytes();
    for at in 0..whole.len() - 98 {
        for byte in [0, 1, 0x7f, 0x80, 0xff, whole[at] ^ 1] {
            let mut changed = whole.clone();
            changed[at] = byte;
            if let Ok(g) = s.open(&changed) {
                g.tensors.iter().for_each(|t| drop(g.read_f32(t)));
            }
        }
    }
}

#[test]
fn a_file_that_shrinks_while_open_ends_in_an_error() {
    let s = Scratch::new();
    let g = s.open(&Raw::tensors(&[tensor(b"t", &[8], F32, 0)], 32).bytes()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&s.path).unwrap().set_len(70).unwrap();
    let said = g.read_f32(&g.tensors[0]).unwrap_err().to_string();
    assert!(said.contains("read tensor 't' at byte 64"), "{said}");
    let said = g.read_range(&g.tensors[0], 30, 3, &mut Vec::new()).unwrap_err().to_string();
    assert!(said.contains("bytes 30..+3 are outside its 32 bytes"), "{said}");
    assert!(g.read_range(&g.tensors[0], u64::MAX, 2, &mut Vec::new()).is_err());
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fault = |path: &std::path::Path| crate::gguf::Gguf::open(path).unwrap_err().to_string();
    assert!(fault(dir.path()).contains("not a regular file"));
    assert!(fault(&dir.path().join("none")).contains("none: open:"));
}
