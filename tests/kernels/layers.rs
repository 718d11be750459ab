//! Whole factorized matrices: accuracy, threads, errors.

use crate::oracle::{Random, UNTOUCHED, assert_same, oracle};
use half::f16;
use littlebit::bits::{SignMatrix, tile_bytes};
use littlebit::format::FactorPath;
use littlebit::kernel::{self, Kernel, Mode, PathRef};

/// A factorized matrix with tiles of random bytes; all dimensions multiples of 32.
fn random_path(random: &mut Random, d_out: usize, d_in: usize, rank: usize) -> FactorPath {
    let mut tile = |rows, cols| {
        let bytes: Vec<u8> = (0..tile_bytes(rows, cols)).map(|_| (random.bits() >> 24) as u8).collect();
        SignMatrix::from_tile(rows, cols, &bytes).unwrap()
    };
    let (vt, u) = (tile(rank, d_in), tile(d_out, rank));
    let mut scales = |n| (0..n).map(|_| f16::from_f32((0.3 * random.normal()).exp())).collect();
    FactorPath { u, vt, h: scales(d_out), l: scales(rank), g: scales(d_in) }
}

/// `h * (U (l * (V^T (g * x))))` in f64.
fn product_f64(p: &FactorPath, x: &[f32]) -> Vec<f64> {
    let half = |s: &SignMatrix, x: &[f64], post: &[f16]| -> Vec<f64> {
        let mut sign = vec![0f32; s.cols()];
        (0..s.rows())
            .map(|r| {
                s.row_f32(r, &mut sign);
                sign.iter().zip(x).map(|(s, x)| f64::from(*s) * x).sum::<f64>() * f64::from(post[r].to_f32())
            })
            .collect()
    };
    let gx: Vec<f64> = x.iter().zip(&p.g).map(|(x, g)| f64::from(*x) * f64::from(g.to_f32())).collect();
    half(&p.u, &half(&p.vt, &gx, &p.l), &p.h)
}

fn relative_error(y: &[f32], want: &[f64]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (y, w) in y.iter().zip(want) {
        error += (f64::from(*y) - w).powi(2);
        norm += w * w;
    }
    (error / norm).sqrt()
}

#[test]
fn layer_error_stays_within_the_goals() {
    let mut random = Random(7);
    let path = random_path(&mut random, 4096, 4096, 1152);
    let normal: Vec<f32> = (0..4096).map(|_| random.normal()).collect();
    let outliers: Vec<f32> =
        normal.iter().enumerate().map(|(i, x)| if i % 100 == 37 { x * 20.0 } else { *x }).collect();
    for (x, int_goal) in [(&normal, 1.5e-3), (&outliers, 6e-3)] {
        let want = product_f64(&path, x);
        for (mode, goal) in [(Mode::Int, int_goal), (Mode::F32, 1e-6)] {
            let mut y = vec![0f32; 4096];
            kernel::matmul(&[(&path).into()], mode, kernel::active(), x, 4096, 1, &mut y, 4096, 1).unwrap();
            let error = relative_error(&y, &want);
            println!("{mode:?}: relative error {error:.2e}, goal {goal:.1e}");
            assert!(error <= goal, "{mode:?}: {error:e} > {goal:e}");
        }
    }
}

#[test]
fn matmul_is_the_two_stages_of_all_paths_on_any_number_of_threads() {
    let mut random = Random(8);
    for (d_out, d_in, rank, n) in
        [(96, 64, 32, 3), (576, 1536, 224, 1), (576, 576, 160, 70), (1024, 2048, 512, 5)]
    {
        let paths =
            [random_path(&mut random, d_out, d_in, rank), random_path(&mut random, d_out, d_in, rank)];
        let refs = [PathRef::from(&paths[0]), PathRef::from(&paths[1])];
        let (xs, ys) = (d_in + 5, d_out + 2);
        let x: Vec<f32> = (0..xs * n).map(|_| random.normal()).collect();
        for mode in [Mode::Int, Mode::F32] {
            let mut want = vec![UNTOUCHED; ys * n];
            for (t, want) in want.chunks_exact_mut(ys).enumerate().take(if n > 10 { 9 } else { n }) {
                let column = &x[t * xs..][..d_in];
                for (i, p) in paths.iter().enumerate() {
                    let latent = oracle(mode, &p.vt, Some(&p.g), Some(&p.l), column);
                    let y = oracle(mode, &p.u, None, Some(&p.h), &latent);
                    want.iter_mut().zip(y).for_each(|(w, y)| *w = if i == 0 { y } else { *w + y });
                }
            }
            let mut first = None;
            for kernel in kernel::available() {
                for threads in [0, 1, 2, 3, 5] {
                    let mut y = vec![UNTOUCHED; ys * n];
                    kernel::matmul(&refs, mode, kernel, &x, xs, n, &mut y, ys, threads).unwrap();
                    let known = ys * n.min(9);
                    assert_same(&y[..known], &want[..known], &format!("{kernel} {mode:?} {threads} threads"));
                    assert_same(&y, first.get_or_insert_with(|| y.clone()), "threads and kernels agree");
                }
            }
        }
    }
}

#[test]
fn matmul_refuses_what_does_not_fit() {
    let mut random = Random(9);
    let path = random_path(&mut random, 64, 96, 32);
    let p = PathRef::from(&path);
    let error = |paths: &[PathRef<'_>], x: usize, xs: usize, n: usize, y: usize, ys: usize| {
        let (x, mut y) = (vec![0f32; x], vec![0f32; y]);
        match kernel::matmul(paths, Mode::Int, Kernel::Scalar, &x, xs, n, &mut y, ys, 1) {
            Ok(()) => "none".to_owned(),
            Err(e) => e.to_string(),
        }
    };
    assert_eq!(error(&[p], 96, 0, 1, 64, 0), "none");
    assert_eq!(error(&[p], 0, 0, 0, 0, 0), "none");
    assert!(error(&[], 96, 96, 1, 64, 64).contains("at least one path"));
    assert!(error(&[p], 191, 96, 2, 128, 64).contains("x: 191 floats, too few for 2 columns of 96"));
    assert!(error(&[p], 192, 96, 2, 127, 64).contains("y: 127 floats"));
    assert!(error(&[p], 192, 96, 2, 128, 63).contains("y: columns of 64 floats overlap at a stride of 63"));
    assert!(error(&[p], 192, usize::MAX, 3, 192, 64).contains("x: 192 floats"));
    assert!(
        error(&[PathRef { u: &p.u[1..], ..p }], 96, 96, 1, 64, 64)
            .contains("the tile has 255 bytes, not 256")
    );
    assert!(error(&[PathRef { g: &p.g[1..], ..p }], 96, 96, 1, 64, 64).contains("95 input scales, not 96"));
    assert!(error(&[PathRef { l: &p.l[1..], ..p }], 96, 96, 1, 64, 64).contains("31 output scales, not 32"));
    assert!(error(&[p, PathRef { d_in: 32, ..p }], 96, 96, 1, 64, 64).contains("different shapes"));
    assert!(error(&[PathRef { d_in: usize::MAX, ..p }], 96, 96, 1, 64, 64).contains("more than"));
    assert!(error(&[PathRef { d_out: usize::MAX, ..p }], 96, 96, 1, 64, 64).contains("too many rows"));
}
