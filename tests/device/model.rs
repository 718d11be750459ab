//! Factorization and polish on the host model, loaded into this process, against the CPU.

use crate::layer::uniform;
use crate::libraries;
use littlebit::cuda::compute::Gpu;
use littlebit::factorize::device::{CHECKED, Choice, RESERVE, TOLERANCE, admm_bytes, polish_bytes};
use littlebit::factorize::{self, Device, Job, Method, Outcome, factorize_on, polish};
use littlebit::format::FactorPath;
use std::ffi::{CString, c_char, c_int};
use std::ptr::null;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The model's library and the right to use it: its state is that of the process.
pub struct Model {
    library: &'static libloading::Library,
    _turn: MutexGuard<'static, ()>,
}

impl Model {
    pub fn new() -> Self {
        static LIBRARIES: OnceLock<[libloading::Library; 2]> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let [library, _] = LIBRARIES.get_or_init(|| {
            // What is loaded under its name is what cudarc finds.
            // SAFETY: our own libraries; their initializers make containers.
            ["libcuda.so", "libcublas.so"]
                .map(|f| unsafe { libloading::Library::new(libraries().join(f)).unwrap() })
        });
        let model = Model { library, _turn: turn };
        model.fault(None);
        model.order(-1);
        model.memory(1 << 30);
        model
    }

    /// A function of the library, of the type that the caller knows.
    pub fn get<T: Copy>(&self, name: &str) -> T {
        // SAFETY: the types of all callers are those of libcuda.h and of the driver.
        *unsafe { self.library.get::<T>(name.as_bytes()) }.unwrap()
    }

    pub fn order(&self, order: i32) {
        let f: unsafe extern "C" fn(c_int) = self.get("lbm_order");
        // SAFETY: a number.
        unsafe { f(order) }
    }

    pub fn memory(&self, bytes: usize) {
        let f: unsafe extern "C" fn(usize) = self.get("lbm_memory");
        // SAFETY: a number.
        unsafe { f(bytes) }
    }

    pub fn peak(&self) -> u64 {
        let f: unsafe extern "C" fn() -> usize = self.get("lbm_peak");
        // SAFETY: no arguments.
        unsafe { f() as u64 }
    }

    pub fn fault(&self, name: Option<&str>) {
        let f: unsafe extern "C" fn(*const c_char) = self.get("lbm_fault");
        let name = name.map(|n| CString::new(n).unwrap());
        // SAFETY: a C string, which is copied, or NULL.
        unsafe { f(name.as_ref().map_or(null(), |n| n.as_ptr())) }
    }
}

/// The model as a device that has passed the check.
pub fn device() -> Device {
    let device = Device::open(Choice::Cuda).unwrap();
    assert_eq!((device.kind(), device.take_notes().len()), (Choice::Cuda, 1));
    device
}

/// Every part of both algorithms at shapes that fill nothing and at those that fill everything, in every order of threads.
#[test]
fn steps_and_products_agree_with_the_cpu() {
    let model = Model::new();
    let device = device();
    let steps = [[1, 1, 32], [33, 260, 64], [70, 45, 96], [257, 90, 32], [128, 256, 128], [5, 300, 288]];
    let products = [[30, 70, 32], [64, 64, 64], [3, 130, 96], [70, 5, 32], [1, 1, 32], [40, 129, 32]];
    for (i, (steps, products)) in steps.into_iter().zip(products).enumerate() {
        model.order(i as i32 % 4 - 1);
        let found: Vec<_> = (0..2).map(|seed| device.disagreement(steps, products, seed).unwrap()).collect();
        assert!(found.contains(&None), "{steps:?}, {products:?}: {found:?}");
    }
    for order in [0, 1, 2] {
        model.order(order);
        assert_eq!(device.disagreement(CHECKED[0], CHECKED[1], 0).unwrap(), None);
    }
}

/// One wrong value of any kernel or product is found before the device is trusted.
#[test]
fn a_device_that_computes_wrongly_is_found_out() {
    let model = Model::new();
    // What a wrong start leaves wrong, two power iterations put right.
    let kernels = littlebit::cuda::compute::Kernel::NAMES.into_iter().filter(|k| *k != "lbf_start");
    for name in kernels.chain(["cublasSgemm", "cublasSsyrk", "cublasStrsm"]) {
        model.fault(Some(name));
        match Device::open(Choice::Cuda) {
            Err(littlebit::Error::Device(what)) => {
                assert!(what.contains("host model computes something else than the CPU"), "{name}: {what}");
            }
            other => panic!("a fault of {name} is not noticed: {other:?}"),
        }
    }
    model.fault(None);
    device();
}

