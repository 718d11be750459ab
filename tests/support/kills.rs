//! A command that is killed with SIGKILL at random moments and repeated, until its output is there.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Moments between 0 and 1, the same in every run of a test.
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What happened.
pub struct Outcome {
    /// Kills by the stage that was last heard of.
    pub stages: BTreeMap<String, usize>,
    /// Times that the output was finished, each with the right bytes.
    pub finished: usize,
}

/// Runs `command` with `--json`, kills it `kills` times at moments up to `whole`, the time of a run that is left alone, and
/// lets it finish. Whenever `out` is there it must be `straight`; then it is removed and all begins again.
pub fn survive(
    command: impl Fn() -> Command,
    out: &Path,
    straight: &[u8],
    whole: Duration,
    kills: usize,
) -> Outcome {
    let mut moments = Moments(7);
    let mut outcome = Outcome { stages: BTreeMap::new(), finished: 0 };
    let events = out.with_extension("events");
    let mut killed = 0;
    loop {
        let last = killed >= kills;
        let log = std::fs::File::create(&events).unwrap();
        let mut child =
            command().arg("--json").stdout(log).stderr(Stdio::piped()).spawn().expect("the binary starts");
        // Early moments more often: what is there from before shortens a run.
        let until = Instant::now() + whole.mul_f64(moments.next().powi(2));
        let step = Duration::from_millis(1).max(whole / 2000);
        while (last || Instant::now() < until) && child.try_wait().unwrap().is_none() {
            std::thread::sleep(step);
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            killed += 1;
            let ended = child.wait_with_output().unwrap();
            // It may have ended by itself in this moment.
            if ended.status.code().is_none() {
                *outcome.stages.entry(stage(&events)).or_default() += 1;
            }
        } else {
            let ended = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(ended.status.success(), "after {killed} kills: {said}");
            assert!(out.exists(), "no output, and nothing said: {said}");
        }
        if out.exists() {
            assert!(std::fs::read(out).unwrap() == straight, "other bytes after {killed} kills");
            outcome.finished += 1;
            if last {
                std::fs::remove_file(&events).unwrap();
                return outcome;
            }
            std::fs::remove_file(out).unwrap();
        }
    }
}

/// The stage of the last event that was written whole.
fn stage(events: &Path) -> String {
    let text = std::fs::read_to_string(events).unwrap();
    let of = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        match event["event"].as_str()? {
            "stage" => Some(event["stage"].as_str()?.to_owned()),
            "block" => Some("factorize".to_owned()),
            "matrix" => Some("write".to_owned()),
            _ => None,
        }
    };
    text.lines().rev().find_map(of).unwrap_or_else(|| "start".to_owned())
}
