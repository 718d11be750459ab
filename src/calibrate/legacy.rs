//! The binary imatrix of llama.cpp before it used GGUF (`.dat`), little-endian:
//!
//! ```text
//! i32 entries, then for each: i32 length, name; i32 calls; i32 values; f32 mean_square * calls for each value
//! at the end, or missing: i32 chunks; i32 length, name of the text
//! ```
//!
//! The format has no magic, so every length is checked against what is left of the file before anything is read.

use super::imatrix::Entry;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// ggml's names are shorter than 64 bytes; a longer one means that the file is something else.
const MAX_NAME: u64 = 255;
/// Longest name of a text that is taken over.
const MAX_DATASET: u64 = 1 << 16;

/// Entries and the name of the text.
pub(super) fn read(path: &Path) -> Result<(BTreeMap<String, Entry>, String)> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let len = file.metadata().map_err(|e| Error::io(path, "stat", e))?.len();
    let mut input = Input { path, reader: BufReader::new(file), at: 0, len };
    let count = input.length("number of entries", u64::MAX)?;
    if count == 0 {
        return Err(Error::malformed(path, 0, "an imatrix without entries"));
    }
    let mut entries = BTreeMap::new();
    for i in 0..count {
        let start = input.at;
        let (name, entry) = input.entry()?;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(Error::malformed(path, start, format!("entry {i}: '{name}' is there twice")));
        }
    }
    let mut dataset = String::new();
    if input.left() > 0 {
        input.length("number of chunks", u64::MAX)?;
        let n = input.length("length of the text's name", MAX_DATASET)?;
        dataset = String::from_utf8_lossy(&input.bytes(n, "the text's name")?).into_owned();
    }
    if input.left() > 0 {
        return Err(input.fault(format!("{} bytes too many: not an imatrix", input.left())));
    }
    Ok((entries, dataset))
}

struct Input<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    at: u64,
    len: u64,
}

