//! The commands and what they take: help, manual page and completions are made of these.

use super::flags::{ConvertArgs, GateArgs};
use super::hint::{self, Files};
use crate::kernel;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  littlebit-convert model.safetensors model-LB1.0.gguf
  littlebit-convert model-f16.gguf model-LB1.0.gguf --calibration prose.txt manual.txt --eval other.txt
  littlebit-convert model-f16.gguf model-LB0.55.gguf --bpw 0.55 --imatrix imatrix.gguf
  littlebit-convert model-f16.gguf model-LB1.0.gguf --token-embedding-type q8_0 --json
  littlebit-convert model-LB1.0.gguf model-f16-lossy.gguf --lossy f16
  littlebit-convert model-LB1.0.gguf model-LB1.0.littlebit
  littlebit-convert littlebit-checkpoint/ model-LB0.55.gguf
  littlebit-convert info model-LB1.0.gguf
  littlebit-convert verify model-LB1.0.gguf --against model-f16.gguf --eval other.txt
  littlebit-convert diff model-LB1.0.gguf model-LB0.55.gguf

Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 3 the result did not pass its gates, 4 files differ (diff),
130, 143 interrupted (SIGINT, SIGTERM).";

/// What the user asked for.
pub enum Command {
    /// Convert a model.
    Convert(Box<ConvertArgs>),
    /// Describe a file.
    Info { file: PathBuf, json: bool },
    /// Read a file and compare it with its source.
    Verify(Box<VerifyArgs>),
    /// Compare two files.
    Diff { a: PathBuf, b: PathBuf, json: bool },
    /// Print a text that is made of the flags themselves.
    Print(Vec<u8>),
}

impl Command {
    /// What the files that it names are to it.
    pub fn files(&self) -> Files {
        let of = |models: &[&PathBuf]| models.iter().map(|&p| p.clone()).collect();
        match self {
            Command::Convert(args) => args.files(),
            Command::Info { file, .. } => Files { models: of(&[file]), ..Files::default() },
            Command::Diff { a, b, .. } => Files { models: of(&[a, b]), ..Files::default() },
            Command::Verify(args) => Files {
                models: args.against.iter().chain([&args.file]).cloned().collect(),
                texts: args.eval.clone(),
                ..Files::default()
            },
            Command::Print(_) => Files::default(),
        }
    }
}

/// Version with the kernels that run here, the one in force first, and with what `--device` takes in a build with CUDA.
fn version() -> &'static str {
    let mut kernels = kernel::available();
    kernels.reverse();
    let names: Vec<&str> = kernels.iter().map(|k| k.name()).collect();
    // Made once or twice in a process.
    let devices = if cfg!(feature = "cuda") { "; devices: cpu, cuda" } else { "" };
    format!("{} (kernels: {}{devices})", env!("CARGO_PKG_VERSION"), names.join(", ")).leak()
}

/// Compress a language model below two bits per weight by low-rank binary factorization (LittleBit)
#[derive(Parser)]
#[command(name = "littlebit-convert", bin_name = "littlebit-convert", version = version(), after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Sub>,
    #[command(flatten)]
    convert: Option<ConvertArgs>,
    #[command(flatten)]
    gates: GateArgs,
}

#[derive(Subcommand)]
enum Sub {
    /// Show what a file holds: bits per weight, sizes by class, rank of every matrix, provenance
    Info {
        /// GGUF, .littlebit file, or checkpoint in LittleBit's or NanoQuant's layout
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Read every factor of a compressed model, and compare it with the model that it was made from
    Verify(VerifyArgs),
    /// Show what two models differ in: keys, forms of tensors, signs, scales, values; exit code 4 if there is anything
    Diff {
        /// Model in any form
        a: PathBuf,
        /// Another
        b: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell: bash, zsh, fish, elvish, powershell
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// Arguments of a verification.
#[derive(Args)]
pub struct VerifyArgs {
    /// Compressed model in any form
    pub file: PathBuf,
    /// The model that it was made from: errors of all weights
    #[arg(long, value_name = "SOURCE")]
    pub against: Option<PathBuf>,
    /// Text to compare both on: perplexity, divergence
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "against")]
    pub eval: Vec<PathBuf>,
    #[command(flatten)]
    pub gates: GateArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// No progress lines
    #[arg(long, short)]
    pub quiet: bool,
    /// Threads [default: all that this process may use]
    #[arg(long, short, value_name = "N")]
    pub threads: Option<usize>,
}

/// Parses the command line; prints help or usage errors and exits as clap does.
pub fn parse_command() -> Command {
    let cli = Cli::try_parse().unwrap_or_else(|e| {
        if !hint::names_a_type(&e) {
            e.exit();
        }
        // Without stderr there is nobody to tell.
        let _ = e.print();
        let _ = writeln!(std::io::stderr(), "littlebit-convert: hint: {}", hint::NO_TYPE);
        std::process::exit(e.exit_code())
    });
    match (cli.command, cli.convert) {
        (Some(Sub::Info { file, json }), _) => Command::Info { file, json },
        (Some(Sub::Verify(args)), _) => Command::Verify(Box::new(args)),
        (Some(Sub::Diff { a, b, json }), _) => Command::Diff { a, b, json },
        (Some(Sub::Completions { shell }), _) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "littlebit-convert", &mut text);
            Command::Print(text)
        }
        (Some(Sub::Man), _) => {
            let mut text = Vec::new();
            let page = clap_mangen::Man::new(Cli::command()).render(&mut text);
            page.expect("memory takes what is written");
            Command::Print(text)
        }
        (None, Some(mut args)) => {
            args.gates = cli.gates.gates();
            args.coherence = cli.gates.coherence();
            Command::Convert(Box::new(args))
        }
        (None, None) => {
            Cli::command().error(clap::error::ErrorKind::MissingRequiredArgument, "INPUT is missing").exit()
        }
    }
}
