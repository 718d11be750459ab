//! Reading a container: its GGUF, whose tensors are put together from the container's as they are asked for.

use super::layout::{Content, Field, Naming, Stored, architecture, base, rows, stored};
use super::{FORMAT, HEADER, RESERVED, VERSION};
use crate::bits::{SignMatrix, stray_bit};
use crate::error::{Error, Result};
use crate::format::schema::Part;
use crate::format::{LittleBitFile, MatrixEntry};
use crate::gguf::{Gguf, MAGIC, TensorData, TensorInfo};
use crate::source::hf::interleaved;
use crate::source::shard::{Entry, Shard};
use half::f16;
use safetensors::Dtype;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Whether `path` is a safetensors file that calls itself a container, or has a container's name and is no GGUF. Faults show
/// up when it is opened.
pub fn is_container(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(9).read_to_end(&mut start));
    if !path.is_file() || read.is_err() || start.starts_with(&MAGIC) {
        return false;
    }
    // The mark stands in the metadata, which need not come first.
    let marked = || Shard::open(path).is_ok_and(|s| s.metadata.get("format").is_some_and(|f| f == FORMAT));
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("littlebit"))
        || (start.get(8) == Some(&b'{') && marked())
}

/// Opens the container at `path` as the LittleBit file that it stands for.
///
/// # Errors
/// A container of another version, tensors that are missing, misshapen or unknown.
pub fn open(path: &Path) -> Result<LittleBitFile> {
    let shard = Shard::open(path)?;
    check_version(&shard)?;
    let entries: HashMap<&str, &Entry> = shard.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let header = entries
        .get(HEADER)
        .filter(|e| e.dtype == Dtype::U8)
        .ok_or_else(|| Error::tensor(path, HEADER, "missing, or not of bytes"))?;
    let mut bytes = Vec::new();
    shard.read(header, &mut bytes)?;
    let nothing = Box::new(Nothing { path: path.to_owned() });
    let file = LittleBitFile::from_gguf(Gguf::detached(path, header.offset, &bytes, shard.len, nothing)?)?;
    let naming = match shard.metadata.get("names").map(String::as_str) {
        Some("gguf") => Naming::Gguf,
        Some("hugging-face") => match Naming::of(&file) {
            Naming::Gguf => {
                let what = format!(
                    "names are Hugging Face's, which tensors of the architecture '{}' do not have here",
                    architecture(&file.gguf)
                );
                return Err(Error::unsupported(path, what));
            }
            naming => naming,
        },
        other => {
            let what = format!("names are {other:?}; this build reads 'hugging-face' and 'gguf'");
            return Err(Error::unsupported(path, what));
        }
    };
    check_count(&shard, &file)?;
    let all = stored(&file, naming)?;
    let found = check_tensors(&shard, &entries, &all)?;
    let places = places(&shard, &file, naming, &all, &found)?;
    let (offset, len) = (header.offset, shard.len);
    let data = Box::new(ContainerData { places, shard });
    LittleBitFile::from_gguf(Gguf::detached(path, offset, &bytes, len, data)?)
}

fn check_version(shard: &Shard) -> Result<()> {
    let refuse = |what: String| Err(Error::unsupported(&shard.path, what));
    match shard.metadata.get("format") {
        Some(format) if format == FORMAT => {}
        other => return refuse(format!("metadata's format is {other:?}, a .littlebit file says '{FORMAT}'")),
    }
    let version = shard.metadata.get("version").map_or("", String::as_str);
    let number = |text: &str| text.parse::<u32>().ok();
    match version.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?))) {
        Some((major, _)) if major == VERSION.0 => Ok(()),
        Some(_) => refuse(format!(
            "version {version} of the .littlebit form; this build reads {}.x: use a newer littlebit",
            VERSION.0
        )),
        None => refuse(format!("metadata's version is '{version}', MAJOR.MINOR is needed")),
    }
}

