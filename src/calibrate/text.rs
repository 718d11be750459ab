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

/// `count` pieces of `length` tokens out of `windows`, from ever other places, with `first` before them.
pub fn prompts(windows: &[Vec<u32>], count: usize, length: usize, first: Option<u32>) -> Vec<Vec<u32>> {
    let piece = |i: usize| {
        let window = &windows[i % windows.len()];
        // A third of a window on at each pass, so that passes over the text do not repeat its pieces.
        let start = (i / windows.len() * (window.len() / 3) + window.len() / 2) % (window.len() - length);
        first.into_iter().chain(window[start..start + length].iter().copied()).collect()
    };
    (0..count).map(piece).collect()
}

/// Windows of several files and the order in which they are used: one of each file in turn, a shorter file from its
/// beginning again while the others go on.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// All windows; the first ones alternate between the files, so that any number of them is mixed.
    pub windows: Vec<Vec<u32>>,
    /// Positions of each file's windows among them.
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
    fn prompts_come_from_other_places() {
        let windows: Vec<Vec<u32>> = (0..2).map(|w| (0..30).map(|t| 100 * w + t).collect()).collect();
        let all = prompts(&windows, 6, 4, Some(7));
        assert_eq!(all[0], [7, 15, 16, 17, 18]);
        assert_eq!(all[1], [7, 115, 116, 117, 118]);
        let starts: std::collections::BTreeSet<u32> = all.iter().map(|p| p[1]).collect();
        assert_eq!(starts.len(), 6, "a piece twice: {starts:?}");
        assert!(all.iter().all(|p| p.len() == 5 && p[4] - p[1] == 3), "pieces lie within one window");
        assert_eq!(prompts(&windows, 1, 4, None)[0], [15, 16, 17, 18]);
    }

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
        mixture.truncate(1);
        assert_eq!((mixture.at(0), mixture.at(1)), ((0, 0), (0, 1)));
    }
}
