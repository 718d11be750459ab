//! Room on disk for what a run is about to write, before it works for hours.

use crate::error::{Error, Result};
use crate::present::size;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is to be written.
pub(super) struct Need<'a> {
    /// Where: a file or folder, which need not be there yet.
    pub path: &'a Path,
    /// How much.
    pub bytes: u64,
    /// What, for a message.
    pub what: &'static str,
}

/// Refuses if the file systems have no room for all of `needs`, each of which has at least one.
///
/// # Errors
/// [`Error::Io`] that says how much is needed for what, and how much is free.
pub(super) fn check(needs: &[Need]) -> Result<()> {
    check_with(needs, free)
}

/// As [`check`], with the free bytes of a folder by `free`: `None` where the system does not tell.
fn check_with(needs: &[Need], free: impl Fn(&Path) -> Option<u64>) -> Result<()> {
    let placed: Vec<(&Need, PathBuf, Option<u64>)> = needs
        .iter()
        .map(|need| {
            let dir = folder(need.path);
            let device = std::fs::metadata(&dir).ok().map(|m| m.dev());
            (need, dir, device)
        })
        .collect();
    for (need, dir, device) in &placed {
        // What shares a file system shares its room.
        let together: Vec<&Need> = placed.iter().filter(|p| p.2 == *device).map(|p| p.0).collect();
        let wanted: u64 = together.iter().map(|n| n.bytes).sum();
        let Some(free) = free(dir).filter(|free| wanted > *free) else { continue };
        let parts: Vec<String> = together.iter().map(|n| format!("{} {}", n.what, size(n.bytes))).collect();
        let op = format!("make room for {}", parts.join(" and "));
        let what = format!(
            "{} are free, {} are missing; remove something, or write to another disk (OUTPUT, --work-dir)",
            size(free),
            size(wanted - free)
        );
        return Err(Error::io(need.path, op, io::Error::new(io::ErrorKind::StorageFull, what)));
    }
    Ok(())
}

/// The folder that is there and in which `path` will be.
fn folder(path: &Path) -> PathBuf {
    let mut at = path;
    loop {
        if at.is_dir() {
            return at.to_owned();
        }
        match at.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => at = parent,
            _ => return PathBuf::from(if path.is_absolute() { "/" } else { "." }),
        }
    }
}

/// Bytes that this user may still write to the file system of `dir`.
fn free(dir: &Path) -> Option<u64> {
    let name = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    // SAFETY: statvfs is plain data, written by the call.
    let mut found = unsafe { std::mem::zeroed::<libc::statvfs>() };
    // SAFETY: `name` ends with 0, `found` is writable.
    if unsafe { libc::statvfs(name.as_ptr(), &raw mut found) } != 0 || found.f_blocks == 0 {
        return None;
    }
    // Their widths differ between systems.
    #[allow(clippy::unnecessary_cast)]
    let bytes = (found.f_bavail as u64).saturating_mul(found.f_frsize as u64);
    Some(bytes)
}

/// Bytes of the files in `dir`, which an earlier run has written already.
pub(super) fn held(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|f| f.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shares_a_disk_is_added_up() {
        let dir = tempfile::tempdir().unwrap();
        let (out, work) = (dir.path().join("o.gguf"), dir.path().join("not/there/yet"));
        let needs = |a, b| {
            [
                Need { path: &out, bytes: a, what: "the output" },
                Need { path: &work, bytes: b, what: "finished work" },
            ]
        };
        let room = |_: &Path| Some(5 << 20);
        check_with(&needs(3 << 20, 2 << 20), room).unwrap();
        let message = check_with(&needs(3 << 20, 3 << 20), room).unwrap_err().to_string();
        for text in [
            "o.gguf",
            "the output 3.0 MiB and finished work 3.0 MiB",
            "5.0 MiB are free, 1.0 MiB are missing",
        ] {
            assert!(message.contains(text), "{message}");
        }
        // A system that does not tell is not asked twice.
        check_with(&needs(u64::MAX / 4, 1), |_| None).unwrap();
        check(&needs(1, 1)).unwrap();
        let real = check(&needs(1 << 60, 1)).unwrap_err().to_string();
        assert!(real.contains("are missing"), "{real}");
        assert_eq!(folder(&work), dir.path());
        std::fs::write(&out, [0; 7]).unwrap();
        assert_eq!([held(dir.path()), held(&work)], [7, 0]);
    }
}
