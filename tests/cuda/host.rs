//! The host model as a shared library, built here.

use littlebit::cuda::{Args, Group, Kernel, Launch};
use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Orders in which the model runs threads: forward, backward, shuffled.
pub const ORDERS: [i32; 3] = [0, 1, 2];

#[repr(C)]
struct Plan {
    count: u32,
    launch: [Launch; 2],
}

// The second launch of a plan of one is zero, which is a kernel's number too.
fn launches(plan: Plan) -> Vec<Launch> {
    plan.launch[..plan.count as usize].to_vec()
}

/// The library and the right to use it: its machine exists once.
pub struct Host {
    library: &'static libloading::Library,
    _turn: MutexGuard<'static, ()>,
}

fn build() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp/cuda/emulate");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libemulate.so");
    let output = Command::new("c++")
        .args([
            "-std=c++17",
            "-O1",
            "-g",
            "-fPIC",
            "-shared",
            "-ffp-contract=off",
            "-Wall",
            "-Wextra",
            "-Werror",
        ])
        // nvcc's pragma; a misaligned vector load would be a fault on the device
        .args(["-Wno-unknown-pragmas", "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"])
        .args(["emulate.cpp", "machine.cpp"].map(|f| source.join(f)))
        .arg("-o")
        .arg(&library)
        .output()
        .expect("c++ starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

impl Host {
    pub fn new() -> Self {
        static LIBRARY: OnceLock<libloading::Library> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: our own library; it has no initializers.
        let library = LIBRARY.get_or_init(|| unsafe { libloading::Library::new(build()).unwrap() });
        Host { library, _turn }
    }

    fn get<T: Copy>(&self, name: &str) -> T {
        // SAFETY: the types below are those of emulate.cpp.
        *unsafe { self.library.get::<T>(name.as_bytes()) }.unwrap()
    }

    /// False if the threads of a block do not meet.
    pub fn launch(&self, launch: &Launch, group: &Group, order: i32) -> bool {
        let f: unsafe extern "C" fn(*const Launch, *const Group, c_int) -> c_int = self.get("lbe_launch");
        // SAFETY: the caller's buffers are as large as the arguments say, or the closed page after them ends the test.
        unsafe { f(launch, group, order) == 0 }
    }

    pub fn plan(&self, rows: u32, cols: u32, n: u32) -> Vec<Launch> {
        let f: unsafe extern "C" fn(u32, u32, u32) -> Plan = self.get("lbe_plan");
        // SAFETY: plain numbers.
        launches(unsafe { f(rows, cols, n) })
    }

    /// Empty where the stages cannot share launches.
    pub fn join(&self, stages: &[Args], chain: u32) -> Vec<Launch> {
        let f: unsafe extern "C" fn(*const Args, u32, u32) -> Plan = self.get("lbe_join");
        // SAFETY: as many stages as are said.
        launches(unsafe { f(stages.as_ptr(), stages.len() as u32 / chain, chain) })
    }

    pub fn group(&self, stages: &[Args], chain: u32, k: u32) -> Group {
        let f: unsafe extern "C" fn(*const Args, u32, u32, u32) -> Group = self.get("lbe_group");
        // SAFETY: as above.
        unsafe { f(stages.as_ptr(), stages.len() as u32 / chain, chain, k) }
    }

    pub fn with_work(&self, mut stage: Args, work: u64) -> Args {
        let f: unsafe extern "C" fn(*mut Args, u64) = self.get("lbe_place_work");
        // SAFETY: one stage; the address is not followed.
        unsafe { f(&mut stage, work) };
        stage
    }

    pub fn work_bytes(&self, rows: u32, cols: u32, n: u32) -> usize {
        let f: unsafe extern "C" fn(u32, u32, u32) -> usize = self.get("lbe_work_bytes");
        // SAFETY: plain numbers.
        unsafe { f(rows, cols, n) }
    }

    pub fn max_n(&self) -> usize {
        let f: unsafe extern "C" fn() -> u32 = self.get("lbe_max_n");
        // SAFETY: no arguments.
        unsafe { f() as usize }
    }

    pub fn plane_bytes(&self, cols: u32) -> u32 {
        let f: unsafe extern "C" fn(u32) -> u32 = self.get("lbe_plane_bytes");
        // SAFETY: plain numbers.
        unsafe { f(cols) }
    }

    pub fn kernel_name(&self, kernel: Kernel) -> &str {
        let f: unsafe extern "C" fn(u32) -> *const c_char = self.get("lbe_kernel_name");
        // SAFETY: a C string of static storage.
        unsafe { CStr::from_ptr(f(kernel as u32)) }.to_str().unwrap()
    }

    /// For how many of `v` the device's quotient by the step of a column with these extents is not that of a division.
    pub fn unlike_quotients(&self, value: f32, group: f32, v: &[f32]) -> usize {
        let f: unsafe extern "C" fn(f32, f32, *const f32, usize) -> usize = self.get("lbe_unlike_quotients");
        // SAFETY: as many values as are said.
        unsafe { f(value, group, v.as_ptr(), v.len()) }
    }

    /// Whether the model lets a kernel pass one of whose threads misses a barrier.
    pub fn bad_barrier(&self) -> bool {
        let f: unsafe extern "C" fn() -> c_int = self.get("lbe_bad_barrier");
        // SAFETY: no arguments.
        unsafe { f() == 0 }
    }

    /// The result of a kernel in which a barrier is missing.
    pub fn race(&self, order: i32) -> Vec<u32> {
        let f: unsafe extern "C" fn(*mut u32, c_int) -> c_int = self.get("lbe_race");
        let mut out = vec![0; 64];
        // SAFETY: 64 words.
        assert_eq!(unsafe { f(out.as_mut_ptr(), order) }, 0);
        out
    }
}