/// Weights, moments of correlated inputs, and a job on them.
fn problem(m: usize, n: usize) -> (Vec<f32>, Vec<f32>) {
    let (w, mut x) = (uniform(m * n, 5), uniform(2 * n * n, 6));
    (1..x.len()).for_each(|i| x[i] += 0.7 * x[i - 1]);
    let moment = |t: usize| (0..2 * n).map(|row| x[row * n + t / n] * x[row * n + t % n]).sum();
    let moments: Vec<f32> = (0..n * n).map(moment).collect();
    (w, polish::metric(&moments, n))
}

fn job(w: &[f32], m: usize, n: usize, rank: usize) -> Job<'_> {
    Job {
        name: "blk.0.attn_q.weight",
        w,
        d_out: m,
        d_in: n,
        rank,
        paths: 2,
        method: Method::Admm,
        rotate: None,
        importance: None,
        seed: 1,
        iterations: Some(6),
    }
}

/// Share of equal signs.
fn agreement(a: &FactorPath, b: &FactorPath) -> f64 {
    let pairs = [(&a.u, &b.u), (&a.vt, &b.vt)];
    let values = pairs.map(|(a, b)| a.to_row_major().into_iter().zip(b.to_row_major()).collect::<Vec<_>>());
    let all = values.concat();
    all.iter().filter(|(a, b)| a == b).count() as f64 / all.len() as f64
}

/// Whole factorizations and polishes: as good as the CPU's, and the same bits each time.
#[test]
fn whole_matrices_agree_with_the_cpu() {
    let _model = Model::new();
    let (gpu, cpu) = (device(), Device::cpu());
    for (m, n, rank) in [(96, 80, 64), (45, 130, 32)] {
        let (w, metric) = problem(m, n);
        let run = |device: &Device| -> (Outcome, FactorPath, Vec<[Vec<f32>; 2]>) {
            let out = factorize_on(device, &job(&w, m, n, rank)).unwrap();
            let better = polish::polish(device, "w", &w, &out.paths[0], &metric, 2).unwrap();
            // Margins of one and the same path.
            let known = factorize_on(&cpu, &job(&w, m, n, rank)).unwrap();
            (out, better, polish::margins(device, "w", &w, &known.paths, &metric, None).unwrap())
        };
        let (a, b) = (run(&cpu), run(&gpu));
        let error = |p: &FactorPath| factorize::relative_error(&w, std::slice::from_ref(p), None).0;
        eprintln!(
            "{m} x {n}, rank {rank}: errors {:.5} {:.5}, polished {:.5} {:.5}, equal signs {:.4} {:.4} {:.4}",
            a.0.error_plain,
            b.0.error_plain,
            error(&a.1),
            error(&b.1),
            agreement(&a.0.paths[0], &b.0.paths[0]),
            agreement(&a.0.paths[1], &b.0.paths[1]),
            agreement(&a.1, &b.1)
        );
        assert!((a.0.error_plain / b.0.error_plain - 1.0).abs() < 0.01);
        assert!((error(&a.1) / error(&b.1) - 1.0).abs() < 0.01);
        for (a, b) in a.2.iter().flatten().zip(b.2.iter().flatten()) {
            let rms = (a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32).sqrt();
            assert!(a.iter().zip(b).all(|(a, b)| f64::from((a - b).abs() / rms) < TOLERANCE));
        }
        let again = run(&gpu);
        assert_eq!((&b.0.paths, &b.1, &b.2), (&again.0.paths, &again.1, &again.2));
        assert!(gpu.take_notes().is_empty());
    }
}

/// What a matrix takes is known before, and not much more is asked for.
#[test]
fn memory_is_what_was_announced() {
    let model = Model::new();
    let device = device();
    for (m, n, rank) in [(300, 200, 96), (64, 400, 64), (400, 64, 64), (96, 96, 160)] {
        let (w, metric) = problem(m, n);
        let out = {
            model.peak();
            factorize_on(&device, &Job { paths: 1, ..job(&w, m, n, rank) }).unwrap()
        };
        let (peak, said) = (model.peak(), admm_bytes(m, n, rank));
        assert!(peak <= said && said < peak + peak / 4 + 4096, "{m} x {n}: {peak} taken, {said} said");
        polish::polish(&device, "w", &w, &out.paths[0], &metric, 1).unwrap();
        let (peak, said) = (model.peak(), polish_bytes(m, n, rank));
        assert!(
            peak <= said && said < peak + peak / 4 + 4096,
            "polish of {m} x {n}: {peak} taken, {said} said"
        );
        polish::margins(&device, "w", &w, &out.paths, &metric, None).unwrap();
        assert!(model.peak() <= said, "margins of {m} x {n}");
        assert_eq!(model.peak(), 0, "memory is left behind");
    }
}

