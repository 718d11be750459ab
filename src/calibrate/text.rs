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
            let tokens = tokenizer.encode(text).len();
            let what = format!("{tokens} tokens, shorter than one window of {length}; give more text");
            return Err(Error::unsupported(path, what));
        }
        Ok(windows)
    };
    files.iter().map(read).collect()
}

/// Windows of several files and the order in which they are used: one of each file in turn, a shorter file from its
/// beginning again while the others go on.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// All windows; the first ones alternate between the files, so that any number of them is mixed.
    pub windows: Vec<Vec<u32>>,
    /// Positions of each file's windows among them, in the order of use.
    files: Vec<Vec<usize>>,
}

impl Mixture {
    /// Mixes the windows of `files`.
    pub fn new(files: Vec<Vec<Vec<u32>>>) -> Self {
        let longest = files.iter().map(Vec::len).max().unwrap_or(0);
        let mut mixture = Self { windows: Vec::new(), files: vec![Vec::new(); files.len()] };
        for i in 0..longest {
            for (f, file) in files.iter().enumerate().filter(|(_, f)| i < f.len()) {
                mixture.files[f].push(mixture.windows.len());
                mixture.windows.push(file[i].clone());
            }
        }
        mixture
    }

    /// Keeps the first `n` windows.
    pub fn truncate(&mut self, n: usize) {
        self.windows.truncate(n);
        self.files.iter_mut().for_each(|f| f.retain(|&i| i < n));
        self.files.retain(|f| !f.is_empty());
    }

    /// Has every file begin with its first window that is not among the first `n` of all; those come last.
    pub fn begin_after(&mut self, n: usize) {
        for file in &mut self.files {
            let first = file.iter().position(|&i| i >= n).unwrap_or(0);
            file.rotate_left(first);
        }
    }

    /// Weights of the first `n` windows with which every file counts alike; 1 on average.
    pub fn shares(&self, n: usize) -> Vec<f32> {
        let mut shares = vec![1f32; n.min(self.windows.len())];
        let within = |f: &Vec<usize>| f.iter().filter(|&&i| i < n).count();
        let present = self.files.iter().filter(|f| within(f) > 0).count();
        for file in &self.files {
            for &i in file.iter().filter(|&&i| i < n) {
                shares[i] = shares.len() as f32 / (present * within(file)) as f32;
            }
        }
        shares
    }

    /// The window of step `k` and how often its file was gone through before.
    pub fn at(&self, k: usize) -> (usize, usize) {
        let file = &self.files[k % self.files.len()];
        let turn = k / self.files.len();
        (file[turn % file.len()], turn / file.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_take_turns() {
        let file = |n: u32, len: usize| (0..len).map(|i| vec![n, i as u32]).collect();
        let mut mixture = Mixture::new(vec![file(1, 3), file(2, 1)]);
        let first: Vec<u32> = mixture.windows.iter().map(|w| w[0]).collect();
        assert_eq!(first, [1, 2, 1, 1]);
        let order: Vec<_> = (0..8).map(|k| mixture.at(k)).collect();
        assert_eq!(order, [(0, 0), (1, 0), (2, 0), (1, 1), (3, 0), (1, 2), (0, 1), (1, 3)]);
        assert_eq!(mixture.shares(4), [4.0 / 6.0, 2.0, 4.0 / 6.0, 4.0 / 6.0]);
        assert_eq!(mixture.shares(1), [1.0]);
        mixture.begin_after(2);
        let order: Vec<_> = (0..6).map(|k| mixture.at(k)).collect();
        assert_eq!(order, [(2, 0), (1, 0), (3, 0), (1, 1), (0, 0), (1, 2)]);
        assert_eq!(mixture.shares(4), [4.0 / 6.0, 2.0, 4.0 / 6.0, 4.0 / 6.0]);
        mixture.truncate(1);
        assert_eq!((mixture.at(0), mixture.at(1)), ((0, 0), (0, 1)));
    }
}
