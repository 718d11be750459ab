//! ggml by way of `cpp/bench/ggml_bench.cpp`, compiled and loaded when the benchmark starts.

use libloading::{Library as Dynamic, Symbol};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where ggml keeps weights: as the file has them, or reordered for faster products.
#[derive(Clone, Copy)]
pub enum Layout {
    File,
    Repacked,
    /// For tiles, on processors that have them.
    Amx,
}

impl Layout {
    /// What follows the type in tables.
    pub fn suffix(self) -> &'static str {
        match self {
            Layout::File => "",
            Layout::Repacked => " repacked",
            Layout::Amx => " amx",
        }
    }

    /// ggml's name of the buffers.
    fn buffers(self) -> &'static CStr {
        match self {
            Layout::File => c"",
            Layout::Repacked => c"CPU_REPACK",
            Layout::Amx => c"AMX",
        }
    }
}

/// ggml's name of a type, the layout of its weights, and its bits per 256 weights.
pub const TYPES: [(&str, Layout, usize); 11] = [
    ("f32", Layout::File, 8192),
    ("f16", Layout::File, 4096),
    ("q8_0", Layout::File, 2176),
    ("q8_0", Layout::Amx, 2176),
    ("q4_0", Layout::File, 1152),
    ("q4_0", Layout::Repacked, 1152),
    ("q4_0", Layout::Amx, 1152),
    ("q1_0", Layout::File, 288),
    ("tq1_0", Layout::File, 432),
    ("tq2_0", Layout::File, 528),
    ("iq1_s", Layout::File, 400),
];

type Open = unsafe extern "C" fn(c_int) -> *mut c_void;
type Close = unsafe extern "C" fn(*mut c_void);
type Features = unsafe extern "C" fn(*const c_void) -> *const c_char;
type PoolNew = unsafe extern "C" fn(
    *mut c_void,
    *const c_char,
    *const c_char,
    i64,
    i64,
    i64,
    c_int,
    c_int,
    u64,
) -> *mut c_void;
type FactorsNew = unsafe extern "C" fn(*mut c_void, i64, i64, i64, i64, c_int, c_int, u64) -> *mut c_void;
type NodesNew = unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void;
type PoolRun = unsafe extern "C" fn(*mut c_void) -> c_int;

/// The loaded shim.
pub struct Library(Dynamic);

/// Directories of ggml's headers and libraries, if the environment names them.
fn find() -> Option<(PathBuf, PathBuf)> {
    let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(prefix) = path("LITTLEBIT_LLAMA_PREFIX") {
        let lib = ["lib", "lib64"].map(|d| prefix.join(d)).into_iter().find(|d| d.is_dir());
        return Some((prefix.join("include"), lib.unwrap_or_else(|| prefix.join("lib"))));
    }
    Some((path("LITTLEBIT_GGML_INCLUDE")?, path("LITTLEBIT_GGML_LIB")?))
}

impl Library {
    /// Compiles the shim against the ggml that the environment names; `None` without one.
    pub fn build() -> Result<Option<Self>, String> {
        let Some((include, lib)) = find() else { return Ok(None) };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp/bench/ggml_bench.cpp");
        let output =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ggml_bench_{}.so", std::process::id()));
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let mut command = Command::new(&compiler);
        command.args(["-O2", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-I"]).arg(&include);
        command.arg(&source).arg("-o").arg(&output).arg("-L").arg(&lib);
        command.args(["-lggml", "-lggml-cpu", "-lggml-base"]).arg(format!("-Wl,-rpath,{}", lib.display()));
        let status = command.status().map_err(|e| format!("{compiler}: {e}"))?;
        if !status.success() {
            return Err(format!(
                "{compiler} could not build {} against {}",
                source.display(),
                include.display()
            ));
        }
        // SAFETY: our own shim; loading it runs no code but the libraries' initialisers.
        let library = unsafe { Dynamic::new(&output) };
        // Loaded or not, the file is not needed any more.
        std::fs::remove_file(&output).map_err(|e| format!("{}: {e}", output.display()))?;
        Ok(Some(Library(library.map_err(|e| format!("{}: {e}", lib.display()))?)))
    }

    fn symbol<T>(&self, name: &CStr) -> Symbol<'_, T> {
        // SAFETY: every caller names a function of the shim with the type it has there.
        unsafe { self.0.get(name.to_bytes_with_nul()) }.expect("the shim defines its functions")
    }

    /// A CPU backend with `threads` threads.
    pub fn open(&self, threads: usize) -> Result<Engine<'_>, String> {
        let threads = c_int::try_from(threads).map_err(|_| format!("{threads} threads"))?;
        // SAFETY: a valid thread count.
        let handle = unsafe { self.symbol::<Open>(c"gb_open")(threads) };
        Ok(Engine { library: self, handle })
    }
}