/// A matrix that does not fit is the CPU's, bit for bit, and the user is told once.
#[test]
fn what_does_not_fit_goes_to_the_cpu() {
    let model = Model::new();
    let device = device();
    let (w, metric) = problem(200, 160);
    let small = job(&w[..96 * 80], 96, 80, 32);
    let large = Job { name: "large", ..job(&w, 200, 160, 96) };
    model.memory((RESERVE + admm_bytes(96, 80, 32)) as usize);
    assert!(factorize_on(&device, &small).is_ok() && device.take_notes().is_empty());
    let out = factorize_on(&device, &large).unwrap();
    let better = polish::polish(&device, "large", &w, &out.paths[0], &metric, 1).unwrap();
    let notes = device.take_notes();
    assert!(notes.len() == 1 && notes[0].contains("'large' goes to the CPU"), "{notes:?}");
    let cpu = factorize_on(&Device::cpu(), &large).unwrap();
    assert_eq!(out.paths, cpu.paths);
    let path = &cpu.paths[0];
    assert_eq!(better, polish::polish(&Device::cpu(), "large", &w, path, &metric, 1).unwrap());
}

/// The decomposition by blocks against its definition, and matrices that have none.
#[test]
fn the_cholesky_factor_reproduces_its_matrix() {
    let model = Model::new();
    let gpu = Gpu::open().unwrap();
    let session = gpu.session().unwrap();
    for (i, n) in [1, 2, 63, 64, 65, 130, 200].into_iter().enumerate() {
        model.order(i as i32 % 4 - 1);
        let x = uniform(n * n, n as u64);
        let entry = |i: usize, j: usize| (0..n).map(|k| x[i * n + k] * x[j * n + k]).sum::<f32>();
        let m: Vec<f32> =
            (0..n * n).map(|t| entry(t / n, t % n) + if t / n == t % n { 1.0 } else { 0.0 }).collect();
        let mut l = session.upload(&m).unwrap();
        assert!(session.cholesky(&mut l, n).unwrap(), "{n}");
        let lower: Vec<f32> = session.download(&l, 0..n * n).unwrap();
        for i in 0..n {
            for j in 0..=i {
                let sum: f64 =
                    (0..=j).map(|k| f64::from(lower[k * n + i]) * f64::from(lower[k * n + j])).sum();
                let off = (sum - f64::from(m[i * n + j])).abs();
                assert!(off < 1e-5 * n as f64, "({i}, {j}) of {n}: off by {off}");
            }
        }
        // Two right sides.
        let want = uniform(2 * n, 3);
        let rhs: Vec<f32> =
            (0..2 * n).map(|t| (0..n).map(|k| m[t % n * n + k] * want[t / n * n + k]).sum::<f32>()).collect();
        let mut found = session.upload(&rhs).unwrap();
        session.solve_factored(&l, &mut found, n).unwrap();
        let found: Vec<f32> = session.download(&found, 0..2 * n).unwrap();
        assert!(found.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-3), "{n}");
        // The last pivot alone is bad, and what is not a number.
        for bad in [-1e3, f32::NAN, f32::INFINITY] {
            let mut m = m.clone();
            m[n * n - 1] = bad;
            let mut l = session.upload(&m).unwrap();
            assert!(!session.cholesky(&mut l, n).unwrap(), "{n}, {bad}");
        }
    }
}

/// Matrices that collapse, that have one row or column, or that a ridge alone makes solvable.
#[test]
fn degenerate_matrices_are_factorized() {
    let _model = Model::new();
    let device = device();
    let rank_one: Vec<f32> =
        (0..48 * 40).map(|t| (1.0 + (t / 40) as f32) * ((t % 40) as f32 - 3.5)).collect();
    let mut one_entry = vec![0.0; 48 * 40];
    one_entry[77] = -3.0;
    for (m, n, w, bound) in [
        (48, 40, vec![0.0; 48 * 40], 0.0),
        (48, 40, vec![-0.25; 48 * 40], 0.05),
        (48, 40, rank_one, 0.05),
        (48, 40, one_entry, 0.1),
        (1, 200, uniform(200, 8), 0.05),
        (200, 1, uniform(200, 9), 0.05),
        (1, 1, vec![3.0], 0.01),
        (64, 64, uniform(64 * 64, 10).iter().map(|x| x * 1e9).collect(), 0.9),
    ] {
        let of = |device: &Device| {
            let job = Job { iterations: None, ..job(&w, m, n, 32) };
            factorize_on(device, &job).unwrap_or_else(|e| panic!("{m} x {n}: {e}")).error_plain
        };
        let (cpu, gpu) = (of(&Device::cpu()), of(&device));
        assert!(gpu <= bound && (gpu - cpu).abs() < 0.01, "{m} x {n}: {gpu}, {cpu} on the CPU");
    }
    // Not finite: the same error as on the CPU.
    let broken = [&[f32::NAN][..], &[1.0; 99]].concat();
    let error = |device: &Device| factorize_on(device, &job(&broken, 10, 10, 32)).unwrap_err().to_string();
    assert_eq!(error(&device), error(&Device::cpu()));
}
