//! Finished pieces of a long run, kept until the output exists, so that a run that was cut off goes on where it was.
//!
//! A folder beside the output holds `run.json`, the fingerprint of inputs and options, and one file for each record:
//! magic, length and SHA-256 of the payload, payload. Records appear whole (temporary file, flush, rename); one that
//! fails its checksum counts as absent and is made again.

use crate::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"LBREC\0\0\x01";
/// Magic, length, checksum.
const HEADER: usize = 8 + 8 + 32;
const FINGERPRINT: &str = "run.json";
const LOCK: &str = "lock";
/// Folder of what a run keeps beside its records.
const FILES: &str = "files";
/// How the names of files under construction begin.
const TEMPORARY: &str = ".tmp";
const RECORD: &str = "rec";

/// What results depend on, by name.
pub type Fingerprint = BTreeMap<String, String>;

/// An open journal; other runs are locked out while it lives.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    lock: File,
    fingerprint: Fingerprint,
}

impl Journal {
    /// Opens the journal in `dir`, or begins one there, where nothing may be but what an earlier run left.
    ///
    /// # Errors
    /// [`Error::Usage`] if another run is at work on it, if it belongs to a run with another fingerprint (the
    /// message names the field), or if the folder holds something else.
    pub fn open(dir: &Path, fingerprint: &Fingerprint) -> Result<Self> {
        ensure_folder(dir)?;
        check_ours(dir)?;
        let path = dir.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|e| Error::io(&path, "create", e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::usage(format!(
                    "another run is at work in {}; wait for it, or give this one another --work-dir",
                    dir.display()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, "lock", e)),
        }
        let journal = Self { dir: dir.to_owned(), lock, fingerprint: fingerprint.clone() };
        let path = dir.join(FINGERPRINT);
        match read(&path)? {
            Some(bytes) => {
                let found: Fingerprint = serde_json::from_slice(&bytes)
                    .map_err(|e| Error::malformed(&path, 0, format!("no fingerprint of a run: {e}")))?;
                if let Some(what) = difference(&found, fingerprint) {
                    return Err(Error::usage(format!(
                        "{} holds an unfinished run that differs from this one: {what}. Repeat that command to \
                         finish it, remove the folder to start anew, or give this run another --work-dir",
                        dir.display()
                    )));
                }
            }
            None => {
                let text = serde_json::to_vec_pretty(fingerprint).expect("strings are JSON");
                journal.place(&path, "the run's fingerprint", &[&text])?;
            }
        }
        Ok(journal)
    }

    /// Of the run.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.{RECORD}"))
    }

    /// The record `name`, if it is there and whole.
    ///
    /// # Errors
    /// [`Error::Io`] if it is there and cannot be read.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        Ok(read(&self.path(name))?.and_then(|bytes| decode(&bytes)))
    }

    /// Writes the record `name`, in place of an older one. `what` says in an error what it is.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put<T: Serialize>(&self, name: &str, what: &str, value: &T) -> Result<()> {
        let path = self.path(name);
        let [header, payload] = encode(&path, value)?;
        self.place(&path, what, &[&header, &payload])
    }

    fn place(&self, path: &Path, what: &str, parts: &[&[u8]]) -> Result<()> {
        let run = || -> std::io::Result<()> {
            let mut temp = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.dir)?;
            parts.iter().try_for_each(|p| temp.write_all(p))?;
            temp.as_file().sync_all()?;
            temp.persist(path).map_err(|e| e.error)?;
            File::open(&self.dir)?.sync_all()
        };
        run().map_err(|e| Error::io(path, format!("write {what}"), e))
    }

    /// Whether it holds anything that another run could use.
    pub fn holds_work(&self) -> bool {
        let records = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        records.filter(|f| f.path().extension().is_some_and(|e| e == RECORD)).count() > 0
    }

    /// A folder for files that go with the journal.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn files(&self) -> Result<PathBuf> {
        let dir = self.dir.join(FILES);
        ensure_folder(&dir)?;
        Ok(dir)
    }

    /// Removes the journal, and its folder if nothing else has come into it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(self) -> Result<()> {
        let Self { dir, lock, .. } = self;
        let removed = || -> std::io::Result<()> {
            let mut last = Vec::new();
            for entry in std::fs::read_dir(&dir)? {
                let entry = entry?;
                match entry.file_name().to_str() {
                    // A run that ends here finds its own fingerprint, or nothing but the lock.
                    Some(FINGERPRINT) => last.insert(0, entry.path()),
                    Some(LOCK) => last.push(entry.path()),
                    Some(FILES) => std::fs::remove_dir_all(entry.path())?,
                    Some(name) if is_record(name) => std::fs::remove_file(entry.path())?,
                    _ => {}
                }
            }
            last.iter().try_for_each(std::fs::remove_file)
        };
        removed().map_err(|e| Error::io(&dir, "remove finished work", e))?;
        drop(lock);
        // It stays where it is a disk of its own or holds what somebody put there.
        let _ = std::fs::remove_dir(&dir);
        Ok(())
    }
}

/// Makes a work folder, or one in it, unless it is there.
fn ensure_folder(dir: &Path) -> Result<()> {
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::io(dir, "create work folder", e))
        }
        _ => Ok(()),
    }
}

/// Whether a file of this name in a work folder is a record, finished or not.
fn is_record(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == RECORD) || name.starts_with(TEMPORARY)
}

