//! One factorized layer against ggml's dense products, in one process, interleaved.
//!
//! ```text
//! cargo bench --bench layer -- [--shape ROWSxCOLS]... [--bpw X] [--mode cached|stream] [--batch N]
//!                              [--threads N] [--rounds N] [--kernel NAME] [--json FILE]
//! ```
//!
//! A layer is the V stage and the U stage of one path: quantization, tables, scales, everything. `cached`
//! repeats one weight; `stream` walks over a pool of more than 100 MB, so that weights come from memory.
//! Every round runs each candidate once; a figure is the median over the rounds.
//!
//! ggml is found by `LITTLEBIT_LLAMA_PREFIX` (an installation with include/ and lib/) or by
//! `LITTLEBIT_GGML_INCLUDE` and `LITTLEBIT_GGML_LIB`; without them only our own figures are printed.

mod ggml;
mod ours;
mod report;

use ours::Layers;
use report::{Case, Row};
use std::path::PathBuf;
use std::time::Instant;

/// Bytes of weights that a streaming candidate walks over.
const STREAM_BYTES: usize = 104 << 20;
/// Weights of a cached sample that add up to about this many elements, so that small layers are not timed
/// one by one.
const CACHED_ELEMENTS: usize = 16 << 20;

/// Layer shapes: the square of a 7B model, its feed-forward, and SmolLM2-135M's.
const SHAPES: [(usize, usize); 6] =
    [(4096, 4096), (11008, 4096), (4096, 11008), (576, 576), (1536, 576), (576, 1536)];

struct Options {
    shapes: Vec<(usize, usize)>,
    bpw: f64,
    modes: Vec<bool>,
    batch: usize,
    threads: usize,
    rounds: usize,
    json: Option<PathBuf>,
}

fn main() {
    if let Err(e) = run() {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn options() -> Result<Options, String> {
    let mut o = Options {
        shapes: Vec::new(),
        bpw: 0.55,
        modes: vec![false, true],
        batch: 1,
        threads: 1,
        rounds: 21,
        json: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        // Cargo adds this one.
        if flag == "--bench" {
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let number = || {
            value
                .parse::<usize>()
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(|| format!("{flag} {value}: not a number"))
        };
        match flag.as_str() {
            "--shape" => {
                let parts = value.split_once('x').and_then(|(r, c)| Some((r.parse().ok()?, c.parse().ok()?)));
                o.shapes.push(parts.ok_or_else(|| format!("--shape {value}: not ROWSxCOLS"))?);
            }
            "--bpw" => o.bpw = value.parse().map_err(|_| format!("--bpw {value}: not a number"))?,
            "--mode" => {
                o.modes = match value.as_str() {
                    "cached" => vec![false],
                    "stream" => vec![true],
                    _ => return Err(format!("--mode {value}: cached or stream")),
                }
            }
            "--batch" => o.batch = number()?,
            "--threads" => o.threads = number()?,
            "--rounds" => o.rounds = number()?,
            "--kernel" => {
                let kernel = value.parse().map_err(|e: littlebit::Error| e.to_string())?;
                littlebit::kernel::force(Some(kernel)).map_err(|e| e.to_string())?;
            }
            "--json" => o.json = Some(value.into()),
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    if o.shapes.is_empty() {
        o.shapes = SHAPES.to_vec();
    }
    Ok(o)
}

fn run() -> Result<(), String> {
    let options = options()?;
    let library = ggml::Library::build()?;
    let engine = library.as_ref().map(|library| library.open(options.threads)).transpose()?;
    let features = engine.as_ref().map(|e| e.features());
    report::print_head(options.threads, options.batch, features.as_deref());
    let mut cases = Vec::new();
    for &(d_out, d_in) in &options.shapes {
        for &stream in &options.modes {
            let case = measure(&options, engine.as_ref(), d_out, d_in, stream)?;
            report::print_case(&case);
            cases.push(case);
        }
    }
    if engine.is_some() {
        report::print_ratios(&cases);
    }
    if let Some(path) = &options.json {
        let text = report::json(&cases, options.threads, options.batch, features.as_deref());
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Products of a sample and the copies of the weight that they walk over.
fn pool(stream: bool, weight_bytes: usize, elements: usize) -> (usize, usize) {
    if stream {
        let copies = STREAM_BYTES.div_ceil(weight_bytes).max(2);
        (copies, copies)
    } else {
        (1, (CACHED_ELEMENTS / elements).clamp(1, 64))
    }
}

fn measure(
    options: &Options,
    engine: Option<&ggml::Engine<'_>>,
    d_out: usize,
    d_in: usize,
    stream: bool,
) -> Result<Case, String> {
    let rank = ours::rank_within(d_out, d_in, options.bpw)
        .ok_or_else(|| format!("{d_out}x{d_in}: no rank fits into {} bits per weight", options.bpw))?;
    let bytes = ours::layer_bytes(d_out, d_in, rank);
    let (copies, products) = pool(stream, bytes, d_out * d_in);
    let mut layers = Layers::new(d_out, d_in, rank, options.batch, copies, products, options.threads);
    type Candidate<'a> = (String, usize, usize, Box<dyn FnMut() + 'a>);
    let mut candidates: Vec<Candidate<'_>> =
        vec![("littlebit".into(), bytes, products, Box::new(move || layers.run()))];
    for (name, repack, bits) in ggml::TYPES {
        let Some(engine) = engine else { break };
        let bytes = d_out * d_in * bits / 8 / 16;
        let (copies, products) = pool(stream, bytes, d_out * d_in);
        let shape = (d_out, d_in, options.batch);
        if let Some(pool) = engine.pool(name, repack, shape, copies, products) {
            let label = format!("{name}{}", if repack { " repacked" } else { "" });
            candidates.push((label, bytes, products, Box::new(move || pool.run())));
        }
    }
    let mut samples = vec![Vec::with_capacity(options.rounds); candidates.len()];
    for round in 0..=options.rounds {
        for (i, (_, _, products, run)) in candidates.iter_mut().enumerate() {
            // Refills the caches after another candidate ran, and after the first touch of the memory.
            if !stream || round == 0 {
                run();
            }
            let start = Instant::now();
            run();
            let seconds = start.elapsed().as_secs_f64() / *products as f64;
            if round > 0 {
                samples[i].push(seconds / options.batch as f64);
            }
        }
    }
    let rows =
        candidates.iter().zip(samples).map(|((name, bytes, ..), s)| Row::new(name, *bytes, s)).collect();
    Ok(Case { d_out, d_in, rank, stream, bpw: ours::bpw(d_out, d_in, rank), rows })
}
