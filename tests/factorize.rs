//! The compressor as a caller sees it, from weights and a budget to factors, against computations of its own.

#![cfg(feature = "convert")]

use half::f16;
use littlebit::factorize::{Job, Method, Outcome, Rotate, factorize};
use littlebit::format::{FactorPath, Factors};
use littlebit::plan::{MatrixSpec, Target, plan};

/// Reproducible weights with a decaying spectrum and rows and columns of different size.
fn weights(d_out: usize, d_in: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ ((d_out as u64) << 32 | d_in as u64);
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f64::from((state >> 33) as u32) / f64::from(1u32 << 30) - 1.0
    };
    let k = 12;
    let a: Vec<f64> = (0..d_out * k).map(|_| noise()).collect();
    let b: Vec<f64> = (0..d_in * k).map(|_| noise()).collect();
    let mut w = Vec::with_capacity(d_out * d_in);
    for i in 0..d_out {
        for j in 0..d_in {
            let low: f64 = (0..k).map(|t| a[i * k + t] * b[j * k + t] / (1.0 + t as f64)).sum();
            let size = (1.0 + 0.5 * (i as f64).sin()) * (1.0 + 0.5 * (j as f64).cos());
            w.push((0.05 * size * (low + 0.4 * noise())) as f32);
        }
    }
    w
}

fn job<'a>(w: &'a [f32], d_out: usize, d_in: usize, rank: usize, method: Method) -> Job<'a> {
    Job {
        name: "blk.0.attn_q.weight",
        w,
        d_out,
        d_in,
        rank,
        paths: 1,
        method,
        rotate: None,
        importance: None,
        seed: 7,
        iterations: None,
    }
}

fn dense(paths: &[FactorPath]) -> Vec<f32> {
    Factors { paths: paths.len(), slices: paths.to_vec() }.dense(0)
}

fn norm(x: impl IntoIterator<Item = f64>) -> f64 {
    x.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The paper's equations in f64, one after the other. The decomposition is one-sided Jacobi, which shares
/// nothing with the bidiagonalisation that the library uses.
mod naive {
    pub type Matrix = Vec<Vec<f64>>;

    /// Singular value, left vector, right vector.
    type Triplet = (f64, Vec<f64>, Vec<f64>);

    /// Singular triplets, largest first; as many as there are columns.
    fn jacobi(w: &Matrix) -> Vec<Triplet> {
        let (m, n) = (w.len(), w[0].len());
        let mut columns: Vec<Vec<f64>> = (0..n).map(|j| (0..m).map(|i| w[i][j]).collect()).collect();
        let mut v: Vec<Vec<f64>> = (0..n).map(|j| (0..n).map(|i| f64::from(i == j)).collect()).collect();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        for _ in 0..60 {
            let mut largest = 0f64;
            for p in 0..n {
                for q in p + 1..n {
                    let (a, b) = (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]));
                    let c = dot(&columns[p], &columns[q]);
                    largest = largest.max(c.abs() / (a * b).sqrt().max(1e-300));
                    if c == 0.0 {
                        continue;
                    }
                    let zeta = (b - a) / (2.0 * c);
                    let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                    let cos = 1.0 / (1.0 + t * t).sqrt();
                    for set in [&mut columns, &mut v] {
                        for i in 0..set[p].len() {
                            let (x, y) = (set[p][i], set[q][i]);
                            set[p][i] = cos * (x - t * y);
                            set[q][i] = cos * (y + t * x);
                        }
                    }
                }
            }
            if largest < 1e-14 {
                break;
            }
        }
        let mut out: Vec<_> = columns
            .into_iter()
            .zip(v)
            .map(|(u, v)| {
                let s = dot(&u, &u).sqrt();
                (s, u.iter().map(|x| x / s.max(1e-300)).collect::<Vec<_>>(), v)
            })
            .collect();
        out.sort_by(|a, b| b.0.total_cmp(&a.0));
        out
    }

    /// Leading pair of `|x|` (rows are channels): `|x| ~ channel latent^T`, the value split evenly.
    fn magnitudes(x: &Matrix) -> (Vec<f64>, Vec<f64>) {
        let (channel_value, channel, latent) = {
            let abs = x.iter().map(|row| row.iter().map(|x| x.abs()).collect()).collect();
            jacobi(&abs).swap_remove(0)
        };
        let root = channel_value.sqrt();
        let scaled = |v: Vec<f64>| v.iter().map(|x| x.abs() * root).collect();
        (scaled(channel), scaled(latent))
    }

    /// What Dual-SVID makes of a matrix, before signs are taken.
    pub struct DualSvid {
        /// `U' = P sqrt(S)`, a row for each output.
        pub u: Matrix,
        /// `V' = Q sqrt(S)`, a row for each input.
        pub v: Matrix,
        /// `|U'| ~ h u2^T`.
        pub h: Vec<f64>,
        /// `u2 * v1`.
        pub l: Vec<f64>,
        /// `|V'| ~ g v1^T`.
        pub g: Vec<f64>,
    }

    /// The paper's equations for the rank-`r` decomposition of `w`.
    pub fn dual_svid(w: &Matrix, r: usize) -> DualSvid {
        let svd = jacobi(w);
        // Columns beyond the rows only span the null space.
        let svd = &svd[..r.min(w.len()).min(svd.len())];
        let side = |pick: &dyn Fn(&Triplet, usize) -> f64, n: usize| -> Matrix {
            (0..n).map(|i| svd.iter().map(|term| pick(term, i) * term.0.sqrt()).collect()).collect()
        };
        let u = side(&|term, i| term.1[i], w.len());
        let v = side(&|term, j| term.2[j], w[0].len());
        let ((h, u2), (g, v1)) = (magnitudes(&u), magnitudes(&v));
        DualSvid { l: u2.iter().zip(&v1).map(|(a, b)| a * b).collect(), u, v, h, g }
    }
}

