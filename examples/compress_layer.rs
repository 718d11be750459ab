//! Times the compression of one layer of Llama 2 7B's shape on the GPU: `compress_layer [--iterations N] [--rounds N] [--divide N]`.
//!
//! Seven matrices of random weights at 1.0 bit per weight go through LB-ADMM (default 40 iterations) and polish (default 2 rounds) as a
//! conversion runs them, one after the other. Shown are wall time, the time of it on the GPU, the share that LB-ADMM's
//! operations have of what a product of 8192 x 8192 matrices reaches in the same run, and 32 times the sum for the whole
//! model. Then both passes of a block with factors of these ranks, as block tuning runs them over a window, with its products on the GPU and
//! with all of it on the CPU. `--divide N` makes every side N times smaller, to try the program on the host model of a GPU.

mod layer;

use layer::{Layer, uniform};
use littlebit::decoder::{
    Activation, Binary, Block, Config, Linear, Place, Precision, RopeStyle, Rotation, Trained, Weight,
};
use littlebit::factorize::device::{Choice, Device};
use littlebit::factorize::{factorize_on, polish};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

const LAYERS: f64 = 32.0;
/// Values of a head, and how many there are.
const HEAD: (usize, usize) = (128, 32);
/// Tokens of a window.
const WINDOW: usize = 512;
/// Times that a pass is run, of which the fastest counts.
const RUNS: usize = 4;
/// Names, outputs, inputs.
const MATRICES: [(&str, usize, usize); 7] = [
    ("attn_q", 4096, 4096),
    ("attn_k", 4096, 4096),
    ("attn_v", 4096, 4096),
    ("attn_output", 4096, 4096),
    ("ffn_gate", 11008, 4096),
    ("ffn_up", 11008, 4096),
    ("ffn_down", 4096, 11008),
];

