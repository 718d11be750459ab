//! The kernels against an oracle written straight from their definition, and against each other, bit for bit.

#[cfg(unix)]
mod guarded;
mod layers;
mod oracle;

use half::f16;
use littlebit::bits::{SignMatrix, padded_cols, tile_bytes};
use littlebit::kernel::{self, ENV, Mode, Stage};
use oracle::{Call, Random, assert_same, oracle};
use proptest::prelude::*;

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
        cols in prop_oneof![4usize..=200, 2000usize..=4000], agree in 0u8..4, seed in any::<u64>(),
    ) {
        const GROUPS: [[i32; 4]; 5] =
            [[8191, 8190, 0, 0], [8191, 4095, 4095, 0], [4096, 4095, 4095, 4095], [0, 0, 0, 0], [-8191, 8190, 0, 0]];
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
fn wide_matrices_are_read_in_runs() {
    // Beyond the columns of a run and of what 16-bit sums take, row blocks beyond a group; rows and columns that end early.
    // Further more columns than signs are made indices of at a time, and than vectors side by side take.
    let mut random = Random(7);
    for (rows, cols, n, nth) in [
        (70, 35_003, 3, 1),
        (545, 18_450, 2, 1),
        (33, 16_400, 9, 2),
        (545, 4103, 13, 1),
        (1090, 130, 45, 1),
        (40, 33_000, 12, 1),
    ] {
        let signs = random.signs(rows, cols);
        let (pre, post) = (random.scales(cols, 1.0), random.scales(rows, 1.0));
        let x: Vec<f32> = (0..cols * n).map(|_| random.normal()).collect();
        for mode in [Mode::Int, Mode::F32] {
            let (pre, post) = (Some(&pre[..]), Some(&post[..]));
            Call { mode, signs: &signs, pre, post, n, gap: 0, add: None, nth, skew: 0 }.check(&x);
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
    assert!(out.contains("unknown kernel 'sse9' (known: scalar, avx2, avx512, amx, neon)"), "{out}");
    assert!(out.contains(&format!("active: {best} {best}")), "{out}");
    assert_eq!(err.matches("environment variable LITTLEBIT_KERNEL").count(), 1, "{err}");
}

#[test]
fn scratch_memory_does_not_grow_with_the_batch() {
    for (rows, cols) in [(64, 64), (1152, 4096), (4096, 28672)] {
        let tile = vec![0u8; tile_bytes(rows, cols)];
        let stage = Stage { rows, cols, tile: &tile, pre: None, post: None };
        for mode in [Mode::Int, Mode::F32] {
            assert_eq!(stage.work_size(32, mode), stage.work_size(100_000, mode));
            assert!(stage.work_size(32, mode) <= 4 << 20, "{rows}x{cols} {mode:?}");
        }
    }
}
