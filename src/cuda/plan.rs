//! How stages are cut into launches: `cpp/cuda/plan.h` in Rust. `tests/cuda` compares the two.

/// Columns of signs that pass through the kernels together; planes of activations are padded to it with zeros.
const CHUNK: usize = 128;
const ONE_WARPS: u32 = 16;
const ONE_THREADS: u32 = ONE_WARPS * 32;
/// Bytes of shared memory of their warps' sums of four columns of activations.
const ONE_SUMS: u32 = ONE_WARPS * 4 * 32 * 4;
/// Columns of signs that one launch can quantize for itself with few registers, and with many.
const NARROW_COLS: u32 = 4 * 2 * ONE_THREADS;
const FUSED_COLS: u32 = 4 * 4 * ONE_THREADS;
/// Blocks of few columns that a GPU runs at the same time, about: as many row blocks share a block as make no more. One for each
/// multiprocessor, and two of the kernels that need few registers.
const AT_ONCE: u64 = 132;
const AT_ONCE_TWO: u64 = 264;
const MAX_FOLD: u32 = 3;
/// About so many columns of signs has a slice of a wider stage for one column of activations.
const SLICE: u32 = 4096;
/// Columns of activations up to which the warps of a block split the signs' columns, for few row blocks and for many.
const SMALL_N: u32 = 32;
const SMALL_MANY: u32 = 16;
const EXTENT_THREADS: u32 = 256;
/// Columns of activations of a block of [`Kernel::Large`].
const LARGE_N: u32 = 32;
/// Its row blocks, and the warps of each, which split the signs' columns.
const LARGE_BLOCKS: u32 = 4;
const LARGE_PARTS: u32 = 2;
/// The times, a chunk of columns for each such warp, that shared memory has room for.
const LARGE_DEPTH: u32 = 2;
/// Bytes of a time: planes of all columns of activations, and signs of all row blocks, for every part.
const LARGE_TIME: u32 = LARGE_PARTS * (2 * LARGE_N + LARGE_BLOCKS * 32 / 8) * CHUNK as u32;
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
    /// One column of more than the narrowest, which every block quantizes for itself.
    FusedWide = 7,
}

