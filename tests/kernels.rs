//! The kernels against an oracle written straight from their definition, and against each other, bit for bit.

use half::f16;
use littlebit::bits::{SignMatrix, padded_cols, tile_bytes};
use littlebit::format::FactorPath;
use littlebit::kernel::{self, ENV, F32_CHUNK, Kernel, Mode, PathRef, Stage};
use proptest::prelude::*;

/// Seeded random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in (0, 1).
    fn unit(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }
    /// Standard normal (Box-Muller).
    fn normal(&mut self) -> f32 {
        ((-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()) as f32
    }
    fn scales(&mut self, n: usize, unit: f32) -> Vec<f16> {
        (0..n).map(|_| f16::from_f32(self.normal() * unit)).collect()
    }
    fn signs(&mut self, rows: usize, cols: usize) -> SignMatrix {
        SignMatrix::from_fn(rows, cols, |_, _| self.bits() & 1 == 1)
    }
}

/// One column of one stage, from the definition, on unpacked signs.
fn oracle(mode: Mode, s: &SignMatrix, pre: Option<&[f16]>, post: Option<&[f16]>, x: &[f32]) -> Vec<f32> {
    let v: Vec<f32> = x.iter().enumerate().map(|(k, x)| pre.map_or(*x, |g| x * g[k].to_f32())).collect();
    let group = |g: &[f32]| {
        let a = |i: usize| g.get(i).map_or(0.0, |v| v.abs());
        (a(0) + a(1)) + (a(2) + a(3))
    };
    if v.iter().any(|v| !v.is_finite()) || v.chunks(4).any(|g| !group(g).is_finite()) {
        return vec![f32::NAN; s.rows()];
    }
    let finish = |sum: f32, step: f32, unshift: f32, row: usize| {
        let y = (sum * step) * unshift;
        post.map_or(y, |p| y * p[row].to_f32())
    };
    let mut sign = vec![0f32; s.cols()];
    let mut y = Vec::with_capacity(s.rows());
    match mode {
        Mode::Int => {
            let max = v.iter().fold(0f32, |m, v| m.max(v.abs()));
            let up = if max < 2f32.powi(-90) { 2f32.powi(64) } else { 1.0 };
            let scaled: Vec<f32> = v.iter().map(|v| v * up).collect();
            let group = scaled.chunks(4).map(group).fold(0f32, f32::max);
            let step = ((max * up) / 2047.0).max(group / 4093.0);
            let q: Vec<i64> = if step == 0.0 {
                vec![0; v.len()]
            } else {
                scaled.iter().map(|v| (v / step).round_ties_even() as i64).collect()
            };
            for q in q.chunks(4) {
                assert!(q.iter().all(|q| q.abs() <= 2047) && q.iter().map(|q| q.abs()).sum::<i64>() <= 4095);
            }
            for row in 0..s.rows() {
                s.row_f32(row, &mut sign);
                let sum: i64 = sign.iter().zip(&q).map(|(s, q)| *s as i64 * q).sum();
                y.push(finish(sum as f32, step, 1.0 / up, row));
            }
        }
        Mode::F32 => {
            for row in 0..s.rows() {
                s.row_f32(row, &mut sign);
                let signed: Vec<f32> = sign.iter().zip(&v).map(|(s, v)| s * v).collect();
                let mut total = 0f64;
                for chunk in signed.chunks(F32_CHUNK) {
                    let mut sum = 0f32;
                    for g in chunk.chunks(4) {
                        let a = |i: usize| g.get(i).copied().unwrap_or(0.0);
                        sum += (a(0) + a(1)) + (a(2) + a(3));
                    }
                    total += f64::from(sum);
                }
                y.push(finish(total as f32, 1.0, 1.0, row));
            }
        }
    }
    y
}

/// Equal bits; -0 and +0 differ, NaN equals NaN, whatever its payload.
fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan());
        assert!(same, "{what}: element {i}: {g:e} is not {w:e}");
    }
}

