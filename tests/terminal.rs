//! The real binary beside a shell: pipes, terminals, signals, completion scripts.

mod support;

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::{BIN, ok, run, s, small_model, untouched};

/// Runs with a stdout that nobody reads.
fn unread(args: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Command::new(BIN).args(args).stdout(writer).stderr(Stdio::piped()).output().expect("the binary starts")
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let path = |name: &str| dir.path().join(name);
    let (out, other, json) = (path("o.gguf"), path("p.gguf"), path("q.gguf"));
    let rank = ["--rank", "32", "-q"];
    ok(&[&[s(&input), s(&out)], &rank[..]].concat());
    for args in [
        &["info", s(&out)][..],
        &["info", s(&out), "--json"],
        &["verify", s(&out)],
        &["verify", s(&out), "--against", s(&input), "-q"],
        &["diff", s(&out), s(&out)],
        &["completions", "zsh"],
        &["man"],
        &["--help"],
        &["--version"],
        &[s(&input), "--dry-run", "--rank", "32"],
        &[s(&input), s(&other), "--rank", "32", "-q"],
        &[s(&input), s(&json), "--rank", "32", "--json"],
    ] {
        let ended = unread(args);
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), &*said), (Some(0), ""), "{args:?}");
    }
    // The work is done all the same.
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    assert!(bytes(&other) == bytes(&out) && bytes(&json) == bytes(&out));
    // What was found is in the exit code even if nobody reads it.
    assert_eq!(unread(&["diff", s(&input), s(&out)]).status.code(), Some(4));
    let stranger = tempfile::tempdir().unwrap();
    let stranger = (small_model(stranger.path(), |_, v| v.iter_mut().for_each(|x| *x = -*x)), stranger);
    let ended = unread(&["verify", s(&out), "--against", s(&stranger.0), "-q"]);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(3), "{said}");
    assert!(said.contains("rejected: "), "{said}");
}

/// Everything that a run writes to a terminal, as its stdout and stderr.
fn on_a_terminal(args: &[&str], environment: &[(&str, &str)]) -> String {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: both numbers are writable; name, settings and size are not asked for.
    let opened = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(opened, 0, "no terminal");
    // SAFETY: openpty has made both, and nobody else has them.
    let (mut ours, theirs) = unsafe { (File::from_raw_fd(ours), File::from_raw_fd(theirs)) };
    let mut command = Command::new(BIN);
    command.args(args).env_remove("NO_COLOR").env("TERM", "xterm-256color").envs(environment.iter().copied());
    let mut child = command.stderr(theirs.try_clone().unwrap()).stdout(theirs).spawn().unwrap();
    // The command holds its ends of the terminal.
    drop(command);
    let mut shown = Vec::new();
    let mut part = [0; 4096];
    // Linux ends a terminal without writers by an error.
    while let Ok(n) = ours.read(&mut part) {
        if n == 0 {
            break;
        }
        shown.extend_from_slice(&part[..n]);
    }
    child.wait().unwrap();
    String::from_utf8_lossy(&shown).into_owned()
}

/// Whether there are colours or other attributes: ESC [ ... m.
fn styled(text: &str) -> bool {
    text.split("\x1b[")
        .skip(1)
        .any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
}

#[test]
fn escape_sequences_are_for_terminals() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let path = |name: &str| dir.path().join(name);
    let out = path("o.gguf");
    let convert = [s(&input), s(&out), "--rank", "32", "--force"];
    for args in [&["--help"][..], &["info", s(&input)], &["--bqw"], &convert, &["info", s(&out)]] {
        let ended = run(args);
        assert!(!ended.stdout.contains(&0x1b) && !ended.stderr.contains(&0x1b), "{args:?}");
    }
    // On a terminal help and usage errors have colours, a run has a bar; NO_COLOR leaves the bar.
    for args in [&["--help"][..], &["--bqw"]] {
        assert!(styled(&on_a_terminal(args, &[])), "{args:?}");
        let plain = on_a_terminal(args, &[("NO_COLOR", "1")]);
        assert!(!plain.is_empty() && !plain.contains('\x1b'), "{args:?}: {plain:?}");
    }
    let shown = on_a_terminal(&convert, &[("NO_COLOR", "1")]);
    assert!(shown.contains("blk.0.ffn_up") && !styled(&shown), "{shown:?}");
    let quiet = on_a_terminal(&[&convert[..], &["-q"]].concat(), &[]);
    assert!(!quiet.contains('\x1b'), "{quiet:?}");
}

#[test]
fn every_shell_has_a_completion_script() {
    for (shell, begin) in [
        ("bash", "complete -F _littlebit__convert "),
        ("zsh", "#compdef littlebit-convert"),
        ("fish", "complete -c littlebit-convert"),
        ("elvish", "edit:completion:arg-completer[littlebit-convert]"),
        ("powershell", "Register-ArgumentCompleter -Native -CommandName 'littlebit-convert'"),
    ] {
        let script = ok(&["completions", shell]);
        assert!(script.contains(begin), "{shell}: {script:.300}");
        for name in ["max-kld", "calibration", "verify", "dry-run"] {
            assert!(script.contains(name), "{shell}: {name}");
        }
    }
}

/// The first signal decides; one that comes right after it neither changes the code nor holds up the end.
#[test]
fn a_second_signal_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_model(dir.path(), untouched);
    let (out, work) = (dir.path().join("o.gguf"), dir.path().join("o.gguf.work"));
    let args = [s(&input), s(&out), "--rank", "32", "--iterations", "1500", "--threads", "1", "-q"];
    for (first, second, code) in [
        (libc::SIGINT, libc::SIGINT, 130),
        (libc::SIGTERM, libc::SIGTERM, 143),
        (libc::SIGINT, libc::SIGTERM, 130),
    ] {
        let mut command = Command::new(BIN);
        command.args(args).stderr(Stdio::piped());
        // A test run in the background has its SIGINT ignored, which the program would inherit and obey.
        // SAFETY: `signal` may be called between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::signal(libc::SIGINT, libc::SIG_DFL) {
                libc::SIG_ERR => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        while !work.join("run.json").exists() {
            assert!(child.try_wait().unwrap().is_none(), "it ended before its work folder was there");
            assert!(begun.elapsed() < Duration::from_secs(60), "no work folder");
            std::thread::sleep(Duration::from_millis(2));
        }
        for signal in [first, second] {
            // SAFETY: the child is ours and was not waited for, so its number is still its own.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        }
        let sent = Instant::now();
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{said}");
        assert_eq!(said.matches("interrupted; ").count(), 1, "{said}");
        assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
        assert!(!out.exists());
        // The next run is to make its own, which tells that it listens to signals.
        std::fs::remove_dir_all(&work).unwrap();
    }
}
