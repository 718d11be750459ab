//! Fingerprints of model files, for the provenance that a LittleBit file records.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// SHA-256 of one file, or over the binary digests of several files in order, as lower-case hex.
pub fn sha256<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<String> {
    let digests = paths.into_iter().map(|p| of_file(p.as_ref())).collect::<Result<Vec<_>>>()?;
    let digest = match &digests[..] {
        [one] => *one,
        many => Sha256::digest(many.concat()).into(),
    };
    Ok(digest.iter().map(|b| format!("{b:02x}")).collect())
}

fn of_file(path: &Path) -> Result<[u8; 32]> {
    let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io(path, "read", e))? {
            0 => return Ok(hash.finalize().into()),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_is_its_own_digest_and_several_are_a_digest_of_digests() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "abc").unwrap();
        std::fs::write(&b, "").unwrap();
        // The test vector of FIPS 180-4 for "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256([a.as_path()]).unwrap(), abc);
        let both = sha256([a.as_path(), b.as_path()]).unwrap();
        assert_ne!(both, abc);
        assert_ne!(both, sha256([b.as_path(), a.as_path()]).unwrap());
    }
}
