//! The smallest size that passes its gates.
//!
//! Every size that is tried is a whole conversion; what was measured of the source is shared by all of them. The search is
//! coarse, because quality falls smoothly with the bits and every trial takes as long as a conversion.

use super::convert::{Options, convert, rejected};
use super::fingerprint::fingerprint;
use super::header::method_text;
use super::journal::Journal;
use super::layout::Budget;
use super::output::{AtomicFile, check_target};
use super::report::{Evaluation, Event, Report};
use super::tuned::Calibration;
use crate::error::{Error, Result};
use crate::plan::Target;
use crate::source::TensorSource;
use std::path::Path;

/// The search ends when the size that passes is at most this many times one that does not.
const RESOLUTION: f64 = 1.1;

/// Bits per weight between which to search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Lowest.
    pub low: f64,
    /// Highest.
    pub high: f64,
}

impl std::str::FromStr for Range {
    type Err = String;

    /// `LOW..HIGH`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |t: &str| t.parse::<f64>().ok().filter(|x| *x > 0.0 && x.is_finite());
        let ends = text.split_once("..").and_then(|(low, high)| Some((number(low)?, number(high)?)));
        match ends {
            Some((low, high)) if low < high => Ok(Self { low, high }),
            _ => Err(format!("'{text}' is not LOW..HIGH, bits per weight such as 0.55..2.0")),
        }
    }
}

/// Which sizes to try, and what came of them.
#[derive(Debug)]
struct Search {
    range: Range,
    /// Smallest that passed.
    passed: Option<f64>,
    /// Largest that did not.
    failed: Option<f64>,
}

impl Search {
    /// The next size, `None` if the answer is known.
    fn next(&self) -> Option<f64> {
        match (self.passed, self.failed) {
            // If the largest does not pass, none does.
            (None, None) => Some(self.range.high),
            (None, Some(_)) => None,
            (Some(_), None) => Some(self.range.low).filter(|low| Some(*low) != self.passed),
            (Some(passed), Some(failed)) if passed > RESOLUTION * failed => {
                // Two decimals say what a user would have typed.
                let middle = (100.0 * (passed * failed).sqrt()).round() / 100.0;
                (middle < passed && middle > failed).then_some(middle)
            }
            _ => None,
        }
    }

    fn judge(&mut self, bpw: f64, passed: bool) {
        *(if passed { &mut self.passed } else { &mut self.failed }) = Some(bpw);
    }
}

/// Converts `source` into `target` at the smallest number of bits in `range` that passes the gates of `options`. If none
/// does, the largest is kept under [`rejected`]'s name, with its failures.
///
/// # Errors
/// As [`convert`]; no gates or no evaluation text.
pub fn smallest(
    source: &dyn TensorSource,
    target: &Path,
    options: &Options,
    range: Range,
    mut progress: impl FnMut(Event),
) -> Result<Report> {
    let Some(calibration) = options.calibration.as_ref().filter(|_| options.gates.any()) else {
        return Err(Error::usage(
            "--auto-bpw needs what to search for: --eval TEXT with --max-ppl-ratio, --max-kld or --min-same-top, or \
             --max-repetition, --max-entropy-change or --max-surprise",
        ));
    };
    for path in [target, &rejected(target)] {
        check_target(path, &[source.path()], options.force)?;
    }
    let work = options.work_dir(target);
    let mut run = fingerprint(&source.sha256()?, &at(options, range.high))?;
    // What trials depend on and finished matrices do not.
    let types = [options.token_embedding_type, options.output_tensor_type, options.lossy];
    let search = format!("{} to {}, {:?}, {types:?}", range.low, range.high, options.gates);
    run.insert("search".to_owned(), format!("{search}, {}", method_text(options)));
    let journal = Journal::open(&work, &run)?;
    let search = match trials(source, &work, options, calibration, range, &journal, &mut progress) {
        Ok(search) => search,
        Err(e) => {
            // What the system refused can be repeated, and finished trials are worth keeping.
            if !matches!(e, Error::Io { .. }) && !journal.holds_work() {
                let _ = journal.remove();
            }
            return Err(e);
        }
    };
    let (chosen, out) = match search.passed {
        Some(bpw) => (bpw, target.to_owned()),
        None => (range.high, rejected(target)),
    };
    let json: Option<String> = journal.get(&record(chosen))?;
    let mut report = parse(&json.unwrap_or_default(), &work)?;
    report.failures = failures(&report, options);
    report.output = out.clone();
    copy(&journal.files()?.join(trial(chosen)), &out, options.force)?;
    journal.remove()?;
    Ok(report)
}

