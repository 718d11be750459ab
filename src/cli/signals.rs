//! Ctrl-C and SIGTERM: the run ends at once, half-written files go, finished work stays.

use crate::job::output;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::exit;

/// Has SIGINT and SIGTERM end the process with 128 plus the signal's number, and tell where finished work is kept:
/// records in `work_dir` are whole or absent at any time; a command without one has nothing to keep. To be called before other threads are started, because they
/// have to inherit the mask.
pub fn end_cleanly(work_dir: Option<PathBuf>) {
    // SAFETY: sigset_t is plain data, and sigemptyset initialises it.
    let mut set = unsafe { std::mem::zeroed::<libc::sigset_t>() };
    // SAFETY: `set` is a valid set; signal numbers are libc's.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // A parent that had the signal ignored (nohup, a shell's background job) is obeyed.
        if !ignored(signal) {
            // SAFETY: as above.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
    }
    // SAFETY: `set` is initialised; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: `set` is initialised and blocked in all threads, `signal` is writable.
        if unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {
            return;
        }
        let finished = output::abandon();
        let what = match work_dir.filter(|dir| holds_records(dir, 1)) {
            Some(dir) => {
                format!("finished work is kept in {}; the same command goes on from there", dir.display())
            }
            None if finished.is_empty() => "nothing was written".to_owned(),
            None => {
                let names: Vec<_> = finished.iter().map(|p| p.display().to_string()).collect();
                format!("{} was complete before", names.join(", "))
            }
        };
        let _ = writeln!(io::stderr(), "\nlittlebit-convert: interrupted; {what}");
        exit(128 + signal);
    });
}

/// Has a limit on the size of files (`ulimit -f`) come back as an error of the write instead of ending the process.
pub fn report_full_files() {
    // SAFETY: ignoring a signal has no preconditions; if it is refused, the process ends as it would have.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Whether there are records in `dir`, or `depth` folders below it: a search has a folder for each size.
fn holds_records(dir: &Path, depth: usize) -> bool {
    std::fs::read_dir(dir).into_iter().flatten().flatten().any(|file| {
        let path = file.path();
        path.extension().is_some_and(|e| e == "rec")
            || (depth > 0 && path.is_dir() && holds_records(&path, depth - 1))
    })
}

/// Whether the process was started with `signal` ignored.
fn ignored(signal: i32) -> bool {
    // SAFETY: sigaction is plain data, written by the call; no new action is given.
    let mut action = unsafe { std::mem::zeroed::<libc::sigaction>() };
    // SAFETY: `action` is writable, the null pointer leaves the action as it is.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}
