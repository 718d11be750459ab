//! The decoder's products on the host model, loaded into this process, against the CPU.

use crate::layer::uniform;
use crate::model::{Model, device};
use crate::support::checkpoint::{SMOLLM, TOKENS, write_gguf};
use half::bf16;
use littlebit::calibrate::moments::{Inputs, Moments};
use littlebit::decoder::{self, Binary, Linear, LinearGrad, Place, Precision, Trained, Weight};
use littlebit::factorize::Device;
use littlebit::factorize::device::RESERVE;
use std::sync::Arc;

/// Tokens of a window.
const LENGTH: usize = 40;

/// The small model with its second block factorized, in two paths each; on `device`.
fn model(device: &Arc<Device>) -> decoder::Model {
    let dir = tempfile::tempdir().unwrap();
    let source = littlebit::source::open(&write_gguf(dir.path(), &SMOLLM)).unwrap();
    let loader = decoder::Loader::new(source.as_ref()).unwrap().on(device);
    let mut model = loader.frame().unwrap();
    model.blocks = (0..loader.blocks()).map(|b| loader.block(b).unwrap()).collect();
    for (i, l) in model.blocks[1].linears.iter_mut().flatten().enumerate() {
        l.weight = Weight::Binary((0..2).map(|p| path(l, 20 + 3 * i, p)).collect());
    }
    model
}

fn path(l: &Linear, r: usize, p: usize) -> Binary {
    let (u, vt) = (uniform(l.d_out * r, 3 + p as u64), uniform(r * l.d_in, 30 + p as u64));
    let size = (r as f32).powf(-0.5);
    let scales = [(l.d_out, 0.3), (r, size), (l.d_in, 0.3)];
    let scales = scales.map(|(n, by)| uniform(n, 300).iter().map(|x| by * (1.0 + 0.5 * x)).collect());
    let mut path = Binary::new(scales, |i, k| u[i * r + k] > 0.0, |k, j| vt[k * l.d_in + j] > 0.0);
    path.precision = Precision::Full;
    path
}

fn tokens() -> Vec<u32> {
    (0..2 * LENGTH).map(|i| ((i * i + i / 3) % TOKENS.len()) as u32).collect()
}

/// Logits, and the gradient of their product with fixed numbers.
fn both_passes(model: &decoder::Model) -> (Vec<f32>, Vec<f32>, decoder::ModelGrad) {
    let tape = model.forward(&tokens(), LENGTH);
    let logits = model.logits(&model.normed(&tape.x));
    let mut grad = model.zero_grad(Trained::Everything);
    let dx = model.head_backward(&tape.x, &logits, &mut uniform(logits.len(), 7), &mut grad.norm);
    let dx = model.backward(&tape, dx, LENGTH, &mut grad);
    (logits, dx, grad)
}

/// Largest distance as a share of the root mean square.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let rms = (a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32).sqrt();
    a.iter().zip(b).fold(0.0, |far, (a, b)| f32::max(far, (a - b).abs() / rms))
}

/// All vectors of a layer's gradient, and how far they may be off: on the CPU gradients of signs are products in few bits.
fn vectors(grad: &LinearGrad) -> Vec<(&[f32], f32)> {
    match grad {
        LinearGrad::Dense(g) => vec![(g, 1e-4)],
        LinearGrad::Factors(paths) => {
            let scales = paths.iter().flat_map(|p| &p.scales).map(|s| (&s[..], 1e-4));
            scales.chain(paths.iter().flat_map(|p| p.signs.iter().flatten()).map(|s| (&s[..], 0.1))).collect()
        }
        LinearGrad::Fisher(f) => vec![(&f.gradient, 1e-4), (&f.moments, 1e-4)],
    }
}

/// Every product and gradient at shapes that fill nothing and at others, in every order of threads.
#[test]
fn products_and_gradients_are_those_of_the_definitions() {
    let model = Model::new();
    let device = device();
    let shapes = [[1, 1, 1, 1], [5, 300, 8, 3], [64, 64, 64, 64], [33, 16, 130, 40], [2, 257, 31, 65]];
    for (i, shape) in shapes.into_iter().enumerate() {
        model.order(i as i32 % 4 - 1);
        assert_eq!(device.layer_disagreement(shape, 3).unwrap(), None, "{shape:?}");
    }
}

