//! Importance matrices of `llama-imatrix`: for every weight, the mean square of each of its inputs.
//!
//! Today's files are GGUFs with two F32 tensors for a weight: `NAME.in_sum2` (`d_in` x matrices, sums of squares)
//! and `NAME.counts` (1 x matrices, rows seen); a stack of experts has one matrix for each. The binary `.dat` files
//! of before are read by [`super::legacy`].

use super::legacy;
use crate::error::{Error, Result};
use crate::gguf::{Array, DEFAULT_ALIGNMENT, GgmlType, Gguf, MAGIC, TensorDesc, TensorInfo, Value, Writer};
use crate::plan::MatrixSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Mean squares of the inputs of a model's weights.
#[derive(Debug)]
pub struct Imatrix {
    /// The texts it was measured on, as its maker called them; empty if the file does not say.
    pub dataset: String,
    /// Tokens of these texts, if the file says.
    pub tokens: Option<u64>,
    path: PathBuf,
    pub(super) entries: BTreeMap<String, Entry>,
}

/// Statistics of one weight.
#[derive(Debug)]
pub(super) struct Entry {
    /// Mean squares, matrix after matrix.
    pub mean_squares: Vec<f32>,
    /// Rows seen by each matrix; one number for all matrices where the file has no more.
    pub counts: Vec<f64>,
}

impl Imatrix {
    /// Reads a GGUF or `.dat` file, told apart by their first bytes.
    ///
    /// # Errors
    /// I/O errors; [`Error::Malformed`] or [`Error::Tensor`] for a file that is truncated, incomplete or holds
    /// values that no mean square can have.
    pub fn read(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let mut magic = [0u8; 4];
        match file.read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => Self::from_gguf(&Gguf::open(path)?),
            Ok(()) => Self::from_legacy(path),
            Err(_) => Err(Error::malformed(path, 0, "the file is too short for an imatrix")),
        }
    }

    fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for sums in &gguf.tensors {
            let Some(name) = sums.name.strip_suffix(SUMS) else { continue };
            entries.insert(name.to_owned(), Entry::from_gguf(gguf, name, sums)?);
        }
        if entries.is_empty() {
            let what =
                "no tensor *.in_sum2: this GGUF is not an imatrix (llama-imatrix -o FILE.gguf makes one)";
            return Err(Error::unsupported(&gguf.path, what));
        }
        let number = |key: &str| gguf.get(key).and_then(Value::as_u64);
        let tokens = number("imatrix.chunk_count").zip(number("imatrix.chunk_size"));
        let dataset = match gguf.get("imatrix.datasets") {
            Some(Value::Array(Array::Str(names))) => {
                names.iter().map(|n| String::from_utf8_lossy(n)).collect::<Vec<_>>().join(", ")
            }
            _ => String::new(),
        };
        Ok(Self {
            dataset,
            tokens: tokens.and_then(|(count, size)| count.checked_mul(size)),
            path: gguf.path.clone(),
            entries,
        })
    }

    fn from_legacy(path: &Path) -> Result<Self> {
        let (entries, dataset) = legacy::read(path)?;
        Ok(Self { dataset, tokens: None, path: path.to_owned(), entries })
    }

    /// Checks that the file has what `specs` need, and warns of experts that it says nothing about.
    ///
    /// # Errors
    /// [`Error::Tensor`] for the first matrix that is missing or has another number of inputs or experts.
    pub fn check(&self, specs: &[MatrixSpec]) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for spec in specs {
            let wrong = |what: String| {
                let what = format!("{what}: this is the imatrix of another model");
                Err(Error::tensor(&self.path, &spec.name, what))
            };
            let Some(entry) = self.entries.get(&spec.name) else {
                return wrong("no statistics".to_owned());
            };
            let (got, want) = (entry.mean_squares.len(), spec.d_in.checked_mul(spec.experts));
            if Some(got) != want || ![1, spec.experts].contains(&entry.counts.len()) {
                return wrong(format!(
                    "{got} values in {} parts, but the weight has {} inputs and {} experts",
                    entry.counts.len(),
                    spec.d_in,
                    spec.experts
                ));
            }
            let unseen = (0..spec.experts).filter(|&e| !entry.seen(e)).count();
            if unseen > 0 {
                warnings.push(format!(
                    "{}: the imatrix saw no token for {unseen} of {} experts; their columns are weighed alike",
                    spec.name, spec.experts
                ));
            }
        }
        Ok(warnings)
    }

    /// Mean squares of the `d_in` inputs of one expert (0 for an ordinary weight); `None` if it saw no token.
    pub fn importance(&self, weight: &str, expert: usize, d_in: usize) -> Option<&[f32]> {
        let entry = self.entries.get(weight)?;
        let start = expert.checked_mul(d_in)?;
        entry.mean_squares.get(start..start.checked_add(d_in)?).filter(|_| entry.seen(expert))
    }
}

/// Sums of squares of the inputs of weights, collected over tokens.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Collector {
    sums: BTreeMap<String, (Vec<f64>, u64)>,
}