const UNTOUCHED: f32 = 123.25;

/// How a stage is called.
struct Call<'a> {
    mode: Mode,
    signs: &'a SignMatrix,
    pre: Option<&'a [f16]>,
    post: Option<&'a [f16]>,
    n: usize,
    /// Floats between columns beyond their length.
    gap: usize,
    add: Option<&'a [f32]>,
    nth: usize,
    /// Bytes by which tile and scratch miss every alignment.
    skew: usize,
}

impl Call<'_> {
    /// Runs all threads' shares one after the other; the gaps of `y` must survive.
    fn run(&self, kernel: Kernel, x: &[f32]) -> Vec<f32> {
        let (rows, cols) = (self.signs.rows(), self.signs.cols());
        let (xs, ys) = (cols + self.gap, rows + self.gap);
        let mut tile = vec![0u8; self.skew + tile_bytes(rows, cols)];
        tile[self.skew..].copy_from_slice(self.signs.as_bytes());
        let stage = Stage { rows, cols, tile: &tile[self.skew..], pre: self.pre, post: self.post };
        let mut work = vec![0xa5u8; stage.work_size(self.n, self.mode) + self.skew];
        let mut spread = vec![f32::NAN; self.n * xs];
        let mut addend = vec![f32::NAN; self.n * ys];
        for t in 0..self.n {
            spread[t * xs..][..cols].copy_from_slice(&x[t * cols..][..cols]);
            if let Some(add) = self.add {
                addend[t * ys..][..rows].copy_from_slice(&add[t * rows..][..rows]);
            }
        }
        let mut y = vec![UNTOUCHED; self.n * ys];
        let add = self.add.map(|_| (addend.as_ptr(), ys));
        for ith in (0..self.nth).rev() {
            let work = &mut work[self.skew..];
            // SAFETY: the buffers hold n columns at these strides and this is the only thread.
            unsafe {
                stage.run(
                    kernel,
                    self.mode,
                    spread.as_ptr(),
                    xs,
                    self.n,
                    add,
                    y.as_mut_ptr(),
                    ys,
                    work,
                    ith,
                    self.nth,
                );
            }
        }
        for t in 0..self.n {
            assert!(y[t * ys + rows..(t + 1) * ys].iter().all(|y| *y == UNTOUCHED), "wrote beyond the rows");
        }
        (0..self.n).flat_map(|t| y[t * ys..][..rows].to_vec()).collect()
    }

    /// Every kernel against the oracle.
    fn check(&self, x: &[f32]) {
        let (rows, cols) = (self.signs.rows(), self.signs.cols());
        let mut want = Vec::new();
        for t in 0..self.n {
            let column = &x[t * cols..][..cols];
            let y = oracle(self.mode, self.signs, self.pre, self.post, column);
            want.extend(y.iter().enumerate().map(|(r, y)| self.add.map_or(*y, |a| a[t * rows + r] + y)));
        }
        for kernel in kernel::available() {
            let what = format!("{kernel} {:?} {rows}x{cols} n={} nth={}", self.mode, self.n, self.nth);
            assert_same(&self.run(kernel, x), &want, &what);
        }
    }
}

