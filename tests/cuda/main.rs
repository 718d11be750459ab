//! The CUDA kernels, compiled as C++ and run on the host model of `cpp/cuda/emulate`, against the scalar kernel: the
//! same bits. Needs `c++`, no GPU and no CUDA.

#![cfg(target_os = "linux")]

mod groups;
#[path = "../support/guarded.rs"]
mod guarded;
mod host;
// Of the tests of the CPU kernels: random numbers, and an oracle that is not needed here.
#[allow(dead_code)]
#[path = "../kernels/oracle.rs"]
mod oracle;

use guarded::Guarded;
use half::f16;
use host::{Host, ORDERS};
use littlebit::bits::SignMatrix;
use littlebit::cuda;
use littlebit::kernel::{Kernel, Mode, Stage};
use oracle::Random;

/// A stage with everything that may go wrong at its edges.
struct Case {
    rows: usize,
    cols: usize,
    n: usize,
    pre: bool,
    post: bool,
    add: bool,
    /// Floats between the columns of `x`, `add` and `y`.
    gap: usize,
    /// f16 scales and activations that start off the alignment of vector loads.
    odd: bool,
}

struct Data {
    signs: SignMatrix,
    pre: Vec<f16>,
    post: Vec<f16>,
    x: Vec<f32>,
    add: Vec<f32>,
}

fn data(case: &Case, random: &mut Random, x: impl Fn(usize, &mut Random) -> f32) -> Data {
    let (x_stride, y_stride) = (case.cols + case.gap, case.rows + case.gap);
    Data {
        signs: random.signs(case.rows, case.cols),
        pre: random.scales(case.cols, 1.0),
        post: random.scales(case.rows, 0.1),
        x: (0..x_stride * case.n).map(|i| x(i, random)).collect(),
        add: (0..y_stride * case.n).map(|_| random.normal()).collect(),
    }
}

