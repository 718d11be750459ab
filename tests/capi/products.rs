//! Results through the C ABI are those of the Rust calls, for whole products and for stages on many threads.

use crate::allocations;
use crate::fixture::{MATRICES, Model, factors, numbers, stage, work_size};
use littlebit::capi::*;
use littlebit::kernel::{Mode, PathRef, active, matmul};
use std::ffi::CStr;
use std::ptr;

const MODES: [(u32, Mode); 2] = [(LB_MODE_INT, Mode::Int), (LB_MODE_F32, Mode::F32)];

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut next = numbers(seed);
    (0..len).map(|_| next()).collect()
}

#[test]
fn names_and_shapes_are_the_files() {
    let model = Model::new();
    // SAFETY: handles of an open model.
    unsafe {
        assert_eq!(lb_model_matrix_count(model.raw), MATRICES.len());
        for (i, (name, shape)) in MATRICES.iter().enumerate() {
            let matrix = model.matrix(i);
            assert_eq!(CStr::from_ptr(lb_matrix_name(matrix)).to_str(), Ok(*name));
            let info = model.info(i);
            assert_eq!((info.paths, info.experts as usize, info.reserved), (2, shape.slices / 2, 0));
            assert_eq!(info.struct_size as usize, size_of::<lb_matrix_info>());
            let dims = [shape.d_out, shape.d_in, shape.rank].map(|n| n as u64);
            assert_eq!([info.d_out, info.d_in, info.rank], dims);
            let bits = littlebit::format::factors::slice_bits(shape.d_out, shape.d_in, shape.rank) as f64;
            let want = 2.0 * bits / (shape.d_out * shape.d_in) as f64;
            assert!((info.bpw - want).abs() < 1e-9, "{} {want}", info.bpw);
            for spelling in [format!("{name}\0"), format!("{name}.weight\0")] {
                let mut found = ptr::null();
                assert_eq!(lb_model_find_matrix(model.raw, spelling.as_ptr().cast(), &mut found), LB_OK);
                assert_eq!(found, matrix);
            }
        }
    }
}

#[test]
fn products_have_the_bits_of_the_rust_call() {
    let model = Model::new();
    for (which, (_, shape)) in MATRICES.iter().enumerate() {
        let factors = factors(shape, which as u64 + 1);
        for expert in 0..shape.slices / 2 {
            let paths: Vec<_> = factors.slices[expert * 2..][..2].iter().map(PathRef::from).collect();
            for (number, mode) in MODES {
                for (n, threads) in [(1, 1), (1, 0), (5, 3), (40, 2)] {
                    let (x_stride, y_stride) = (shape.d_in + 3, shape.d_out + 2);
                    let x = random(n * x_stride, 9);
                    let mut want = vec![7.5; n * y_stride];
                    matmul(&paths, mode, active(), &x, x_stride, n, &mut want, y_stride, 1).unwrap();
                    let mut y = vec![7.5; n * y_stride];
                    let (matrix, expert) = (model.matrix(which), expert as u32);
                    // SAFETY: an open model's matrix; x and y hold n columns.
                    let status = unsafe {
                        let (x, y) = (x.as_ptr(), y.as_mut_ptr());
                        lb_matrix_mul(matrix, expert, number, x, x_stride, n, y, y_stride, threads)
                    };
                    assert_eq!(status, LB_OK);
                    assert_eq!(y, want, "expert {expert} mode {number} n {n} threads {threads}");
                }
            }
            // The formula itself, in another arithmetic.
            let (dense, x) = (factors.dense(expert), random(shape.d_in, 9));
            let mut y = vec![0.0; shape.d_out];
            // SAFETY: as above.
            let status = unsafe {
                let (x, y, mode) = (x.as_ptr(), y.as_mut_ptr(), LB_MODE_F32);
                lb_matrix_mul(model.matrix(which), expert as u32, mode, x, shape.d_in, 1, y, shape.d_out, 1)
            };
            assert_eq!(status, LB_OK);
            let want: Vec<f64> = dense
                .chunks_exact(shape.d_in)
                .map(|row| row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum())
                .collect();
            let size = want.iter().map(|w| w * w).sum::<f64>().sqrt();
            let off = want.iter().zip(&y).map(|(w, y)| (w - f64::from(*y)).powi(2)).sum::<f64>().sqrt();
            assert!(off < 1e-5 * size, "{off} of {size}");
        }
    }
}

struct Shared(*mut f32);
// SAFETY: threads write their own shares, which do not overlap.
unsafe impl Sync for Shared {}

