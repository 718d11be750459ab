//! `include/littlebit.h` is what cbindgen makes of `src/capi`. LITTLEBIT_BLESS=1 rewrites it.

use std::path::Path;

#[test]
fn header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["mod", "status", "model", "stage"] {
        builder = builder.with_src(root.join("src/capi").join(file).with_extension("rs"));
    }
    let mut fresh = Vec::new();
    builder.generate().unwrap().write(&mut fresh);
    let fresh = String::from_utf8(fresh).unwrap();
    let path = root.join("include/littlebit.h");
    if std::env::var_os("LITTLEBIT_BLESS").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == fresh, "include/littlebit.h is stale: LITTLEBIT_BLESS=1 cargo test --test header");
}
