//! The command line: flags ([`flags`]), what the user sees while it runs ([`progress`]), end table ([`summary`])
//! and `info`. Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 3 the result did not pass its gates.

mod flags;
mod info;
mod progress;
mod summary;

use crate::error::{Error, Result};
use crate::job::{self, Options};
use crate::source;
use flags::{Command, ConvertArgs};
use std::io::{self, Write};
use std::process::ExitCode;

/// Runs `littlebit-convert` with the process's arguments.
pub fn main() -> ExitCode {
    job::memory::keep_freed_buffers();
    let outcome = match flags::parse_command() {
        Command::Convert(args) => convert(&args),
        Command::Info { file, json } => info::run(&file, json).map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        // The reader of our output went away: nothing is wrong.
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "littlebit-convert: error: {e}");
            ExitCode::from(if matches!(e, Error::Usage(_)) { 2 } else { 1 })
        }
    }
}

/// Exit code of a result that did not pass its gates.
const REJECTED: u8 = 3;

fn convert(args: &ConvertArgs) -> Result<ExitCode> {
    let options = args.options()?;
    if let (Some(ty), true) = (options.lossy, flags::is_littlebit_file(&args.input)) {
        return expand(args, ty, &options).map(|()| ExitCode::SUCCESS);
    }
    let source = source::open(&args.input)?;
    if args.dry_run {
        let outlook = job::layout::dry_run(source.as_ref(), &options)?;
        return summary::print_plan(&outlook, args.json).map(|()| ExitCode::SUCCESS);
    }
    let mut progress = progress::Progress::new(args.json, args.quiet);
    let report = job::convert(source.as_ref(), args.output()?, &options, |e| progress.event(e))?;
    progress.finish();
    summary::print(&report, args.json)?;
    for failure in &report.failures {
        let _ = writeln!(io::stderr(), "littlebit-convert: rejected: {failure}");
    }
    if report.failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let _ = writeln!(
        io::stderr(),
        "littlebit-convert: the file is kept as {}; more --bpw, another --effort or text closer to the evaluation's \
         raise quality",
        report.output.display()
    );
    Ok(ExitCode::from(REJECTED))
}

fn expand(args: &ConvertArgs, ty: crate::gguf::GgmlType, options: &Options) -> Result<()> {
    let output = args.output()?;
    let quiet = args.quiet || args.json;
    let bytes = job::convert::expand(&args.input, output, ty, options.force, |name| {
        if !quiet {
            let _ = writeln!(io::stderr(), "rebuilding {name} as {}", ty.name());
        }
    })?;
    if args.json {
        let line = serde_json::json!({
            "event": "done", "form": format!("lossy {}", ty.name()), "output": output, "bytes": bytes
        });
        return print_line(&line.to_string());
    }
    print_line(&format!("{}: {}, weights rebuilt as {}", output.display(), summary::size(bytes), ty.name()))
}

/// Writes a line to stdout; a closed pipe comes back as an error that [`main`] forgives.
fn print_line(line: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{line}").map_err(|e| Error::io("stdout".as_ref(), "write", e))
}