/// A whole model, dense and factorized, both passes.
#[test]
fn a_decoder_computes_what_it_does_on_the_cpu() {
    let _model = Model::new();
    let (gpu, cpu) = (Arc::new(device()), Arc::new(Device::cpu()));
    let (a, b) = (both_passes(&model(&cpu)), both_passes(&model(&gpu)));
    let far = [distance(&a.0, &b.0), distance(&a.1, &b.1)];
    eprintln!("logits and gradient of the embeddings off by {far:?}");
    assert!(far.iter().all(|far| *far < 1e-4), "{far:?}");
    let layers = |g: &decoder::ModelGrad| {
        g.blocks.iter().flat_map(|b| b.linears.iter().flatten().flatten().cloned()).collect::<Vec<_>>()
    };
    for (a, b) in layers(&a.2).iter().zip(&layers(&b.2)) {
        for ((a, bound), (b, _)) in vectors(a).into_iter().zip(vectors(b)) {
            assert!(distance(a, b) < bound, "{} of {bound}", distance(a, b));
        }
    }
    // The same bits again, beside others.
    let again = model(&gpu);
    let all: Vec<Vec<f32>> = std::thread::scope(|scope| {
        let run = || both_passes(&again).0;
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(all.iter().all(|logits| *logits == b.0));
    // What stays on the device is gone once a weight changes.
    let (mut here, mut there) = (model(&cpu), again);
    for model in [&mut here, &mut there] {
        let Weight::Dense(w) = &mut model.blocks[0].linears[0][1].weight else { panic!("it is dense") };
        w.iter_mut().for_each(|w| *w = -*w);
    }
    let (a, b) = (both_passes(&here).0, both_passes(&there).0);
    assert!(distance(&a, &b) < 1e-4 && a != all[0]);
    // Sums for sensitivities.
    let sums = |model: &decoder::Model| {
        let (c, rotations) = (&model.config, model.rotations(LENGTH));
        let block = &model.blocks[0];
        let rotation = block.rotation(&rotations);
        let (y, tape) = block.forward(c, rotation, model.embed(&tokens()), LENGTH);
        let mut sums = block.zero_fisher();
        block.backward(c, rotation, &tape, y, LENGTH, &mut sums);
        sums.linears.into_iter().flatten().flatten().collect::<Vec<_>>()
    };
    for (a, b) in sums(&here).iter().zip(&sums(&there)) {
        let energy = |g: &LinearGrad| if let LinearGrad::Fisher(f) = g { f.energy } else { f64::NAN };
        assert!((energy(a) / energy(b) - 1.0).abs() < 1e-4);
        for ((a, bound), (b, _)) in vectors(a).into_iter().zip(vectors(b)) {
            assert!(distance(a, b) < bound, "{}", distance(a, b));
        }
    }
    assert!(gpu.check().is_ok() && gpu.take_notes().is_empty());
}

/// Weights in two bytes: a model as it writes text and as it is trained.
#[test]
fn little_precision_is_that_of_the_weights_alone() {
    let _model = Model::new();
    let (gpu, cpu) = (Arc::new(device()), Arc::new(Device::cpu()));
    let logits = |device| {
        let model = model(device);
        let coarse: Vec<_> = model.blocks.iter().map(|b| b.coarse()).collect();
        let model = decoder::Model { blocks: coarse, ..model };
        model.coarse_logits(&model.coarse_head(), &model.normed(&model.stream(&tokens(), LENGTH)))
    };
    let far = distance(&logits(&cpu), &logits(&gpu));
    eprintln!("logits off by {far}");
    assert!(far < 0.05, "{far}");
    let prompts: Vec<&[u32]> = vec![&[1, 4], &[1, 5], &[1, 6]];
    let write = |device, seed| decoder::sample(&model(device), &prompts, 12, seed, 1 << 30, |_| {});
    assert_eq!(write(&gpu, 1), write(&gpu, 1));
    assert_ne!(write(&gpu, 1), write(&gpu, 2));
}

/// Moments of windows, with a residual stream beside them and without.
#[test]
fn moments_are_those_of_the_cpu() {
    let model = Model::new();
    let gpu = Arc::new(device());
    let (d, d_out, tokens) = (50, 20, 30);
    let windows: Vec<[Vec<f32>; 4]> =
        (0..19).map(|w| [d, d, d_out, d_out].map(|n| uniform(tokens * n, w + n as u64))).collect();
    let narrow = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
    let sources: Vec<[Vec<bf16>; 2]> = windows.iter().map(|w| [narrow(&w[0]), narrow(&w[2])]).collect();
    for residual in [false, true] {
        let inputs: Vec<Inputs> = windows
            .iter()
            .zip(&sources)
            .map(|(w, s)| Inputs {
                source: &s[0],
                compressed: &w[1],
                residual: residual.then_some((&s[1][..], &w[3][..])),
                weight: 0.5 + w[0][0].abs(),
            })
            .collect();
        let of = |place: &Place| {
            let mut moments = Moments::new(d).on(place, "w");
            moments.add(&inputs[..7]);
            moments.add(&inputs[7..]);
            moments
        };
        let (a, b) = (of(&Place::default()), of(&Place::from(&gpu)));
        // The CPU rounds to bfloat16.
        let far = [distance(&a.compressed(), &b.compressed()), distance(&a.importance(), &b.importance())];
        assert!(far.iter().all(|far| *far < 2e-2), "{far:?}");
        let w = uniform(d_out * d, 9);
        let target = |m: &Moments| {
            m.correction("w", Default::default()).unwrap().unwrap().target("w", &w, 1.0).unwrap()
        };
        assert!(distance(&target(&a), &target(&b)) < 5e-2);
        assert!(gpu.take_notes().is_empty());
    }
    // Sums that do not fit are the CPU's, bit for bit.
    model.memory(RESERVE as usize + 10_000);
    let of = |place: &Place| {
        let mut moments = Moments::new(d).on(place, "w");
        moments.add(&[Inputs {
            source: &sources[0][0],
            compressed: &windows[0][1],
            residual: None,
            weight: 1.0,
        }]);
        moments.compressed()
    };
    assert_eq!(of(&Place::from(&gpu)), of(&Place::default()));
    assert_eq!(gpu.take_notes().len(), 1);
}

/// What a site takes is known before and not much more is asked for; what does not fit is the CPU's, bit for bit.
#[test]
fn memory_is_what_was_announced() {
    let model = Model::new();
    let (d_in, d_out, r, tokens) = (130, 210, 96, 64);
    let (x, dy) = (uniform(tokens * d_in, 1), uniform(tokens * 2 * d_out, 2));
    for dense in [true, false] {
        let run = |gpu: &Arc<Device>, both: bool| {
            let layer = |name: &str| {
                let (name, weight) =
                    (format!("blk.0.{name}"), Weight::Dense(uniform(d_out * d_in, 4).into()));
                let mut l = Linear { name, d_out, d_in, weight, scale: 1.0, bias: None, place: gpu.into() };
                if !dense {
                    l.weight = Weight::Binary(vec![path(&l, r, 0)]);
                }
                l
            };
            let site = [layer("gate"), layer("up")];
            let (y, tapes) = decoder::site_forward(&site, &x);
            let mut grads: Vec<_> = site.iter().map(|l| l.zero_grad(Trained::Everything)).collect();
            let dx = both.then(|| decoder::site_backward(&site, &x, &tapes, &dy, &mut grads));
            (y, dx)
        };
        for both in [false, true] {
            model.memory(1 << 30);
            let gpu = Arc::new(device());
            model.peak();
            let plenty = run(&gpu, both);
            let peak = model.peak() as usize;
            drop(gpu);
            // The check of the device needs little.
            model.memory(RESERVE as usize + peak + peak / 4 + 4096);
            let gpu = Arc::new(device());
            assert!(run(&gpu, both) == plenty, "{dense} {both}: {peak} taken");
            assert_eq!(gpu.take_notes(), [""; 0], "{dense} {both}: {peak} taken");
            drop(gpu);
            // Only the last pass does not fit, so a backward pass follows a forward pass that has left no tape.
            model.memory(RESERVE as usize + peak - 4);
            let gpu = Arc::new(device());
            let (less, cpu) = (run(&gpu, both), run(&Arc::new(Device::cpu()), both));
            assert!(if both { less.1 == cpu.1 } else { less == cpu }, "{dense} {both}");
            let notes = gpu.take_notes();
            assert!(notes.len() == 1 && notes[0].contains("'blk.0.gate' goes to the CPU"), "{notes:?}");
            drop(gpu);
            model.peak();
            assert_eq!(model.peak(), 0, "memory is left behind");
        }
    }
}
