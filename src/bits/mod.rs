//! Sign matrices in the tile layout of LittleBit GGUF schema v1.
//!
//! A `rows x cols` matrix over {-1, +1} is stored as `byte[row/32][col/8][row%32]`; bit `j` (LSB first) of a
//! byte is column `8*(col/8)+j`, 1 = +1, 0 = -1. Rows are padded to 32, columns to 16; padding bits are 0.
//! The 32 rows of a byte column lie side by side because a table-lookup kernel wants the same column group
//! of 32 rows in one vector register; from row-major bits it would run 2-3 times slower.

mod words;

pub use words::{stray_bit, words_per_row};

use bytemuck::{Pod, Zeroable};

/// Rows of a tile.
pub const TILE_ROWS: usize = 32;
/// Columns are padded to a multiple of this.
pub const COL_PAD: usize = 16;

/// `n` rounded up to whole tiles of rows.
pub const fn padded_rows(n: usize) -> usize {
    n.div_ceil(TILE_ROWS) * TILE_ROWS
}

/// `n` rounded up to the column padding.
pub const fn padded_cols(n: usize) -> usize {
    n.div_ceil(COL_PAD) * COL_PAD
}

/// Bytes of the tile of a `rows x cols` sign matrix.
pub const fn tile_bytes(rows: usize, cols: usize) -> usize {
    padded_rows(rows) * (padded_cols(cols) / 8)
}

/// Index of the byte that holds (`row`, `col`) in a tile of `cols` columns; the bit is `col % 8`.
#[inline]
pub const fn byte_index(cols: usize, row: usize, col: usize) -> usize {
    ((row / TILE_ROWS) * (padded_cols(cols) / 8) + col / 8) * TILE_ROWS + row % TILE_ROWS
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A `rows x cols` matrix over {-1, +1}, in the tile layout, 64-byte aligned.
#[derive(Clone)]
#[cfg_attr(feature = "convert", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "convert", serde(into = "Plain", try_from = "Plain"))]
pub struct SignMatrix {
    rows: usize,
    cols: usize,
    lines: Vec<Line>,
}

impl SignMatrix {
    /// All -1 (bits 0).
    pub fn new(rows: usize, cols: usize) -> Self {
        let lines = vec![Line([0; 64]); tile_bytes(rows, cols).div_ceil(64)];
        Self { rows, cols, lines }
    }

    /// Signs of `f(row, col)`: `true` is +1.
    pub fn from_fn(rows: usize, cols: usize, mut f: impl FnMut(usize, usize) -> bool) -> Self {
        let mut m = Self::new(rows, cols);
        let bytes = m.as_bytes_mut();
        for row in 0..rows {
            for col in 0..cols {
                if f(row, col) {
                    bytes[byte_index(cols, row, col)] |= 1 << (col % 8);
                }
            }
        }
        m
    }

    /// Signs of a row-major `rows x cols` slice; zero counts as +1, as in the paper.
    pub fn from_row_major(rows: usize, cols: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols);
        Self::from_fn(rows, cols, |r, c| values[r * cols + c] >= 0.0)
    }

    /// Takes over tile bytes. `Err` names the first fault: a wrong length or a padding bit that is not 0.
    pub fn from_tile(rows: usize, cols: usize, tile: &[u8]) -> Result<Self, TileError> {
        check_tile(rows, cols, tile)?;
        let mut m = Self::new(rows, cols);
        m.as_bytes_mut().copy_from_slice(tile);
        Ok(m)
    }

    /// Number of rows without padding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns without padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The tile: `padded_rows * padded_cols / 8` bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..tile_bytes(self.rows, self.cols)]
    }

    fn as_bytes_mut(&mut self) -> &mut [u8] {
        let n = tile_bytes(self.rows, self.cols);
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..n]
    }

    /// Whether (`row`, `col`) is +1.
    pub fn is_plus(&self, row: usize, col: usize) -> bool {
        assert!(row < self.rows && col < self.cols);
        self.as_bytes()[byte_index(self.cols, row, col)] >> (col % 8) & 1 == 1
    }

    /// Turns the sign at (`row`, `col`).
    pub fn turn(&mut self, row: usize, col: usize) {
        assert!(row < self.rows && col < self.cols);
        let at = byte_index(self.cols, row, col);
        self.as_bytes_mut()[at] ^= 1 << (col % 8);
    }

    /// Row `row` as -1.0 / +1.0 (`cols` values).
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols);
        let bytes = self.as_bytes();
        for (col, x) in out.iter_mut().enumerate() {
            let bit = bytes[byte_index(self.cols, row, col)] >> (col % 8) & 1;
            *x = if bit == 1 { 1.0 } else { -1.0 };
        }
    }

    /// The whole matrix, row-major, as -1.0 / +1.0.
    pub fn to_row_major(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (row, chunk) in out.chunks_exact_mut(self.cols.max(1)).enumerate() {
            self.row_f32(row, chunk);
        }
        out
    }
}