impl Input<'_> {
    fn left(&self) -> u64 {
        self.len.saturating_sub(self.at)
    }

    fn fault(&self, what: String) -> Error {
        Error::malformed(self.path, self.at, what)
    }

    /// `n` bytes, which the file must still have before memory is taken for them.
    fn bytes(&mut self, n: u64, what: &str) -> Result<Vec<u8>> {
        if n > self.left() {
            let left = self.left();
            return Err(
                self.fault(format!("{what}: {n} bytes, {left} are left; truncated, or not an imatrix"))
            );
        }
        let mut out = vec![0; n as usize];
        self.reader.read_exact(&mut out).map_err(|e| Error::io(self.path, format!("read {what}"), e))?;
        self.at += n;
        Ok(out)
    }

    /// An i32 that must lie in `0..=max`.
    fn length(&mut self, what: &str, max: u64) -> Result<u64> {
        let at = self.at;
        let bytes = self.bytes(4, what)?;
        let value = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        u64::try_from(value)
            .ok()
            .filter(|&n| n <= max)
            .ok_or_else(|| Error::malformed(self.path, at, format!("{what} is {value}: not an imatrix")))
    }

    fn entry(&mut self) -> Result<(String, Entry)> {
        let n = self.length("length of a name", MAX_NAME)?;
        let name = self.bytes(n, "a name")?;
        let Ok(name) = String::from_utf8(name) else {
            return Err(self.fault("a name that is not UTF-8: not an imatrix".to_owned()));
        };
        let calls = self.length(&format!("number of calls of '{name}'"), u64::MAX)?;
        let n = self.length(&format!("number of values of '{name}'"), u64::MAX)?;
        if n == 0 {
            return Err(self.fault(format!("'{name}' has no values")));
        }
        let start = self.at;
        let bytes = self.bytes(4 * n, &format!("values of '{name}'"))?;
        let divisor = calls.max(1) as f32;
        let mut mean_squares = Vec::with_capacity(bytes.len() / 4);
        for (i, b) in bytes.chunks_exact(4).enumerate() {
            let x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            if !x.is_finite() || x < 0.0 {
                let what = format!("value {i} of '{name}' is {x}");
                return Err(Error::malformed(self.path, start + 4 * i as u64, what));
            }
            mean_squares.push(x / divisor);
        }
        // Experts that saw nothing were written as ones by the old program: weighed alike already.
        Ok((name, Entry { mean_squares, counts: vec![calls as f64] }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::imatrix::Imatrix;
    use crate::plan::MatrixSpec;

    fn int(out: &mut Vec<u8>, x: i32) {
        out.extend(x.to_le_bytes());
    }

    fn text(out: &mut Vec<u8>, s: &str) {
        int(out, s.len() as i32);
        out.extend(s.as_bytes());
    }

    fn entry(out: &mut Vec<u8>, name: &str, calls: i32, values: &[f32]) {
        text(out, name);
        int(out, calls);
        int(out, values.len() as i32);
        values.iter().for_each(|x| out.extend(x.to_le_bytes()));
    }

    fn example() -> Vec<u8> {
        let mut out = Vec::new();
        int(&mut out, 2);
        entry(&mut out, "a.weight", 4, &[4.0, 8.0, 0.0]);
        entry(&mut out, "e.weight", 2, &[2.0, 4.0, 6.0, 8.0]);
        int(&mut out, 17);
        text(&mut out, "wiki.txt");
        out
    }

    fn read(bytes: &[u8]) -> crate::Result<Imatrix> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.dat");
        std::fs::write(&path, bytes).unwrap();
        Imatrix::read(&path)
    }

    #[test]
    fn values_are_divided_by_calls_and_split_among_experts() {
        let im = read(&example()).unwrap();
        assert_eq!((im.dataset.as_str(), im.tokens), ("wiki.txt", None));
        assert_eq!(im.importance("a.weight", 0, 3), Some(&[1.0, 2.0, 0.0][..]));
        assert_eq!(im.importance("e.weight", 1, 2), Some(&[3.0, 4.0][..]));
        let spec = |name: &str, d_in, experts| MatrixSpec {
            name: name.to_owned(),
            d_out: 4,
            d_in,
            experts,
            fixed: None,
            spectrum: None,
        };
        assert!(im.check(&[spec("a.weight", 3, 1), spec("e.weight", 2, 2)]).unwrap().is_empty());
        let e = im.check(&[spec("e.weight", 3, 1)]).unwrap_err().to_string();
        assert!(e.contains("e.weight") && e.contains("another model"), "{e}");
    }

    #[test]
    fn the_end_may_be_missing_but_nothing_else() {
        let bytes = example();
        let end = bytes.len() - (4 + 4 + "wiki.txt".len());
        for cut in 4..bytes.len() {
            let got = read(&bytes[..cut]);
            assert_eq!(got.is_ok(), cut == end, "cut at {cut}");
            if let Err(e) = got {
                assert!(e.to_string().contains("byte "), "{e}");
            }
        }
        let mut long = bytes.clone();
        long.push(0);
        assert!(read(&long).unwrap_err().to_string().contains("1 bytes too many"));
    }

    #[test]
    fn nonsense_is_refused_without_being_read() {
        let fault = |bytes: &[u8], word: &str| {
            let e = read(bytes).unwrap_err().to_string();
            assert!(e.contains(word), "{e}");
        };
        let mut values = Vec::new();
        int(&mut values, 1);
        entry(&mut values, "a.weight", 1, &[1.0, f32::NAN]);
        fault(&values, "value 1 of 'a.weight' is NaN");
        let mut negative = Vec::new();
        int(&mut negative, 1);
        entry(&mut negative, "a.weight", 1, &[-1.0]);
        fault(&negative, "value 0 of 'a.weight' is -1");
        let mut twice = Vec::new();
        int(&mut twice, 2);
        entry(&mut twice, "a.weight", 1, &[1.0]);
        entry(&mut twice, "a.weight", 1, &[1.0]);
        fault(&twice, "twice");
        let mut huge = Vec::new();
        int(&mut huge, i32::MAX);
        text(&mut huge, "a.weight");
        int(&mut huge, 1);
        int(&mut huge, i32::MAX);
        fault(&huge, "are left");
        fault(&0i32.to_le_bytes(), "without entries");
        fault(&(-1i32).to_le_bytes(), "number of entries is -1");
        fault(b"plain text, and some more of it", "length of a name");
    }
}
