//! GGUF files, whole or split by llama-gguf-split.

use super::{SourceTensor, TensorSource, check_finite, check_finite_from, describe, digest};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Value, dequantize};
use std::path::{Path, PathBuf};

/// Largest shard number that a name of five digits can carry.
const MAX_SHARDS: u64 = 99_999;

/// An open GGUF with all its shards.
#[derive(Debug)]
pub struct GgufSource {
    shards: Vec<Gguf>,
    tensors: Vec<SourceTensor>,
    /// Shard and position in it, for each of `tensors`.
    places: Vec<(usize, usize)>,
}

impl GgufSource {
    /// Opens a GGUF, or all shards of a split one from its first.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Gguf::open(path)?)
    }

    /// As [`GgufSource::open`] for a first shard that is open already.
    pub fn new(first: Gguf) -> Result<Self> {
        let path = &first.path.clone();
        let mut shards = vec![first];
        for shard in other_shards(&shards[0])? {
            shards.push(open_shard(path, &shard, shards.len())?);
        }
        let (mut tensors, mut places) = (Vec::new(), Vec::new());
        for (s, shard) in shards.iter().enumerate() {
            for (i, t) in shard.tensors.iter().enumerate() {
                if shards[..s].iter().any(|earlier| earlier.tensor(&t.name).is_some()) {
                    return Err(Error::tensor(&shard.path, &t.name, "an earlier shard has it too"));
                }
                tensors.push(SourceTensor { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty });
                places.push((s, i));
            }
        }
        let said = shards[0].get("split.tensors.count").and_then(Value::as_u64);
        if let Some(said) = said.filter(|said| *said != tensors.len() as u64) {
            let what = format!("split.tensors.count is {said}, the shards hold {} tensors", tensors.len());
            return Err(Error::unsupported(path, what));
        }
        Ok(Self { shards, tensors, places })
    }
}

