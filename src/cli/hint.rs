//! What to do about an error, where its own words do not say it. It depends on what the file at fault is to the command.

use crate::error::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind as Fault};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// What the files that a command names are to it.
#[derive(Debug, Default)]
pub struct Files {
    /// Models that are read.
    pub models: Vec<PathBuf>,
    /// Statistics of llama-imatrix.
    pub imatrix: Option<PathBuf>,
    /// Texts to calibrate or compare on.
    pub texts: Vec<PathBuf>,
    /// What was measured of a source.
    pub statistics: Option<PathBuf>,
    /// All that is written; empty for commands that write no files.
    pub outputs: Vec<PathBuf>,
    /// Where finished pieces are kept.
    pub work: Option<PathBuf>,
}

impl Files {
    /// What to do about a fault of one of them.
    fn hint(&self, e: &Error) -> Option<String> {
        let path = e.path()?;
        let is = |file: &Option<PathBuf>| file.as_deref() == Some(path);
        let among = |files: &[PathBuf]| files.iter().any(|f| f == path);
        let text = match e {
            Error::Malformed { .. } | Error::Tensor { .. } if is(&self.imatrix) => {
                "make an importance matrix of this model: llama-imatrix -m MODEL -f TEXT -o FILE, or --save-imatrix in a \
                 conversion with --calibration"
            }
            Error::Malformed { .. } if is(&self.statistics) => {
                "name another file for --statistics, or remove this one: it is written anew"
            }
            Error::Malformed { .. } if among(&self.texts) => {
                "give plain text in UTF-8 (iconv -t UTF-8 converts it)"
            }
            Error::Malformed { .. } if self.work.as_ref().is_some_and(|dir| path.starts_with(dir)) => {
                "this is no work folder of littlebit-convert: name another --work-dir"
            }
            Error::Tokenizer { .. } if self.outputs.is_empty() => "leave out --eval and --coherence",
            Error::Tokenizer { .. } => "give statistics with --imatrix instead of texts",
            Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
                if among(&self.outputs) {
                    let folder = path.parent()?.display();
                    return Some(format!("make the folder first (mkdir -p {folder}), or write to another"));
                }
                let name = self.models.iter().find(|m| *m == path).filter(|m| is_hub_name(m))?.display();
                return Some(format!(
                    "check the path; models are not downloaded: fetch it first, e.g. hf download {name} --local-dir DIR, \
                     and give DIR"
                ));
            }
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// Whether finished work waits for the same command.
    fn holds_work(&self) -> bool {
        self.work.as_ref().is_some_and(|dir| dir.is_dir())
    }
}

/// Whether a path looks like the name of a model on a hub, `OWNER/NAME`, rather than of a file.
fn is_hub_name(path: &Path) -> bool {
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    let forms = ["gguf", "safetensors", "littlebit", "json", "bin"];
    let file = path.extension().is_some_and(|e| forms.iter().any(|f| e == *f));
    plain && path.components().count() == 2 && !file && path.parent().is_some_and(|p| !p.exists())
}

/// A sentence for the user of a command with these files; `None` if the error's message has what there is to say.
pub fn hint(e: &Error, files: &Files) -> Option<String> {
    if let Some(text) = files.hint(e) {
        return Some(text);
    }
    let again = if files.holds_work() { "; the same command goes on from what is finished" } else { "" };
    let text = match e {
        Error::Io { source, path, .. } => match source.kind() {
            ErrorKind::NotFound => "check the path: nothing is there, or a folder on the way is missing",
            ErrorKind::PermissionDenied => {
                "check the permissions, or choose another folder for what is written"
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                let to = match files.outputs.is_empty() || path == Path::new("stdout") {
                    true => "to another disk",
                    false => "to another disk: OUTPUT, --work-dir",
                };
                return Some(format!("make room (df -h, quota, ulimit -f), or write {to}{again}"));
            }
            ErrorKind::ReadOnlyFilesystem => "choose another folder for what is written: OUTPUT, --work-dir",
            ErrorKind::OutOfMemory => "give the run less to do at once: --max-memory, --threads",
            _ => {
                let text =
                    "the system refused this: mend its cause (disk, network, rights) and repeat the command";
                return Some(format!("{text}{again}"));
            }
        },
        Error::Malformed { .. } => {
            "the file is incomplete, damaged or of another kind: compare its size and checksum with its publisher's and fetch \
             or convert it again"
        }
        Error::Tensor { .. } => {
            "the model does not hold together: fetch it again; or convert it to a GGUF with llama.cpp's \
             convert_hf_to_gguf.py and give that"
        }
        Error::Numeric { matrix, .. } => {
            let name = matrix.split('[').next().unwrap_or(matrix).replace('.', r"\.");
            return Some(format!(
                "leave this matrix as it is with --tensor-rule '^{name}$=keep', or try another --seed"
            ));
        }
        Error::Device(_) => {
            return Some(format!(
                "look at the GPU (nvidia-smi, the kernel's log) and repeat the command{again}; without --device the CPU does \
                 all the work"
            ));
        }
        Error::Unsupported { .. } | Error::Tokenizer { .. } | Error::Usage(_) => return None,
    };
    Some(text.to_owned())
}

/// For those who come from llama-quantize.
pub const NO_TYPE: &str = "there is no type to name: littlebit-convert IN OUT --bpw 1.0; a standard GGUF with --lossy q4_K; \
     single tensors with --tensor-rule; see --help";

/// Whether a command line was refused for a type or flag as llama-quantize takes them.
pub fn names_a_type(e: &clap::Error) -> bool {
    if !matches!(e.kind(), Fault::ArgumentConflict | Fault::UnknownArgument | Fault::InvalidSubcommand) {
        return false;
    }
    let flags = ["--type", "--tensor-type", "--allow-requantize", "--leave-output-tensor", "--pure"];
    let is_type = |word: &str| {
        let word = word.to_ascii_lowercase();
        let numbered = word.trim_start_matches(['i', 't']).strip_prefix('q');
        numbered.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            || ["f32", "f16", "bf16", "mxfp4", "mxfp4_moe", "copy"].contains(&word.as_str())
    };
    let named = |text: &String| {
        let word = text.split([' ', '=']).next().unwrap_or(text);
        flags.contains(&word) || is_type(word)
    };
    let words = e.context().filter(|(kind, _)| {
        matches!(kind, ContextKind::InvalidArg | ContextKind::InvalidSubcommand | ContextKind::PriorArg)
    });
    words.map(|(_, value)| value).any(|value| match value {
        ContextValue::String(word) => named(word),
        ContextValue::Strings(words) => words.iter().any(named),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn what_to_do_depends_on_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        let with = |files: &Files, code: i32| {
            hint(&Error::io(Path::new("x"), "write", io::Error::from_raw_os_error(code)), files).unwrap()
        };
        let files = Files {
            outputs: vec!["out/o.gguf".into()],
            work: Some(dir.path().to_owned()),
            ..Files::default()
        };
        let of = |code| with(&files, code);
        assert!(of(libc::ENOENT).contains("check the path"));
        assert!(of(libc::EACCES).contains("permissions"));
        for full in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            assert!(
                of(full).contains("make room") && of(full).contains("--work-dir; the same command goes on")
            );
            assert!(!with(&Files::default(), full).contains("goes on"));
        }
        assert!(of(libc::EROFS).contains("another folder"));
        assert!(of(libc::EIO).contains("goes on") && !with(&Files::default(), libc::EIO).contains("goes on"));
        let numeric = Error::Numeric { matrix: "blk.0.ffn_up.weight[3]".to_owned(), what: "x".to_owned() };
        assert!(hint(&numeric, &files).unwrap().contains(r"'^blk\.0\.ffn_up\.weight$=keep'"));
        assert!(hint(&Error::usage("x"), &files).is_none());
    }

    #[test]
    fn names_on_a_hub_are_told_from_paths() {
        for (name, is) in [
            ("meta-llama/Llama-3.2-1B", true),
            ("models/no.gguf", false),
            ("/meta-llama/Llama-3.2-1B", false),
            ("../Llama-3.2-1B", false),
            ("src/Llama-3.2-1B", false),
            ("Llama-3.2-1B", false),
        ] {
            assert_eq!(is_hub_name(Path::new(name)), is, "{name}");
        }
    }
}
