//! `littlebit-convert verify` and `diff`: a file against its source, two files against each other.

use super::commands::VerifyArgs;
use super::progress::Counter;
use super::{DIFFERENT, judged, print_line};
use crate::error::{Error, Result};
use crate::job::file_name;
use crate::job::verification::{Verification, verify_against};
use crate::source;
use crate::verify::{Coherence, Comparison, Difference, Weights, difference};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

/// Compares two models and prints what differs.
pub fn diff(a: &Path, b: &Path, as_json: bool) -> Result<ExitCode> {
    let found = difference(&Weights::open(a)?, &Weights::open(b)?)?;
    if as_json {
        let mut line = json!({ "a": a, "b": b, "identical": found.is_empty() });
        line["difference"] = serde_json::to_value(&found).expect("a difference is plain data");
        print_line(&line.to_string())?;
    } else {
        print_difference(&found)?;
    }
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

fn print_difference(found: &Difference) -> Result<()> {
    let or_none = |v: &Option<String>| v.clone().unwrap_or_else(|| "-".to_owned());
    for k in &found.keys {
        print_line(&format!("key {}: {} -> {}", k.key, or_none(&k.a), or_none(&k.b)))?;
    }
    for t in &found.tensors {
        let mut line = format!("tensor {}: ", t.name);
        line += &if t.a == t.b { or_none(&t.a) } else { format!("{} -> {}", or_none(&t.a), or_none(&t.b)) };
        if let Some(f) = t.factors {
            line += &format!(
                ", signs turned {:.3} % of U, {:.3} % of V, scales off by {:.3e}",
                100.0 * f.u,
                100.0 * f.v,
                f.scales
            );
        }
        if let Some(change) = t.change {
            line += &format!(", values off by {change:.3e}");
        }
        print_line(&line)?;
    }
    let (keys, tensors) = (found.keys.len(), found.tensors.len());
    print_line(&match found.is_empty() {
        true => format!("identical: {} tensors, all keys", found.equal),
        false => format!("{keys} keys and {tensors} tensors differ, {} tensors are the same", found.equal),
    })
}

/// Reads a whole file, compares it with its source where one is given, and prints what was found.
pub fn verify(args: &VerifyArgs) -> Result<ExitCode> {
    let file = source::open_compressed(&args.file)?.map(|c| c.file).ok_or_else(|| {
        Error::unsupported(
            &args.file,
            "not a compressed model; give the LittleBit file first, its source to --against",
        )
    })?;
    let Some(against) = &args.against else {
        if args.gates.coherence() {
            return Err(Error::usage(
                "what the model writes is compared with its source: give --against SOURCE",
            ));
        }
        file.matrices().iter().try_for_each(|m| file.read_factors(m).map(|_| ()))?;
        let matrices = file.matrices().len();
        print_line(&match args.json {
            true => json!({ "file": args.file, "sound": true, "matrices": matrices }).to_string(),
            false => format!("{}: sound, {matrices} matrices read", args.file.display()),
        })?;
        return Ok(ExitCode::SUCCESS);
    };
    let threads = super::flags::threads(args.threads)?;
    let mut counter = Counter::new(args.quiet || args.json);
    let source = source::open(against)?;
    let (gates, coherence) = (args.gates.gates(), args.gates.coherence());
    let found =
        verify_against(file, source.as_ref(), &args.eval, coherence, threads, |stage, done, total| {
            counter.step(stage, done, total);
        })?;
    let refused = found.evaluations.iter().flat_map(|(text, c)| gates.failures(&file_name(text), c));
    let incoherence = found.coherence.as_ref().map(|c| gates.incoherence(c)).unwrap_or_default();
    let failures: Vec<String> = found.faults.iter().cloned().chain(refused).chain(incoherence).collect();
    if args.json {
        let mut line = json!({ "file": args.file, "against": against, "sound": true, "failures": failures });
        line["found"] = serde_json::to_value(&found).expect("what was found is plain data");
        print_line(&line.to_string())?;
    } else {
        print_found(&found)?;
    }
    Ok(judged(&failures))
}

fn print_found(found: &Verification) -> Result<()> {
    if !found.same_source {
        print_line(
            "note: the file records another source's checksum (another file or type of the same model?)",
        )?;
    }
    for (name, error) in &found.matrices {
        print_line(&format!("{name:<40} error {error:.4}"))?;
    }
    for (name, change) in &found.changed {
        print_line(&format!("{name:<40} stored or tuned, values off by {change:.3e}"))?;
    }
    let mean = found.matrices.iter().map(|(_, e)| e).sum::<f64>() / found.matrices.len().max(1) as f64;
    print_line(&format!("{} matrices, mean relative error {mean:.4}", found.matrices.len()))?;
    for (text, c) in &found.evaluations {
        print_line(&format!("{}: {}", text.display(), figures(c)))?;
    }
    match &found.coherence {
        Some(c) => print_line(&writing(c)),
        None => Ok(()),
    }
}

/// What a model writes beside its source, in one line.
pub fn writing(c: &Coherence) -> String {
    let (m, s) = (&c.model, &c.source);
    format!(
        "text it writes (source's): repetitions {:.3} ({:.3}), drawn {:.3} ({:.3}), distinct pairs {:.3} ({:.3}), entropy \
         {:.3} ({:.3}), surprise to the source {:.3} ({:.3}), {} x {} tokens",
        m.repeated_likely,
        s.repeated_likely,
        m.repeated_drawn,
        s.repeated_drawn,
        m.distinct,
        s.distinct,
        m.entropy,
        s.entropy,
        m.surprise,
        s.surprise,
        c.continuations.len(),
        c.tokens
    )
}

/// A comparison in one line.
pub fn figures(c: &Comparison) -> String {
    format!(
        "perplexity {:.3} +- {:.3} (source {:.3} +- {:.3}), KLD mean {:.4} +- {:.4} median {:.4} 99.9 % {:.3}, same top {:.2} +- {:.2} %, {} tokens",
        c.perplexity.value,
        c.perplexity.error,
        c.source_perplexity.value,
        c.source_perplexity.error,
        c.kld.value,
        c.kld.error,
        c.kld_median,
        c.kld_999,
        100.0 * c.same_top.value,
        100.0 * c.same_top.error,
        c.tokens
    )
}
