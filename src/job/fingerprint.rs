//! What makes two runs the same.

use crate::error::Result;
use crate::factorize::device::Choice;
use crate::format::schema::TOOL;
use crate::gguf::GgmlType;
use crate::job::convert::Options;
use crate::job::journal::Fingerprint;
use crate::job::layout::Budget;
use crate::plan::Target;
use crate::source;
use std::path::{Path, PathBuf};

/// Where a run keeps its work if nothing else is said: beside the output.
pub(super) fn work_dir(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".work");
    name.into()
}

/// All that the factors depend on.
pub(super) fn fingerprint(sha256: &str, options: &Options) -> Result<Fingerprint> {
    let mut f = Fingerprint::new();
    let mut put = |key: &str, value: String| f.insert(key.to_owned(), value);
    put("tool", TOOL.to_owned());
    put("source sha256", sha256.to_owned());
    put("method", options.method.to_string());
    put("paths", options.paths.to_string());
    put("rotation", options.rotate.map_or("none".to_owned(), |r| r.to_string()));
    put("iterations", options.iterations.map_or("the method's".to_owned(), |n| n.to_string()));
    put("seed", options.seed.to_string());
    // A GPU's sums are rounded otherwise.
    if options.device != Choice::Cpu {
        put("device", options.device.to_string());
    }
    let digest = |path: &PathBuf| source::sha256(std::slice::from_ref(path));
    put("imatrix sha256", options.imatrix.as_ref().map(digest).transpose()?.unwrap_or_default());
    if let Some(c) = &options.calibration {
        put("effort", format!("{:?}", c.effort).to_lowercase());
        put("calibration sha256", source::sha256(&c.files)?);
        put("generated windows", c.generated().to_string());
        put("drift correction", c.correction.inputs.to_string());
        put("residual correction", c.correction.residual.to_string());
        put("polish rounds", c.polish_rounds.to_string());
        put("absorb passes", c.absorb_passes.to_string());
        // Portions of the work change sums, and which tokens are drawn.
        put("max memory", options.max_memory.map_or("none".to_owned(), |n| format!("{n} bytes")));
        if options.max_memory.is_some() {
            // What is kept of these windows is missing for those of moments.
            put("evaluation sha256", source::sha256(&c.evaluation)?);
            put("tune steps", c.steps.map_or("the effort's".to_owned(), |n| n.to_string()));
            put("time budget", c.time_budget.map_or("none".to_owned(), |_| "some".to_owned()));
        }
        put("block passes", c.passes.map_or("the effort's".to_owned(), |n| n.to_string()));
    }
    put(
        "size",
        match options.budget {
            Budget::Target(Target::Bpw(b)) => format!("{b} bpw"),
            Budget::Target(Target::Rank(r)) => format!("rank {r}"),
            Budget::FileSize(n) => format!("{n} bytes"),
        },
    );
    put("rules", options.rules.iter().map(|r| r.to_string()).collect::<Vec<_>>().join(" "));
    // Types of other tensors matter where a file size is to be met, and where factors are made on the activations of a model
    // that holds them.
    if options.calibration.is_some() || matches!(options.budget, Budget::FileSize(_)) {
        let name = |t: Option<GgmlType>| t.map_or("the source's".to_owned(), |t| t.name().to_string());
        put("token embedding type", name(options.token_embedding_type));
        put("output tensor type", name(options.output_tensor_type));
    }
    Ok(f)
}