/// A CPU backend of ggml.
pub struct Engine<'a> {
    library: &'a Library,
    handle: *mut c_void,
}

impl Engine<'_> {
    /// What the build of ggml uses.
    pub fn features(&self) -> String {
        // SAFETY: an open engine; the text lives as long as the process.
        unsafe { CStr::from_ptr(self.library.symbol::<Features>(c"gb_features")(self.handle)) }
            .to_string_lossy()
            .into_owned()
    }

    /// Weights of one type and the products with them; `None` if ggml lacks the combination.
    pub fn pool(
        &self,
        name: &str,
        layout: Layout,
        (rows, cols, batch): (usize, usize, usize),
        copies: usize,
        products: usize,
    ) -> Option<Pool<'_>> {
        let name = CString::new(name).ok()?;
        // SAFETY: an open engine, C strings, and sizes that fit.
        let handle = unsafe {
            self.library.symbol::<PoolNew>(c"gb_pool_new")(
                self.handle,
                name.as_ptr(),
                layout.buffers().as_ptr(),
                rows as i64,
                cols as i64,
                batch as i64,
                copies as c_int,
                products as c_int,
                1,
            )
        };
        self.pool_of(handle)
    }

    /// One path of factors in standard operations; `None` if ggml lacks one of them.
    pub fn factors(
        &self,
        (rows, cols, rank, batch): (usize, usize, usize, usize),
        copies: usize,
        products: usize,
    ) -> Option<Pool<'_>> {
        // SAFETY: an open engine, and sizes that fit.
        let handle = unsafe {
            self.library.symbol::<FactorsNew>(c"gb_factors_new")(
                self.handle,
                rows as i64,
                cols as i64,
                rank as i64,
                batch as i64,
                copies as c_int,
                products as c_int,
                1,
            )
        };
        self.pool_of(handle)
    }

    /// A chain of `nodes` operations that do nothing; `None` if ggml lacks them.
    pub fn nodes(&self, nodes: usize) -> Option<Pool<'_>> {
        // SAFETY: an open engine, and a number that fits.
        let handle = unsafe { self.library.symbol::<NodesNew>(c"gb_nodes_new")(self.handle, nodes as c_int) };
        self.pool_of(handle)
    }

    fn pool_of(&self, handle: *mut c_void) -> Option<Pool<'_>> {
        (!handle.is_null()).then(|| Pool {
            handle,
            run: self.library.symbol(c"gb_pool_run"),
            library: self.library,
        })
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed once.
        unsafe { self.library.symbol::<Close>(c"gb_close")(self.handle) }
    }
}

/// Weights and products.
pub struct Pool<'a> {
    library: &'a Library,
    handle: *mut c_void,
    run: Symbol<'a, PoolRun>,
}

impl Pool<'_> {
    /// Runs all products once.
    pub fn run(&self) {
        // SAFETY: a live pool.
        assert_eq!(unsafe { (self.run)(self.handle) }, 0, "ggml failed");
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `pool`, freed once.
        unsafe { self.library.symbol::<Close>(c"gb_pool_free")(self.handle) }
    }
}
