//! One factorized layer against ggml's dense products, in one process, interleaved.
//!
//! ```text
//! cargo bench --bench layer --no-default-features -- [options]
//!   --shape ROWSxCOLS    layer; may be repeated           (4096x4096, 1536x576, 576x1536; --all has more)
//!   --all                all shapes of the tables in specs/results.md
//!   --bpw X              bits per weight of the factors   (0.55)
//!   --mode cached|stream                                  (both for one column, cached for more)
//!   --batch N,N..        columns                          (1,8,64,512)
//!   --threads N,N..                                       (1)
//!   --rounds N           samples of each candidate        (21)
//!   --seconds S          time for one case; at least 5 rounds are made        (10)
//!   --kernel NAME        our kernel; may be repeated, the first is compared   (the best)
//!   --json FILE, --svg FILE
//! ```
//!
//! A layer is the V stage and the U stage of one path: quantization, tables, scales, everything. `cached` repeats one
//! weight; `stream` walks over a pool of more than 100 MB, so that weights come from memory. Every round runs each
//! candidate once; a figure is the median over the rounds. One thread is timed by its own clock, which stops while
//! others have the processor; several threads by the wall's.
//!
//! Candidates: our kernels, ggml's types, "2x q1_0" (what llama.cpp does with the same factors in standard ops: the
//! portable lowering) and, in `stream`, "read", a loop that only reads as many bytes as the other pools have. Below the
//! table stands what a node of ggml's graph costs by itself: the price of another stage.
//!
//! ggml is found by `LITTLEBIT_LLAMA_PREFIX` (an installation with include/ and lib/) or by
//! `LITTLEBIT_GGML_INCLUDE` and `LITTLEBIT_GGML_LIB`; without them only our own figures are printed.

mod clock;
mod cores;
mod ggml;
mod options;
mod ours;
mod plot;
mod read;
mod report;

use clock::Clock;
use options::Options;
use ours::Layers;
use read::Memory;
use report::{Case, Row};

/// Bytes of weights that a streaming candidate walks over.
const STREAM_BYTES: usize = 104 << 20;
/// Weights of a cached sample that add up to about this many elements, so that small layers are not timed
/// one by one.
const CACHED_ELEMENTS: usize = 16 << 20;
/// Longer than an OpenMP library's threads spin after their work.
const REST: std::time::Duration = std::time::Duration::from_millis(20);
/// Graphs of nodes that do nothing.
const NODE_ROUNDS: usize = 101;
/// Rounds that are made whatever the time.
const LEAST_ROUNDS: usize = 5;

fn main() {
    if let Err(e) = run() {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let options = Options::parse(std::env::args().skip(1))?;
    let library = ggml::Library::build()?;
    let mut cases = Vec::new();
    let mut nodes = Vec::new();
    let mut features = None;
    for &threads in &options.threads {
        let engine = library.as_ref().map(|library| library.open(threads)).transpose()?;
        if cases.is_empty() {
            features = engine.as_ref().map(|e| e.features());
            report::print_head(features.as_deref());
        }
        nodes.extend(engine.as_ref().and_then(node_seconds).map(|seconds| (threads, seconds)));
        for &batch in &options.batches {
            for &(d_out, d_in) in &options.shapes {
                for &stream in options.modes(batch) {
                    let case = Setting { d_out, d_in, stream, batch, threads };
                    let case = measure(&options, engine.as_ref(), case)?;
                    report::print_case(&case);
                    cases.push(case);
                }
            }
        }
    }
    report::print_ratios(&cases);
    report::print_nodes(&nodes);
    let write = |path: &Option<std::path::PathBuf>, text: String| match path {
        Some(path) => std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display())),
        None => Ok(()),
    };
    write(&options.json, report::json(&cases, &nodes, features.as_deref()))?;
    write(&options.svg, plot::bars(&cases))
}

