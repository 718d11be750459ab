//! `--report FILE`: what a run tells, as a page, as JSON, as a model card.

use crate::error::{Error, Result};
use crate::job::{Report, output};
use crate::present;
use std::path::{Path, PathBuf};

/// Form of a report, by the end of its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Page,
    Json,
    Card,
}

fn kind(path: &Path) -> Result<Kind> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match extension.as_str() {
        "html" | "htm" => Ok(Kind::Page),
        "json" => Ok(Kind::Json),
        "md" => Ok(Kind::Card),
        _ => Err(Error::usage(format!(
            "--report {}: a name that ends with .html (page), .json, or .md (model card) says what to write",
            path.display()
        ))),
    }
}

/// Refuses files that cannot be written before the work begins.
pub fn check(paths: &[PathBuf], taken: &[&Path], force: bool) -> Result<()> {
    for (i, path) in paths.iter().enumerate() {
        kind(path)?;
        if taken.contains(&path.as_path()) || paths[..i].contains(path) {
            return Err(Error::usage(format!(
                "{} is to be written twice; give every file a name of its own",
                path.display()
            )));
        }
        output::check_target(path, taken, force)?;
    }
    Ok(())
}

/// Writes them.
pub fn write(paths: &[PathBuf], report: &Report, force: bool) -> Result<()> {
    for path in paths {
        let text = match kind(path)? {
            Kind::Page => present::html(report),
            Kind::Card => present::model_card(report),
            Kind::Json => serde_json::to_string_pretty(report).expect("a report is plain data") + "\n",
        };
        output::write_file(path, force, text.as_bytes())?;
    }
    Ok(())
}
