//! Calibration text: several files, cut into windows of tokens and mixed evenly.

use crate::error::{Error, Result};
use crate::tokenize::Tokenizer;
use std::path::PathBuf;

/// Windows of `length` tokens of each file.
///
/// # Errors
/// Files that cannot be read, are not UTF-8, or are shorter than one window.
pub fn windows_of(files: &[PathBuf], tokenizer: &Tokenizer, length: usize) -> Result<Vec<Vec<Vec<u32>>>> {
    let read = |path: &PathBuf| {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| Error::malformed(path, e.valid_up_to() as u64, "not UTF-8 text"))?;
        let windows = tokenizer.windows(text, length);
        if windows.is_empty() {
            return Err(Error::unsupported(
                path,
                format!("shorter than one window of {length} tokens; give more text"),
            ));
        }
        Ok(windows)
    };
    files.iter().map(read).collect()
}

/// One window of each file in turn; shorter files drop out when they end.
pub fn mixed(files: Vec<Vec<Vec<u32>>>) -> Vec<Vec<u32>> {
    let longest = files.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest)
        .flat_map(|i| files.iter().filter_map(move |f| f.get(i).cloned()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_take_turns() {
        let file = |n: u32, len: usize| (0..len).map(|i| vec![n, i as u32]).collect();
        let first: Vec<u32> = mixed(vec![file(1, 3), file(2, 1)]).iter().map(|w| w[0]).collect();
        assert_eq!(first, [1, 2, 1, 1]);
    }
}
