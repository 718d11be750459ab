//! What was measured of the source model, in a file of its own: conversions to other sizes need not measure it again.

use super::journal::{self, Fingerprint};
use super::output::AtomicFile;
use crate::calibrate::sensitivity::Sensitivity;
use crate::error::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Of the file's content.
const VERSION: &str = "1";

/// What the measurements depend on: digests of the source and of the calibration files, how many windows the
/// source wrote, how many windows serve, the seed.
pub(super) fn fingerprint(
    source: &str,
    calibration: &str,
    [generated, windows]: [usize; 2],
    seed: u64,
) -> Fingerprint {
    [
        ("statistics version", VERSION.to_owned()),
        ("source sha256", source.to_owned()),
        ("calibration sha256", calibration.to_owned()),
        ("generated windows", generated.to_string()),
        ("windows for sensitivities", windows.to_string()),
        ("seed", seed.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The sensitivities in `path`, `None` if there is no such file.
///
/// # Errors
/// [`Error::Malformed`] if the file is damaged or another one, [`Error::Usage`] if it belongs to other inputs.
pub(super) fn load(path: &Path, wanted: &Fingerprint) -> Result<Option<Vec<Sensitivity>>> {
    let Some(bytes) = journal::read(path)? else { return Ok(None) };
    let Some((found, all)) = journal::decode::<(Fingerprint, Vec<Sensitivity>)>(&bytes) else {
        return Err(Error::malformed(path, 0, "no statistics of a source model, or damaged ones"));
    };
    match journal::difference(&found, wanted) {
        None => Ok(Some(all)),
        Some(what) => Err(Error::usage(format!(
            "the statistics in {} are of another run: {what}. Name another file, or remove it to measure anew",
            path.display()
        ))),
    }
}

/// Writes them to `path`, which does not exist yet.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn save(path: &Path, fingerprint: &Fingerprint, all: &[Sensitivity]) -> Result<()> {
    let parts = journal::encode(path, &(fingerprint, all))?;
    let file = AtomicFile::create(path, false)?;
    let mut writer = file.writer()?;
    parts.iter().try_for_each(|p| writer.write_all(p)).map_err(|e| Error::io(path, "write", e))?;
    file.commit(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_come_back_for_the_same_inputs_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let own = fingerprint("s", "c", [0, 4], 0);
        assert!(load(&path, &own).unwrap().is_none());
        let one = Sensitivity { name: "w".to_owned(), spectrum: vec![2.0, 1.0], output: vec![0.5] };
        save(&path, &own, std::slice::from_ref(&one)).unwrap();
        let back = load(&path, &own).unwrap().unwrap();
        assert_eq!(
            (back[0].name.as_str(), &back[0].spectrum, &back[0].output),
            ("w", &one.spectrum, &one.output)
        );
        let message = load(&path, &fingerprint("s", "c", [0, 6], 0)).unwrap_err().to_string();
        assert!(message.contains("windows for sensitivities was '4', is '6'"), "{message}");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let message = load(&path, &own).unwrap_err().to_string();
        assert!(message.contains("damaged"), "{message}");
    }
}
