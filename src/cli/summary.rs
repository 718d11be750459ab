//! The end of a run: totals by class of matrix, the file, and what the result is good for.

use super::compare::{figures, writing};
use super::print_line;
use crate::error::Result;
use crate::job::convert::Options;
use crate::job::layout::Outlook;
use crate::job::{Report, memory};
use crate::present::{class, size};
use std::io::{self, Write};

/// What a layer-local factorization is worth, from the run's own figures.
fn verdict(report: &Report) -> String {
    format!(
        "warning: this model is not tuned. Rebuilt weights are off by {:.0} % on average (relative Frobenius error); at \
         such errors a model that is factorized layer by layer and not tuned afterwards has a perplexity of hundreds to \
         tens of thousands and writes nonsense. Use the file to test runtimes and kernels, not to read its text; for a model \
         to read, give --calibration TEXT..., or --generated-windows 256 if there is no text.",
        100.0 * report.mean_error
    )
}

/// Prints the end table, or the whole report as one JSON line.
pub fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        let mut line = serde_json::json!({ "event": "done", "warning": (!report.calibrated()).then(|| verdict(report)) });
        line["report"] = serde_json::to_value(report).expect("a report is plain data");
        line["peak_rss_bytes"] = serde_json::json!(memory::peak_rss());
        return print_line(&line.to_string());
    }
    let mut classes: Vec<(&str, usize, u64, u64, f64, f64)> = Vec::new();
    for m in &report.matrices {
        let weights = (m.d_out * m.d_in * m.experts) as u64;
        let c = class(&m.name);
        let at = classes.iter().position(|k| k.0 == c).unwrap_or_else(|| {
            classes.push((c, 0, 0, 0, 0.0, 0.0));
            classes.len() - 1
        });
        let k = &mut classes[at];
        k.1 += 1;
        k.2 += weights;
        k.3 += m.bits;
        k.4 += m.error * weights as f64;
        k.5 += m.weighted_error * weights as f64;
    }
    print_line("")?;
    print_line(&format!(
        "{:<16} {:>5} {:>12} {:>8} {:>8} {:>9} {:>12}",
        "class", "count", "weights", "bpw", "error", "weighted", "size"
    ))?;
    for (name, count, weights, bits, error, weighted) in classes {
        let w = weights as f64;
        print_line(&format!(
            "{name:<16} {count:>5} {weights:>12} {:>8.4} {:>8.4} {:>9.4} {:>12}",
            bits as f64 / w,
            error / w,
            weighted / w,
            size(bits / 8)
        ))?;
    }
    let kept: u64 = report.kept.iter().map(|k| k.bytes).sum();
    print_line(&format!("{:<16} {:>5} {:>53}", "kept as they are", report.kept.len(), size(kept)))?;
    print_line(&format!(
        "{}: {}, {:.4} bpw factorized, {:.4} bpw whole file, {:.0} s, peak RSS {}",
        report.output.display(),
        size(report.bytes),
        report.bpw,
        report.bpw_file,
        report.seconds,
        size(memory::peak_rss())
    ))?;
    for e in &report.evaluations {
        print_line(&format!("{}: {}", e.text.display(), figures(&e.comparison)))?;
        print_line(&format!(
            "  sample: {} ~> {}",
            one_line(&e.sample.prompt),
            one_line(&e.sample.continuation)
        ))?;
        print_line(&format!("  its source: ~> {}", one_line(&e.sample.source)))?;
    }
    if let Some(c) = &report.coherence {
        print_line(&writing(c))?;
    }
    if !report.calibrated() {
        return print_line(&verdict(report));
    }
    let stages = report.stages.iter();
    let stages: Vec<String> =
        stages.map(|s| format!("{} {:.0} s, {}", s.name, s.seconds, size(s.peak_rss))).collect();
    print_line(&format!("stages, with the peak RSS so far: {}", stages.join("; ")))
}

/// Text without line breaks and control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a dry run cannot know or keep, on stderr.
pub fn print_reservations(outlook: &Outlook, options: &Options, quiet: bool) {
    if quiet {
        return;
    }
    let floor = outlook.plan.entries.iter().filter(|e| e.floor_bound).count();
    if floor > 0 {
        let _ = writeln!(io::stderr(), "littlebit-convert: {}", above_budget(floor));
    }
    if options.calibration.is_some() && !outlook.measured {
        let _ = writeln!(
            io::stderr(),
            "littlebit-convert: note: a calibrated run shares the same bits out by what it measures; ranks will be others, and \
             the file some kB smaller or larger"
        );
    }
}

/// That `floor` matrices take more than their budget.
pub fn above_budget(floor: usize) -> String {
    format!(
        "note: {floor} matrices are above the budget at the smallest rank (32); the file will be larger than asked for"
    )
}

/// Prints a plan: what a run would do.
pub fn print_plan(outlook: &Outlook, json: bool) -> Result<()> {
    if json {
        return print_line(&serde_json::json!({ "event": "planned", "plan": outlook }).to_string());
    }
    for (name, rule) in &outlook.ruled {
        print_line(&format!("rule {rule}: {name}"))?;
    }
    let plan = &outlook.plan;
    for e in &plan.entries {
        print_line(&format!("{:<40} rank {:<6} {:>12} bits  {:.4} bpw", e.name, e.rank, e.bits, e.bpw))?;
    }
    print_line(&format!(
        "{} matrices, {} weights, {} in factors, {:.4} bpw, file of {} bytes ({})",
        plan.entries.len(),
        plan.weights,
        size(plan.bits / 8),
        plan.bpw,
        outlook.file_bytes,
        size(outlook.file_bytes)
    ))
}
