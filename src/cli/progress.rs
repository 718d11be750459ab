//! What the user sees while a conversion runs: a line per matrix and a bar with ETA on a terminal, plain lines
//! elsewhere, or JSON events on stdout.

use super::summary::above_budget;
use crate::job::Event;
use crate::tune::Kept;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::time::Instant;

/// Sink of a conversion's events.
pub struct Progress {
    json: bool,
    quiet: bool,
    bar: ProgressBar,
    started: Instant,
    /// Whether to say at the beginning what a result without tuning is good for.
    untuned: bool,
    /// What there is to tell once the work begins: an error before it stands alone.
    opening: Option<String>,
    total_weights: u64,
    done_weights: u64,
    /// Stage, when its first event came, and how far it was then.
    stage: Option<(&'static str, Instant, usize)>,
    /// Fiftieth of the stage that was shown last.
    shown: Option<usize>,
}

impl Progress {
    /// `json`: events on stdout; `quiet`: nothing at all unless `json`; `untuned`: the run has no text to tune on; `opening`: a
    /// note before the first event.
    pub fn new(json: bool, quiet: bool, untuned: bool, opening: Option<String>) -> Self {
        let visible = !json && !quiet && io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self {
            json,
            quiet: quiet || json,
            bar: ProgressBar::with_draw_target(None, target),
            started: Instant::now(),
            untuned,
            opening,
            total_weights: 0,
            done_weights: 0,
            stage: None,
            shown: None,
        }
    }

    fn line(&self, text: &str) {
        if self.quiet {
            return;
        }
        if self.bar.is_hidden() {
            let _ = writeln!(io::stderr(), "{text}");
        } else {
            self.bar.println(text);
        }
    }

    fn json_event(&self, value: &serde_json::Value) {
        if self.json {
            let _ = writeln!(io::stdout().lock(), "{value}");
        }
    }

    /// Shows one event.
    pub fn event(&mut self, event: Event) {
        if let Some(text) = self.opening.take() {
            self.event(Event::Note(&text));
        }
        match event {
            Event::Planned(plan) => {
                self.total_weights = plan.weights;
                self.json_event(&serde_json::json!({ "event": "planned", "plan": plan }));
                self.line(&format!(
                    "{} matrices, {:.1} M weights, {:.4} bits per weight",
                    plan.entries.len(),
                    plan.weights as f64 / 1e6,
                    plan.bpw
                ));
                if self.untuned {
                    self.line(
                        "warning: without text to tune on the file will do to test runtimes and kernels, not to read what it \
                         writes; for that give --calibration TEXT..., or --generated-windows 256 if there is no text",
                    );
                }
                let floor = plan.entries.iter().filter(|e| e.floor_bound).count();
                if floor > 0 {
                    self.line(&above_budget(floor));
                }
                // The bar counts weights in thousands: matrices differ too much in size to count them.
                self.bar.set_length(plan.weights / 1000);
                let style = ProgressStyle::with_template("{bar:30} {percent}%  ETA {eta}  {msg}");
                self.bar.set_style(style.expect("the template is a constant"));
            }
            Event::Rule { name, rule } => {
                self.json_event(&serde_json::json!({ "event": "rule", "tensor": name, "rule": rule }));
                self.line(&format!("rule {rule}: {name}"));
            }
            Event::Warning(text) => {
                self.json_event(&serde_json::json!({ "event": "warning", "text": text }));
                self.line(&format!("warning: {text}"));
            }
            Event::Note(text) => {
                self.json_event(&serde_json::json!({ "event": "note", "text": text }));
                self.line(text);
            }
            Event::Stage { name, done, total, value } => {
                self.json_event(&serde_json::json!({
                    "event": "stage", "stage": name, "done": done, "total": total, "value": value
                }));
                if self.stage.as_ref().is_none_or(|s| s.0 != name) {
                    self.stage = Some((name, Instant::now(), done));
                    self.shown = None;
                }
                // Some stages advance by more than one.
                let part = done / (total / 50).max(1);
                if self.shown != Some(part) || done == total {
                    self.shown = Some(part);
                    let eta = match &self.stage {
                        Some((_, since, first)) if done > *first => {
                            let each = since.elapsed().as_secs_f64() / (done - first) as f64;
                            format!("  ETA {:.0} s", each * (total - done) as f64)
                        }
                        _ => String::new(),
                    };
                    let value = match (name, value) {
                        ("factorize", Some(v)) => format!("  drift {v:.3}"),
                        (_, Some(v)) => format!("  KLD {v:.4}"),
                        (_, None) => String::new(),
                    };
                    self.line(&format!("{name} {done}/{total}{value}{eta}"));
                }
            }
            Event::Block { index, count, outcome } => {
                self.json_event(&serde_json::json!({
                    "event": "block", "index": index, "count": count, "outcome": outcome
                }));
                let kept = match outcome.kept {
                    Kept::All => format!("{:.1} % of its signs turned", 100.0 * outcome.flips),
                    Kept::Scales => "scales alone: with its signs it became worse".to_owned(),
                    Kept::Nothing => "left as it was: tuned it became worse".to_owned(),
                };
                self.line(&format!(
                    "block {}/{count}  error {:.4} -> {:.4}  {kept}",
                    index + 1,
                    outcome.errors[0],
                    outcome.errors[1],
                ));
            }
            Event::Matrix { index, count, report } => {
                self.done_weights += (report.d_out * report.d_in * report.experts) as u64;
                self.json_event(&serde_json::json!({ "event": "matrix", "index": index, "count": count, "matrix": report }));
                let experts =
                    if report.experts > 1 { format!(" x{}", report.experts) } else { String::new() };
                let eta = self.eta();
                self.line(&format!(
                    "[{:>4}/{count}] {:<32} {:>5} x {:<5}{experts} rank {:<5} {:.3} bpw  error {:.4}  weighted {:.4}  {:.1} s{eta}",
                    index + 1,
                    report.name,
                    report.d_out,
                    report.d_in,
                    report.rank,
                    report.bpw,
                    report.error,
                    report.weighted_error,
                    report.seconds,
                ));
                self.bar.set_position(self.done_weights / 1000);
            }
        }
    }

    /// Remaining time for plain lines; the bar shows it itself.
    fn eta(&self) -> String {
        if !self.bar.is_hidden() || self.done_weights == 0 {
            return String::new();
        }
        let left = self.total_weights.saturating_sub(self.done_weights) as f64 / self.done_weights as f64;
        format!("  ETA {:.0} s", self.started.elapsed().as_secs_f64() * left)
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Plain progress lines of a command that has nothing else to tell.
pub struct Counter {
    quiet: bool,
    shown: Option<(&'static str, usize)>,
}

impl Counter {
    /// Lines on stderr unless `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, shown: None }
    }

    /// `done` of `total` of a stage; a line for every tenth of it.
    pub fn step(&mut self, stage: &'static str, done: usize, total: usize) {
        let part = (stage, 10 * done / total.max(1));
        if !self.quiet && self.shown != Some(part) {
            self.shown = Some(part);
            let _ = writeln!(io::stderr(), "{stage} {done}/{total}");
        }
    }
}