/// Paths of the second and later shards that belong to `first`; none for a file that is not split.
fn other_shards(first: &Gguf) -> Result<Vec<PathBuf>> {
    let number = |key| first.get(key).and_then(Value::as_u64);
    let count = number("split.count").unwrap_or(0);
    if count <= 1 {
        return Ok(Vec::new());
    }
    let refuse = |what: String| Err(Error::unsupported(&first.path, what));
    if count > MAX_SHARDS {
        return refuse(format!("split.count is {count}, more than a shard's name can carry"));
    }
    let name = first.path.file_name().unwrap_or_default().to_string_lossy();
    match number("split.no") {
        Some(0) => {}
        no => {
            let no = no.map_or("?".to_owned(), |no| (no + 1).to_string());
            return refuse(format!(
                "shard {no} of {count}; give the first shard, ...-00001-of-{count:05}.gguf"
            ));
        }
    }
    let suffix = format!("-00001-of-{count:05}.gguf");
    let Some(stem) = name.strip_suffix(&suffix) else {
        return refuse(format!("the first of {count} shards must be named ...{suffix} to find the others"));
    };
    Ok((2..=count).map(|i| first.path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf"))).collect())
}

/// Opens the shard that stands at `position` (from 0) of the model whose first shard is `first`.
fn open_shard(first: &Path, path: &Path, position: usize) -> Result<Gguf> {
    if !path.exists() {
        let what = format!("shard {} is missing: {}", position + 1, path.display());
        return Err(Error::unsupported(first, what));
    }
    let shard = Gguf::open(path)?;
    let no = shard.get("split.no").and_then(Value::as_u64);
    if no != Some(position as u64) {
        return Err(Error::unsupported(
            path,
            format!("split.no is {no:?}, its name says {position}; give every shard its own name back"),
        ));
    }
    Ok(shard)
}

impl TensorSource for GgufSource {
    fn path(&self) -> &Path {
        &self.shards[0].path
    }

    fn describe(&self) -> String {
        describe(self.path(), self.kv())
    }

    fn kv(&self) -> &[(String, Value)] {
        &self.shards[0].kv
    }

    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn read_raw(&self, i: usize, out: &mut Vec<u8>) -> Result<()> {
        let (s, t) = self.places[i];
        self.shards[s].read(&self.shards[s].tensors[t], out)
    }

    fn read_f32(&self, i: usize) -> Result<Vec<f32>> {
        let (s, t) = self.places[i];
        let (shard, tensor) = (&self.shards[s], &self.shards[s].tensors[t]);
        let values = shard.read_f32(tensor)?;
        check_finite(&shard.path, &tensor.name, &values)?;
        Ok(values)
    }

    fn read_rows(&self, i: usize, first: usize, rows: usize) -> Result<Vec<f32>> {
        let (s, t) = self.places[i];
        let (shard, tensor) = (&self.shards[s], &self.shards[s].tensors[t]);
        let width = tensor.dims[0] as usize;
        let fault = |what| Error::tensor(&shard.path, &tensor.name, what);
        let row =
            tensor.ty.row_bytes(tensor.dims[0]).ok_or_else(|| fault("rows do not fill blocks".to_owned()))?;
        let mut bytes = Vec::new();
        shard.read_range(tensor, first as u64 * row, rows as u64 * row, &mut bytes)?;
        let mut values = vec![0.0; rows * width];
        dequantize(tensor.ty, &bytes, &mut values).map_err(fault)?;
        check_finite_from(&shard.path, &tensor.name, first * width, &values)?;
        Ok(values)
    }

    fn sha256(&self) -> Result<String> {
        digest::sha256(self.shards.iter().map(|s| s.path.as_path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgmlType, TensorDesc, Writer};

    fn write(path: &Path, kv: &[(&str, Value)], tensors: &[(&str, &[f32])]) {
        let kv: Vec<_> = kv.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        let descs = tensors
            .iter()
            .map(|(name, v)| TensorDesc {
                name: (*name).to_owned(),
                dims: vec![v.len() as u64],
                ty: GgmlType::F32,
            })
            .collect();
        let mut w = Writer::new(Vec::new(), &kv, descs, 32).unwrap();
        for (name, values) in tensors {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            w.write_tensor(name, &bytes).unwrap();
        }
        std::fs::write(path, w.finish().unwrap()).unwrap();
    }

    fn shard(dir: &Path, no: u16, count: u16, tensors: &[(&str, &[f32])], total: i32) -> PathBuf {
        let path = dir.join(format!("m-{:05}-of-{count:05}.gguf", no + 1));
        let mut kv = vec![
            ("split.no", Value::U16(no)),
            ("split.count", Value::U16(count)),
            ("split.tensors.count", Value::I32(total)),
        ];
        if no == 0 {
            kv.insert(0, ("general.name", Value::from("shards")));
        }
        write(&path, &kv, tensors);
        path
    }

    #[test]
    fn shards_are_one_model_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let first = shard(dir.path(), 0, 2, &[("a", &[1.0, 2.0])], 3);
        let second = shard(dir.path(), 1, 2, &[("b", &[3.0]), ("c", &[4.0])], 3);
        let s = GgufSource::open(&first).unwrap();
        let names: Vec<_> = s.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(s.read_f32(2).unwrap(), [4.0]);
        assert_eq!(s.describe(), "shards");
        let mut raw = vec![9; 99];
        s.read_raw(0, &mut raw).unwrap();
        assert_eq!(raw, [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat());
        let whole = s.sha256().unwrap();
        std::fs::OpenOptions::new().append(true).open(&second).unwrap().set_len(0).unwrap();
        assert_ne!(s.sha256().unwrap(), whole);
    }

    #[test]
    fn faulty_shards_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let first = shard(dir.path(), 0, 2, &[("a", &[1.0])], 2);
        let fault = |path: &Path| GgufSource::open(path).unwrap_err().to_string();
        assert!(fault(&first).contains("shard 2 is missing: "), "{}", fault(&first));
        assert!(fault(&first).contains("m-00002-of-00002.gguf"), "{}", fault(&first));
        let second = shard(dir.path(), 1, 2, &[("a", &[1.0])], 2);
        assert!(fault(&first).contains("an earlier shard has it too"), "{}", fault(&first));
        assert!(fault(&second).contains("shard 2 of 2; give the first shard"), "{}", fault(&second));
        shard(dir.path(), 1, 2, &[("b", &[1.0]), ("c", &[1.0])], 2);
        assert!(fault(&first).contains("split.tensors.count is 2, the shards hold 3"), "{}", fault(&first));
        std::fs::copy(&first, &second).unwrap();
        assert!(fault(&first).contains("split.no"), "{}", fault(&first));
        let renamed = dir.path().join("renamed.gguf");
        std::fs::copy(&first, &renamed).unwrap();
        assert!(fault(&renamed).contains("must be named"), "{}", fault(&renamed));
    }

    #[test]
    fn values_that_are_not_finite_are_refused_by_index() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nan.gguf");
        let mut values = vec![0.5; 1000];
        values[777] = f32::NAN;
        write(&path, &[], &[("w", &values), ("x", &[1.0, f32::INFINITY])]);
        let s = GgufSource::open(&path).unwrap();
        assert_eq!(s.describe(), "nan");
        let fault = s.read_f32(0).unwrap_err().to_string();
        assert!(fault.contains("tensor 'w': value 777 is NaN"), "{fault}");
        let fault = s.read_f32(1).unwrap_err().to_string();
        assert!(fault.contains("tensor 'x': value 1 is infinite"), "{fault}");
        // Bytes are passed on as they are.
        s.read_raw(0, &mut Vec::new()).unwrap();
    }
}
