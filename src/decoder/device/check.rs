//! Layers and moments on the device against sums of their definitions.

use super::{Side, layers, operand};
use crate::cuda::compute::Session;
use crate::decoder::dense::Dense;
use crate::decoder::device::Place;
use crate::decoder::fisher::Fisher;
use crate::decoder::linear::{Binary, Linear, LinearGrad, Trained, Weight};
use crate::factorize::algebra::Computed;
use crate::factorize::device::TOLERANCE;
use crate::factorize::device::check::{distance, rms};
use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Tokens, inputs, outputs and rank: none fills a block of threads, a group of rows or a word.
pub const CHECKED: [usize; 4] = [37, 45, 70, 33];

/// Random numbers around 0, or around 1 where they are scales.
struct Random(ChaCha8Rng);

impl Random {
    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.0.random_range(-1.0f32..1.0)).collect()
    }

    fn scales(&mut self, n: usize) -> Vec<f32> {
        self.values(n).iter().map(|x| 1.0 + 0.5 * x).collect()
    }

    fn path(&mut self, [m, r, n]: [usize; 3]) -> Binary {
        let (u, vt) = (self.values(m * r), self.values(r * n));
        let scales = [m, r, n].map(|n| self.scales(n));
        Binary::new(scales, |i, k| u[i * r + k] > 0.0, |k, j| vt[k * n + j] > 0.0)
    }
}

/// `a (m x k) b`, sums in f64.
fn product(a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) -> Vec<f32> {
    let sum =
        |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
    (0..m * n).map(|at| sum(at / n, at % n) as f32).collect()
}

fn transposed(a: &[f32], n: usize) -> Vec<f32> {
    (0..a.len()).map(|at| a[at % (a.len() / n) * n + at / (a.len() / n)]).collect()
}

/// The weight that a path stands for.
fn product_of(p: &Binary) -> Vec<f32> {
    let ([mut u, mut vt], (m, r, n)) = (p.signs(), (p.h.len(), p.l.len(), p.g.len()));
    u.iter_mut().enumerate().for_each(|(at, u)| *u *= p.h[at / r] * p.l[at % r]);
    vt.iter_mut().enumerate().for_each(|(at, v)| *v *= p.g[at % n]);
    product(&u, &vt, [m, r, n])
}

/// Gradients of a path, from that of the weight which it is part of: of h, l, g, U and V^T.
fn factors_of(p: &Binary, dw: &[f32]) -> [Vec<f32>; 5] {
    let ([u, vt], (m, r, n)) = (p.signs(), (p.h.len(), p.l.len(), p.g.len()));
    let vg: Vec<f32> = vt.iter().enumerate().map(|(at, v)| v * p.g[at % n]).collect();
    let hu: Vec<f32> = u.iter().enumerate().map(|(at, u)| u * p.h[at / r]).collect();
    // diag(h) dW diag(g) V and U^T diag(h) dW diag(g), both times l.
    let mut du = product(dw, &transposed(&vg, n), [m, n, r]);
    du.iter_mut().enumerate().for_each(|(at, d)| *d *= p.h[at / r] * p.l[at % r]);
    let mut dvt = product(&transposed(&hu, r), dw, [r, m, n]);
    dvt.iter_mut().enumerate().for_each(|(at, d)| *d *= p.l[at / n] * p.g[at % n]);
    let (mut dh, mut dl, mut dg) = (vec![0f32; m], vec![0f32; r], vec![0f32; n]);
    for (at, (d, s)) in du.iter().zip(&u).enumerate() {
        dh[at / r] += d * s / p.h[at / r];
        dl[at % r] += d * s / p.l[at % r];
    }
    dvt.iter().zip(&vt).enumerate().for_each(|(at, (d, s))| dg[at % n] += d * s / p.g[at % n]);
    [dh, dl, dg, du, dvt]
}

