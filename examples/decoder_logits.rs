//! Logits of the decoder here against those of llama.cpp, model by model.
//!
//! `decoder_logits LITTLEBIT_LOGITS BOUND MODEL.gguf|DIRECTORY ...` prints the normalized mean squared error for every
//! model of a family that has a forward pass, and fails if one is above BOUND.

use littlebit::decoder::{self, SUPPORTED};
use littlebit::source;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Positions that are compared.
const LENGTH: usize = 40;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [tool, bound, inputs @ ..] = &args[..] else {
        eprintln!("usage: decoder_logits LITTLEBIT_LOGITS BOUND MODEL.gguf|DIRECTORY ...");
        return ExitCode::from(2);
    };
    let bound: f64 = bound.parse().expect("BOUND is a number");
    let (mut passed, mut failed) = (0, 0);
    for model in inputs.iter().flat_map(|i| models(Path::new(i))) {
        let nmse = match compare(tool, &model) {
            Ok(Some(nmse)) => nmse,
            Ok(None) => continue,
            Err(e) => {
                println!("FAIL {}: {e}", model.display());
                failed += 1;
                continue;
            }
        };
        let ok = nmse <= bound;
        *if ok { &mut passed } else { &mut failed } += 1;
        let name = model.file_name().unwrap_or_default().to_string_lossy();
        println!("{} {name:48} NMSE {nmse:.2e}", if ok { "ok  " } else { "FAIL" });
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn models(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(path).expect("a directory").map(|e| e.expect("an entry").path()).collect();
    all.retain(|p| p.extension().is_some_and(|e| e == "gguf"));
    all.sort();
    all
}

/// NMSE of our logits, `None` for models without a forward pass here.
fn compare(tool: &str, model: &Path) -> Result<Option<f64>, Box<dyn std::error::Error>> {
    let source = source::open(model)?;
    let arch = source.kv().iter().find(|(k, _)| k == "general.architecture").and_then(|(_, v)| v.as_str());
    let experts = source.tensors().iter().any(|t| t.name.contains("_exps"));
    if experts || !arch.is_some_and(|a| SUPPORTED.contains(&a)) {
        return Ok(None);
    }
    let decoder = decoder::load(source.as_ref())?;
    let vocabulary = decoder.vocabulary();
    let tokens: Vec<u32> = (0..LENGTH).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect();
    let ours = decoder.logits(&decoder.normed(&decoder.stream(&tokens, LENGTH)));
    let dump = tempfile::NamedTempFile::new()?;
    let run = Command::new(tool)
        .args(["dump", "--prompt", "40", "--decode", "0", "-m"])
        .arg(model)
        .arg("-o")
        .arg(dump.path())
        .output()?;
    if !run.status.success() {
        return Err(String::from_utf8_lossy(&run.stderr).into());
    }
    let bytes = std::fs::read(dump.path())?;
    let theirs: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if theirs.len() != ours.len() {
        return Err(format!("{} logits against {}", theirs.len(), ours.len()).into());
    }
    let (mut difference, mut norm) = (0f64, 0f64);
    for (a, b) in theirs.iter().zip(&ours) {
        difference += f64::from(a - b).powi(2);
        norm += f64::from(*a).powi(2);
    }
    Ok(Some(difference / norm))
}