/// Rows, columns and batch, with at most `limit` multiply-adds.
fn shapes(limit: usize) -> impl Strategy<Value = (usize, usize, usize)> {
    let rows = 1usize..=200;
    let cols = prop_oneof![1usize..=70, 71usize..=1100, 4000usize..=4200, 8180usize..=8200, 1usize..=10000];
    let n = prop_oneof![Just(1usize), 2usize..=8, 30usize..=34, 1usize..=70];
    (rows, cols, n).prop_map(move |(rows, cols, n)| {
        let n = n.min(limit / cols).max(1);
        (rows.min(limit / (cols * n)).max(1), cols, n)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_kernels_equal_the_oracle(
        (rows, cols, n) in shapes(400_000), nth in 1usize..=5, gap in 0usize..=9, skew in 0usize..=67,
        int in any::<bool>(), with_pre in any::<bool>(), with_post in any::<bool>(), with_add in any::<bool>(),
        magnitude in prop_oneof![Just(0i32), -149i32..=120], seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let signs = random.signs(rows, cols);
        let (pre, post) = (random.scales(cols, 1.0), random.scales(rows, 0.02));
        // Normal values, some outliers, some zeros, at any magnitude down to subnormals.
        let unit = 2f64.powi(magnitude) as f32;
        let x: Vec<f32> = (0..cols * n).map(|_| {
            let outlier = match random.bits() % 64 { 0 => 20.0, 1 => 0.0, _ => 1.0 };
            random.normal() * outlier * unit
        }).collect();
        let add: Vec<f32> = (0..rows * n).map(|_| random.normal()).collect();
        let call = Call {
            mode: if int { Mode::Int } else { Mode::F32 },
            signs: &signs,
            pre: with_pre.then_some(&pre),
            post: with_post.then_some(&post),
            n, gap, nth, skew,
            add: with_add.then_some(&add),
        };
        call.check(&x);
    }

    /// Integer activations at a step of exactly 1: the outputs are the integer sums themselves.
    #[test]
    fn sums_of_extreme_integers_are_exact(
        cols in prop_oneof![4usize..=200, 4000usize..=8300], agree in 0u8..4, seed in any::<u64>(),
    ) {
        const GROUPS: [[i32; 4]; 5] =
            [[2047, 2046, 0, 0], [2047, 1023, 1023, 0], [1024, 1023, 1023, 1023], [0, 0, 0, 0], [-2047, 2046, 0, 0]];
        let mut random = Random(seed);
        let mut q: Vec<i32> = (0..cols).map(|_| 0).collect();
        for (i, q) in q.chunks_mut(4).enumerate() {
            let pick = if i == 0 { 0 } else { random.bits() as usize % GROUPS.len() };
            let (flip, turn) = (random.bits(), random.bits() as usize);
            for (j, q) in q.iter_mut().enumerate() {
                let value = GROUPS[pick][if i == 0 { j } else { (j + turn) % 4 }];
                *q = if flip >> j & 1 == 1 { -value } else { value };
            }
        }
        let signs = SignMatrix::from_fn(40, cols, |r, c| match (agree, r % 8) {
            (0, _) | (_, 0) => q[c] > 0,
            (1, _) | (_, 1) => q[c] < 0,
            (2, _) => r % 2 == 0,
            _ => random.bits() & 1 == 1,
        });
        let x: Vec<f32> = q.iter().map(|q| *q as f32).collect();
        let call = Call { mode: Mode::Int, signs: &signs, pre: None, post: None, n: 1, gap: 0, add: None, nth: 1, skew: 0 };
        for kernel in kernel::available() {
            let y = call.run(kernel, &x);
            for (row, y) in y.iter().enumerate() {
                let want: i32 = (0..cols).map(|c| if signs.is_plus(row, c) { q[c] } else { -q[c] }).sum();
                prop_assert!(want.abs() < 1 << 24);
                prop_assert_eq!(*y as i32, want, "{} row {}", kernel, row);
            }
        }
    }
}

#[test]
fn padding_bits_of_the_tile_do_not_matter() {
    let mut random = Random(5);
    for (rows, cols) in [(33, 17), (1, 1), (70, 4099), (31, 8)] {
        let signs = random.signs(rows, cols);
        let mut dirty = vec![0xffu8; tile_bytes(rows, cols)];
        for row in 0..rows {
            for col in 0..cols {
                if !signs.is_plus(row, col) {
                    let at = ((row / 32) * (padded_cols(cols) / 8) + col / 8) * 32 + row % 32;
                    dirty[at] &= !(1 << (col % 8));
                }
            }
        }
        let x: Vec<f32> = (0..cols).map(|_| random.normal()).collect();
        for (kernel, mode) in kernel::available().into_iter().flat_map(|k| [(k, Mode::Int), (k, Mode::F32)]) {
            let stage = Stage { rows, cols, tile: &dirty, pre: None, post: None };
            let mut work = vec![0u8; stage.work_size(1, mode)];
            let mut y = vec![0f32; rows];
            // SAFETY: one column each of exactly `cols` and `rows` floats.
            unsafe {
                stage.run(kernel, mode, x.as_ptr(), cols, 1, None, y.as_mut_ptr(), rows, &mut work, 0, 1)
            };
            assert_same(&y, &oracle(mode, &signs, None, None, &x), &format!("{kernel} {rows}x{cols}"));
        }
    }
}

#[test]
fn what_is_not_finite_spoils_its_column_alone() {
    let mut random = Random(6);
    let (rows, cols, n) = (45, 100, 5);
    let signs = random.signs(rows, cols);
    let (pre, post) = (random.scales(cols, 1.0), random.scales(rows, 1.0));
    let mut x: Vec<f32> = (0..cols * n).map(|_| random.normal()).collect();
    x[7] = f32::NAN;
    x[cols + 99] = f32::NEG_INFINITY;
    x[2 * cols..3 * cols].fill(0.0);
    x[3 * cols..3 * cols + 4].fill(f32::MAX);
    for mode in [Mode::Int, Mode::F32] {
        let call = Call {
            mode,
            signs: &signs,
            pre: Some(&pre),
            post: Some(&post),
            n,
            gap: 3,
            add: None,
            nth: 2,
            skew: 1,
        };
        call.check(&x);
        for kernel in kernel::available() {
            let y = call.run(kernel, &x);
            let column = |t: usize| &y[t * rows..][..rows];
            assert!([0, 1, 3].iter().all(|t| column(*t).iter().all(|y| y.is_nan())), "{kernel} {mode:?}");
            assert!(column(2).iter().all(|y| *y == 0.0), "{kernel} {mode:?}");
            assert!(column(4).iter().all(|y| y.is_finite()), "{kernel} {mode:?}");
        }
    }
}

#[test]
fn every_f16_scale_is_read_exactly() {
    // Subnormal and largest scales included; the scale that is not finite spoils the column.
    let signs = SignMatrix::from_fn(32, 16, |r, c| (r + c) % 3 == 0);
    for bits in (0..=0xffffu16).step_by(7).chain([1, 0x3ff, 0x400, 0x7bff, 0x7c00, 0xfc00, 0x7e00]) {
        let pre = vec![f16::from_bits(bits); 16];
        let post = vec![f16::from_bits(bits & 0xbfff); 32];
        let x: Vec<f32> = (0..16).map(|i| i as f32 - 7.5).collect();
        for mode in [Mode::Int, Mode::F32] {
            Call {
                mode,
                signs: &signs,
                pre: Some(&pre),
                post: Some(&post),
                n: 1,
                gap: 0,
                add: None,
                nth: 1,
                skew: 0,
            }
            .check(&x);
        }
    }
}

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

#[test]
fn the_kernel_can_be_forced() {
    for kernel in kernel::available() {
        kernel::force(Some(kernel)).unwrap();
        assert_eq!(kernel::active(), kernel);
    }
    kernel::force(None).unwrap();
    assert_eq!(Some(&kernel::active()), kernel::available().last());
}

/// Run by the test below in processes with other environments.
#[test]
#[ignore = "needs an environment set by the_environment_chooses_the_kernel"]
fn print_the_active_kernel() {
    println!("from_env: {:?}", kernel::from_env().map_err(|e| e.to_string()));
    println!("active: {} {}", kernel::active(), kernel::active());
}

#[test]
fn the_environment_chooses_the_kernel() {
    let run = |value: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "print_the_active_kernel", "--ignored", "--nocapture"]).env(ENV, value);
        let out = command.output().unwrap();
        assert!(out.status.success());
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let best = *kernel::available().last().unwrap();
    let (out, err) = run("scalar");
    assert!(out.contains("from_env: Ok(Scalar)") && out.contains("active: scalar scalar"), "{out}");
    assert!(!err.contains("littlebit:"), "{err}");
    let (out, err) = run("");
    assert!(out.contains(&format!("active: {best} {best}")) && !err.contains("littlebit:"), "{out}{err}");
    let (out, err) = run("sse9");
    assert!(out.contains("unknown kernel 'sse9' (known: scalar, avx2)"), "{out}");
    assert!(out.contains(&format!("active: {best} {best}")), "{out}");
    assert_eq!(err.matches("environment variable LITTLEBIT_KERNEL").count(), 1, "{err}");
}

