//! Signs as official LittleBit checkpoints pack them: row-major words of 32 columns, bit `c % 32` of word `c / 32`,
//! least significant first, **1 is -1**; bits beyond the last column are 0.

use super::{COL_PAD, SignMatrix, byte_index};

/// Columns of a word.
const WORD: usize = 32;

/// Words of one row of `cols` signs.
pub const fn words_per_row(cols: usize) -> usize {
    cols.div_ceil(WORD)
}

impl SignMatrix {
    /// The matrix as `rows * words_per_row(cols)` words.
    pub fn to_words(&self) -> Vec<u32> {
        let (rows, cols) = (self.rows(), self.cols());
        let mut words = vec![0; rows * words_per_row(cols)];
        let tile = self.as_bytes();
        for (row, words) in words.chunks_exact_mut(words_per_row(cols).max(1)).enumerate() {
            for byte in 0..cols.div_ceil(8) {
                let plus = tile[byte_index(cols, row, 8 * byte)];
                words[byte / 4] |= u32::from(!plus & valid(cols, byte)) << (8 * (byte % 4));
            }
        }
        words
    }

    /// The inverse of [`SignMatrix::to_words`]; bits beyond the last column are not looked at. `words` has the length
    /// that belongs to the shape.
    pub fn from_words(rows: usize, cols: usize, words: &[u32]) -> Self {
        assert_eq!(words.len(), rows * words_per_row(cols));
        let mut m = Self::new(rows, cols);
        let tile = m.as_bytes_mut();
        for (row, words) in words.chunks_exact(words_per_row(cols).max(1)).enumerate() {
            for byte in 0..cols.div_ceil(8) {
                let minus = (words[byte / 4] >> (8 * (byte % 4))) as u8;
                tile[byte_index(cols, row, 8 * byte)] = !minus & valid(cols, byte);
            }
        }
        m
    }
}

/// Bits of byte `byte` of a row that belong to columns.
const fn valid(cols: usize, byte: usize) -> u8 {
    const { assert!(COL_PAD.is_multiple_of(8)) };
    match cols - 8 * byte {
        left @ 0..8 => (1 << left) - 1,
        _ => 0xff,
    }
}

/// Position (row, column) of the first bit that is set beyond the last column.
pub fn stray_bit(cols: usize, words: &[u32]) -> Option<(usize, usize)> {
    let per_row = words_per_row(cols);
    let used = cols % WORD;
    if used == 0 || per_row == 0 {
        return None;
    }
    words.chunks_exact(per_row).enumerate().find_map(|(row, words)| {
        let beyond = words[per_row - 1] >> used;
        (beyond != 0).then(|| (row, cols + beyond.trailing_zeros() as usize))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_official_ones() {
        // 2 x 35: row 0 is -1 in columns 0, 31 and 34; row 1 is +1 throughout.
        let m = SignMatrix::from_fn(2, 35, |r, c| r == 1 || ![0, 31, 34].contains(&c));
        assert_eq!(m.to_words(), [0x8000_0001, 0b100, 0, 0]);
    }

    #[test]
    fn words_and_tiles_agree_sign_by_sign() {
        for (rows, cols) in [(1, 1), (3, 7), (31, 8), (33, 31), (32, 32), (5, 33), (70, 100)] {
            let plus = |r: usize, c: usize| (r * 11 + c * 7) % 5 < 2;
            let m = SignMatrix::from_fn(rows, cols, plus);
            let words = m.to_words();
            for r in 0..rows {
                for c in 0..cols {
                    let minus = words[r * words_per_row(cols) + c / 32] >> (c % 32) & 1 == 1;
                    assert_eq!(minus, !plus(r, c), "{rows}x{cols} at {r}, {c}");
                }
            }
            assert_eq!(SignMatrix::from_words(rows, cols, &words), m);
            assert_eq!(stray_bit(cols, &words), None);
        }
    }

    #[test]
    fn bits_beyond_the_columns_are_found_and_never_kept() {
        let mut words = SignMatrix::from_fn(2, 35, |_, _| true).to_words();
        words[3] |= 1 << 7;
        assert_eq!(stray_bit(35, &words), Some((1, 39)));
        assert_eq!(SignMatrix::from_words(2, 35, &words), SignMatrix::from_fn(2, 35, |_, _| true));
    }
}