/// What is different, in words, for this shape (as [`CHECKED`]) and random numbers.
pub fn disagreement(session: &Session, [tokens, n, m, r]: [usize; 4], seed: u64) -> Computed<Option<String>> {
    let mut random = Random(ChaCha8Rng::seed_from_u64(seed));
    let (d_outs, scales) = ([m, m + 3, m], [0.8, 1.0, 1.25]);
    let paths = |random: &mut Random| {
        let all = [random.path([m, r, n]), random.path([m, r + 5, n])];
        let [a, b] = all;
        // Both layouts of signs, whatever processor this is.
        vec![a.in_other_layout(), b]
    };
    let weights = [
        Weight::Binary(paths(&mut random)),
        Weight::Dense(Dense::from(random.values((m + 3) * n))),
        Weight::Binary(paths(&mut random)),
    ];
    let site: Vec<Linear> = weights
        .into_iter()
        .enumerate()
        .map(|(i, weight)| Linear {
            name: "check".to_owned(),
            d_out: d_outs[i],
            d_in: n,
            weight,
            scale: scales[i],
            bias: None,
            place: Place::default(),
        })
        .collect();
    let width: usize = d_outs.iter().sum();
    let (x, dy) = (random.values(tokens * n), random.values(tokens * width));
    // All weights times their scales, one below the other.
    let whole: Vec<f32> = site
        .iter()
        .flat_map(|l| {
            let w = match &l.weight {
                Weight::Dense(w) => w.to_vec(),
                Weight::Binary(paths) => {
                    let [a, b] = [product_of(&paths[0]), product_of(&paths[1])];
                    a.iter().zip(b).map(|(a, b)| a + b).collect()
                }
                Weight::Coarse(_) => unreachable!("there is none above"),
            };
            w.into_iter().map(|w| w * l.scale).collect::<Vec<f32>>()
        })
        .collect();

    let mut compared = Compared(None);
    let y = product(&x, &transposed(&whole, n), [tokens, n, width]);
    compared.with("outputs of layers", &y, &layers::forward(session, &site, &x)?);
    let mut grads: Vec<Option<LinearGrad>> = site.iter().map(|l| l.zero_grad(Trained::Everything)).collect();
    let (dx, found) = layers::backward(session, &site, [&x, &dy], None, &grads)?;
    compared.with("gradients of inputs", &product(&dy, &whole, [tokens, width, n]), &dx);
    // Of all weights as they are multiplied, one below the other.
    let dw = product(&transposed(&dy, width), &x, [width, tokens, n]);
    let mut at = 0;
    for (l, found) in site.iter().zip(&found) {
        let dw: Vec<f32> = dw[at * n..(at + l.d_out) * n].iter().map(|d| d * l.scale).collect();
        match (&l.weight, found) {
            (Weight::Binary(paths), Some(LinearGrad::Factors(found))) => {
                for (p, found) in paths.iter().zip(found) {
                    let want = factors_of(p, &dw);
                    let found = found.scales.iter().chain(found.signs.iter().flatten());
                    let names = ["h", "l", "g", "U", "V"].iter().zip(&want).zip(found);
                    names.for_each(|((name, want), found)| {
                        compared.with(&format!("gradients of {name}"), want, found);
                    });
                }
            }
            (_, Some(LinearGrad::Dense(found))) => compared.with("gradients of weights", &dw, found),
            _ => compared.with("gradients", &[1.0], &[0.0]),
        }
        at += l.d_out;
    }
    // Sums for sensitivities, of a weight with more outputs than inputs and of one with fewer.
    for d_out in [n / 2 + 1, m + n] {
        let w = random.values(d_out * n);
        let l = Linear { d_out, weight: Weight::Dense(w.clone().into()), ..site[0].clone() };
        let dy = random.values(tokens * d_out);
        grads = vec![Some(LinearGrad::Fisher(Fisher::default()))];
        let (_, found) = layers::backward(session, std::slice::from_ref(&l), [&x, &dy], Some(&x), &grads)?;
        let of = if d_out <= n { product(&x, &transposed(&w, n), [tokens, n, d_out]) } else { x.clone() };
        let d = d_out.min(n);
        let want = product(&transposed(&of, d), &of, [d, tokens, d]);
        match &found[0] {
            Some(LinearGrad::Fisher(f)) => compared.with("sums of outputs", &want, &f.moments),
            _ => compared.with("sums of outputs", &[1.0], &[0.0]),
        }
    }
    // The head, in both forms and directions.
    let w = Dense::from(random.values(m * n));
    let held = operand::dense(session, &w)?;
    let found = layers::product(session, &held, [m, n], &x, Side::Forward)?;
    compared.with("a product", &product(&x, &transposed(&w, n), [tokens, n, m]), &found);
    let x = &dy[..tokens * m];
    let found = layers::product(session, &held, [m, n], x, Side::Backward)?;
    compared.with("a product", &product(x, &w, [tokens, m, n]), &found);
    let short: Vec<f32> = w.iter().map(|w| bf16::from_f32(*w).to_f32()).collect();
    let words: Vec<u32> = short
        .chunks(2)
        .map(|pair| pair[0].to_bits() >> 16 | pair.get(1).map_or(0, |x| x.to_bits()))
        .collect();
    let words = session.send(&words)?;
    let widened = operand::widened(session, &words, [m, n])?;
    compared.with("bfloat16", &short, &session.download(&widened, 0..m * n)?);
    Ok(compared.0)
}

/// The first difference.
struct Compared(Option<String>);

impl Compared {
    fn with(&mut self, what: &str, expected: &[f32], found: &[f32]) {
        let far = if expected.len() == found.len() {
            distance(expected, found, rms(expected))
        } else {
            f64::INFINITY
        };
        if far > TOLERANCE && self.0.is_none() {
            self.0 = Some(format!("{what} off by {far:.1e}"));
        }
    }
}
