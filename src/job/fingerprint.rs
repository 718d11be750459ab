//! What makes two runs the same.

use crate::error::Result;
use crate::job::convert::Options;
use crate::job::header::TOOL;
use crate::job::journal::Fingerprint;
use crate::plan::Plan;
use crate::source;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Where a run keeps its work if nothing else is said: beside the output.
pub(super) fn work_dir(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".work");
    name.into()
}

/// All that the factors depend on.
pub(super) fn fingerprint(sha256: &str, plan: &Plan, options: &Options) -> Result<Fingerprint> {
    let mut f = Fingerprint::new();
    let mut put = |key: &str, value: String| f.insert(key.to_owned(), value);
    put("tool", TOOL.to_owned());
    put("source sha256", sha256.to_owned());
    put("method", options.method.to_string());
    put("paths", options.paths.to_string());
    put("rotation", options.rotate.map_or("none".to_owned(), |r| r.to_string()));
    put("iterations", options.iterations.map_or("the method's".to_owned(), |n| n.to_string()));
    put("seed", options.seed.to_string());
    let digest = |path: &PathBuf| source::sha256(std::slice::from_ref(path));
    put("imatrix sha256", options.imatrix.as_ref().map(digest).transpose()?.unwrap_or_default());
    if let Some(c) = &options.calibration {
        put("effort", format!("{:?}", c.effort).to_lowercase());
        put("calibration sha256", source::sha256(&c.files)?);
    }
    let ranks: Vec<String> = plan.entries.iter().map(|e| e.rank.to_string()).collect();
    put("bits per weight", format!("{:.4}", plan.bpw));
    let digest = Sha256::digest(ranks.join(","));
    put("ranks", digest[..8].iter().map(|b| format!("{b:02x}")).collect());
    Ok(f)
}
