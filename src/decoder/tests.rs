//! Gradients against finite differences, on a small decoder that has every feature.

use super::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

const LENGTH: usize = 7;

fn vector(rng: &mut ChaCha8Rng, n: usize, around: f32, spread: f32) -> Vec<f32> {
    (0..n).map(|_| around + spread * rng.random_range(-1.0f32..1.0)).collect()
}

fn linear(rng: &mut ChaCha8Rng, name: &str, d_out: usize, d_in: usize, paths: usize) -> Linear {
    let mut signs = |n| (0..n).map(|_| if rng.random::<bool>() { 1.0 } else { -1.0 }).collect::<Vec<f32>>();
    let rank = 6;
    let latent: Vec<_> = (0..paths).map(|_| (signs(d_out * rank), signs(rank * d_in))).collect();
    let weight = if paths == 0 {
        Weight::Dense(vector(rng, d_out * d_in, 0.0, 0.5).into())
    } else {
        let path = |(u, vt): (Vec<f32>, Vec<f32>)| {
            let scales = [d_out, rank, d_in].map(|n| vector(rng, n, 0.4, 0.2));
            let mut path = Binary::new(scales, |i, k| u[i * rank + k] > 0.0, |k, j| vt[k * d_in + j] > 0.0);
            // Finite differences need all bits.
            path.precision = Precision::Full;
            path
        };
        Weight::Binary(latent.into_iter().map(path).collect())
    };
    Linear {
        name: name.to_owned(),
        d_out,
        d_in,
        weight,
        scale: 0.8,
        bias: Some(vector(rng, d_out, 0.0, 0.1)),
        place: Place::default(),
    }
}

/// Two blocks: dense with separate layers and a window; factorized with joined ones. Grouped queries, head norms,
/// post norms, partial rotation, GELU.
pub(crate) fn small() -> Model {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let rng = &mut rng;
    let config = Config {
        arch: "gemma3".into(),
        blocks: 2,
        d_model: 12,
        d_ff: 10,
        heads: 4,
        heads_kv: 2,
        d_key: 6,
        d_value: 4,
        eps: 1e-5,
        rope_dims: 4,
        rope_style: RopeStyle::Halves,
        rope_base: [100.0, 50.0],
        rope_scale: [0.5, 1.0],
        rope_magnitude: 1.0,
        windows: vec![Some(3), None],
        attention_scale: 0.4,
        activation: Activation::Gelu,
        embedding_scale: 1.5,
        logit_softcap: Some(4.0),
        context: 64,
        original_context: 64,
    };
    let blocks = (0..2)
        .map(|i| Block {
            linears: if i == 0 {
                [
                    vec![
                        linear(rng, "q", 24, 12, 0),
                        linear(rng, "k", 12, 12, 1),
                        linear(rng, "v", 8, 12, 0),
                    ],
                    vec![linear(rng, "o", 12, 16, 0)],
                    vec![linear(rng, "gate", 10, 12, 2), linear(rng, "up", 10, 12, 0)],
                    vec![linear(rng, "down", 12, 10, 0)],
                ]
            } else {
                [
                    vec![linear(rng, "qkv", 44, 12, 2)],
                    vec![linear(rng, "o", 12, 16, 1)],
                    vec![linear(rng, "up", 20, 12, 1)],
                    vec![linear(rng, "down", 12, 10, 1)],
                ]
            },
            norms: [vector(rng, 12, 1.0, 0.3), vector(rng, 12, 1.0, 0.3)],
            post_norms: [Some(vector(rng, 12, 1.0, 0.3)), Some(vector(rng, 12, 1.0, 0.3))],
            head_norms: [Some(vector(rng, 6, 1.0, 0.3)), Some(vector(rng, 6, 1.0, 0.3))],
            window: config.windows[i],
        })
        .collect();
    let embeddings = Arc::new(Dense::from(vector(rng, 11 * 12, 0.0, 1.0)));
    let norm = vector(rng, 12, 1.0, 0.3);
    Model {
        config,
        head: embeddings.clone(),
        embeddings,
        head_bias: None,
        norm,
        blocks,
        rope_factors: Some(vec![1.0, 1.5]),
        place: Place::default(),
    }
}

const TOKENS: [u32; 2 * LENGTH] = [1, 5, 3, 3, 9, 10, 0, 2, 7, 7, 4, 8, 1, 6];

