//! Gives the shared library its SONAME. Cargo sets none, and without one programs would record the build path.
//! With feature `cuda`: compiles the CUDA kernels, which the library then carries.

/// Counts incompatible changes of the C ABI; `lb_abi_version()` returns the same number (tested).
const ABI_VERSION: u32 = 0;

/// Machine code runs on later devices of the same major number; PTX on all later ones.
const CODE: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,liblittlebit.so.{ABI_VERSION}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        cuda_kernels();
    }
}

/// Modules in `OUT_DIR`, by the nvcc that LITTLEBIT_NVCC or CUDACXX names, or the one on the path.
fn cuda_kernels() {
    println!("cargo:rerun-if-changed=cpp/cuda");
    println!("cargo:rerun-if-env-changed=LITTLEBIT_NVCC");
    println!("cargo:rerun-if-env-changed=CUDACXX");
    let nvcc = ["LITTLEBIT_NVCC", "CUDACXX"].into_iter().find_map(std::env::var_os);
    let nvcc = nvcc.unwrap_or_else(|| "nvcc".into());
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    for (source, module) in [("kernels.cu", "littlebit.fatbin"), ("factorize.cu", "factorize.fatbin")] {
        let status = std::process::Command::new(&nvcc)
            .args(["-std=c++17", "-fatbin", "-Werror", "all-warnings"])
            .args(CODE.iter().flat_map(|code| ["-gencode", code]))
            .arg("-o")
            .arg(out.join(module))
            .arg(std::path::Path::new("cpp/cuda").join(source))
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{}: {status}", nvcc.display()),
            Err(e) => panic!(
                "feature cuda needs nvcc, but {}: {e}; set LITTLEBIT_NVCC to one, scripts/cuda-toolchain gets one",
                nvcc.display()
            ),
        }
    }
}
