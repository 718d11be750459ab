//! The command line.

use littlebit::kernel::{self, Kernel};
use std::path::PathBuf;
use std::str::FromStr;

/// Layer shapes: the square of a 7B model, and SmolLM2-135M's feed-forward.
const SHAPES: [(usize, usize); 3] = [(4096, 4096), (1536, 576), (576, 1536)];
/// These, the feed-forward of a 7B model, and SmolLM2-135M's square.
const ALL_SHAPES: [(usize, usize); 6] =
    [(4096, 4096), (11008, 4096), (4096, 11008), (576, 576), (1536, 576), (576, 1536)];

pub struct Options {
    pub shapes: Vec<(usize, usize)>,
    pub bpw: f64,
    /// Whether to stream; empty for the default.
    modes: Vec<bool>,
    pub batches: Vec<usize>,
    pub threads: Vec<usize>,
    pub rounds: usize,
    pub seconds: f64,
    /// Never empty.
    pub kernels: Vec<Kernel>,
    pub json: Option<PathBuf>,
    pub svg: Option<PathBuf>,
}

impl Options {
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut o = Options {
            shapes: Vec::new(),
            bpw: 0.55,
            modes: Vec::new(),
            batches: vec![1, 8, 64, 512],
            threads: vec![1],
            rounds: 21,
            seconds: 10.0,
            kernels: Vec::new(),
            json: None,
            svg: None,
        };
        while let Some(flag) = args.next() {
            match flag.as_str() {
                // Cargo adds this one.
                "--bench" => continue,
                "--all" => {
                    o.shapes = ALL_SHAPES.to_vec();
                    continue;
                }
                _ => (),
            }
            let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--shape" => {
                    let sides = value.split_once('x').and_then(|(r, c)| Some((side(r)?, side(c)?)));
                    o.shapes.push(sides.ok_or_else(|| format!("--shape {value}: not ROWSxCOLS"))?);
                }
                "--bpw" => o.bpw = number(&flag, &value)?,
                "--mode" => {
                    o.modes = match value.as_str() {
                        "cached" => vec![false],
                        "stream" => vec![true],
                        _ => return Err(format!("--mode {value}: cached or stream")),
                    }
                }
                "--batch" => o.batches = numbers(&flag, &value)?,
                "--threads" => o.threads = numbers(&flag, &value)?,
                "--rounds" => o.rounds = number(&flag, &value)?,
                "--seconds" => o.seconds = number(&flag, &value)?,
                "--kernel" => {
                    let kernel = value.parse().map_err(|e: littlebit::Error| e.to_string())?;
                    // Refuses what does not run here.
                    kernel::force(Some(kernel)).map_err(|e| e.to_string())?;
                    o.kernels.push(kernel);
                }
                "--json" => o.json = Some(value.into()),
                "--svg" => o.svg = Some(value.into()),
                _ => return Err(format!("unknown option {flag}")),
            }
        }
        if o.shapes.is_empty() {
            o.shapes = SHAPES.to_vec();
        }
        if o.kernels.is_empty() {
            o.kernels.push(kernel::active());
        }
        Ok(o)
    }

    /// Whether to stream, for products of `batch` columns.
    pub fn modes(&self, batch: usize) -> &[bool] {
        match (self.modes.is_empty(), batch) {
            (false, _) => &self.modes,
            (true, 1) => &[false, true],
            // Every weight serves many columns; where it comes from matters little.
            (true, _) => &[false],
        }
    }
}

fn side(text: &str) -> Option<usize> {
    text.parse().ok().filter(|n| *n > 0)
}

/// A number above 0.
fn number<T: FromStr + PartialOrd + Default>(flag: &str, value: &str) -> Result<T, String> {
    let number = value.parse::<T>().ok().filter(|n| *n > T::default());
    number.ok_or_else(|| format!("{flag} {value}: not a number above 0"))
}

fn numbers(flag: &str, values: &str) -> Result<Vec<usize>, String> {
    values.split(',').map(|value| number(flag, value)).collect()
}
