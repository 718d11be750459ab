use super::*;
use crate::format::Factors;

/// Weights with a decaying spectrum, scales that differ between channels and noise: like a linear layer.
fn weights(d_out: usize, d_in: usize, seed: u64) -> Vec<f32> {
    let mut rng = start::rng(seed, "weights", 0);
    let k = d_out.min(d_in);
    let (a, b) = (start::uniform(&mut rng, d_out * k), start::uniform(&mut rng, d_in * k));
    let rows: Vec<f32> = start::uniform(&mut rng, d_out).iter().map(|x| (1.5 * x).exp()).collect();
    let columns: Vec<f32> = start::uniform(&mut rng, d_in).iter().map(|x| (1.5 * x).exp()).collect();
    let mut w = Vec::with_capacity(d_out * d_in);
    for i in 0..d_out {
        for j in 0..d_in {
            let sum: f32 = (0..k).map(|t| a[i * k + t] * b[j * k + t] / (1.0 + t as f32).powf(0.6)).sum();
            w.push(0.02 * rows[i] * columns[j] * sum);
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

fn relative_error(w: &[f32], got: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let d: f64 = w.iter().zip(got).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (d / w.iter().map(|a| square(f64::from(*a))).sum::<f64>()).sqrt()
}

#[test]
fn names_are_those_of_the_command_line() {
    for method in [Method::Admm, Method::DualSvid] {
        assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
    }
    assert_eq!(Rotate::Itq.to_string().parse::<Rotate>().unwrap(), Rotate::Itq);
    assert!("svd".parse::<Method>().unwrap_err().to_string().contains("dual-svid"));
    assert!("random".parse::<Rotate>().is_err());
}

#[test]
fn admm_beats_itq_beats_dual_svid() {
    let (d_out, d_in) = (192, 128);
    let w = weights(d_out, d_in, 1);
    let error = |method, rotate| {
        let job = Job { rotate, ..job(&w, d_out, d_in, 64, method) };
        factorize(&job).unwrap().error_plain
    };
    let (svid, itq, admm) = (
        error(Method::DualSvid, None),
        error(Method::DualSvid, Some(Rotate::Itq)),
        error(Method::Admm, None),
    );
    assert!(admm < 0.85 * itq && itq < 0.95 * svid && svid < 1.0, "{admm} {itq} {svid}");
}

#[test]
fn reported_errors_are_those_of_the_stored_factors() {
    let (d_out, d_in) = (96, 80);
    let w = weights(d_out, d_in, 2);
    let importance: Vec<f32> = (0..d_in).map(|j| if j % 8 == 0 { 50.0 } else { 0.5 }).collect();
    for method in [Method::Admm, Method::DualSvid] {
        for paths in [1, 2] {
            let job = Job { paths, importance: Some(&importance), ..job(&w, d_out, d_in, 64, method) };
            let out = factorize(&job).unwrap();
            assert_eq!(out.paths.len(), paths);
            assert!((out.error_plain - relative_error(&w, &dense(&out.paths))).abs() < 1e-5);
        }
    }
}

#[test]
fn admm_finds_a_matrix_that_is_a_product_of_signs() {
    let (d_out, d_in, r) = (160, 128, 32);
    let mut rng = start::rng(3, "signs", 0);
    let mut signs =
        |n: usize| -> Vec<f32> { start::uniform(&mut rng, n).iter().map(|x| x.signum()).collect() };
    let (u, v) = (signs(d_out * 4), signs(d_in * 4));
    let w: Vec<f32> = (0..d_out * d_in)
        .map(|t| {
            let (i, j) = (t / d_in, t % d_in);
            let sum: f32 = (0..4).map(|k| u[i * 4 + k] * v[j * 4 + k]).sum();
            sum * (1.0 + (i % 5) as f32) * (0.5 + (j % 3) as f32)
        })
        .collect();
    let out = factorize(&job(&w, d_out, d_in, r, Method::Admm)).unwrap();
    assert!(out.error_plain < 0.1, "{}", out.error_plain);
}

#[test]
fn a_second_path_lowers_the_error() {
    let (d_out, d_in) = (128, 96);
    let w = weights(d_out, d_in, 4);
    for method in [Method::Admm, Method::DualSvid] {
        let one = factorize(&job(&w, d_out, d_in, 32, method)).unwrap();
        let two = factorize(&Job { paths: 2, ..job(&w, d_out, d_in, 32, method) }).unwrap();
        assert_eq!(one.paths[0], two.paths[0], "the first path does not know of the second");
        assert!(two.error_plain < 0.98 * one.error_plain, "{method}");
    }
}

#[test]
fn importance_moves_the_error_to_columns_that_matter_less() {
    let (d_out, d_in) = (128, 128);
    let w = weights(d_out, d_in, 5);
    let importance: Vec<f32> = (0..d_in).map(|j| if j < 32 { 20.0 } else { 0.2 }).collect();
    let base = job(&w, d_out, d_in, 64, Method::Admm);
    let with = factorize(&Job { importance: Some(&importance), ..base }).unwrap();
    let without = factorize(&base).unwrap();
    let weighted_without = error::relative(&w, &without.paths, Some(&importance)).1;
    assert!(with.error_weighted < 0.95 * weighted_without, "{} {weighted_without}", with.error_weighted);
    assert_eq!(without.error_plain, without.error_weighted);

    let zeros = vec![0.0; d_in];
    let job = job(&w, d_out, d_in, 32, Method::Admm);
    let unused = factorize(&Job { importance: Some(&zeros), ..job }).unwrap();
    assert_eq!(
        unused.paths,
        factorize(&job).unwrap().paths,
        "importance that is zero everywhere says nothing"
    );
}

#[test]
fn importance_is_a_weighting_of_columns_undone_in_g() {
    let (d_out, d_in) = (64, 48);
    let w = weights(d_out, d_in, 12);
    let importance: Vec<f32> = (0..d_in).map(|j| (j % 6) as f32).collect();
    let s: Vec<f32> = importance.iter().map(|x| ((0.8 * x / 2.5) + 0.2).sqrt()).collect();
    let weighted: Vec<f32> = w.iter().enumerate().map(|(t, x)| x * s[t % d_in]).collect();
    let got = factorize(&Job { importance: Some(&importance), ..job(&w, d_out, d_in, 32, Method::DualSvid) });
    let want = factorize(&job(&weighted, d_out, d_in, 32, Method::DualSvid)).unwrap();
    let mut want = dense(&want.paths);
    want.iter_mut().enumerate().for_each(|(t, x)| *x /= s[t % d_in]);
    assert!(relative_error(&want, &dense(&got.unwrap().paths)) < 2e-3);
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    // Larger than one block of every parallel loop.
    let (d_out, d_in) = (530, 300);
    let w = weights(d_out, d_in, 6);
    let importance: Vec<f32> = (0..d_in).map(|j| 1.0 + (j % 7) as f32).collect();
    for (method, rotate, iterations) in [
        (Method::Admm, None, Some(3)),
        (Method::DualSvid, None, None),
        (Method::DualSvid, Some(Rotate::Itq), Some(3)),
    ] {
        let job = Job {
            rotate,
            iterations,
            paths: 2,
            importance: Some(&importance),
            ..job(&w, d_out, d_in, 288, method)
        };
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| factorize(&job).unwrap())
        };
        let one = on(1);
        for threads in [2, 3] {
            let other = on(threads);
            assert_eq!(one.paths, other.paths, "{method} {threads} threads");
            assert_eq!(one.error_plain.to_bits(), other.error_plain.to_bits());
            assert_eq!(one.error_weighted.to_bits(), other.error_weighted.to_bits());
        }
        if method == Method::Admm {
            assert_ne!(factorize(&Job { seed: 8, ..job }).unwrap().paths, one.paths);
            assert_ne!(factorize(&Job { name: "other", ..job }).unwrap().paths, one.paths);
        }
    }
}

#[test]
fn degenerate_matrices_are_factorized() {
    let rank_one = |m: usize, n: usize| -> Vec<f32> {
        (0..m * n).map(|t| (1.0 + (t / n) as f32) * ((t % n) as f32 - 3.5)).collect()
    };
    for (d_out, d_in, w, bound) in [
        (48, 40, vec![0.0; 48 * 40], 0.0),
        (48, 40, vec![-0.25; 48 * 40], 0.05),
        (48, 40, rank_one(48, 40), 0.05),
        (1, 200, weights(1, 200, 8), 0.05),
        (200, 1, weights(200, 1, 9), 0.05),
        (1, 1, vec![3.0], 0.01),
        (64, 64, weights(64, 64, 10).iter().map(|x| x * 1e-9).collect(), 0.9),
        (64, 64, weights(64, 64, 10).iter().map(|x| x * 1e9).collect(), 0.9),
    ] {
        for (method, rotate) in
            [(Method::Admm, None), (Method::DualSvid, None), (Method::DualSvid, Some(Rotate::Itq))]
        {
            for paths in [1, 2] {
                let job = Job { rotate, paths, ..job(&w, d_out, d_in, 32, method) };
                let out = factorize(&job).unwrap_or_else(|e| panic!("{d_out} x {d_in} {method}: {e}"));
                let got = relative_error(&w, &dense(&out.paths));
                assert!(
                    out.error_plain <= bound,
                    "{d_out} x {d_in} {method} {rotate:?}: {}",
                    out.error_plain
                );
                assert!(w.iter().all(|&x| x == 0.0) || (out.error_plain - got).abs() < 1e-4);
            }
        }
    }
    let zeros = vec![0.0; 48 * 40];
    let out = factorize(&job(&zeros, 48, 40, 32, Method::Admm)).unwrap();
    assert!(dense(&out.paths).iter().all(|&x| x == 0.0));
    assert!(out.paths[0].l.iter().all(|l| l.to_bits() == 0));
}

#[test]
fn impossible_input_is_refused() {
    let w = weights(40, 40, 11);
    let base = job(&w, 40, 40, 32, Method::Admm);
    let usage = |job: Job, word: &str| match factorize(&job) {
        Err(Error::Usage(what)) => assert!(what.contains(word), "{what}"),
        other => panic!("{other:?}"),
    };
    usage(Job { paths: 3, ..base }, "paths");
    usage(Job { rank: 40, ..base }, "rank");
    usage(Job { rotate: Some(Rotate::Itq), ..base }, "rotate");
    usage(Job { iterations: Some(0), ..base }, "iterations");
    usage(Job { method: Method::DualSvid, iterations: Some(5), ..base }, "iterations");
    for bad in [f32::NAN, f32::INFINITY] {
        let mut broken = w.clone();
        broken[41] = bad;
        match factorize(&Job { w: &broken, ..base }) {
            Err(Error::Numeric { what, .. }) => assert!(what.contains("row 1, column 1"), "{what}"),
            other => panic!("{other:?}"),
        }
    }
    let importance = vec![-1.0; 40];
    assert!(matches!(factorize(&Job { importance: Some(&importance), ..base }), Err(Error::Numeric { .. })));
    let tiny: Vec<f32> = w.iter().map(|x| x * 1e-30).collect();
    assert!(matches!(factorize(&Job { w: &tiny, ..base }), Err(Error::Numeric { .. })));
}
