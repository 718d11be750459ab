//! Speed of factorization on the CPU beside a plain f32 product: `cargo bench --bench factorize [-- THREADS]`, one thread by default.
//!
//! LB-ADMM and polish run on random weights at 1.0 bit per weight as a conversion runs them, each with one and with several
//! iterations or rounds, so that what they do once is left out of the rate. The share is that of the
//! operations that an iteration has to do (Gram matrix, product, decomposition and solution for both factors) in what
//! a faer product of the matrix with a square one reaches between the runs.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use littlebit::factorize::device::Device;
use littlebit::factorize::{Job, Method, factorize_on, polish};
use littlebit::plan::{MatrixSpec, Target, plan};
use std::error::Error;
use std::time::Instant;

/// d_out, d_in.
const SHAPES: [[usize; 2]; 6] =
    [[576, 576], [1536, 576], [576, 1536], [2048, 2048], [4096, 4096], [11008, 4096]];
/// Iterations of LB-ADMM, fewest and most.
const ITERATIONS: [usize; 2] = [2, 8];
/// Rounds of the polish.
const ROUNDS: usize = 2;

/// `n` numbers in [-1, 1).
fn uniform(n: usize, mut x: u64) -> Vec<f32> {
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Operations of an iteration of LB-ADMM, 2 for each multiply-add.
fn operations(m: usize, n: usize, r: usize) -> f64 {
    let [m, n, r] = [m, n, r].map(|x| x as f64);
    r * r * (m + n) + 4.0 * r * m * n + 2.0 / 3.0 * r.powi(3) + 2.0 * r * r * (m + n)
}

/// Operations a second of a product of square matrices, the best of some.
fn product_rate(side: usize) -> f64 {
    let a = Mat::from_fn(side, side, |i, j| ((i * 31 + j * 17) % 23) as f32 - 11.0);
    let mut c = Mat::<f32>::zeros(side, side);
    let times = (0..4).map(|_| {
        let started = Instant::now();
        matmul(c.as_mut(), Accum::Replace, a.as_ref(), a.as_ref(), 1.0, Par::rayon(0));
        started.elapsed().as_secs_f64()
    });
    2.0 * (side as f64).powi(3) / times.fold(f64::INFINITY, f64::min)
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
    let spec = MatrixSpec { name: String::new(), d_out, d_in, experts: 1, fixed: None, spectrum: None };
    let rank = plan(&[spec], Target::Bpw(1.0), 1, Method::Admm)?.entries[0].rank;
    let w = uniform(d_out * d_in, 3);
    // Correlated inputs of different size.
    let size = uniform(d_in, 77);
    let mut metric: Vec<f32> = size.iter().flat_map(|a| size.iter().map(move |b| 0.4 * a * b)).collect();
    (0..d_in).for_each(|j| metric[j * d_in + j] += 0.5 + size[j].abs());
    let device = Device::cpu();
    let job = |iterations| Job {
        name: "",
        w: &w,
        d_out,
        d_in,
        rank,
        paths: 1,
        method: Method::Admm,
        rotate: None,
        importance: None,
        seed: 0,
        iterations: Some(iterations),
    };
    let mut seconds = [0f64; 2];
    let mut made = None;
    let before = product_rate(2048);
    for (seconds, iterations) in seconds.iter_mut().zip(ITERATIONS) {
        let started = Instant::now();
        made = Some(factorize_on(&device, &job(iterations))?);
        *seconds = started.elapsed().as_secs_f64();
    }
    let product = before.max(product_rate(2048));
    let each = (seconds[1] - seconds[0]) / (ITERATIONS[1] - ITERATIONS[0]) as f64;
    let rate = operations(d_out, d_in, rank) / each;
    let path = &made.as_ref().ok_or("no factors")?.paths[0];
    let started = Instant::now();
    polish::polish(&device, "", &w, path, &metric, ROUNDS)?;
    let polished = started.elapsed().as_secs_f64() / ROUNDS as f64;
    println!(
        "| {d_out}x{d_in} | {rank} | {:.0} | {:.1} | {:.0} | {:.0} % | {:.0} |",
        product / 1e9,
        each * 1e3,
        rate / 1e9,
        100.0 * rate / product,
        polished * 1e3
    );
    Ok(())
}