impl Collector {
    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Adds rows of inputs of the weight `name`, `tokens x d_in`.
    pub fn add(&mut self, name: &str, d_in: usize, x: &[f32]) {
        let (sums, count) = self.sums.entry(name.to_owned()).or_insert_with(|| (vec![0.0; d_in], 0));
        let mut part = vec![0f32; d_in];
        for x in x.chunks_exact(d_in) {
            part.iter_mut().zip(x).for_each(|(s, x)| *s += x * x);
            *count += 1;
        }
        sums.iter_mut().zip(part).for_each(|(s, p)| *s += f64::from(p));
    }

    /// The imatrix as llama-imatrix writes it, for texts called `datasets` in `chunks` windows of `length` tokens.
    ///
    /// # Errors
    /// Names that a GGUF cannot hold.
    pub fn to_gguf(&self, datasets: &[String], chunks: usize, length: usize) -> Result<Vec<u8>> {
        let names = datasets.iter().map(|n| n.as_bytes().to_vec()).collect();
        let kv = [
            ("general.type".to_owned(), Value::Str(b"imatrix".to_vec())),
            ("imatrix.datasets".to_owned(), Value::Array(Array::Str(names))),
            ("imatrix.chunk_count".to_owned(), Value::U32(chunks as u32)),
            ("imatrix.chunk_size".to_owned(), Value::U32(length as u32)),
        ];
        let tensor = |name: String, n: usize| TensorDesc { name, dims: vec![n as u64, 1], ty: GgmlType::F32 };
        let descriptors = self.sums.iter().flat_map(|(name, (sums, _))| {
            [tensor(format!("{name}{SUMS}"), sums.len()), tensor(format!("{name}{COUNTS}"), 1)]
        });
        let mut writer = Writer::new(Vec::new(), &kv, descriptors.collect(), DEFAULT_ALIGNMENT)?;
        for (name, (sums, count)) in &self.sums {
            let bytes: Vec<u8> = sums.iter().flat_map(|&s| (s as f32).to_le_bytes()).collect();
            writer.write_tensor(&format!("{name}{SUMS}"), &bytes)?;
            writer.write_tensor(&format!("{name}{COUNTS}"), &(*count as f32).to_le_bytes())?;
        }
        writer.finish()
    }
}

impl Entry {
    /// Whether the expert saw any row.
    fn seen(&self, expert: usize) -> bool {
        let at = if self.counts.len() == 1 { 0 } else { expert };
        self.counts.get(at).is_some_and(|&c| c > 0.0)
    }

