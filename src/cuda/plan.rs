//! How stages are cut into launches: `cpp/cuda/plan.h` in Rust. `tests/cuda` compares the two.

/// Columns of signs that pass through the kernels together; planes of activations are padded to it with zeros.
const CHUNK: usize = 128;
/// Columns of signs that one launch can quantize for itself: their two planes stand in shared memory.
const FUSED_COLS: u32 = 8192;
/// About so many columns of signs has a slice of a wider stage for one column of activations.
const SLICE: u32 = 4096;
/// Columns of activations up to which a block takes one row block and splits the signs' columns over its warps.
const SMALL_N: u32 = 16;
const QUANTIZE_THREADS: u32 = 512;
const SMALL_WARPS: u32 = 8;
const LARGE_WARPS: u32 = 4;
/// Columns of activations of a block of [`Kernel::Large`].
const LARGE_N: u32 = 32;
/// Bytes from one plane to the next in its shared memory.
const LARGE_STRIDE: u32 = 160;
/// Bytes of shared memory for reductions over the warps of a block.
const SCRATCH: u32 = 256;
/// Blocks that look for the extent of one wide column.
const EXTENTS: u32 = 32;
/// Stages of one launch.
pub const STAGES: usize = 6;
/// Columns of activations of a stage: a grid has at most 65535 blocks in y.
pub const MAX_N: usize = 65535 * LARGE_N as usize;

/// The kernels of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kernel {
    /// Columns of activations to planes of 7 bits.
    Quantize = 0,
    /// One column, which every block quantizes for itself.
    Fused = 1,
    /// Up to four columns a block.
    Small4 = 2,
    /// Up to eight columns a block.
    Small8 = 3,
    /// 32 columns a block.
    Large = 4,
    /// Extent of one wide column.
    Extent = 5,
    /// One wide column, its signs cut into slices.
    Split = 6,
}

impl Kernel {
    /// All, in the order of their numbers.
    pub const ALL: [Kernel; 7] = [
        Kernel::Quantize,
        Kernel::Fused,
        Kernel::Small4,
        Kernel::Small8,
        Kernel::Large,
        Kernel::Extent,
        Kernel::Split,
    ];

    /// Name in the module.
    pub const fn name(self) -> &'static str {
        match self {
            Kernel::Quantize => "lbk_quantize",
            Kernel::Fused => "lbk_fused",
            Kernel::Small4 => "lbk_small4",
            Kernel::Small8 => "lbk_small8",
            Kernel::Large => "lbk_large",
            Kernel::Extent => "lbk_extent",
            Kernel::Split => "lbk_split",
        }
    }
}

/// One launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Launch {
    /// What to launch.
    pub kernel: Kernel,
    /// Blocks in x.
    pub grid_x: u32,
    /// Blocks in y.
    pub grid_y: u32,
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
}

/// The launches of a stage, or of several together, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    count: usize,
    launches: [Launch; 2],
}

impl Plan {
    fn one(launch: Launch) -> Self {
        Self { count: 1, launches: [launch; 2] }
    }

    fn two(first: Launch, second: Launch) -> Self {
        Self { count: 2, launches: [first, second] }
    }
}

impl std::ops::Deref for Plan {
    type Target = [Launch];
    fn deref(&self) -> &[Launch] {
        &self.launches[..self.count]
    }
}

/// A stage: `y = add + post * (S (pre * x))` for `n` columns. Pointers are the device's.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Args {
    /// Activations, f32.
    pub x: u64,
    /// Input scales, f16, or 0.
    pub pre: u64,
    /// Sign tile, aligned to 4.
    pub tile: u64,
    /// Output scales, f16, or 0.
    pub post: u64,
    /// Addend, f32, or 0; may be `y`.
    pub add: u64,
    /// Results, f32.
    pub y: u64,
    /// State of the quantized columns, in the work memory.
    pub columns: u64,
    /// Their planes, in the work memory.
    pub planes: u64,
    /// The work memory of [`Kernel::Split`].
    pub split: u64,
    /// Floats from a column of `x` to the next.
    pub x_stride: u64,
    /// The same of `add`.
    pub add_stride: u64,
    /// The same of `y`.
    pub y_stride: u64,
    /// Rows of `S`.
    pub rows: u32,
    /// Columns of `S`.
    pub cols: u32,
    /// Columns of activations.
    pub n: u32,
    /// Bytes of a plane.
    pub plane: u32,
}

impl Args {
    /// The stage with its work memory, [`work_bytes`] at `work`.
    pub fn with_work(self, work: u64) -> Self {
        let planes = work + COLUMN_BYTES as u64 * u64::from(self.n);
        Self { split: work, columns: work, planes, plane: plane_bytes(self.cols) as u32, ..self }
    }

    /// Bytes of its work memory.
    pub const fn work_bytes(&self) -> usize {
        work_bytes(self.rows, self.cols, self.n)
    }

    fn plan(&self) -> Plan {
        plan(self.rows, self.cols, self.n)
    }
}