/// Tries sizes until the answer is known; what was tried before is taken from the journal.
fn trials(
    source: &dyn TensorSource,
    work: &Path,
    options: &Options,
    calibration: &Calibration,
    range: Range,
    journal: &Journal,
    progress: &mut dyn FnMut(Event),
) -> Result<Search> {
    let files = journal.files()?;
    let mut search = Search { range, passed: None, failed: None };
    while let Some(bpw) = search.next() {
        let report = match journal.get::<String>(&record(bpw))? {
            Some(json) => parse(&json, work)?,
            None => {
                progress(Event::Note(&format!("trying {bpw} bits per weight")));
                let mut options = at(options, bpw);
                // Judged here, so that the file keeps its name.
                options.gates = Default::default();
                options.force = true;
                options.work_dir = Some(files.join(format!("{bpw}.work")));
                let mut calibration = calibration.clone();
                calibration.statistics.get_or_insert_with(|| files.join("statistics"));
                options.calibration = Some(calibration);
                let report = convert(source, &files.join(trial(bpw)), &options, &mut *progress)?;
                let json = serde_json::to_string(&report).expect("a report is plain data");
                journal.put(&record(bpw), "a trial's report", &json)?;
                report
            }
        };
        let failures = failures(&report, options);
        let verdict = if failures.is_empty() { "passed".to_owned() } else { failures.join("; ") };
        progress(Event::Note(&format!("{bpw} bits per weight: {verdict}")));
        search.judge(bpw, failures.is_empty());
    }
    Ok(search)
}

/// The options at one size.
fn at(options: &Options, bpw: f64) -> Options {
    Options { budget: Budget::Target(Target::Bpw(bpw)), ..options.clone() }
}

/// Name of the file of one trial.
fn trial(bpw: f64) -> String {
    format!("{bpw}.trial")
}

/// Name of its record.
fn record(bpw: f64) -> String {
    format!("trial-{bpw}")
}

fn parse(json: &str, work: &Path) -> Result<Report> {
    serde_json::from_str(json).map_err(|e| {
        Error::unsupported(work, format!("a trial's report cannot be read ({e}); remove the folder"))
    })
}

fn failures(report: &Report, options: &Options) -> Vec<String> {
    Evaluation::failures(&options.gates, &report.evaluations, report.coherence.as_ref())
}

/// Copies a trial to its place, which may be on another disk.
fn copy(from: &Path, to: &Path, force: bool) -> Result<()> {
    let mut source = std::fs::File::open(from).map_err(|e| Error::io(from, "open", e))?;
    let file = AtomicFile::create(to, force)?;
    let mut writer = file.writer()?;
    std::io::copy(&mut source, &mut writer).map_err(|e| Error::io(to, "write", e))?;
    file.commit(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes that are tried if those from `threshold` on pass.
    fn tried(low: f64, high: f64, threshold: f64) -> (Vec<f64>, Option<f64>) {
        let mut search = Search { range: Range { low, high }, passed: None, failed: None };
        let mut all = Vec::new();
        while let Some(bpw) = search.next() {
            all.push(bpw);
            assert!(all.len() < 20, "{all:?}");
            search.judge(bpw, bpw >= threshold);
        }
        (all, search.passed)
    }

    #[test]
    fn the_ends_come_first_and_the_middle_in_between() {
        assert_eq!(tried(0.5, 2.0, 3.0), (vec![2.0], None));
        assert_eq!(tried(0.5, 2.0, 0.3), (vec![2.0, 0.5], Some(0.5)));
        let (all, found) = tried(0.5, 2.0, 1.3);
        assert_eq!(all[..3], [2.0, 0.5, 1.0]);
        let found = found.unwrap();
        assert!((1.3..=1.3 * RESOLUTION).contains(&found), "{all:?}");
    }

    #[test]
    fn close_ends_do_not_go_on_forever() {
        let (all, found) = tried(1.0, 1.01, 1.005);
        assert_eq!((all, found), (vec![1.01, 1.0], Some(1.01)));
        for i in 1..200 {
            let threshold = f64::from(i) / 50.0;
            let (_, found) = tried(0.1, 4.0, threshold);
            assert!(
                found.unwrap() >= threshold && found.unwrap() <= (threshold * RESOLUTION).max(0.1) + 0.02
            );
        }
    }

    #[test]
    fn ranges_are_parsed() {
        assert_eq!("0.55..2".parse(), Ok(Range { low: 0.55, high: 2.0 }));
        for bad in ["1", "2..1", "1..1", "..2", "0..1", "nan..2", "1..inf"] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
    }
}