/// Checks signs and scales of a stored path. Singular vectors are unique up to a common sign of both sides; entries
/// so near to zero that f32 cannot tell their sign are left out.
fn assert_same(path: &FactorPath, want: &naive::DualSvid, label: &str) {
    let rms = |x: &naive::Matrix, k: usize| {
        (x.iter().map(|row| row[k] * row[k]).sum::<f64>() / x.len() as f64).sqrt()
    };
    for k in 0..want.l.len() {
        let largest = (0..want.u.len()).max_by(|&a, &b| want.u[a][k].abs().total_cmp(&want.u[b][k].abs()));
        let largest = largest.unwrap();
        let turned = path.u.is_plus(largest, k) != (want.u[largest][k] >= 0.0);
        let (u_floor, v_floor) = (2e-3 * rms(&want.u, k), 2e-3 * rms(&want.v, k));
        for (i, row) in want.u.iter().enumerate().filter(|(_, row)| row[k].abs() > u_floor) {
            assert_eq!(path.u.is_plus(i, k), (row[k] >= 0.0) != turned, "{label}: U({i}, {k})");
        }
        for (j, row) in want.v.iter().enumerate().filter(|(_, row)| row[k].abs() > v_floor) {
            assert_eq!(path.vt.is_plus(k, j), (row[k] >= 0.0) != turned, "{label}: V({j}, {k})");
        }
    }
    // Scales are equal up to factors that move between them.
    let wide = |x: &[f16]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let stored = [wide(&path.h), wide(&path.g), wide(&path.l)];
    let wanted = [&want.h, &want.g, &want.l];
    for ((got, want), name) in stored.iter().zip(wanted).zip(["h", "g", "l"]) {
        let (got_mean, want_mean) = (mean(&got[..want.len()]), mean(want));
        for (t, (x, y)) in got.iter().zip(want).enumerate() {
            assert!((x / got_mean - y / want_mean).abs() < 2e-3, "{label}: {name}({t}) {x} {y}");
        }
    }
    let mean_of_each = stored.iter().zip(wanted).map(|(got, want)| mean(&got[..want.len()]) / mean(want));
    let ratio = mean_of_each.product::<f64>();
    assert!((ratio - 1.0).abs() < 2e-3, "{label}: magnitude off by {ratio}");
    assert!(stored[2][want.l.len()..].iter().all(|&l| l == 0.0), "{label}: dimensions beyond the rank");
}

fn rows(w: &[f32], d_in: usize) -> naive::Matrix {
    w.chunks_exact(d_in).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
}

#[test]
fn dual_svid_is_the_papers_on_both_paths() {
    for (d_out, d_in) in [(48, 40), (40, 56), (24, 90)] {
        let w = weights(d_out, d_in);
        let job = Job { paths: 2, ..job(&w, d_out, d_in, 32, Method::DualSvid) };
        let paths = factorize(&job).unwrap().paths;
        // The second path answers the error of the first as it is stored, so each is checked on its own target.
        let mut target = w.clone();
        for path in &paths {
            assert_same(path, &naive::dual_svid(&rows(&target, d_in), 32), &format!("{d_out} x {d_in}"));
            let got = dense(std::slice::from_ref(path));
            target.iter_mut().zip(&got).for_each(|(t, x)| *t -= x);
        }
    }
}