/// Weights of the logits in the test's loss.
fn direction(n: usize) -> Vec<f32> {
    vector(&mut ChaCha8Rng::seed_from_u64(9), n, 0.0, 1.0)
}

fn loss(m: &Model) -> f64 {
    let logits = m.logits(&m.normed(&m.stream(&TOKENS, LENGTH)));
    logits.iter().zip(direction(logits.len())).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
}

fn gradient(m: &Model) -> ModelGrad {
    let tape = m.forward(&TOKENS, LENGTH);
    let mut grad = m.zero_grad(Trained::Everything);
    let logits = m.logits(&m.normed(&tape.x));
    let mut d_logits = direction(logits.len());
    let dx = m.head_backward(&tape.x, &logits, &mut d_logits, &mut grad.norm);
    m.backward(&tape, dx, LENGTH, &mut grad);
    grad
}

/// Checks the gradient along a random direction of one parameter vector, chosen by `pick`.
fn check(what: &str, grad: &[f32], pick: impl Fn(&mut Model) -> &mut Vec<f32>) {
    let along = vector(&mut ChaCha8Rng::seed_from_u64(grad.len() as u64), grad.len(), 0.0, 1.0);
    let at = |t: f32| {
        let mut m = small();
        pick(&mut m).iter_mut().zip(&along).for_each(|(p, a)| *p += t * a);
        loss(&m)
    };
    let e = 2e-3;
    // Fourth order: the third-order term of this loss is not small against f32 noise.
    let numeric = (8.0 * (at(e) - at(-e)) - (at(2.0 * e) - at(-2.0 * e))) / (12.0 * f64::from(e));
    let exact: f64 = grad.iter().zip(&along).map(|(g, a)| f64::from(*g) * f64::from(*a)).sum();
    let norm: f64 = grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 1e-3, "{what}: the gradient vanishes");
    let bound = 5e-3 * norm.max(1.0);
    assert!((numeric - exact).abs() < bound, "{what}: {numeric} against {exact}, norm {norm}");
}

#[test]
fn gradients_agree_with_finite_differences() {
    let grad = gradient(&small());
    check("final norm", &grad.norm, |m| &mut m.norm);
    for (i, b) in grad.blocks.iter().enumerate() {
        for (n, g) in b.norms.iter().enumerate() {
            check(&format!("block {i} norm {n}"), g, |m| m.blocks[i].norm_list().swap_remove(n));
        }
        for s in 0..4 {
            for (j, g) in b.linears[s].iter().enumerate() {
                let what = format!("block {i} site {s} layer {j}");
                match g.as_ref().unwrap() {
                    LinearGrad::Dense(g) => {
                        check(&what, g, |m| match &mut m.blocks[i].linears[s][j].weight {
                            Weight::Dense(w) => &mut **w,
                            _ => unreachable!(),
                        })
                    }
                    LinearGrad::Fisher(_) => unreachable!("gradients were asked for"),
                    LinearGrad::Factors(paths) => {
                        for (p, path) in paths.iter().enumerate() {
                            for (k, g) in path.scales.iter().enumerate() {
                                check(&format!("{what} path {p} scale {k}"), g, |m| {
                                    match &mut m.blocks[i].linears[s][j].weight {
                                        Weight::Binary(b) => match k {
                                            0 => &mut b[p].h,
                                            1 => &mut b[p].l,
                                            _ => &mut b[p].g,
                                        },
                                        _ => unreachable!(),
                                    }
                                });
                            }
                        }
                    }
                }
            }
        }
    }
}

