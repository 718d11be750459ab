//! Our layers, run like ggml's: by a team of threads that starts once per sample.

use crate::Setting;
use crate::cores::team;
use half::f16;
use littlebit::bits::tile_bytes;
use littlebit::format::factors::{RANK_STEP, slice_bits};
use littlebit::kernel::{Kernel, Mode, PathRef};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Largest rank whose exact bit account stays within `bpw`.
pub fn rank_within(d_out: usize, d_in: usize, bpw: f64) -> Option<usize> {
    let budget = bpw * d_out as f64 * d_in as f64;
    (1..).map(|i| i * RANK_STEP).take_while(|r| slice_bits(d_out, d_in, *r) as f64 <= budget).last()
}

pub fn bpw(d_out: usize, d_in: usize, rank: usize) -> f64 {
    slice_bits(d_out, d_in, rank) as f64 / (d_out * d_in) as f64
}

pub fn layer_bytes(d_out: usize, d_in: usize, rank: usize) -> usize {
    slice_bits(d_out, d_in, rank).div_ceil(8) as usize
}

/// Alignment of tensors in a LittleBit GGUF.
const ALIGN: usize = 64;

/// Seeded random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in [0, 1).
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }
}

/// One path in a piece of memory of its own.
struct Layer {
    vt: Vec<u8>,
    u: Vec<u8>,
    vt_at: usize,
    u_at: usize,
    g: Vec<f16>,
    l: Vec<f16>,
    h: Vec<f16>,
}

impl Layer {
    fn new(random: &mut Random, d_out: usize, d_in: usize, rank: usize) -> Self {
        let mut tile = |rows, cols| {
            let mut bytes = vec![0u8; tile_bytes(rows, cols) + ALIGN];
            let at = bytes.as_ptr().align_offset(ALIGN);
            bytes[at..].fill_with(|| (random.bits() >> 32) as u8);
            (bytes, at)
        };
        let ((vt, vt_at), (u, u_at)) = (tile(rank, d_in), tile(d_out, rank));
        let mut scales = |n| (0..n).map(|_| f16::from_f32(0.5 + random.unit())).collect();
        Layer { vt, u, vt_at, u_at, g: scales(d_in), l: scales(rank), h: scales(d_out) }
    }

    fn path(&self) -> PathRef<'_> {
        let (d_out, d_in, rank) = (self.h.len(), self.g.len(), self.l.len());
        PathRef {
            d_out,
            d_in,
            rank,
            vt: &self.vt[self.vt_at..][..tile_bytes(rank, d_in)],
            u: &self.u[self.u_at..][..tile_bytes(d_out, rank)],
            g: &self.g,
            l: &self.l,
            h: &self.h,
        }
    }
}

/// Copies of a random layer and the buffers of its products.
pub struct Layers {
    pool: Vec<Layer>,
    products: usize,
    batch: usize,
    x: Vec<f32>,
    t: Vec<f32>,
    y: Vec<f32>,
    work: Vec<Vec<u8>>,
    kernel: Kernel,
}

#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: threads write disjoint shares, with a barrier before anybody reads.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Layers {
    pub fn new(at: Setting, rank: usize, copies: usize, products: usize, kernel: Kernel) -> Self {
        let Setting { d_out, d_in, batch, threads, .. } = at;
        let mut random = Random(1);
        let pool: Vec<Layer> = (0..copies).map(|_| Layer::new(&mut random, d_out, d_in, rank)).collect();
        let path = pool[0].path();
        let bytes =
            path.v_stage().work_size(batch, Mode::Int).max(path.u_stage().work_size(batch, Mode::Int));
        Layers {
            products,
            batch,
            x: (0..d_in * batch).map(|_| 2.0 * random.unit() - 1.0).collect(),
            t: vec![0.0; rank * batch],
            y: vec![0.0; d_out * batch],
            work: vec![vec![0; bytes]; threads],
            kernel,
            pool,
        }
    }

    /// Runs all products once.
    pub fn run(&mut self) {
        let (x, t, y) = (&self.x[..], Shared(self.t.as_mut_ptr()), Shared(self.y.as_mut_ptr()));
        let (pool, products, batch, kernel) = (&self.pool[..], self.products, self.batch, self.kernel);
        let nth = self.work.len();
        let barrier = &SpinBarrier::new(nth);
        let job = move |ith: usize, work: &mut Vec<u8>| {
            let (t, y) = (t, y);
            for layer in pool.iter().cycle().take(products) {
                let p = layer.path();
                // SAFETY: buffers of `batch` dense columns; a barrier parts writers and readers of t.
                unsafe {
                    let (v, u) = (p.v_stage(), p.u_stage());
                    v.run(kernel, Mode::Int, x.as_ptr(), p.d_in, batch, None, t.0, p.rank, work, ith, nth);
                    barrier.wait();
                    u.run(kernel, Mode::Int, t.0, p.rank, batch, None, y.0, p.d_out, work, ith, nth);
                    barrier.wait();
                }
            }
        };
        team(&mut self.work, job);
    }
}

/// Spins first, because a blocking barrier takes as long as a small layer, and yields if that lasts.
struct SpinBarrier {
    threads: usize,
    arrived: AtomicUsize,
}

impl SpinBarrier {
    fn new(threads: usize) -> Self {
        Self { threads, arrived: AtomicUsize::new(0) }
    }

    fn wait(&self) {
        let ticket = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (ticket / self.threads + 1) * self.threads;
        let mut spins = 0;
        while self.arrived.load(Ordering::Acquire) < all {
            spins += 1;
            if spins < 10_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}
