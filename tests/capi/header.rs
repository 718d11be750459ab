//! `include/littlebit.h`: generated, current, and accepted by C and C++ compilers.

use crate::fixture::{C_FLAGS, CPP_FLAGS, ROOT, compile};
use littlebit::capi::*;
use std::ffi::CStr;
use std::path::Path;

const HEADER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include/littlebit.h");

/// In the order of the header.
const SOURCES: [&str; 6] = ["version", "status", "model", "stage", "cuda", "kernels"];

#[test]
fn is_what_cbindgen_makes_of_the_sources() {
    let root = Path::new(ROOT);
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join(format!("src/capi/{source}.rs")));
    }
    let mut fresh = Vec::new();
    builder.generate().unwrap().write(&mut fresh);
    let fresh = String::from_utf8(fresh).unwrap();
    if std::env::var_os("LITTLEBIT_BLESS").is_some() {
        std::fs::create_dir_all(root.join("include")).unwrap();
        std::fs::write(HEADER, &fresh).unwrap();
    }
    let committed = std::fs::read_to_string(HEADER).unwrap_or_default();
    assert!(committed == fresh, "include/littlebit.h is not current: run this test with LITTLEBIT_BLESS=1");
}

#[test]
fn versions_are_the_packages() {
    let macros = format!("{LB_VERSION_MAJOR}.{LB_VERSION_MINOR}.{LB_VERSION_PATCH}");
    assert_eq!(macros, env!("CARGO_PKG_VERSION"));
    // SAFETY: a C string of static storage.
    assert_eq!(unsafe { CStr::from_ptr(lb_version()) }.to_str(), Ok(env!("CARGO_PKG_VERSION")));
    assert_eq!(lb_abi_version(), LB_ABI_VERSION);
    let build = std::fs::read_to_string(Path::new(ROOT).join("build.rs")).unwrap();
    assert!(build.contains(&format!("const ABI_VERSION: u32 = {LB_ABI_VERSION};")));
}

/// Every entry of the sources is declared, and nothing else.
#[test]
fn declares_every_entry() {
    let header = std::fs::read_to_string(HEADER).unwrap();
    for source in SOURCES {
        let text = std::fs::read_to_string(Path::new(ROOT).join(format!("src/capi/{source}.rs"))).unwrap();
        for line in text.lines().filter(|l| l.contains("extern \"C\" fn lb_")) {
            let name = &line[line.find("lb_").unwrap()..line.find('(').unwrap()];
            assert!(header.contains(&format!("{name}(")), "{name}");
        }
    }
    assert!(!header.contains("# Safety"));
}

#[test]
fn compiles_as_c_and_cpp_even_twice() {
    let dir = tempfile::tempdir().unwrap();
    let text = "#include \"littlebit.h\"\n#include \"littlebit.h\"\n\
                uint32_t version(void);\n\
                uint32_t version(void) { lb_stage s = {0}; return lb_abi_version() + s.struct_size; }\n";
    let c = dir.path().join("twice.c");
    std::fs::write(&c, text).unwrap();
    for standard in ["-std=c99", "-std=c11"] {
        compile("cc", &[&[standard], C_FLAGS, &["-c"]].concat(), &c, &dir.path().join("twice.o"), &[]);
    }
    let cpp = dir.path().join("twice.cpp");
    std::fs::write(&cpp, text.replace("{0}", "{}").replace("littlebit.h\"\nuint", "littlebit.hpp\"\nuint"))
        .unwrap();
    compile("c++", &[CPP_FLAGS, &["-c"]].concat(), &cpp, &dir.path().join("twice.o"), &[]);
}
