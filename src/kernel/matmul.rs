//! A whole factorized matrix on threads of its own.

use super::{Kernel, Mode, Stage};
use crate::error::{Error, Result};
use half::f16;
use std::sync::{Barrier, OnceLock};

/// Columns whose intermediate vectors are held together.
const CHUNK: usize = 512;

/// Multiply-adds that are worth a thread: starting one costs about as long.
const MACS_PER_THREAD: u128 = 4 << 20;

/// One path `diag(h) U diag(l) V^T diag(g)` of a factorized matrix, in memory owned by others.
#[derive(Clone, Copy, Debug)]
pub struct PathRef<'a> {
    /// Number of outputs.
    pub d_out: usize,
    /// Number of inputs.
    pub d_in: usize,
    /// Rank r.
    pub rank: usize,
    /// Sign tile of V transposed, `rank x d_in`.
    pub vt: &'a [u8],
    /// Sign tile of U, `d_out x rank`.
    pub u: &'a [u8],
    /// Input scales, `d_in`.
    pub g: &'a [f16],
    /// Latent scales, `rank`.
    pub l: &'a [f16],
    /// Output scales, `d_out`.
    pub h: &'a [f16],
}

impl<'a> PathRef<'a> {
    /// `t = l * (V^T (g * x))`.
    pub fn v_stage(&self) -> Stage<'a> {
        Stage { rows: self.rank, cols: self.d_in, tile: self.vt, pre: Some(self.g), post: Some(self.l) }
    }

    /// `y = h * (U t)`.
    pub fn u_stage(&self) -> Stage<'a> {
        Stage { rows: self.d_out, cols: self.rank, tile: self.u, pre: None, post: Some(self.h) }
    }
}

impl<'a> From<&'a crate::format::FactorPath> for PathRef<'a> {
    fn from(p: &'a crate::format::FactorPath) -> Self {
        PathRef {
            d_out: p.d_out(),
            d_in: p.d_in(),
            rank: p.rank(),
            vt: p.vt.as_bytes(),
            u: p.u.as_bytes(),
            g: &p.g,
            l: &p.l,
            h: &p.h,
        }
    }
}

/// Raw output shared by the threads; they write disjoint parts between barriers.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: only a pointer; every use of it states why its accesses do not race.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// `y = sum over paths of h * (U (l * (V^T (g * x))))` for `n` columns.
///
/// Column `t` of `x` is `d_in` floats from `t * x_stride`, of `y` `d_out` floats from `t * y_stride`; floats
/// between the columns of `y` are left alone. At most `threads` threads work (0 counts as 1), fewer on a
/// product too small to share; the result does not depend on their number.
///
/// Errors: [`Error::Usage`] for shapes, strides or lengths that do not fit, and for a kernel that does not
/// run here.
#[allow(clippy::too_many_arguments)]
pub fn matmul(
    paths: &[PathRef<'_>],
    mode: Mode,
    kernel: Kernel,
    x: &[f32],
    x_stride: usize,
    n: usize,
    y: &mut [f32],
    y_stride: usize,
    threads: usize,
) -> Result<()> {
    let Some(first) = paths.first() else {
        return Err(Error::usage("a factorized matrix has at least one path"));
    };
    let kernel = kernel.checked()?;
    let (d_out, d_in) = (first.d_out, first.d_in);
    for path in paths {
        if (path.d_out, path.d_in) != (d_out, d_in) {
            return Err(Error::usage(format!(
                "paths of different shapes: {d_out} x {d_in} and {} x {}",
                path.d_out, path.d_in
            )));
        }
        path.v_stage().check()?;
        path.u_stage().check()?;
    }
    check_columns("x", x.len(), d_in, x_stride, n)?;
    check_columns("y", y.len(), d_out, y_stride, n)?;

    let macs = paths.iter().map(|p| p.rank as u128 * (p.d_in as u128 + p.d_out as u128)).sum::<u128>();
    let worth = (macs * n as u128).div_ceil(MACS_PER_THREAD).max(1);
    let threads = threads.clamp(1, usize::try_from(worth).unwrap_or(usize::MAX));

    let chunk = n.min(CHUNK);
    let widths: usize = paths.iter().map(|p| p.rank).sum();
    let mut latent = vec![0f32; widths * chunk];
    let job = Job {
        paths,
        mode,
        kernel,
        x,
        x_stride,
        n,
        y: Shared(y.as_mut_ptr()),
        y_stride,
        latent: Shared(latent.as_mut_ptr()),
        chunk,
        team: OnceLock::new(),
    };
    std::thread::scope(|scope| {
        let mut size = 1;
        for ith in 1..threads {
            let job = &job;
            // Where the system gives no more threads, those there are do the work.
            let started = std::thread::Builder::new().spawn_scoped(scope, move || job.work(ith));
            size += usize::from(started.is_ok());
            if started.is_err() {
                break;
            }
        }
        job.team.get_or_init(|| Team { size, barrier: Barrier::new(size) });
        job.work(0);
    });
    Ok(())
}

/// Whether `n` columns of `width` floats, `stride` apart, are disjoint and fit into `len` floats.
fn check_columns(name: &str, len: usize, width: usize, stride: usize, n: usize) -> Result<()> {
    if n == 0 {
        return Ok(());
    }
    if n > 1 && stride < width {
        return Err(Error::usage(format!(
            "{name}: columns of {width} floats overlap at a stride of {stride}"
        )));
    }
    let want = (n - 1).checked_mul(stride).and_then(|at| at.checked_add(width));
    if want.is_none_or(|want| want > len) {
        return Err(Error::usage(format!(
            "{name}: {len} floats, too few for {n} columns of {width} at a stride of {stride}"
        )));
    }
    Ok(())
}

struct Job<'a> {
    paths: &'a [PathRef<'a>],
    mode: Mode,
    kernel: Kernel,
    x: &'a [f32],
    x_stride: usize,
    n: usize,
    y: Shared,
    y_stride: usize,
    /// Per path `chunk` columns of `rank` floats.
    latent: Shared,
    chunk: usize,
    /// Set once it is known how many threads have started; they wait for it.
    team: OnceLock<Team>,
}