/// With `W = diag(h) U diag(l) V^T diag(g)`, the gradients of U and V^T follow from that of W.
#[test]
fn gradients_of_signs_follow_from_those_of_the_product() {
    let model = small();
    let mut dense = model.clone();
    for l in dense.blocks.iter_mut().flat_map(|b| b.linears.iter_mut().flatten()) {
        let Weight::Binary(paths) = &l.weight else { continue };
        let mut w = vec![0f32; l.d_out * l.d_in];
        for p in paths {
            let ([u, vt], r) = (p.signs(), p.l.len());
            for (i, w) in w.chunks_exact_mut(l.d_in).enumerate() {
                for (j, w) in w.iter_mut().enumerate() {
                    let latent = (0..r).map(|k| u[i * r + k] * p.l[k] * vt[k * l.d_in + j]);
                    *w += p.h[i] * p.g[j] * latent.sum::<f32>();
                }
            }
        }
        l.weight = Weight::Dense(w.into());
    }
    let (grad, dense_grad) = (gradient(&model), gradient(&dense));
    let mut checked = 0;
    for (b, (block, dense_block)) in grad.blocks.iter().zip(&dense_grad.blocks).enumerate() {
        let pairs = block.linears.iter().flatten().zip(dense_block.linears.iter().flatten());
        for ((grads, dense), l) in pairs.zip(model.blocks[b].linears.iter().flatten()) {
            let (Some(LinearGrad::Factors(grads)), Some(LinearGrad::Dense(dw)), Weight::Binary(paths)) =
                (grads, dense, &l.weight)
            else {
                continue;
            };
            for (p, g) in paths.iter().zip(grads) {
                let ([u, vt], r, n) = (p.signs(), p.l.len(), l.d_in);
                let [du, dvt] = g.signs.as_ref().unwrap();
                let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
                let (mut off_u, mut off_v) = (0f32, 0f32);
                for k in 0..r {
                    for i in 0..l.d_out {
                        let want: f32 = (0..n).map(|j| dw[i * n + j] * p.g[j] * vt[k * n + j]).sum();
                        off_u = off_u.max((du[i * r + k] - want * p.h[i] * p.l[k]).abs());
                    }
                    for j in 0..n {
                        let want: f32 = (0..l.d_out).map(|i| dw[i * n + j] * p.h[i] * u[i * r + k]).sum();
                        off_v = off_v.max((dvt[k * n + j] - want * p.g[j] * p.l[k]).abs());
                    }
                }
                // Products of gradients have the precision of training steps.
                assert!(off_u < 1e-2 * norm(du) && norm(du) > 1e-3, "{}: {off_u} of {}", l.name, norm(du));
                assert!(off_v < 1e-2 * norm(dvt) && norm(dvt) > 1e-3, "{}: {off_v} of {}", l.name, norm(dvt));
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 8);
}

#[test]
fn silu_adjacent_rotation_and_missing_norms() {
    let plain = || {
        let mut m = small();
        m.config.activation = Activation::Silu;
        m.config.rope_style = RopeStyle::Adjacent;
        m.rope_factors = None;
        for b in &mut m.blocks {
            b.post_norms = [None, None];
            b.head_norms = [None, None];
        }
        m
    };
    let grad = gradient(&plain());
    let along = direction(grad.blocks[0].norms[0].len());
    let at = |t: f32| {
        let mut m = plain();
        m.blocks[0].norms[0].iter_mut().zip(&along).for_each(|(p, a)| *p += t * a);
        loss(&m)
    };
    let e = 2e-3f32;
    let numeric = (8.0 * (at(e) - at(-e)) - (at(2.0 * e) - at(-2.0 * e))) / (12.0 * f64::from(e));
    let exact: f64 = grad.blocks[0].norms[0].iter().zip(&along).map(|(g, a)| f64::from(g * a)).sum();
    assert!((numeric - exact).abs() < 5e-3 * exact.abs().max(1.0), "{numeric} against {exact}");
}

#[test]
fn causal_windowed_and_independent_sequences() {
    let m = small();
    let d = m.config.d_model;
    let base = m.stream(&TOKENS, LENGTH);
    let mut other = TOKENS;
    other[4] = 0;
    let changed = m.stream(&other, LENGTH);
    let differs = |t: usize| base[t * d..(t + 1) * d] != changed[t * d..(t + 1) * d];
    assert!((0..4).all(|t| !differs(t)), "a later token changed an earlier one");
    assert!((4..LENGTH).all(differs), "an earlier token had no effect");
    assert!((LENGTH..2 * LENGTH).all(|t| !differs(t)), "windows are not independent");
    assert_eq!(m.forward(&TOKENS, LENGTH).x, base, "the tape changes the result");
}

#[test]
fn threads_do_not_change_bits() {
    let on = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| {
            let g = gradient(&small());
            (g.norm, g.blocks[0].norms.clone())
        })
    };
    assert_eq!(on(1), on(3));
}