/// A stage on `nth` threads at once, each with its own scratch memory.
fn run_on_threads(stage: &lb_stage, mode: u32, x: &[f32], n: usize, add: bool, y: &mut [f32], nth: u32) {
    let size = work_size(stage, mode, n);
    let (shared, stage) = (Shared(y.as_mut_ptr()), StageRef(stage));
    std::thread::scope(|scope| {
        for ith in 0..nth {
            let (shared, stage) = (&shared, &stage);
            scope.spawn(move || {
                // One byte in, so at an odd address.
                let mut work = vec![0u8; size + 1];
                let (y, cols, rows) = (shared.0, stage.0.cols as usize, stage.0.rows as usize);
                let add = if add { y.cast_const() } else { ptr::null() };
                // SAFETY: a model's stage; x and y hold n columns; work is this thread's.
                let status = unsafe {
                    let work = work[1..].as_mut_ptr().cast();
                    lb_stage_run(stage.0, mode, x.as_ptr(), cols, n, add, rows, y, rows, work, size, ith, nth)
                };
                assert_eq!(status, LB_OK);
            });
        }
    });
}

struct StageRef<'a>(&'a lb_stage);
// SAFETY: what a stage points to is only read.
unsafe impl Sync for StageRef<'_> {}

#[test]
fn stages_on_threads_give_the_whole_product() {
    let model = Model::new();
    for (which, (_, shape)) in MATRICES.iter().enumerate() {
        let expert = shape.slices as u32 / 2 - 1;
        for (mode, _) in MODES {
            for (n, nth) in [(1, 1), (1, 2), (1, 7), (6, 3), (40, 2)] {
                let x = random(n * shape.d_in, 5);
                let mut want = vec![0.0; n * shape.d_out];
                // SAFETY: an open model's matrix; x and y hold n columns.
                let status = unsafe {
                    let (x, y, d_out) = (x.as_ptr(), want.as_mut_ptr(), shape.d_out);
                    lb_matrix_mul(model.matrix(which), expert, mode, x, shape.d_in, n, y, d_out, 1)
                };
                assert_eq!(status, LB_OK);
                let (mut t, mut y) = (vec![0.0; n * shape.rank], vec![f32::NAN; n * shape.d_out]);
                for path in 0..2 {
                    let (v, u) =
                        (stage(&model, which, expert, path, 0), stage(&model, which, expert, path, 1));
                    run_on_threads(&v, mode, &x, n, false, &mut t, nth);
                    run_on_threads(&u, mode, &t, n, path > 0, &mut y, nth);
                }
                assert_eq!(y, want, "mode {mode} n {n} nth {nth}");
            }
        }
    }
}

/// Two threads that meet a matrix at the same time both get it.
#[test]
fn first_use_by_two_threads_at_once() {
    struct Matrix(*const lb_matrix);
    // SAFETY: const handles may be used by several threads.
    unsafe impl Sync for Matrix {}
    for _ in 0..20 {
        let model = Model::new();
        let (matrix, shape) = (Matrix(model.matrix(0)), MATRICES[0].1);
        let x = random(shape.d_in, 3);
        let barrier = std::sync::Barrier::new(2);
        let product = || {
            let matrix = &matrix;
            let mut y = vec![0.0; shape.d_out];
            barrier.wait();
            // SAFETY: an open model's matrix; x and y hold a column.
            let status = unsafe {
                let (x, y) = (x.as_ptr(), y.as_mut_ptr());
                lb_matrix_mul(matrix.0, 0, LB_MODE_INT, x, shape.d_in, 1, y, shape.d_out, 1)
            };
            assert_eq!(status, LB_OK);
            y
        };
        let (a, b) = std::thread::scope(|scope| {
            let other = scope.spawn(product);
            (product(), other.join().unwrap())
        });
        assert_eq!(a, b);
        assert!(a.iter().any(|y| *y != 0.0));
    }
}

#[test]
fn a_stage_run_does_not_allocate() {
    let model = Model::new();
    let (shape, n) = (MATRICES[0].1, 3);
    let stage = stage(&model, 0, 0, 0, 0);
    let (x, mut y) = (random(n * shape.d_in, 1), vec![0.0; n * shape.rank]);
    for (mode, _) in MODES {
        let mut work = vec![0u8; work_size(&stage, mode, n)];
        let before = allocations();
        // SAFETY: a model's stage; x and y hold n columns.
        let status = unsafe {
            let (x, y, size, work) = (x.as_ptr(), y.as_mut_ptr(), work.len(), work.as_mut_ptr().cast());
            lb_stage_run(&stage, mode, x, shape.d_in, n, ptr::null(), 0, y, shape.rank, work, size, 0, 1)
        };
        assert_eq!((status, allocations() - before), (LB_OK, 0));
    }
    // The counter works: a failing call allocates its message.
    let before = allocations();
    // SAFETY: NULL is refused.
    assert_ne!(unsafe { lb_stage_work_size(&stage, 7, n, ptr::null_mut()) }, LB_OK);
    assert!(allocations() > before);
}