/// Every buffer ends at a page that must not be touched.
#[cfg(unix)]
mod guarded {
    use super::*;

    /// Memory whose last byte is followed by an inaccessible page.
    struct Guarded<T> {
        base: *mut u8,
        bytes: usize,
        start: *mut T,
        len: usize,
    }

    impl<T: Copy> Guarded<T> {
        fn new(values: &[T]) -> Self {
            const PAGE: usize = 64 << 10;
            let inner = size_of_val(values).next_multiple_of(PAGE);
            let bytes = inner + PAGE;
            // SAFETY: a fresh anonymous mapping; its last page is then closed.
            unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let base =
                    libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
                assert_ne!(base, libc::MAP_FAILED);
                let base = base.cast::<u8>();
                assert_eq!(libc::mprotect(base.add(inner).cast(), PAGE, libc::PROT_NONE), 0);
                let start = base.add(inner - size_of_val(values)).cast::<T>();
                std::ptr::copy_nonoverlapping(values.as_ptr(), start, values.len());
                Guarded { base, bytes, start, len: values.len() }
            }
        }
        fn as_slice(&self) -> &[T] {
            // SAFETY: `len` values written at the start.
            unsafe { std::slice::from_raw_parts(self.start, self.len) }
        }
        fn as_mut_slice(&mut self) -> &mut [T] {
            // SAFETY: as above, borrowed mutably.
            unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
        }
    }

    impl<T> Drop for Guarded<T> {
        fn drop(&mut self) {
            // SAFETY: the mapping made by `new`.
            unsafe { libc::munmap(self.base.cast(), self.bytes) };
        }
    }

    #[test]
    fn nothing_beyond_the_buffers_is_touched() {
        let mut random = Random(10);
        for (rows, cols) in [(1, 1), (33, 17), (9, 4097), (40, 31), (64, 64), (12, 8203)] {
            for n in [1, 3] {
                let signs = random.signs(rows, cols);
                let tile = Guarded::new(signs.as_bytes());
                let pre = Guarded::new(&random.scales(cols, 1.0));
                let post = Guarded::new(&random.scales(rows, 1.0));
                let x: Vec<f32> = (0..cols * n).map(|_| random.normal()).collect();
                let x = Guarded::new(&x);
                let add = Guarded::new(&vec![1f32; rows * n]);
                for (kernel, mode) in
                    kernel::available().into_iter().flat_map(|k| [(k, Mode::Int), (k, Mode::F32)])
                {
                    let stage = Stage {
                        rows,
                        cols,
                        tile: tile.as_slice(),
                        pre: Some(pre.as_slice()),
                        post: Some(post.as_slice()),
                    };
                    let mut work = Guarded::new(&vec![0u8; stage.work_size(n, mode)]);
                    let mut y = Guarded::new(&vec![0f32; rows * n]);
                    let addend = Some((add.as_slice().as_ptr(), rows));
                    let (xp, yp) = (x.as_slice().as_ptr(), y.as_mut_slice().as_mut_ptr());
                    // SAFETY: n dense columns each.
                    unsafe {
                        stage.run(kernel, mode, xp, cols, n, addend, yp, rows, work.as_mut_slice(), 0, 1)
                    };
                    assert!(y.as_slice().iter().all(|y| y.is_finite()));
                }
            }
        }
    }
}
