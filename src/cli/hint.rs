//! What to do about an error, where its own words do not say it.

use crate::error::Error;
use std::io::ErrorKind;

/// A sentence for the user; `None` if the error's message has what there is to say.
pub fn hint(e: &Error) -> Option<String> {
    let text = match e {
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound => "check the path: nothing is there, or a folder on the way is missing",
            ErrorKind::PermissionDenied => {
                "check the permissions, or choose another folder for what is written"
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                "make room (df -h, quota, ulimit -f), or write to another disk: OUTPUT, --work-dir; the same command goes on \
                 from what is finished"
            }
            ErrorKind::ReadOnlyFilesystem => "choose another folder for what is written: OUTPUT, --work-dir",
            ErrorKind::OutOfMemory => "give the run less to do at once: --max-memory, --threads",
            _ => {
                "the system refused this; when its cause is mended (disk, network, rights) the same command goes on from \
                 what is finished"
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
            "look at the GPU (nvidia-smi, the kernel's log) and repeat the command, which goes on from what is finished; without \
             --device the CPU does all the work"
        }
        Error::Unsupported { .. } | Error::Usage(_) => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::path::Path;

    #[test]
    fn what_to_do_depends_on_the_cause() {
        let of = |code: i32| {
            hint(&Error::io(Path::new("x"), "write", io::Error::from_raw_os_error(code))).unwrap()
        };
        assert!(of(libc::ENOENT).contains("check the path"));
        assert!(of(libc::EACCES).contains("permissions"));
        for full in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            assert!(of(full).contains("make room"));
        }
        assert!(of(libc::EROFS).contains("another folder"));
        assert!(of(libc::EIO).contains("goes on"));
        let numeric = Error::Numeric { matrix: "blk.0.ffn_up.weight[3]".to_owned(), what: "x".to_owned() };
        assert!(hint(&numeric).unwrap().contains(r"'^blk\.0\.ffn_up\.weight$=keep'"));
        assert!(hint(&Error::usage("x")).is_none());
    }
}
