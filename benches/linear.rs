//! Speed of the products that training consists of, one linear layer at a time, in GF/s (2 per multiply-add of the
//! factors or of the dense weight) on one thread: `cargo bench --bench linear [-- ROWS]`, 512 rows by default.

use littlebit::decoder::{Binary, Linear, Place, Precision, Trained, Weight};
use std::hint::black_box;
use std::time::Instant;

/// d_out, d_in, rank.
const SHAPES: [[usize; 3]; 6] = [
    [576, 576, 288],
    [192, 576, 160],
    [1536, 576, 416],
    [576, 1536, 416],
    [2048, 2048, 1024],
    [4096, 4096, 2048],
];

fn pattern(i: usize) -> f32 {
    ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 / 1000.0 - 1.0
}

/// Median seconds of one call.
fn time(mut f: impl FnMut()) -> f64 {
    f();
    let mut all: Vec<f64> = Vec::new();
    let begun = Instant::now();
    while all.len() < 5 || (begun.elapsed().as_secs_f64() < 0.5 && all.len() < 200) {
        let started = Instant::now();
        f();
        all.push(started.elapsed().as_secs_f64());
    }
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let rows = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(512);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool of one thread");
    println!(
        "| d_out x d_in, rank | dense | dense, coarse | factors | back to inputs and scales | and signs |"
    );
    println!("|---|---|---|---|---|---|");
    pool.install(|| SHAPES.iter().for_each(|&shape| row(rows, shape)));
}

fn row(rows: usize, [d_out, d_in, r]: [usize; 3]) {
    let vector = |n: usize, seed: usize| (0..n).map(|i| 1.0 + 0.5 * pattern(i + seed)).collect::<Vec<f32>>();
    let linear = |weight| Linear {
        name: String::new(),
        d_out,
        d_in,
        weight,
        scale: 1.0,
        bias: None,
        place: Place::default(),
    };
    let x: Vec<f32> = (0..rows * d_in).map(pattern).collect();
    let dy: Vec<f32> = (0..rows * d_out).map(|i| pattern(i + 5)).collect();
    let dense = linear(Weight::Dense((0..d_out * d_in).map(|i| pattern(i + 9)).collect::<Vec<_>>().into()));
    let coarse = dense.coarse();
    let sign = |i: usize, j: usize| pattern(i * 7919 + j) > 0.0;
    let mut factors = linear(Weight::Binary(vec![Binary::new(
        [vector(d_out, 1), vector(r, 2), vector(d_in, 3)],
        sign,
        sign,
    )]));
    factors.set_precision(Precision::Coarse);
    let whole = (2 * rows * d_out * d_in) as f64 / 1e9;
    let parts = (2 * rows * r * (d_out + d_in)) as f64 / 1e9;
    let forward = |l: &Linear| time(|| drop(black_box(l.forward(&x))));
    let (_, tape) = factors.forward(&x);
    let backward = |trained| {
        let mut grad = factors.zero_grad(trained);
        let mut dx = vec![0f32; x.len()];
        time(|| factors.backward(&x, &tape, &dy, &mut dx, grad.as_mut()))
    };
    println!(
        "| {d_out}x{d_in}, {r} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
        whole / forward(&dense),
        whole / forward(&coarse),
        parts / forward(&factors),
        parts / backward(Trained::Scales),
        2.0 * parts / backward(Trained::Factors),
    );
}