/// Refuses a header that announces more than the file can hold, before lists are made of it.
fn check_count(shard: &Shard, file: &LittleBitFile) -> Result<()> {
    let slices = file.matrices().iter().try_fold(0usize, |n, m| n.checked_add(m.shape.slices));
    let needed = slices.and_then(|n| n.checked_mul(Field::ALL.len())?.checked_add(file.kept().count()));
    if needed.is_some_and(|n| n <= shard.tensors.len()) {
        return Ok(());
    }
    let what = format!("announces more tensors than the {} in the file", shard.tensors.len());
    Err(Error::tensor(&shard.path, HEADER, what))
}

/// The entries of `all`, in its order; refuses what is missing, misshapen or unknown.
fn check_tensors(shard: &Shard, entries: &HashMap<&str, &Entry>, all: &[Stored]) -> Result<Vec<Entry>> {
    let found = all
        .iter()
        .map(|s| {
            let fault = |what: String| Error::tensor(&shard.path, &s.name, what);
            let entry =
                entries.get(s.name.as_str()).ok_or_else(|| fault("missing from the file".to_owned()))?;
            if entry.dtype != s.dtype || entry.shape != s.shape {
                return Err(fault(format!(
                    "{} {:?}, the header in '{HEADER}' implies {} {:?}",
                    entry.dtype, entry.shape, s.dtype, s.shape
                )));
            }
            Ok((*entry).clone())
        })
        .collect::<Result<Vec<_>>>()?;
    let known: std::collections::HashSet<&str> = all.iter().map(|s| s.name.as_str()).collect();
    // Later minor versions may add tensors under the reserved names.
    let unknown = entries.keys().filter(|n| !n.starts_with(RESERVED) && !known.contains(*n)).min();
    match unknown {
        Some(name) => Err(Error::tensor(&shard.path, *name, "the header in the file has no such tensor")),
        None => Ok(found),
    }
}

/// No data yet.
#[derive(Debug)]
struct Nothing {
    path: PathBuf,
}

impl TensorData for Nothing {
    fn read(&self, t: &TensorInfo, _: &mut Vec<u8>) -> Result<()> {
        Err(Error::tensor(&self.path, &t.name, "read before the file was open"))
    }
}

/// Where a tensor of the GGUF comes from.
#[derive(Debug)]
enum Place {
    /// One tensor, its rows to be interleaved for so many heads.
    Kept { entry: Entry, heads: Option<usize>, rows: usize },
    /// A part of the factors, in one piece for each slice. Matrices of an input group have it each.
    Part { part: Part, owners: Vec<Owner> },
}

/// Tensors of one path of a matrix; as many as a field has.
type Fields = Vec<(Field, Entry)>;

/// The tensor of `field`.
fn of(fields: &Fields, field: Field) -> &Entry {
    &fields.iter().find(|(f, _)| *f == field).expect("the layout has every field").1
}

/// A matrix with this part.
#[derive(Debug)]
struct Owner {
    slices: Vec<Fields>,
    d_out: usize,
    d_in: usize,
    rank: usize,
    heads: Option<usize>,
}

/// Tensors of an open container.
#[derive(Debug)]
struct ContainerData {
    shard: Shard,
    /// By name in the GGUF.
    places: HashMap<String, Place>,
}

/// Finds the place of every tensor of the GGUF.
fn places(
    shard: &Shard,
    file: &LittleBitFile,
    naming: Naming,
    all: &[Stored],
    found: &[Entry],
) -> Result<HashMap<String, Place>> {
    let architecture = architecture(&file.gguf);
    let heads = |base: &str| naming.heads(architecture, base);
    let slices = |m: &MatrixEntry| vec![Fields::new(); m.shape.slices];
    let mut fields: Vec<Vec<Fields>> = file.matrices().iter().map(slices).collect();
    let mut places = HashMap::new();
    for (s, entry) in all.iter().zip(found) {
        match &s.content {
            Content::Kept(name) => {
                let rows = rows(file.gguf.tensor(name).expect("the layout is made of its tensors")) as usize;
                let place = Place::Kept { entry: entry.clone(), heads: heads(base(name)), rows };
                places.insert(name.clone(), place);
            }
            Content::Factor { matrix, slice, field } => {
                let m = &file.matrices()[*matrix];
                if let Field::Shape(part) = field {
                    check_shape(shard, entry, m, *part)?;
                }
                fields[*matrix][*slice].push((*field, entry.clone()));
            }
        }
    }
    for (m, slices) in file.matrices().iter().zip(fields) {
        for part in Part::ALL {
            let owner = Owner {
                slices: slices.clone(),
                d_out: m.shape.d_out,
                d_in: m.shape.d_in,
                rank: m.shape.rank,
                heads: heads(&m.name),
            };
            let name = file.part(m, part).name.clone();
            let place = places.entry(name).or_insert(Place::Part { part, owners: Vec::new() });
            if let Place::Part { owners, .. } = place {
                owners.push(owner);
            }
        }
    }
    Ok(places)
}