/// What every kernel takes, by value: members that do not wait for each other, each a chain of stages with the same rows, of
/// which the later ones add to what the earlier ones wrote.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Group {
    /// Chains.
    pub members: u32,
    /// Stages of a chain.
    pub chain: u32,
    /// Blocks in x of the members up to and with this one.
    pub end: [u32; STAGES],
    /// Stage `i` of member `m` at `m * chain + i`.
    pub stages: [Args; STAGES],
}

/// The launches that run chains of `chain` stages together; `None` where their own launches differ in more than blocks in x and
/// shared memory, or there are more than [`STAGES`].
pub fn join(stages: &[Args], chain: usize) -> Option<Plan> {
    let mut all = stages.first()?.plan();
    let last = all.count - 1;
    let waits = chain > 1 && all[last].kernel == Kernel::Split;
    if stages.len() > STAGES || !stages.len().is_multiple_of(chain) || waits {
        return None;
    }
    for (i, stage) in stages.iter().enumerate().skip(1) {
        let own = stage.plan();
        let alike =
            |(a, b): (&Launch, &Launch)| (a.kernel, a.grid_y, a.block) == (b.kernel, b.grid_y, b.block);
        if own.count != all.count || !own.iter().zip(all.iter()).all(alike) {
            return None;
        }
        for (k, (launch, one)) in all.launches.iter_mut().zip(own.iter()).enumerate() {
            launch.shared = launch.shared.max(one.shared);
            // Chains are followed by the products, which come last.
            if k < last || i % chain == 0 {
                launch.grid_x += one.grid_x;
            }
        }
    }
    Some(all)
}

/// What launch `k` of the plan of [`join`] takes. Places behind the last stage hold the first one.
pub fn group(stages: &[Args], chain: usize, k: usize) -> Group {
    let mut group = Group { members: 0, chain: 1, end: [0; STAGES], stages: [stages[0]; STAGES] };
    let mut end = 0;
    for (i, stage) in stages.iter().enumerate() {
        let plan = stage.plan();
        if k + 1 == plan.count {
            group.chain = chain as u32;
        }
        if i.is_multiple_of(group.chain as usize) {
            end += plan[k].grid_x;
            group.end[group.members as usize] = end;
            group.members += 1;
        }
        group.stages[i] = *stage;
    }
    group
}

/// Bytes of the state of a quantized column.
const COLUMN_BYTES: usize = 16;

/// Bytes of one plane of quantized activations.
pub const fn plane_bytes(cols: u32) -> usize {
    (cols as usize).next_multiple_of(CHUNK)
}

/// Bytes of device memory, aligned to 16, that a stage of `rows x cols` signs needs for `n` columns of activations.
pub const fn work_bytes(rows: u32, cols: u32, n: u32) -> usize {
    if n == 0 || (n == 1 && cols <= FUSED_COLS) {
        return 0;
    }
    if n == 1 {
        let (blocks, slices) = (rows.div_ceil(32) as usize, cols.div_ceil(SLICE) as usize);
        return (4 * (2 * EXTENTS as usize + blocks + 32 * blocks * slices)).next_multiple_of(16);
    }
    n as usize * (COLUMN_BYTES + 2 * plane_bytes(cols))
}

/// Columns of signs of each of `slices` parts of a wide stage, whole chunks.
const fn slice_cols(cols: u32, slices: u32) -> u32 {
    cols.div_ceil(CHUNK as u32).div_ceil(slices) * CHUNK as u32
}

/// The launches of a stage for `n > 0` columns.
pub fn plan(rows: u32, cols: u32, n: u32) -> Plan {
    let blocks = rows.div_ceil(32);
    let small = |kernel, width: u32, grid_y, more| Launch {
        kernel,
        grid_x: blocks,
        grid_y,
        block: SMALL_WARPS * 32,
        shared: SMALL_WARPS * width * 32 * 4 + more,
    };
    if n == 1 && cols <= FUSED_COLS {
        return Plan::one(small(Kernel::Fused, 4, 1, SCRATCH + 2 * plane_bytes(cols) as u32));
    }
    if n == 1 {
        let slices = cols.div_ceil(SLICE);
        let (block, shared) = (SMALL_WARPS * 32, SCRATCH);
        let extent = Launch { kernel: Kernel::Extent, grid_x: EXTENTS, grid_y: 1, block, shared };
        return Plan::two(extent, small(Kernel::Split, 4, slices, SCRATCH + 2 * slice_cols(cols, slices)));
    }
    let quantize =
        Launch { kernel: Kernel::Quantize, grid_x: n, grid_y: 1, block: QUANTIZE_THREADS, shared: SCRATCH };
    let product = match n {
        0..=4 => small(Kernel::Small4, 4, 1, 0),
        5..=SMALL_N => small(Kernel::Small8, 8, n.div_ceil(8), 0),
        _ => Launch {
            kernel: Kernel::Large,
            grid_x: blocks.div_ceil(LARGE_WARPS),
            grid_y: n.div_ceil(LARGE_N),
            block: LARGE_WARPS * 32,
            shared: 2 * 2 * LARGE_N * LARGE_STRIDE,
        },
    };
    Plan::two(quantize, product)
}