    fn from_gguf(gguf: &Gguf, name: &str, sums: &TensorInfo) -> Result<Self> {
        let wrong = |t: &TensorInfo, what: String| Error::tensor(&gguf.path, &t.name, what);
        let Some(counts) = gguf.tensor(&format!("{name}{COUNTS}")) else {
            return Err(wrong(sums, format!("there is no {name}{COUNTS} beside it")));
        };
        for t in [sums, counts] {
            if t.ty != GgmlType::F32 {
                return Err(wrong(t, format!("type {}, an imatrix has F32", t.ty.name())));
            }
        }
        let read = |t: &TensorInfo| -> Result<Vec<f32>> {
            let values = gguf.read_f32(t)?;
            match values.iter().position(|x| !x.is_finite() || *x < 0.0) {
                Some(i) => Err(wrong(t, format!("value {i} is {}", values[i]))),
                None => Ok(values),
            }
        };
        let (mut values, row_counts) = (read(sums)?, read(counts)?);
        if values.is_empty() || row_counts.is_empty() || !values.len().is_multiple_of(row_counts.len()) {
            return Err(wrong(
                sums,
                format!("{} sums do not divide among {} counts", values.len(), row_counts.len()),
            ));
        }
        let row = values.len() / row_counts.len();
        for (row, &count) in values.chunks_exact_mut(row).zip(&row_counts) {
            if count > 0.0 {
                row.iter_mut().for_each(|x| *x /= count);
            }
        }
        Ok(Self { mean_squares: values, counts: row_counts.iter().map(|&c| c.into()).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{TensorDesc, Writer};

    fn spec(name: &str, d_in: usize, experts: usize) -> MatrixSpec {
        MatrixSpec { name: name.to_owned(), d_out: 8, d_in, experts, fixed: None, spectrum: None }
    }

    fn write(dir: &tempfile::TempDir, tensors: &[(&str, &[u64], Vec<f32>)]) -> PathBuf {
        let path = dir.path().join("imatrix.gguf");
        let text = |s: &str| s.as_bytes().to_vec();
        let kv = vec![
            ("general.type".to_owned(), Value::Str(text("imatrix"))),
            (
                "imatrix.datasets".to_owned(),
                Value::Array(Array::Str(vec![text("wiki.txt"), text("code.txt")])),
            ),
            ("imatrix.chunk_count".to_owned(), Value::U32(10)),
            ("imatrix.chunk_size".to_owned(), Value::U32(512)),
        ];
        let describe = |t: &(&str, &[u64], Vec<f32>)| TensorDesc {
            name: t.0.to_owned(),
            dims: t.1.to_vec(),
            ty: GgmlType::F32,
        };
        let file = File::create(&path).unwrap();
        let mut w = Writer::new(file, &kv, tensors.iter().map(describe).collect(), 32).unwrap();
        for (name, _, values) in tensors {
            w.write_tensor(name, bytemuck::cast_slice(values)).unwrap();
        }
        w.finish().unwrap();
        path
    }

    fn fault(tensors: &[(&str, &[u64], Vec<f32>)], word: &str) {
        let dir = tempfile::tempdir().unwrap();
        let e = Imatrix::read(&write(&dir, tensors)).unwrap_err().to_string();
        assert!(e.contains(word) && e.contains("imatrix.gguf"), "{e}");
    }

    #[test]
    fn sums_become_means_for_each_expert() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(
            &dir,
            &[
                ("a.weight.in_sum2", &[3, 1], vec![2.0, 4.0, 8.0]),
                ("a.weight.counts", &[1, 1], vec![2.0]),
                ("e.weight.in_sum2", &[2, 3], vec![3.0, 6.0, 0.0, 0.0, 5.0, 10.0]),
                ("e.weight.counts", &[1, 3], vec![3.0, 0.0, 5.0]),
            ],
        );
        let im = Imatrix::read(&path).unwrap();
        assert_eq!((im.dataset.as_str(), im.tokens), ("wiki.txt, code.txt", Some(5120)));
        assert_eq!(im.importance("a.weight", 0, 3), Some(&[1.0, 2.0, 4.0][..]));
        assert_eq!(im.importance("e.weight", 0, 2), Some(&[1.0, 2.0][..]));
        assert_eq!(im.importance("e.weight", 1, 2), None, "no token, no importance");
        assert_eq!(im.importance("e.weight", 2, 2), Some(&[1.0, 2.0][..]));
        for (name, expert) in [("e.weight", 3), ("e.weight", usize::MAX), ("b.weight", 0)] {
            assert_eq!(im.importance(name, expert, 2), None);
        }
        let warnings = im.check(&[spec("a.weight", 3, 1), spec("e.weight", 2, 3)]).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("e.weight") && warnings[0].contains("1 of 3 experts"), "{warnings:?}");
    }

    #[test]
    fn another_models_file_is_refused_by_the_first_matrix_that_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(
            &dir,
            &[("a.weight.in_sum2", &[3, 1], vec![1.0; 3]), ("a.weight.counts", &[1, 1], vec![1.0])],
        );
        let im = Imatrix::read(&path).unwrap();
        for (specs, name) in [
            (vec![spec("a.weight", 3, 1), spec("b.weight", 3, 1), spec("c.weight", 3, 1)], "b.weight"),
            (vec![spec("a.weight", 4, 1)], "a.weight"),
            (vec![spec("a.weight", 3, 2)], "a.weight"),
        ] {
            let e = im.check(&specs).unwrap_err().to_string();
            assert!(e.contains(name) && e.contains("imatrix of another model"), "{e}");
        }
        assert!(im.check(&[spec("a.weight", 3, 1)]).unwrap().is_empty());
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        let counts = || ("a.weight.counts", &[1u64, 1][..], vec![1.0]);
        let sums = |v: Vec<f32>| ("a.weight.in_sum2", &[2u64, 1][..], v);
        fault(&[sums(vec![f32::NAN, 1.0]), counts()], "value 0 is NaN");
        fault(&[sums(vec![1.0, -2.0]), counts()], "value 1 is -2");
        fault(&[sums(vec![1.0, f32::INFINITY]), counts()], "value 1 is inf");
        fault(&[sums(vec![1.0, 1.0]), ("a.weight.counts", &[1, 1], vec![-1.0])], "counts");
        fault(&[sums(vec![1.0, 1.0]), ("a.weight.counts", &[1, 3], vec![1.0; 3])], "2 sums");
        fault(&[sums(vec![1.0, 1.0])], "no a.weight.counts");
        fault(&[("a.weight", &[2, 1], vec![1.0; 2])], "not an imatrix");
    }

    #[test]
    fn other_files_are_no_imatrix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("short");
        std::fs::write(&path, b"GG").unwrap();
        assert!(Imatrix::read(&path).unwrap_err().to_string().contains("too short"));
        assert!(matches!(Imatrix::read(&dir.path().join("none")), Err(Error::Io { .. })));
        let full = write(
            &dir,
            &[("a.weight.in_sum2", &[3, 1], vec![1.0; 3]), ("a.weight.counts", &[1, 1], vec![1.0])],
        );
        let bytes = std::fs::read(&full).unwrap();
        for cut in (4..bytes.len() - 32).step_by(7) {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(Imatrix::read(&path).is_err(), "cut at {cut}");
        }
    }
}