/// Seconds that ggml takes for a node of a graph that does nothing, threads waiting for each other included.
fn node_seconds(engine: &ggml::Engine<'_>) -> Option<f64> {
    const NODES: usize = 1000;
    let pool = engine.nodes(NODES)?;
    let seconds = (0..NODE_ROUNDS)
        .map(|_| {
            let start = Clock::Wall.now();
            pool.run();
            (Clock::Wall.now() - start) / NODES as f64
        })
        .collect();
    Some(Row::new("node".into(), 0, seconds).median())
}

/// What one case measures.
#[derive(Clone, Copy)]
struct Setting {
    d_out: usize,
    d_in: usize,
    stream: bool,
    /// Columns.
    batch: usize,
    threads: usize,
}

impl Setting {
    /// Copies of a weight and products of a sample, which walk over them.
    fn pool(&self, weight_bytes: usize) -> (usize, usize) {
        if self.stream {
            let copies = STREAM_BYTES.div_ceil(weight_bytes).max(2);
            (copies, copies)
        } else {
            let products = (CACHED_ELEMENTS / (self.d_out * self.d_in * self.batch)).clamp(1, 64);
            // A team starts once per sample.
            (1, if self.threads > 1 { products.max(64 / self.batch.min(64)) } else { products })
        }
    }
}

/// Something to time.
struct Candidate<'a> {
    name: String,
    bytes: usize,
    products: usize,
    run: Box<dyn FnMut() + 'a>,
    samples: Vec<f64>,
}

impl<'a> Candidate<'a> {
    fn new(name: String, bytes: usize, products: usize, run: impl FnMut() + 'a) -> Self {
        Candidate { name, bytes, products, run: Box::new(run), samples: Vec::new() }
    }
}

fn measure(options: &Options, engine: Option<&ggml::Engine<'_>>, at: Setting) -> Result<Case, String> {
    let Setting { d_out, d_in, batch, .. } = at;
    let rank = ours::rank_within(d_out, d_in, options.bpw)
        .ok_or_else(|| format!("{d_out}x{d_in}: no rank fits into {} bits per weight", options.bpw))?;
    let bytes = ours::layer_bytes(d_out, d_in, rank);
    let (copies, products) = at.pool(bytes);
    let mut candidates = Vec::new();
    for &kernel in &options.kernels {
        let mut layers = Layers::new(at, rank, copies, products, kernel);
        candidates.push(Candidate::new(format!("littlebit {kernel}"), bytes, products, move || layers.run()));
    }
    for (name, layout, bits) in ggml::TYPES {
        let Some(engine) = engine else { break };
        let bytes = d_out * d_in * bits / 8 / 256;
        let (copies, products) = at.pool(bytes);
        if let Some(pool) = engine.pool(name, layout, (d_out, d_in, batch), copies, products) {
            let label = format!("{name}{}", layout.suffix());
            candidates.push(Candidate::new(label, bytes, products, move || pool.run()));
        }
    }
    if let Some(pool) = engine.and_then(|e| e.factors((d_out, d_in, rank, batch), copies, products)) {
        candidates.push(Candidate::new("2x q1_0".into(), bytes, products, move || pool.run()));
    }
    if at.stream {
        let memory = Memory::new(STREAM_BYTES);
        let threads = at.threads;
        candidates.push(Candidate::new("read".into(), STREAM_BYTES, 1, move || memory.read(threads)));
    }

    let clock = Clock::of(at.threads);
    let begin = Clock::Wall.now();
    for round in 0..=options.rounds {
        for candidate in &mut candidates {
            if at.threads > 1 {
                // The threads of the candidate before may still spin, waiting for more.
                std::thread::sleep(REST);
            }
            // Refills the caches after another candidate ran, and after the first touch of the memory.
            if !at.stream || round == 0 {
                (candidate.run)();
            }
            let start = clock.now();
            (candidate.run)();
            let seconds = (clock.now() - start) / (candidate.products * batch) as f64;
            if round > 0 {
                candidate.samples.push(seconds);
            }
        }
        if round >= LEAST_ROUNDS && Clock::Wall.now() - begin > options.seconds {
            break;
        }
    }
    let rows = candidates.into_iter().map(|c| Row::new(c.name, c.bytes, c.samples)).collect();
    Ok(Case { at, rank, bpw: ours::bpw(d_out, d_in, rank), rows })
}
