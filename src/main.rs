//! `littlebit-convert`: parse, run, report.

use std::process::ExitCode;

fn main() -> ExitCode {
    littlebit::cli::main()
}
