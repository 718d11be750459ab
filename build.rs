//! Gives the shared library its SONAME. Cargo sets none, and without one programs would record the build path.

/// Counts incompatible changes of the C ABI; `lb_abi_version()` returns the same number (tested).
const ABI_VERSION: u32 = 0;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,liblittlebit.so.{ABI_VERSION}");
    }
}
