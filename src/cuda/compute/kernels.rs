//! The kernels of `cpp/cuda/factorize.cuh` and their arguments.

/// Threads of a block (`LBF_THREADS`).
pub const THREADS: u32 = 256;
/// Columns of a chunk of [`Kernel::Rows`] (`LBF_CHUNK`).
pub const CHUNK: usize = 256;
/// Rows of a diagonal block of the Cholesky decomposition (`LBF_DIAGONAL`).
pub const DIAGONAL: usize = 64;

/// A kernel of the compressor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum Kernel {
    UnitRows,
    Pull,
    Advance,
    Columns,
    Rows,
    Direction,
    Start,
    InverseLength,
    Ridge,
    Diagonal,
    Cholesky,
    Scaled,
    Multiply,
    RowDots,
    ColumnDots,
    Descend,
    Gather,
    Scatter,
    Widen,
    SignPairs,
    SignTile,
}

impl Kernel {
    /// Names in the module, in the order of the numbers.
    pub const NAMES: [&str; 21] = [
        "lbf_unit_rows",
        "lbf_pull",
        "lbf_advance",
        "lbf_columns",
        "lbf_rows",
        "lbf_direction",
        "lbf_start",
        "lbf_inverse_length",
        "lbf_ridge",
        "lbf_diagonal",
        "lbf_cholesky",
        "lbf_scaled",
        "lbf_multiply",
        "lbf_row_dots",
        "lbf_column_dots",
        "lbf_descend",
        "lbf_gather",
        "lbf_scatter",
        "lbf_widen",
        "lbf_sign_pairs",
        "lbf_sign_tile",
    ];

    /// Threads of a block and bytes of its shared memory.
    pub fn block(self) -> (u32, u32) {
        let sums = THREADS * 8;
        match self {
            Kernel::Direction | Kernel::Start | Kernel::InverseLength | Kernel::RowDots => (THREADS, sums),
            Kernel::Descend => (THREADS, 2 * THREADS / 32 * 4),
            Kernel::Cholesky => {
                let n = DIAGONAL as u32;
                (n, 4 * (n * (n + 1) + n))
            }
            _ => (THREADS, 0),
        }
    }
}

/// What every kernel takes, by value; each says in its source which members it uses. Pointers are the device's.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Args {
    pub out: u64,
    pub more: u64,
    pub x: u64,
    pub y: u64,
    pub a: u64,
    pub b: u64,
    pub sums: u64,
    pub count: u64,
    pub r: u32,
    pub n: u32,
    pub stride: u32,
    pub value: f32,
}