/// A sign matrix as it is serialised.
#[cfg(feature = "convert")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Plain {
    rows: usize,
    cols: usize,
    tile: Vec<u8>,
}

#[cfg(feature = "convert")]
impl From<SignMatrix> for Plain {
    fn from(m: SignMatrix) -> Self {
        Self { rows: m.rows, cols: m.cols, tile: m.as_bytes().to_vec() }
    }
}

#[cfg(feature = "convert")]
impl TryFrom<Plain> for SignMatrix {
    type Error = TileError;
    fn try_from(p: Plain) -> Result<Self, TileError> {
        Self::from_tile(p.rows, p.cols, &p.tile)
    }
}

impl PartialEq for SignMatrix {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows && self.cols == other.cols && self.as_bytes() == other.as_bytes()
    }
}
impl Eq for SignMatrix {}

impl std::fmt::Debug for SignMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignMatrix({} x {})", self.rows, self.cols)
    }
}

/// Why bytes are not the tile of a sign matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    /// The slice has the wrong length for the shape.
    #[error("sign tile has {got} bytes, its shape needs {want}")]
    Length {
        /// Bytes given.
        got: usize,
        /// Bytes the shape needs.
        want: usize,
    },
    /// A bit outside the logical matrix is set.
    #[error("sign tile has a nonzero padding bit at byte {byte} of the tile")]
    Padding {
        /// Offset of the byte from the start of the tile.
        byte: usize,
    },
}

/// Checks length and zero padding of the tile of a `rows x cols` matrix.
pub fn check_tile(rows: usize, cols: usize, tile: &[u8]) -> Result<(), TileError> {
    let want = tile_bytes(rows, cols);
    if tile.len() != want {
        return Err(TileError::Length { got: tile.len(), want });
    }
    let byte_cols = padded_cols(cols) / 8;
    // Bits of the last used byte column that lie beyond `cols`, and whole byte columns after it.
    for block in 0..padded_rows(rows) / TILE_ROWS {
        for kb in 0..byte_cols {
            let used = cols.saturating_sub(kb * 8).min(8);
            let valid = if used == 8 { 0xff } else { (1u8 << used) - 1 };
            let first_pad_row = rows.saturating_sub(block * TILE_ROWS).min(TILE_ROWS);
            if used == 8 && first_pad_row == TILE_ROWS {
                continue;
            }
            let at = (block * byte_cols + kb) * TILE_ROWS;
            for (i, &byte) in tile[at..at + TILE_ROWS].iter().enumerate() {
                let mask = if i < first_pad_row { valid } else { 0 };
                if byte & !mask != 0 {
                    return Err(TileError::Padding { byte: at + i });
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_specified_one() {
        // 33 x 17: two row blocks, columns padded to 32. Only (32, 16) is +1: block 1, byte column 2, row 0, bit 0.
        let m = SignMatrix::from_fn(33, 17, |r, c| r == 32 && c == 16);
        assert_eq!(m.as_bytes().len(), 64 * 4);
        let hits: Vec<_> = m.as_bytes().iter().enumerate().filter(|(_, b)| **b != 0).collect();
        assert_eq!(hits, [((4 + 2) * 32, &1u8)]);
    }

    #[test]
    fn round_trip_and_padding_check() {
        for (rows, cols) in [(1, 1), (31, 15), (32, 16), (33, 17), (5, 100), (70, 8)] {
            let m = SignMatrix::from_fn(rows, cols, |r, c| (r * 7 + c * 13) % 3 == 0);
            let again = SignMatrix::from_tile(rows, cols, m.as_bytes()).unwrap();
            assert_eq!(m, again);
            assert_eq!(SignMatrix::from_row_major(rows, cols, &m.to_row_major()), m);
            for byte in 0..m.as_bytes().len() {
                for bit in 0..8 {
                    let mut t = m.as_bytes().to_vec();
                    t[byte] |= 1 << bit;
                    let row = byte / 32 / (padded_cols(cols) / 8) * 32 + byte % 32;
                    let col = (byte / 32) % (padded_cols(cols) / 8) * 8 + bit;
                    let inside = row < rows && col < cols;
                    assert_eq!(
                        check_tile(rows, cols, &t).is_ok(),
                        inside,
                        "{rows}x{cols} byte {byte} bit {bit}"
                    );
                }
            }
        }
        assert!(matches!(SignMatrix::from_tile(1, 1, &[0; 3]), Err(TileError::Length { got: 3, want: 64 })));
    }
}
