//! The command line: commands ([`commands`]) and flags ([`flags`]), what the user sees while it runs ([`progress`]), end table ([`summary`]), `info`,
//! `verify` and `diff` ([`compare`]). Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 3 the result did not
//! pass its gates, 4 the files differ.

mod commands;
mod compare;
mod flags;
mod hint;
mod info;
mod progress;
mod reports;
mod signals;
mod summary;
mod values;

use crate::error::{Error, Result};
use crate::job;
use crate::job::repack::Form;
use crate::present;
use crate::source::{self, Compressed, Model};
use commands::Command;
use flags::ConvertArgs;
use std::io::{self, Write};
use std::process::ExitCode;

/// Runs `littlebit-convert` with the process's arguments.
pub fn main() -> ExitCode {
    job::memory::keep_freed_buffers();
    signals::report_full_files();
    let command = commands::parse_command();
    let outcome = match &command {
        Command::Convert(args) => convert(args),
        Command::Info { file, json } => info::run(file, *json).map(|()| ExitCode::SUCCESS),
        Command::Verify(args) => {
            signals::end_cleanly(None);
            compare::verify(args)
        }
        Command::Diff { a, b, json } => compare::diff(a, b, *json),
        Command::Print(text) => print(text).map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        Err(e) => {
            let _ = writeln!(io::stderr(), "littlebit-convert: error: {e}");
            if let Some(hint) = hint::hint(&e, &command.files()) {
                let _ = writeln!(io::stderr(), "littlebit-convert: hint: {hint}");
            }
            ExitCode::from(if matches!(e, Error::Usage(_)) { 2 } else { 1 })
        }
    }
}

/// Exit code of a result that did not pass its gates.
const REJECTED: u8 = 3;
/// Exit code of `diff` if there is a difference.
const DIFFERENT: u8 = 4;

fn convert(args: &ConvertArgs) -> Result<ExitCode> {
    let mut options = args.options()?;
    let source = match source::open_any(&args.input)? {
        Model::Compressed(model) => {
            signals::end_cleanly(None);
            return repack(args, *model).map(|()| ExitCode::SUCCESS);
        }
        Model::Dense(source) => source,
    };
    let settled = args.settle(&mut options, source.as_ref())?;
    if args.dry_run {
        let outlook = job::layout::dry_run(source.as_ref(), &options)?;
        summary::print_reservations(&outlook, &options, args.quiet);
        return summary::print_plan(&outlook, args.json).map(|()| ExitCode::SUCCESS);
    }
    reports::check(&args.report, &[args.output()?, &args.input], args.force())?;
    signals::end_cleanly(Some(options.work_dir(args.output()?)));
    let mut progress = progress::Progress::new(args.json, args.quiet, options.calibration.is_none(), settled);
    let (source, output) = (source.as_ref(), args.output()?);
    let report = match args.auto_bpw {
        Some(range) => job::search::smallest(source, output, &options, range, |e| progress.event(e))?,
        None => job::convert(source, output, &options, |e| progress.event(e))?,
    };
    progress.finish();
    reports::write(&args.report, &report, args.force())?;
    summary::print(&report, args.json)?;
    let code = judged(&report.failures);
    if !report.failures.is_empty() {
        let _ = writeln!(
            io::stderr(),
            "littlebit-convert: the file is kept as {}; more --bpw, another --effort or text closer to the \
             evaluation's raise quality",
            report.output.display()
        );
    }
    Ok(code)
}

/// Tells what did not pass; the exit code that follows.
fn judged(failures: &[String]) -> ExitCode {
    for failure in failures {
        let _ = writeln!(io::stderr(), "littlebit-convert: rejected: {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(REJECTED) }
}

/// Writes a model that is compressed already in another form.
fn repack(args: &ConvertArgs, model: Compressed) -> Result<()> {
    args.check_compressed()?;
    let (output, form, types) = (args.output()?, args.form()?, args.kept_types());
    let quiet = args.quiet || args.json;
    let bytes = job::repack::repack(model, output, form, types, args.force(), |name| {
        if !quiet {
            let _ = writeln!(io::stderr(), "{name}");
        }
    })?;
    let (short, long) = match form {
        Form::Gguf => ("littlebit".to_owned(), "LittleBit GGUF".to_owned()),
        Form::Container => ("littlebit container".to_owned(), ".littlebit".to_owned()),
        Form::Lossy(ty) => (format!("lossy {ty}"), format!("weights rebuilt as {ty}")),
    };
    if args.json {
        let line = serde_json::json!({ "event": "done", "form": short, "output": output, "bytes": bytes });
        return print_line(&line.to_string());
    }
    print_line(&format!("{}: {}, {long}", output.display(), present::size(bytes)))
}

/// Writes a line to stdout, as [`print`] does.
fn print_line(line: &str) -> Result<()> {
    print(format!("{line}\n").as_bytes())
}

/// Writes to stdout. That its reader went away is no error, and what was found still decides on the exit code.
fn print(text: &[u8]) -> Result<()> {
    match io::stdout().lock().write_all(text) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|e| Error::io("stdout".as_ref(), "write", e)),
    }
}