struct Team {
    size: usize,
    barrier: Barrier,
}

impl Job<'_> {
    fn work(&self, ith: usize) {
        let stages = self.paths.iter().flat_map(|p| [p.v_stage(), p.u_stage()]);
        let bytes = stages.map(|s| s.work_size(self.chunk, self.mode)).max().unwrap_or(0);
        let mut work = vec![0u8; bytes];
        let team = self.team.wait();
        for from in (0..self.n).step_by(self.chunk.max(1)) {
            let n = self.chunk.min(self.n - from);
            self.chunk_of(team, from, n, &mut work, ith);
        }
    }

    /// Thread `ith`'s part of the `n` columns from `from`.
    fn chunk_of(&self, team: &Team, from: usize, n: usize, work: &mut [u8], ith: usize) {
        let nth = team.size;
        // Nobody overwrites intermediates of the previous chunk that others still read.
        team.barrier.wait();
        let mut at = 0;
        for path in self.paths {
            // SAFETY: x was checked to hold these columns; the path's intermediates are `chunk * rank >= n *
            // rank` floats that only these calls write, each thread its own share, and nobody reads before
            // the barrier.
            unsafe {
                let x = self.x.as_ptr().add(from * self.x_stride);
                let t = self.latent.0.add(at);
                let v = path.v_stage();
                v.run(self.kernel, self.mode, x, self.x_stride, n, None, t, path.rank, work, ith, nth);
            }
            at += self.chunk * path.rank;
        }
        team.barrier.wait();
        let mut at = 0;
        for (i, path) in self.paths.iter().enumerate() {
            // SAFETY: y was checked to hold these columns without overlap. Shares depend on d_out, n and nth
            // alone, so every path adds to the part of y that this thread wrote; the intermediates are
            // complete since the barrier and not written before the next.
            unsafe {
                let y = self.y.0.add(from * self.y_stride);
                let add = (i > 0).then_some((y.cast_const(), self.y_stride));
                let t = self.latent.0.add(at);
                let u = path.u_stage();
                u.run(self.kernel, self.mode, t, path.rank, n, add, y, self.y_stride, work, ith, nth);
            }
            at += self.chunk * path.rank;
        }
    }
}
