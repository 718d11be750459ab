//! What was measured of the source model, in a file of its own: conversions to other sizes need not measure it again.

use super::journal::{self, Fingerprint};
use super::output;
use crate::calibrate::sensitivity::Sensitivity;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Of the file's content.
const VERSION: &str = "2";

/// What a file of statistics holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    /// Windows that the source has written.
    pub generated: Vec<Vec<u32>>,
    pub sensitivities: Vec<Sensitivity>,
}

/// What of a run's fingerprint the measurements depend on.
const SHARED: [&str; 4] = ["source sha256", "calibration sha256", "generated windows", "seed"];

/// What the measurements of `run` over `windows` windows depend on.
pub(super) fn fingerprint(run: &Fingerprint, windows: usize) -> Fingerprint {
    // Every calibrated run has them all.
    let mut all: Fingerprint = SHARED.map(|key| (key.to_owned(), run[key].clone())).into();
    all.insert("statistics version".to_owned(), VERSION.to_owned());
    all.insert("windows for sensitivities".to_owned(), windows.to_string());
    all
}

/// What is in `path`, `None` if there is no such file.
///
/// # Errors
/// [`Error::Malformed`] if the file is damaged or another one, [`Error::Usage`] if it belongs to other inputs.
pub(super) fn load(path: &Path, wanted: &Fingerprint) -> Result<Option<Measured>> {
    let Some(bytes) = journal::read(path)? else { return Ok(None) };
    let Some((found, measured)) = journal::decode::<(Fingerprint, Measured)>(&bytes) else {
        return Err(Error::malformed(path, 0, "no statistics of a source model, or damaged ones"));
    };
    match journal::difference(&found, wanted) {
        None => Ok(Some(measured)),
        Some(what) => Err(Error::usage(format!(
            "the statistics in {} are of another run: {what}. Name another file, or remove it to measure anew",
            path.display()
        ))),
    }
}

/// Writes it to `path`, which does not exist yet.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn save(path: &Path, fingerprint: &Fingerprint, measured: &Measured) -> Result<()> {
    let parts = journal::encode(path, &(fingerprint, measured))?;
    output::write_file(path, false, &parts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_come_back_for_the_same_inputs_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let run = |seed: &str| SHARED.map(|key| (key.to_owned(), seed.to_owned())).into();
        let own = fingerprint(&run("0"), 4);
        assert!(load(&path, &own).unwrap().is_none());
        let one = Sensitivity { name: "w".to_owned(), spectrum: vec![2.0, 1.0], output: vec![0.5] };
        let measured = Measured { generated: vec![vec![3, 5]], sensitivities: vec![one.clone()] };
        save(&path, &own, &measured).unwrap();
        let back = load(&path, &own).unwrap().unwrap();
        assert_eq!(back.generated, measured.generated);
        let back = &back.sensitivities[0];
        assert_eq!((back.name.as_str(), &back.spectrum, &back.output), ("w", &one.spectrum, &one.output));
        let message = load(&path, &fingerprint(&run("0"), 6)).unwrap_err().to_string();
        assert!(message.contains("windows for sensitivities was '4', is '6'"), "{message}");
        let message = load(&path, &fingerprint(&run("1"), 4)).unwrap_err().to_string();
        assert!(message.contains("calibration sha256 was '0', is '1'"), "{message}");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let message = load(&path, &own).unwrap_err().to_string();
        assert!(message.contains("damaged"), "{message}");
    }
}