fn main() {
    if let Err(e) = run() {
        eprintln!("compress_layer: {e}");
        std::process::exit(3);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let (mut iterations, mut rounds, mut divide) = (40, 2, 1);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let number = args.next().ok_or("a number is missing")?.parse()?;
        match flag.as_str() {
            "--iterations" => iterations = number,
            "--rounds" => rounds = number,
            "--divide" if (1..=32).contains(&number) => divide = number,
            _ => return Err("usage: compress_layer [--iterations N] [--rounds N] [--divide N]".into()),
        }
    }
    let device = Arc::new(Device::open(Choice::Cuda)?);
    device.take_notes().iter().for_each(|note| println!("{note}"));
    let side = 8192 / divide;
    let peak = device.product_rate(side)?;
    println!("f32 product of {side} x {side}: {:.1} TFLOP/s\n", peak / 1e12);
    println!(
        "| matrix | rank | LB-ADMM s | on the GPU | TFLOP/s | share of the product | polish s | on the GPU |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let (mut total, mut ranks) = (0.0, Vec::new());
    for (i, (name, d_out, d_in)) in MATRICES.into_iter().enumerate() {
        let (d_out, d_in) = (d_out / divide, d_in / divide);
        let layer = Layer::new([d_out, d_in], i as u64)?;
        let timed = |work: &mut dyn FnMut() -> littlebit::Result<()>| -> littlebit::Result<[f64; 2]> {
            let (before, started) = (device.busy(), Instant::now());
            work()?;
            Ok([started.elapsed(), device.busy() - before].map(|d| d.as_secs_f64()))
        };
        let mut made = None;
        let [factorized, on_gpu] = timed(&mut || {
            made = Some(factorize_on(&device, &layer.job(name, iterations))?);
            Ok(())
        })?;
        let path = &made.as_ref().ok_or("no factors")?.paths[0];
        let [polished, polished_on_gpu] =
            timed(&mut || polish::polish(&device, name, &layer.w, path, &layer.metric, rounds).map(drop))?;
        let rate = iterations as f64 * layer.operations() / on_gpu;
        println!(
            "| {name} {d_out}x{d_in} | {} | {factorized:.2} | {on_gpu:.2} | {:.1} | {:.0} % | {polished:.2} | {polished_on_gpu:.2} |",
            layer.rank,
            rate / 1e12,
            100.0 * rate / peak
        );
        total += factorized + polished;
        ranks.push(layer.rank);
    }
    // A matrix that went to the CPU would spoil the figures.
    device.take_notes().iter().for_each(|note| println!("{note}"));
    println!(
        "\nlayer: {total:.1} s; {LAYERS:.0} of them: {:.0} min (matrices alone, {iterations} iterations)",
        LAYERS * total / 60.0
    );
    println!(
        "\n| a block over {WINDOW} tokens | forward s | backward s, gradients of signs and all | on the GPU s |"
    );
    println!("|---|---|---|---|");
    for (name, place) in [("products on the GPU", Place::from(&device)), ("CPU", Place::default())] {
        let before = device.busy();
        let [forward, backward] = passes(&block(divide, &ranks, &place), divide);
        // Of all runs.
        let busy = (device.busy() - before).as_secs_f64() / RUNS as f64;
        println!("| {name} | {forward:.4} | {backward:.4} | {busy:.4} |");
    }
    device.take_notes().iter().for_each(|note| println!("{note}"));
    device.check()?;
    Ok(())
}

/// A block of these ranks with random signs, in the precision of training steps where it runs on the CPU.
fn block(divide: usize, ranks: &[usize], place: &Place) -> Block {
    let linear = |i: usize| {
        let ((name, d_out, d_in), r) = (MATRICES[i], ranks[i]);
        let (d_out, d_in) = (d_out / divide, d_in / divide);
        let sign = |i: usize, j: usize| (i * 31 + j * 17 + i * j) % 7 > 2;
        let scales = [(d_out, 1.0), (r, 1.0 / (r * d_in) as f32), (d_in, 1.0)];
        let scales = scales.map(|(n, size): (usize, f32)| vec![size.sqrt(); n]);
        let mut path = Binary::new(scales, sign, sign);
        path.precision = Precision::Coarse;
        let weight = Weight::Binary(vec![path]);
        Linear { name: name.to_owned(), d_out, d_in, weight, scale: 1.0, bias: None, place: place.clone() }
    };
    let d = MATRICES[0].2 / divide;
    Block {
        linears: [
            vec![linear(0), linear(1), linear(2)],
            vec![linear(3)],
            vec![linear(4), linear(5)],
            vec![linear(6)],
        ],
        norms: [vec![1.0; d], vec![1.0; d]],
        post_norms: [None, None],
        head_norms: [None, None],
        window: None,
    }
}

/// Seconds of the forward and of the backward pass over a window.
fn passes(block: &Block, divide: usize) -> [f64; 2] {
    let [d_model, d_ff] = [MATRICES[0].2, MATRICES[6].2].map(|n| n / divide);
    let (d_key, heads) = (HEAD.0, HEAD.1 / divide);
    let config = Config {
        arch: "llama".into(),
        blocks: 1,
        d_model,
        d_ff,
        heads,
        heads_kv: heads,
        d_key,
        d_value: d_key,
        eps: 1e-5,
        rope_dims: d_key,
        rope_style: RopeStyle::Adjacent,
        rope_base: [1e4; 2],
        rope_scale: [1.0; 2],
        rope_magnitude: 1.0,
        windows: vec![None],
        attention_scale: (d_key as f32).powf(-0.5),
        activation: Activation::Silu,
        embedding_scale: 1.0,
        logit_softcap: None,
        context: WINDOW,
        original_context: WINDOW,
    };
    let rotation = Rotation::new(WINDOW, d_key, 1e4, 1.0, 1.0, None, RopeStyle::Adjacent);
    let x = uniform(WINDOW * d_model, 3);
    let mut best = [f64::INFINITY; 2];
    for _ in 0..RUNS {
        let (x, mut grad) = (x.clone(), block.zero_grad(Trained::Factors));
        let started = Instant::now();
        let (y, tape) = block.forward(&config, &rotation, x, WINDOW);
        let forward = started.elapsed();
        block.backward(&config, &rotation, &tape, y, WINDOW, &mut grad);
        let seconds = [forward, started.elapsed() - forward].map(|d| d.as_secs_f64());
        best = [best[0].min(seconds[0]), best[1].min(seconds[1])];
    }
    best
}