/// `*_shape` must say what the header implies.
fn check_shape(shard: &Shard, entry: &Entry, m: &MatrixEntry, part: Part) -> Result<()> {
    let said = shard.read_i64(entry)?;
    let (d_out, d_in, rank) = (m.shape.d_out as i64, m.shape.d_in as i64, m.shape.rank as i64);
    let want = if part == Part::U { [d_out, rank] } else { [rank, d_in] };
    if said == want {
        return Ok(());
    }
    Err(Error::tensor(&shard.path, &entry.name, format!("{said:?}, the header in the file implies {want:?}")))
}

impl TensorData for ContainerData {
    fn read(&self, t: &TensorInfo, out: &mut Vec<u8>) -> Result<()> {
        match &self.places[&t.name] {
            Place::Kept { entry, heads, rows } => {
                self.shard.read(entry, out)?;
                *out = interleaved(std::mem::take(out), *heads, *rows);
                Ok(())
            }
            Place::Part { part, owners } => {
                let (first, others) = owners.split_first().expect("a part belongs to a matrix");
                *out = self.part(first, *part)?;
                // Official names have no input groups: what they share is there once for each matrix.
                for other in others {
                    if self.part(other, *part)? != *out {
                        let what = "matrices that share their inputs' factors differ in them";
                        return Err(Error::tensor(&self.shard.path, &t.name, what));
                    }
                }
                Ok(())
            }
        }
    }
}

impl ContainerData {
    /// Bytes of a part as the GGUF has it.
    fn part(&self, owner: &Owner, part: Part) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for slice in &owner.slices {
            let scales = |field: Field| self.scales(of(slice, field));
            match part {
                Part::U | Part::V => out.extend(self.tile(owner, slice, part)?),
                Part::G => put(&mut out, &scales(Field::Input)?),
                Part::H => put(&mut out, &interleaved(scales(Field::Output)?, owner.heads, owner.d_out)),
                Part::L => {
                    let (one, l) = (scales(Field::One)?, scales(Field::Latent)?);
                    let product = |(a, b): (&f16, &f16)| f16::from_f32(a.to_f32() * b.to_f32());
                    put(&mut out, &one.iter().zip(&l).map(product).collect::<Vec<_>>());
                }
            }
        }
        Ok(out)
    }

    /// Sign tile of one slice.
    fn tile(&self, owner: &Owner, slice: &Fields, part: Part) -> Result<Vec<u8>> {
        let entry = of(slice, Field::Packed(part));
        let words = self.shard.read_words(entry)?;
        let (rows, cols) = if part == Part::U { (owner.d_out, owner.rank) } else { (owner.rank, owner.d_in) };
        if let Some((row, bit)) = stray_bit(cols, &words) {
            let at = entry.offset + (4 * (row * words.len() / rows) + bit / 8) as u64;
            let what = format!("tensor '{}': row {row} has a bit beyond its {cols} columns", entry.name);
            return Err(Error::malformed(&self.shard.path, at, what));
        }
        let words = interleaved(words, owner.heads.filter(|_| part == Part::U), rows);
        Ok(SignMatrix::from_words(rows, cols, &words).as_bytes().to_vec())
    }

    fn scales(&self, entry: &Entry) -> Result<Vec<f16>> {
        let mut bytes = Vec::new();
        self.shard.read(entry, &mut bytes)?;
        Ok(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect())
    }
}

fn put(out: &mut Vec<u8>, scales: &[f16]) {
    scales.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
}
