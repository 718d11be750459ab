//! Output files that exist either whole or not at all.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Files of this process. Its lock is held while one appears or gets its name, so that an interruption finds all of them.
static FILES: Mutex<Files> = Mutex::new(Files { unfinished: Vec::new(), finished: Vec::new() });

struct Files {
    unfinished: Vec<PathBuf>,
    finished: Vec<PathBuf>,
}

fn files() -> MutexGuard<'static, Files> {
    // A thread that panicked with the lock has left whole lists.
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all files under construction, for a process that is about to end without unwinding: from here on none can be
/// begun or finished. Returns the files that were finished before.
pub fn abandon() -> Vec<PathBuf> {
    let mut files = files();
    for path in files.unfinished.drain(..) {
        // It only takes space, and the next run sweeps it away.
        let _ = std::fs::remove_file(path);
    }
    let finished = std::mem::take(&mut files.finished);
    std::mem::forget(files);
    finished
}

/// A file under construction beside its final name; dropped without [`AtomicFile::commit`], it vanishes.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temp: tempfile::NamedTempFile,
    force: bool,
}

/// The folder of `target`.
fn folder(target: &Path) -> &Path {
    target.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a file to write whose folder is missing.
///
/// # Errors
/// [`Error::Io`].
pub fn check_folder(target: &Path) -> Result<()> {
    let dir = folder(target);
    let missing = match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => {
            let what = format!("{} is no folder", dir.display());
            io::Error::new(io::ErrorKind::NotADirectory, what)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let what = format!("its folder {} is missing", dir.display());
            io::Error::new(io::ErrorKind::NotFound, what)
        }
        Err(e) => e,
    };
    Err(Error::io(target, "write", missing))
}

/// Refuses an output that exists (unless `force`), that is one of the inputs, links included, or whose folder is missing.
pub fn check_target(target: &Path, inputs: &[&Path], force: bool) -> Result<()> {
    check_folder(target)?;
    let identity = |p: &Path| std::fs::metadata(p).ok().map(|m| file_id(&m));
    if let Some(id) = identity(target) {
        for input in inputs {
            if identity(input) == Some(id) {
                return Err(Error::usage(format!(
                    "input and output are the same file: {}; choose another output name",
                    target.display()
                )));
            }
        }
        if target.is_dir() {
            return Err(Error::usage(format!(
                "output {} is a directory; name a file in it",
                target.display()
            )));
        }
        if !force {
            return Err(Error::usage(format!(
                "output {} exists; use --force to replace it, or choose another name",
                target.display()
            )));
        }
    }
    Ok(())
}

#[cfg(unix)]
fn file_id(m: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (m.dev(), m.ino())
}

/// Writes `bytes` to `target`, which appears whole; one that exists is replaced with `force` only.
///
/// # Errors
/// [`Error::Io`], [`Error::Usage`] if it exists.
pub fn write_file(target: &Path, force: bool, bytes: &[u8]) -> Result<()> {
    let file = AtomicFile::create(target, force)?;
    let mut writer = file.writer()?;
    writer.write_all(bytes).map_err(|e| Error::io(target, "write", e))?;
    file.commit(writer)
}

impl AtomicFile {
    /// Starts a temporary file in the directory of `target`.
    pub fn create(target: &Path, force: bool) -> Result<Self> {
        let dir = folder(target);
        let name = target
            .file_name()
            .ok_or_else(|| Error::usage(format!("output {} has no file name", target.display())))?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".tmp-");
        sweep(dir, &prefix);
        let mut files = files();
        let temp = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(default_permissions())
            .tempfile_in(dir)
            .map_err(|e| Error::io(target, "create temporary file for output", e))?;
        files.unfinished.push(temp.path().to_owned());
        drop(files);
        // The lock tells others that this file has a living writer; without it nothing but that is lost.
        let _ = temp.as_file().try_lock();
        Ok(Self { target: target.to_owned(), temp, force })
    }

    /// Where the bytes stand before [`AtomicFile::commit`].
    pub fn temp_path(&self) -> &Path {
        self.temp.path()
    }

    /// A buffered writer on the temporary file.
    pub fn writer(&self) -> Result<BufWriter<File>> {
        let f = self.temp.reopen().map_err(|e| Error::io(&self.target, "open temporary file", e))?;
        Ok(BufWriter::with_capacity(1 << 20, f))
    }

    /// Flushes `w` to disk, gives the file its final name and flushes the directory.
    pub fn commit(self, mut w: BufWriter<File>) -> Result<()> {
        let target = self.target;
        w.flush().map_err(|e| Error::io(&target, "write", e))?;
        w.get_ref().sync_all().map_err(|e| Error::io(&target, "flush to disk", e))?;
        drop(w);
        let mut files = files();
        files.unfinished.retain(|p| p != self.temp.path());
        let persisted =
            if self.force { self.temp.persist(&target) } else { self.temp.persist_noclobber(&target) };
        persisted.map_err(|e| Error::io(&target, "rename temporary file to output", e.error))?;
        files.finished.push(target.clone());
        drop(files);
        sync_dir(&target).map_err(|e| Error::io(&target, "flush directory", e))
    }
}

/// Removes temporary files of earlier runs that were killed: nobody holds their lock.
fn sweep(dir: &Path, prefix: &std::ffi::OsStr) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let stale = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        if stale && File::open(entry.path()).is_ok_and(|f| f.try_lock().is_ok()) {
            // It only takes space; the run goes on.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(unix)]
fn default_permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    // As any program creates files; the user's umask applies.
    std::fs::Permissions::from_mode(0o666)
}

fn sync_dir(target: &Path) -> io::Result<()> {
    match File::open(folder(target))?.sync_all() {
        // Some file systems cannot flush a directory; the file itself is safe by then.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_only_on_commit() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.gguf");
        let f = AtomicFile::create(&target, false).unwrap();
        let mut w = f.writer().unwrap();
        w.write_all(b"abc").unwrap();
        assert!(!target.exists());
        f.commit(w).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"abc");
        // A second run does not replace it by accident, not even if it appeared meanwhile.
        let f = AtomicFile::create(&target, false).unwrap();
        let w = f.writer().unwrap();
        assert!(f.commit(w).is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"abc");
        // Dropped without commit: nothing is left.
        drop(AtomicFile::create(&dir.path().join("x"), false).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_run_left_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let stale = dir.path().join(".out.tmp-abc");
        std::fs::write(&stale, "x").unwrap();
        let living = AtomicFile::create(&target, false).unwrap();
        assert!(!stale.exists());
        let other = AtomicFile::create(&target, false).unwrap();
        assert!(living.temp_path().exists() && other.temp_path().exists());
    }

    #[test]
    fn same_file_is_refused_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "x").unwrap();
        std::fs::hard_link(&a, &b).unwrap();
        let message = check_target(&b, &[&a], true).unwrap_err().to_string();
        assert!(message.contains("same file"), "{message}");
        assert!(check_target(&a, &[], false).unwrap_err().to_string().contains("--force"));
        check_target(&a, &[], true).unwrap();
        check_target(&dir.path().join("new"), &[&a], false).unwrap();
    }
}