/// Refuses a folder with files that no run has put there: they would be lost among its own, or overwritten.
fn check_ours(dir: &Path) -> Result<()> {
    let at = |e| Error::io(dir, "list work folder", e);
    let mut other = None;
    for entry in std::fs::read_dir(dir).map_err(at)? {
        let name = entry.map_err(at)?.file_name();
        match name.to_str() {
            Some(FINGERPRINT) => return Ok(()),
            // Of a run that ended before it had written its fingerprint.
            Some(name) if name == LOCK || name.starts_with(TEMPORARY) => {}
            _ => other = Some(name),
        }
    }
    match other {
        None => Ok(()),
        Some(name) => Err(Error::usage(format!(
            "{} holds '{}' and no unfinished run; work goes into a folder of its own, which need not exist: --work-dir {}",
            dir.display(),
            name.display(),
            dir.join("littlebit.work").display()
        ))),
    }
}

/// Bytes of a file, `None` if there is none.
///
/// # Errors
/// [`Error::Io`] if it is there and cannot be read.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "read", e)),
    }
}

/// Header and payload of a record.
///
/// # Errors
/// [`Error::Io`] on `path` if the value cannot be encoded.
pub(super) fn encode<T: Serialize>(path: &Path, value: &T) -> Result<[Vec<u8>; 2]> {
    let payload =
        postcard::to_stdvec(value).map_err(|e| Error::io(path, "encode", std::io::Error::other(e)))?;
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    header.extend_from_slice(&Sha256::digest(&payload));
    Ok([header, payload])
}

/// The value of a record that is whole.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    payload(bytes).and_then(|p| postcard::from_bytes(p).ok())
}

/// Payload of a whole record.
fn payload(bytes: &[u8]) -> Option<&[u8]> {
    let (header, payload) = bytes.split_at_checked(HEADER)?;
    let whole = header.starts_with(MAGIC)
        && header[8..16] == (payload.len() as u64).to_le_bytes()
        && header[16..] == *Sha256::digest(payload);
    whole.then_some(payload)
}

/// The first field in which two runs differ.
pub(super) fn difference(old: &Fingerprint, new: &Fingerprint) -> Option<String> {
    let keys = old.keys().chain(new.keys());
    let text = |f: &Fingerprint, key: &String| f.get(key).map_or("absent".to_owned(), |v| format!("'{v}'"));
    let key = keys.min_by_key(|k| (old.get(*k) == new.get(*k), (*k).clone()))?;
    (old.get(key) != new.get(key)).then(|| format!("{key} was {}, is {}", text(old, key), text(new, key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(bpw: &str) -> Fingerprint {
        [("bpw", bpw), ("tool", "x")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn records_come_back_until_they_are_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        let value = (7u32, vec![1.5f32, -2.0], "x".to_owned());
        let journal = Journal::open(&work, &fingerprint("1")).unwrap();
        assert_eq!(journal.get::<(u32, Vec<f32>, String)>("a").unwrap(), None);
        journal.put("a", "it", &(0u32, Vec::<f32>::new(), String::new())).unwrap();
        journal.put("a", "it", &value).unwrap();
        drop(journal);
        let journal = Journal::open(&work, &fingerprint("1")).unwrap();
        assert_eq!(journal.get("a").unwrap(), Some(value));
        let whole = std::fs::read(work.join("a.rec")).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(work.join("a.rec"), &bytes).unwrap();
            assert_eq!(journal.get::<(u32, Vec<f32>, String)>("a").unwrap(), None, "byte {at}");
            std::fs::write(work.join("a.rec"), &whole[..at]).unwrap();
            assert_eq!(journal.get::<(u32, Vec<f32>, String)>("a").unwrap(), None, "cut at {at}");
        }
        journal.remove().unwrap();
        assert!(!work.exists());
    }

    #[test]
    fn what_others_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        let message = Journal::open(dir.path(), &fingerprint("1")).unwrap_err().to_string();
        assert!(message.contains("holds 'thesis.txt'") && message.contains("--work-dir"), "{message}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        // Or while the run is at work.
        let work = dir.path().join("work");
        let journal = Journal::open(&work, &fingerprint("1")).unwrap();
        journal.put("a", "it", &1u32).unwrap();
        std::fs::write(journal.files().unwrap().join("trial"), "y").unwrap();
        std::fs::write(work.join("out.gguf"), "z").unwrap();
        std::fs::create_dir(work.join("models")).unwrap();
        journal.remove().unwrap();
        let left: std::collections::BTreeSet<_> =
            std::fs::read_dir(&work).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(left.into_iter().collect::<Vec<_>>(), ["models", "out.gguf"]);
    }

    #[test]
    fn a_run_that_was_killed_at_once_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOCK), "").unwrap();
        std::fs::write(dir.path().join(".tmpAbC"), "{").unwrap();
        let journal = Journal::open(dir.path(), &fingerprint("1")).unwrap();
        journal.remove().unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn other_runs_are_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), &fingerprint("1")).unwrap();
        let message = Journal::open(dir.path(), &fingerprint("1")).unwrap_err().to_string();
        assert!(message.contains("another run is at work"), "{message}");
        drop(journal);
        let message = Journal::open(dir.path(), &fingerprint("0.8")).unwrap_err().to_string();
        assert!(message.contains("bpw was '1', is '0.8'"), "{message}");
    }
}