impl Kernel {
    /// All, in the order of their numbers.
    pub const ALL: [Kernel; 8] = [
        Kernel::Quantize,
        Kernel::Fused,
        Kernel::Small4,
        Kernel::Small8,
        Kernel::Large,
        Kernel::Extent,
        Kernel::Split,
        Kernel::FusedWide,
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
            Kernel::FusedWide => "lbk_fused_wide",
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

    fn plan(&self, common: Common) -> Plan {
        plan_with(self.rows, self.cols, self.n, common)
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
    /// A block takes `1 << fold` row blocks, but for [`Kernel::Large`].
    pub fold: u32,
    reserved: u32,
    /// Blocks in x of the members up to and with this one.
    pub end: [u32; STAGES],
    /// Stage `i` of member `m` at `m * chain + i`.
    pub stages: [Args; STAGES],
}

/// What stages of one launch agree on, if they are for few columns.
#[derive(Clone, Copy, Debug)]
struct Common {
    fold: u32,
    /// One of them has more than [`NARROW_COLS`].
    wide: bool,
}

impl Common {
    /// Of chains of `chain` stages, each given as rows, columns and columns of activations.
    fn of(stages: impl Iterator<Item = (u32, u32, u32)> + Clone, chain: usize) -> Self {
        let blocks: u64 = stages
            .clone()
            .step_by(chain)
            .map(|(rows, cols, n)| u64::from(rows.div_ceil(32)) * u64::from(slices(cols, n)))
            .sum();
        let wide = stages.clone().any(|(_, cols, _)| cols > NARROW_COLS);
        let two = stages.clone().next().is_some_and(|(_, cols, n)| n == 1 && (!wide || cols > FUSED_COLS));
        let at_once = if two { AT_ONCE_TWO } else { AT_ONCE };
        let fold = (0..MAX_FOLD).find(|fold| blocks >> fold <= at_once).unwrap_or(MAX_FOLD);
        Self { fold, wide }
    }

    fn of_stages(stages: &[Args], chain: usize) -> Self {
        Self::of(stages.iter().map(|s| (s.rows, s.cols, s.n)), chain)
    }
}

/// The launches that run chains of `chain` stages together; `None` where their own launches differ in more than blocks in x and
/// shared memory, or there are more than [`STAGES`].
pub fn join(stages: &[Args], chain: usize) -> Option<Plan> {
    let common = Common::of_stages(stages, chain);
    let mut all = stages.first()?.plan(common);
    let last = all.count - 1;
    let waits = chain > 1 && all[last].kernel == Kernel::Split;
    if stages.len() > STAGES || !stages.len().is_multiple_of(chain) || waits {
        return None;
    }
    for (i, stage) in stages.iter().enumerate().skip(1) {
        let own = stage.plan(common);
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
    let common = Common::of_stages(stages, chain);
    let (end, stage) = ([0; STAGES], stages[0]);
    let mut group =
        Group { members: 0, chain: 1, fold: common.fold, reserved: 0, end, stages: [stage; STAGES] };
    let mut end = 0;
    for (i, stage) in stages.iter().enumerate() {
        let plan = stage.plan(common);
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
        return (8 * (EXTENTS as usize + rows as usize)).next_multiple_of(16);
    }
    n as usize * (COLUMN_BYTES + 2 * plane_bytes(cols))
}

/// Columns of signs of each of `slices` parts of a wide stage, whole chunks.
const fn slice_cols(cols: u32, slices: u32) -> u32 {
    cols.div_ceil(CHUNK as u32).div_ceil(slices) * CHUNK as u32
}

/// Slices of a stage: more than one only if it is for one wide column.
const fn slices(cols: u32, n: u32) -> u32 {
    if n == 1 && cols > FUSED_COLS { cols.div_ceil(SLICE) } else { 1 }
}

/// The launches of a stage for `n > 0` columns.
pub fn plan(rows: u32, cols: u32, n: u32) -> Plan {
    plan_with(rows, cols, n, Common::of(std::iter::once((rows, cols, n)), 1))
}

fn plan_with(rows: u32, cols: u32, n: u32, common: Common) -> Plan {
    let blocks = rows.div_ceil(32);
    let few = |kernel, grid_y, shared| Launch {
        kernel,
        grid_x: blocks.div_ceil(1 << common.fold),
        grid_y,
        block: ONE_THREADS,
        shared,
    };
    if n == 1 && cols <= FUSED_COLS {
        let kernel = if common.wide { Kernel::FusedWide } else { Kernel::Fused };
        return Plan::one(few(kernel, 1, SCRATCH + ONE_SUMS + 2 * plane_bytes(cols) as u32));
    }
    if n == 1 {
        let slices = slices(cols, n);
        let (block, shared) = (EXTENT_THREADS, SCRATCH);
        let extent = Launch { kernel: Kernel::Extent, grid_x: EXTENTS, grid_y: 1, block, shared };
        let planes = 2 * slice_cols(cols, slices);
        return Plan::two(extent, few(Kernel::Split, slices, SCRATCH + ONE_SUMS + planes));
    }
    let quantize =
        Launch { kernel: Kernel::Quantize, grid_x: n, grid_y: 1, block: ONE_THREADS, shared: SCRATCH };
    let most = if common.fold == 0 { SMALL_N } else { SMALL_MANY };
    let product = match n {
        0..=4 => few(Kernel::Small4, 1, ONE_SUMS),
        _ if n <= most => few(Kernel::Small8, n.div_ceil(8), 2 * ONE_SUMS),
        _ => Launch {
            kernel: Kernel::Large,
            grid_x: blocks.div_ceil(LARGE_BLOCKS),
            grid_y: n.div_ceil(LARGE_N),
            block: LARGE_BLOCKS * LARGE_PARTS * 32,
            shared: LARGE_DEPTH * LARGE_TIME,
        },
    };
    Plan::two(quantize, product)
}
