//! A model that is compressed already, in another form.

use super::convert::ALREADY;
use super::output::{AtomicFile, check_target};
use crate::error::{Error, Result};
use crate::format::retype::{KeptTypes, retype};
use crate::format::{LittleBitFile, container, lossy};
use crate::gguf::{GgmlType, TensorDesc, Writer};
use crate::source;
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

/// Writes the compressed model `input` as `form`, its kept tensors as `types` says (of a checkpoint that becomes a GGUF,
/// embeddings and head in q6_K unless it says otherwise); `progress` hears of every matrix.
/// Returns the size of the output.
///
/// # Errors
/// An input that is not compressed or damaged, an output that exists or cannot be written.
pub fn repack(
    input: &Path,
    target: &Path,
    form: Form,
    mut types: KeptTypes,
    force: bool,
    mut progress: impl FnMut(&str),
) -> Result<u64> {
    check_target(target, &[input], force)?;
    let file = source::open_compressed(input)?
        .ok_or_else(|| Error::unsupported(input, "not a compressed model; it has no factors"))?;
    if form == Form::Gguf && source::checkpoint::is_compressed(input) {
        types.floats = Some(GgmlType::Q6_K);
    } else if form == Form::Gguf && !container::is_container(input) && types.is_empty() {
        return Err(Error::unsupported(input, ALREADY));
    }
    let file = retype(file, &types)?;
    let out = AtomicFile::create(target, force)?;
    let w = match form {
        Form::Gguf => gguf(&file, out.writer()?, &mut progress),
        Form::Container => container::write(&file, &companions(input)?, out.writer()?, &mut progress),
        Form::Lossy(ty) => lossy::expand(&file, ty, out.writer()?, &mut progress),
    };
    let mut w = w.map_err(|e| at_output(e, target))?;
    w.flush().map_err(|e| Error::io(target, "write", e))?;
    match form {
        Form::Gguf => compare(&file, &LittleBitFile::open(out.temp_path())?, target)?,
        Form::Container => compare(&file, &container::open(out.temp_path())?, target)?,
        Form::Lossy(_) => {}
    }
    out.commit(w)?;
    Ok(std::fs::metadata(target).map_err(|e| Error::io(target, "stat", e))?.len())
}

/// Copies `file` tensor by tensor.
fn gguf(file: &LittleBitFile, w: BufWriter<File>, progress: &mut dyn FnMut(&str)) -> Result<BufWriter<File>> {
    let gguf = &file.gguf;
    let descriptor =
        |t: &crate::gguf::TensorInfo| TensorDesc { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty };
    let descriptors = gguf.tensors.iter().map(descriptor).collect();
    let mut writer = Writer::new(w, &gguf.kv, descriptors, gguf.alignment)?;
    let mut bytes = Vec::new();
    for t in &gguf.tensors {
        gguf.read(t, &mut bytes)?;
        if let Some(base) = t.name.strip_suffix(crate::format::schema::Part::U.suffix()) {
            progress(base);
        }
        writer.write_tensor(&t.name, &bytes)?;
    }
    writer.finish()
}

/// Files that go with the model, for the container.
fn companions(input: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    if source::checkpoint::is_compressed(input) {
        read_all(&source::checkpoint::companions(input)?)
    } else {
        Ok(Vec::new())
    }
}

/// Contents of files by name.
pub(super) fn read_all(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>> {
    paths
        .iter()
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((name, std::fs::read(path).map_err(|e| Error::io(path, "read", e))?))
        })
        .collect()
}

/// Reads an output back before it gets its name: keys and tensors are those of the input.
pub(super) fn compare(input: &LittleBitFile, output: &LittleBitFile, target: &Path) -> Result<()> {
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