#[test]
fn importance_is_weighting_before_and_unweighting_after() {
    let (d_out, d_in) = (40, 48);
    let w = weights(d_out, d_in);
    let importance: Vec<f32> = (0..d_in).map(|j| 0.1 + (j % 7) as f32).collect();
    let mean = importance.iter().sum::<f32>() / d_in as f32;
    let s: Vec<f32> = importance.iter().map(|x| ((1.0 - 0.2) * x / mean + 0.2).sqrt()).collect();
    let scaled: Vec<f32> = w.iter().enumerate().map(|(t, x)| x * s[t % d_in]).collect();
    let base = job(&w, d_out, d_in, 32, Method::DualSvid);
    let out = factorize(&Job { importance: Some(&importance), ..base }).unwrap();
    let mut want = naive::dual_svid(&rows(&scaled, d_in), 32);
    want.g.iter_mut().zip(&s).for_each(|(g, s)| *g /= f64::from(*s));
    assert_same(&out.paths[0], &want, "weighted");
    let got = dense(&out.paths);
    // The reported errors are those of the definition, with the importance as it was given.
    let error = |weight: &dyn Fn(usize) -> f64| {
        let part = norm((0..w.len()).map(|t| f64::from(w[t] - got[t]) * weight(t % d_in).sqrt()));
        part / norm((0..w.len()).map(|t| f64::from(w[t]) * weight(t % d_in).sqrt()))
    };
    assert!((out.error_plain - error(&|_| 1.0)).abs() < 1e-5);
    assert!((out.error_weighted - error(&|j| f64::from(importance[j]))).abs() < 1e-5);
}

#[test]
fn the_methods_rank_as_published_and_a_float_svd_bounds_them() {
    let (d_out, d_in) = (160, 128);
    let w = weights(d_out, d_in);
    let error = |method, rotate, paths, rank| {
        let job = Job { rotate, paths, ..job(&w, d_out, d_in, rank, method) };
        factorize(&job).unwrap().error_plain
    };
    let admm = error(Method::Admm, None, 1, 64);
    let itq = error(Method::DualSvid, Some(Rotate::Itq), 1, 64);
    let svid = error(Method::DualSvid, None, 1, 64);
    let svid_two = error(Method::DualSvid, None, 2, 32);
    assert!(admm < 0.9 * itq && itq < 0.9 * svid, "{admm} {itq} {svid}");
    assert!(svid_two < svid, "{svid_two} {svid}");
    assert!(error(Method::Admm, None, 1, 128) < admm && error(Method::Admm, None, 2, 64) < admm);
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    // Larger than one block of any product, on every side.
    let (d_out, d_in, rank) = (600, 530, 288);
    let w = weights(d_out, d_in);
    let importance: Vec<f32> = (0..d_in).map(|j| 1.0 + (j % 5) as f32).collect();
    for (method, rotate, iterations) in [
        (Method::Admm, None, Some(3)),
        (Method::DualSvid, None, None),
        (Method::DualSvid, Some(Rotate::Itq), Some(2)),
    ] {
        let base = job(&w, d_out, d_in, rank, method);
        let job = Job { rotate, iterations, paths: 2, importance: Some(&importance), ..base };
        let on = |threads: usize| -> Outcome {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| factorize(&job)).unwrap()
        };
        let one = on(1);
        for threads in [2, 3] {
            let other = on(threads);
            assert!(one.paths == other.paths, "{method} on {threads} threads");
            assert_eq!(one.error_plain.to_bits(), other.error_plain.to_bits());
            assert_eq!(one.error_weighted.to_bits(), other.error_weighted.to_bits());
        }
    }
}

#[test]
fn a_planned_rank_takes_the_planned_bytes() {
    for (d_out, d_in, paths) in [(100, 70, 1), (64, 129, 2), (33, 200, 1)] {
        let spec = MatrixSpec {
            name: "blk.0.attn_q.weight".to_owned(),
            d_out,
            d_in,
            experts: 1,
            fixed: None,
            spectrum: None,
        };
        let planned = plan(&[spec], Target::Bpw(4.0), paths, Method::Admm).unwrap();
        let w = weights(d_out, d_in);
        let base = job(&w, d_out, d_in, planned.entries[0].rank, Method::Admm);
        let out = factorize(&Job { paths, iterations: Some(2), ..base }).unwrap();
        let bytes: usize = out
            .paths
            .iter()
            .map(|p| {
                let scales = p.h.len() + p.l.len() + p.g.len();
                p.u.as_bytes().len() + p.vt.as_bytes().len() + size_of::<f16>() * scales
            })
            .sum();
        assert_eq!(8 * bytes as u64, planned.bits);
    }
}