fn expected(case: &Case, d: &Data) -> Vec<f32> {
    let stage = Stage {
        rows: case.rows,
        cols: case.cols,
        tile: d.signs.as_bytes(),
        pre: case.pre.then_some(&d.pre[..]),
        post: case.post.then_some(&d.post[..]),
    };
    let (x_stride, y_stride) = (case.cols + case.gap, case.rows + case.gap);
    let mut y = vec![7.5f32; y_stride * case.n];
    let mut work = vec![0u8; stage.work_size(case.n, Mode::Int)];
    let add = case.add.then_some((d.add.as_ptr(), y_stride));
    // SAFETY: n columns each, strides as allocated.
    unsafe {
        let (x, y) = (d.x.as_ptr(), y.as_mut_ptr());
        stage.run(Kernel::Scalar, Mode::Int, x, x_stride, case.n, add, y, y_stride, &mut work, 0, 1);
    }
    y
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

/// A case in memory, every buffer at the end of its pages.
struct Placed {
    args: cuda::Args,
    y: Guarded<f32>,
    _bytes: [Guarded<u8>; 2],
    _halves: [Guarded<f16>; 2],
    _floats: [Guarded<f32>; 2],
}

fn placed(case: &Case, d: &Data) -> Placed {
    // An odd start moves a buffer off the page's end by one element.
    let skip = usize::from(case.odd);
    let shifted = |v: &[f16]| Guarded::new(&[&v[..skip], v].concat());
    let tile = Guarded::new(d.signs.as_bytes());
    let (pre, post) = (shifted(&d.pre), shifted(&d.post));
    let x = Guarded::new(&[&d.x[..skip], &d.x].concat());
    let add = Guarded::new(&d.add);
    let mut y = Guarded::new(&vec![7.5f32; d.add.len()]);
    let (rows, cols, n) = (case.rows as u32, case.cols as u32, case.n as u32);
    let mut work = Guarded::new(&vec![0xa5u8; cuda::work_bytes(rows, cols, n)]);
    let start = |g: &Guarded<f16>| g.as_slice()[skip..].as_ptr() as u64;
    let args = cuda::Args {
        x: x.as_slice()[skip..].as_ptr() as u64,
        pre: if case.pre { start(&pre) } else { 0 },
        tile: tile.as_slice().as_ptr() as u64,
        post: if case.post { start(&post) } else { 0 },
        add: if case.add { add.as_slice().as_ptr() as u64 } else { 0 },
        y: y.as_mut_slice().as_mut_ptr() as u64,
        columns: 0,
        planes: 0,
        split: 0,
        x_stride: (case.cols + case.gap) as u64,
        add_stride: (case.rows + case.gap) as u64,
        y_stride: (case.rows + case.gap) as u64,
        rows,
        cols,
        n,
        plane: 0,
    };
    let args = args.with_work(work.as_mut_slice().as_mut_ptr() as u64);
    Placed { args, y, _bytes: [tile, work], _halves: [pre, post], _floats: [x, add] }
}

/// Runs chains of stages together on the host model. False where they cannot share launches.
fn run(host: &Host, stages: &[cuda::Args], chain: usize, order: i32) -> bool {
    let Some(plan) = cuda::join(stages, chain) else { return false };
    for (k, launch) in plan.iter().enumerate() {
        let group = cuda::group(stages, chain, k);
        assert!(host.launch(launch, &group, order), "threads of {launch:?} do not meet");
    }
    true
}

/// Runs a case on the host model and compares bits.
fn check(host: &Host, case: &Case, d: &Data, order: i32) {
    let p = placed(case, d);
    assert!(run(host, &[p.args], 1, order));
    let (rows, cols, n) = (case.rows, case.cols, case.n);
    assert!(same(p.y.as_slice(), &expected(case, d)), "{rows} x {cols}, n = {n}, order {order}");
}

/// Shapes at the edges of tiles, words, chunks and blocks; every kernel, in every order of threads.
#[test]
fn every_kernel_gives_the_bits_of_the_scalar_kernel() {
    let host = Host::new();
    let mut random = Random(1);
    let mut seen = [false; 8];
    for (rows, cols) in [(1, 1), (33, 17), (32, 16), (31, 128), (64, 129), (70, 45), (160, 300), (40, 1000)] {
        for n in [1, 2, 4, 5, 8, 9, 16, 17, 33, 70] {
            let bit = |i: usize| (rows + cols + n) >> i & 1 == 1;
            let case = Case {
                rows,
                cols,
                n,
                pre: bit(0),
                post: bit(1) || n == 1,
                add: bit(2),
                gap: if bit(1) { 3 } else { 0 },
                odd: bit(2),
            };
            let d = data(&case, &mut random, |_, r| r.normal());
            for launch in cuda::plan(rows as u32, cols as u32, n as u32).iter() {
                seen[launch.kernel as usize] = true;
            }
            let orders = if rows * cols * n < 20_000 { &ORDERS[..] } else { &ORDERS[(rows + n) % 3..][..1] };
            orders.iter().for_each(|order| check(&host, &case, &d, *order));
        }
    }
    // The others are for one wide column, below.
    assert_eq!(seen, [true, true, true, true, true, false, false, false]);
}

/// One column of activations that is wide, and that is too wide for one launch: slices, some of them empty or odd, in every order of
/// blocks.
#[test]
fn wide_stages_are_cut_into_slices() {
    let host = Host::new();
    let mut random = Random(2);
    for (rows, cols) in [(33, 4096), (33, 4097), (33, 8192), (33, 8193), (65, 11008), (1, 12417), (40, 28672)]
    {
        let odd = cols % 2 == 1;
        let case = Case { rows, cols, n: 1, pre: true, post: !odd, add: odd, gap: 0, odd };
        let d = data(&case, &mut random, |i, r| if i == 8190 { 50.0 } else { r.normal() });
        let kernels: Vec<_> = cuda::plan(rows as u32, cols as u32, 1).iter().map(|l| l.kernel).collect();
        let want = match cols {
            0..=4096 => vec![cuda::Kernel::Fused],
            4097..=8192 => vec![cuda::Kernel::FusedWide],
            _ => vec![cuda::Kernel::Extent, cuda::Kernel::Split],
        };
        assert_eq!(kernels, want);
        ORDERS.iter().for_each(|order| check(&host, &case, &d, *order));
    }
    for fill in [0.0, f32::NAN] {
        let case =
            Case { rows: 33, cols: 9000, n: 1, pre: false, post: true, add: false, gap: 0, odd: false };
        let d = data(&case, &mut random, |i, _| if i == 77 { fill } else { 0.0 });
        check(&host, &case, &d, ORDERS[0]);
    }
}

/// Two, four and eight row blocks share a block, the last one not full; of slices, too.
#[test]
fn row_blocks_share_a_block() {
    let host = Host::new();
    let mut random = Random(4);
    for (rows, cols, n, fold) in [
        (8448, 33, 1, 0),
        (8449, 33, 1, 1),
        (17_000, 100, 1, 2),
        (50_001, 40, 1, 3),
        (2900, 8200, 1, 1),
        (11_000, 8200, 1, 2),
        (4225, 40, 3, 1),
        (17_000, 20, 7, 3),
    ] {
        let case = Case { rows, cols, n, pre: true, post: true, add: true, gap: 0, odd: false };
        let d = data(&case, &mut random, |_, r| r.normal());
        let plan = cuda::plan(rows as u32, cols as u32, n as u32);
        assert_eq!(plan.last().unwrap().grid_x as usize, rows.div_ceil(32 << fold));
        check(&host, &case, &d, ORDERS[rows % 3]);
    }
}

/// Ties of rounding, the largest integers, tiny and huge values, zeros, and columns that are not finite.
#[test]
fn extreme_activations_give_the_bits_of_the_scalar_kernel() {
    let host = Host::new();
    let mut random = Random(3);
    type Fill = fn(usize, &mut Random) -> f32;
    let fills: [(&str, Fill); 9] = [
        ("zeros", |_, _| 0.0),
        ("negative zeros and one value", |i, _| if i == 3 { 1.0 } else { -0.0 }),
        ("ties", |i, _| if i % 97 == 0 { 8191.0 } else { (i % 61) as f32 - 30.5 }),
        ("largest integers", |i, _| if i % 4 == 0 { -8191.0 } else { 0.25 }),
        ("equal values", |i, _| if i % 3 == 0 { -1.5 } else { 1.5 }),
        ("subnormal", |_, r| r.normal() * 1e-42),
        ("tiny", |_, r| r.normal() * 1e-30),
        ("outliers", |i, r| if i % 101 == 7 { 300.0 * r.normal() } else { r.normal() }),
        (
            "not finite",
            |i, r| if i % 113 == 50 { [f32::NAN, f32::INFINITY, f32::MAX][i % 3] } else { r.normal() },
        ),
    ];
    for (what, fill) in fills {
        for n in [1, 3, 12, 18] {
            for pre in [false, true] {
                let case = Case { rows: 40, cols: 203, n, pre, post: true, add: false, gap: 1, odd: false };
                let d = data(&case, &mut random, fill);
                eprintln!("{what}, n = {n}, pre {pre}");
                check(&host, &case, &d, ORDERS[n % 3]);
            }
        }
    }
}

/// The device divides by multiplying and correcting. Values of every scale, most of them at ties of rounding or next to them.
#[test]
fn quotients_are_those_of_a_division() {
    let host = Host::new();
    let mut random = Random(5);
    let mut seen = 0;
    for exponent in (-149..=127).step_by(3).chain([-148, -127, -126, -91, -90, -89, -70, -69]) {
        let value = (2f64.powi(exponent) * (1.0 + random.unit())).min(f64::from(f32::MAX) * 0.99) as f32;
        let group = (f64::from(value) * (1.0 + 3.0 * random.unit())) as f32;
        let group = if group.is_finite() { group } else { value };
        let shift = if value < 2f32.powi(-90) { 2f32.powi(64) } else { 1.0 };
        let step = f64::from((value * shift / 8191.0).max(group * shift / 16381.0)) / f64::from(shift);
        let values: Vec<f32> = (0..20_000)
            .map(|i| {
                let near = ((8191.0 * random.unit()).floor() + 0.5) * step;
                let near = if i % 4 == 0 { near + (random.unit() - 0.5) * step } else { near } as f32;
                let moved = f32::from_bits((near.to_bits() + (random.bits() % 5) as u32).saturating_sub(2));
                let v = if moved.abs() <= value { moved } else { value };
                if i % 2 == 0 { v } else { -v }
            })
            .collect();
        assert_eq!(host.unlike_quotients(value, group, &values), 0, "2^{exponent}");
        seen += values.len();
    }
    assert!(seen > 1_000_000);
}

/// The planner in Rust is the one that the C++ launcher uses.
#[test]
fn both_planners_agree() {
    let host = Host::new();
    for rows in [1, 32, 33, 127, 128, 129, 4096, 28672, 128_256] {
        for cols in [1, 128, 129, 576, 4096, 4097, 8191, 8192, 8193, 28672, 1 << 18] {
            for n in [1, 2, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 512, 4096] {
                assert_eq!(
                    cuda::plan(rows, cols, n)[..],
                    host.plan(rows, cols, n)[..],
                    "{rows} x {cols}, {n}"
                );
                assert_eq!(cuda::work_bytes(rows, cols, n), host.work_bytes(rows, cols, n));
                assert_eq!(cuda::plane_bytes(cols) as u32, host.plane_bytes(cols));
            }
        }
    }
    // The last number of columns that a grid has room for.
    assert_eq!(cuda::MAX_N, host.max_n());
    let blocks = |n: usize| cuda::plan(32, 16, n as u32).iter().map(|l| l.grid_y).max();
    assert_eq!((blocks(cuda::MAX_N), blocks(cuda::MAX_N + 1)), (Some(65535), Some(65536)));
    for kernel in cuda::Kernel::ALL {
        assert_eq!(kernel.name(), host.kernel_name(kernel));
    }
}

/// The model is worth something: it sees a barrier that a thread misses, and a race by its two results.
#[test]
fn the_host_model_notices_faults() {
    let host = Host::new();
    assert!(!host.bad_barrier());
    assert_ne!(host.race(ORDERS[0]), host.race(ORDERS[1]));
}
