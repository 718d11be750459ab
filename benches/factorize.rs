//! Speed of factorization on the CPU beside a plain f32 product: `cargo bench --bench factorize [-- THREADS]`, one thread by default.
//!
//! LB-ADMM and polish run on random weights at 1.0 bit per weight as a conversion runs them; LB-ADMM with few and with more
//! iterations, so that what it does once is left out of the rate. The share is that of the operations that an iteration has to do in
//! what a faer product of 2048 x 2048 matrices reaches before and after the runs.

#[path = "../examples/layer/mod.rs"]
#[allow(dead_code)]
mod layer;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use layer::Layer;
use littlebit::factorize::device::Device;
use littlebit::factorize::{factorize_on, polish};
use std::error::Error;
use std::time::Instant;

/// d_out, d_in.
const SHAPES: [[usize; 2]; 6] =
    [[576, 576], [1536, 576], [576, 1536], [2048, 2048], [4096, 4096], [11008, 4096]];
/// Iterations of LB-ADMM, fewest and most.
const ITERATIONS: [usize; 2] = [2, 8];
/// Rounds of the polish.
const ROUNDS: usize = 2;

/// Side of the product's matrices.
const SIDE: usize = 2048;

/// Operations a second of the product, the best of some.
fn product_rate() -> f64 {
    let a = Mat::from_fn(SIDE, SIDE, |i, j| ((i * 31 + j * 17) % 23) as f32 - 11.0);
    let mut c = Mat::<f32>::zeros(SIDE, SIDE);
    let times = (0..4).map(|_| {
        let started = Instant::now();
        matmul(c.as_mut(), Accum::Replace, a.as_ref(), a.as_ref(), 1.0, Par::rayon(0));
        started.elapsed().as_secs_f64()
    });
    2.0 * (SIDE as f64).powi(3) / times.fold(f64::INFINITY, f64::min)
}

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    let threads = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    println!(
        "| d_out x d_in | rank | product GF/s | LB-ADMM ms an iteration | GF/s | share | polish ms a round |"
    );
    println!("|---|---|---|---|---|---|---|");
    pool.install(|| SHAPES.iter().try_for_each(|&shape| row(shape)))
}

fn row([d_out, d_in]: [usize; 2]) -> Outcome {
    let layer = Layer::new([d_out, d_in], 3)?;
    let device = Device::cpu();
    let mut seconds = [0f64; 2];
    let mut made = None;
    let before = product_rate();
    for (seconds, iterations) in seconds.iter_mut().zip(ITERATIONS) {
        let started = Instant::now();
        made = Some(factorize_on(&device, &layer.job("", iterations))?);
        *seconds = started.elapsed().as_secs_f64();
    }
    let product = before.max(product_rate());
    let each = (seconds[1] - seconds[0]) / (ITERATIONS[1] - ITERATIONS[0]) as f64;
    let rate = layer.operations() / each;
    let path = &made.as_ref().ok_or("no factors")?.paths[0];
    let started = Instant::now();
    polish::polish(&device, "", &layer.w, path, &layer.metric, ROUNDS)?;
    let polished = started.elapsed().as_secs_f64() / ROUNDS as f64;
    println!(
        "| {d_out}x{d_in} | {} | {:.0} | {:.1} | {:.0} | {:.0} % | {:.0} |",
        layer.rank,
        product / 1e9,
        each * 1e3,
        rate / 1e9,
        100.0 * rate / product,
        polished * 1e3
    );
    Ok(())
}
