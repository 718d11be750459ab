//! A model that is compressed already, in another form.

use super::convert::ALREADY;
use super::header::file_name;
use super::output::{AtomicFile, check_target};
use super::space::{self, Need};
use crate::error::{Error, Result};
use crate::format::retype::{KeptTypes, retype};
use crate::format::schema::Part;
use crate::format::{LittleBitFile, MatrixEntry, container, lossy};
use crate::gguf::encode::fitting;
use crate::gguf::{GgmlType, TensorDesc, TensorInfo, Writer};
use crate::source::{Compressed, Origin};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Form of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// LittleBit GGUF.
    Gguf,
    /// `.littlebit`.
    Container,
    /// Standard GGUF with weights rebuilt in this type.
    Lossy(GgmlType),
}

impl Form {
    /// The form that a file called `target` has, unless it is lossy.
    pub fn of(target: &Path) -> Self {
        let container = target.extension().is_some_and(|e| e.eq_ignore_ascii_case("littlebit"));
        if container { Form::Container } else { Form::Gguf }
    }
}

/// Writes `model` as `form`, its kept tensors as `types` says (of a checkpoint that becomes a GGUF, embeddings and head in
/// q6_K unless it says otherwise); `progress` hears of every matrix. Returns the size of the output.
///
/// # Errors
/// A model that is damaged, an output that exists or cannot be written.
pub fn repack(
    model: Compressed,
    target: &Path,
    form: Form,
    mut types: KeptTypes,
    force: bool,
    mut progress: impl FnMut(&str),
) -> Result<u64> {
    let Compressed { file, origin } = model;
    check_target(target, &[&file.gguf.path], force)?;
    match (form, &origin) {
        (Form::Gguf, Origin::Checkpoint { .. }) => types.floats = Some(GgmlType::Q6_K),
        (Form::Gguf, Origin::Gguf) if types.is_empty() => {
            return Err(Error::unsupported(&file.gguf.path, ALREADY));
        }
        _ => {}
    }
    let companions = match origin {
        Origin::Checkpoint { companions } => companions,
        Origin::Gguf | Origin::Container => Vec::new(),
    };
    write(&retype(file, &types)?, &companions, target, form, force, &mut progress)
}

/// Writes `file` as `form`, with copies of `companions` where the form has a place for them, and reads it back before it gets
/// its name. Returns the size of the output.
pub(super) fn write(
    file: &LittleBitFile,
    companions: &[PathBuf],
    target: &Path,
    form: Form,
    force: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<u64> {
    let bytes = output_bytes(file, form);
    space::check(&[Need { path: target, bytes, what: "the output" }])?;
    let out = AtomicFile::create(target, force)?;
    let w = match form {
        Form::Gguf => gguf(file, out.writer()?, progress),
        Form::Container => container::write(file, &read_all(companions)?, out.writer()?, progress),
        Form::Lossy(ty) => lossy::expand(file, ty, out.writer()?, progress),
    };
    let mut w = w.map_err(|e| at_output(e, target))?;
    w.flush().map_err(|e| Error::io(target, "write", e))?;
    match form {
        Form::Gguf => compare(file, &LittleBitFile::open(out.temp_path())?, target)?,
        Form::Container => compare(file, &container::open(out.temp_path())?, target)?,
        Form::Lossy(_) => {}
    }
    out.commit(w)?;
    Ok(std::fs::metadata(target).map_err(|e| Error::io(target, "stat", e))?.len())
}

/// Bytes of the tensors of `file` in another form.
fn output_bytes(file: &LittleBitFile, form: Form) -> u64 {
    let Form::Lossy(ty) = form else { return file.gguf.tensors.iter().map(|t| t.nbytes).sum() };
    let rebuilt = |(d, m): (TensorDesc, Option<&MatrixEntry>)| match m {
        Some(_) => fitting(ty, d.dims[0]).tensor_bytes(&d.dims).unwrap_or(0),
        None => d.nbytes().unwrap_or(0),
    };
    file.weights().map(rebuilt).sum()
}

/// Copies `file` tensor by tensor.
fn gguf(file: &LittleBitFile, w: BufWriter<File>, progress: &mut dyn FnMut(&str)) -> Result<BufWriter<File>> {
    let gguf = &file.gguf;
    let descriptors = gguf.tensors.iter().map(TensorInfo::descriptor).collect();
    let mut writer = Writer::new(w, &gguf.kv, descriptors, gguf.alignment)?;
    let mut bytes = Vec::new();
    for t in &gguf.tensors {
        gguf.read(t, &mut bytes)?;
        if let Some((base, Part::U)) = Part::split(&t.name) {
            progress(base);
        }
        writer.write_tensor(&t.name, &bytes)?;
    }
    writer.finish()
}

/// Contents of files by name.
fn read_all(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>> {
    paths
        .iter()
        .map(|path| Ok((file_name(path), std::fs::read(path).map_err(|e| Error::io(path, "read", e))?)))
        .collect()
}

/// Reads an output back before it gets its name: keys and tensors are those of the input.
fn compare(input: &LittleBitFile, output: &LittleBitFile, target: &Path) -> Result<()> {
    let wrong = |what: String| Err(Error::tensor(target, "(verification)", what));
    if input.gguf.kv != output.gguf.kv || input.gguf.tensors.len() != output.gguf.tensors.len() {
        return wrong("keys or the number of tensors changed".to_owned());
    }
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (from, to) in input.gguf.tensors.iter().zip(&output.gguf.tensors) {
        input.gguf.read(from, &mut a)?;
        output.gguf.read(to, &mut b)?;
        if from.name != to.name || from.dims != to.dims || from.ty != to.ty || a != b {
            return wrong(format!("tensor '{}' was read back changed", from.name));
        }
    }
    // Sound factors: finite scales, clear padding.
    output.matrices().iter().try_for_each(|m| output.read_factors(m).map(|_| ()))
}

/// Errors of the writers know no path; give them the output's.
pub(super) fn at_output(e: Error, target: &Path) -> Error {
    match e {
        Error::Io { path, op, source } if path == Path::new("output") => Error::io(target, op, source),
        other => other,
    }
}
