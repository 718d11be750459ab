//! The definition of a stage on unpacked signs, and calls that are compared with it.

use half::f16;
use littlebit::bits::{SignMatrix, tile_bytes};
use littlebit::kernel::{self, F32_CHUNK, Kernel, Mode, Stage};

/// Seeded random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in (0, 1).
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }
    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        ((-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()) as f32
    }
    pub fn scales(&mut self, n: usize, unit: f32) -> Vec<f16> {
        (0..n).map(|_| f16::from_f32(self.normal() * unit)).collect()
    }
    pub fn signs(&mut self, rows: usize, cols: usize) -> SignMatrix {
        SignMatrix::from_fn(rows, cols, |_, _| self.bits() & 1 == 1)
    }
}

/// One column of one stage, from the definition, on unpacked signs.
pub fn oracle(mode: Mode, s: &SignMatrix, pre: Option<&[f16]>, post: Option<&[f16]>, x: &[f32]) -> Vec<f32> {
    let v: Vec<f32> = x.iter().enumerate().map(|(k, x)| pre.map_or(*x, |g| x * g[k].to_f32())).collect();
    let group = |g: &[f32]| {
        let a = |i: usize| g.get(i).map_or(0.0, |v| v.abs());
        (a(0) + a(1)) + (a(2) + a(3))
    };
    if v.iter().any(|v| !v.is_finite()) || v.chunks(4).any(|g| !group(g).is_finite()) {
        return vec![f32::NAN; s.rows()];
    }
    let finish = |sum: f32, step: f32, unshift: f32, row: usize| {
        let y = (sum * step) * unshift;
        post.map_or(y, |p| y * p[row].to_f32())
    };
    let mut sign = vec![0f32; s.cols()];
    let mut y = Vec::with_capacity(s.rows());
    match mode {
        Mode::Int => {
            let max = v.iter().fold(0f32, |m, v| m.max(v.abs()));
            let up = if max < 2f32.powi(-90) { 2f32.powi(64) } else { 1.0 };
            let scaled: Vec<f32> = v.iter().map(|v| v * up).collect();
            let group = scaled.chunks(4).map(group).fold(0f32, f32::max);
            let step = ((max * up) / 8191.0).max(group / 16381.0);
            let q: Vec<i64> = if step == 0.0 {
                vec![0; v.len()]
            } else {
                scaled.iter().map(|v| (v / step).round_ties_even() as i64).collect()
            };
            for q in q.chunks(4) {
                assert!(q.iter().all(|q| q.abs() <= 8191) && q.iter().map(|q| q.abs()).sum::<i64>() <= 16383);
            }
            for row in 0..s.rows() {
                s.row_f32(row, &mut sign);
                let sum: i64 = sign.iter().zip(&q).map(|(s, q)| *s as i64 * q).sum();
                y.push(finish(sum as f32, step, 1.0 / up, row));
            }
        }
        Mode::F32 => {
            for row in 0..s.rows() {
                s.row_f32(row, &mut sign);
                let signed: Vec<f32> = sign.iter().zip(&v).map(|(s, v)| s * v).collect();
                let mut total = 0f64;
                for chunk in signed.chunks(F32_CHUNK) {
                    let mut sum = 0f32;
                    for g in chunk.chunks(4) {
                        let a = |i: usize| g.get(i).copied().unwrap_or(0.0);
                        sum += (a(0) + a(1)) + (a(2) + a(3));
                    }
                    total += f64::from(sum);
                }
                y.push(finish(total as f32, 1.0, 1.0, row));
            }
        }
    }
    y
}

/// Equal bits; -0 and +0 differ, NaN equals NaN, whatever its payload.
pub fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan());
        assert!(same, "{what}: element {i}: {g:e} is not {w:e}");
    }
}

pub const UNTOUCHED: f32 = 123.25;

/// How a stage is called.
pub struct Call<'a> {
    pub mode: Mode,
    pub signs: &'a SignMatrix,
    pub pre: Option<&'a [f16]>,
    pub post: Option<&'a [f16]>,
    pub n: usize,
    /// Floats between columns beyond their length.
    pub gap: usize,
    pub add: Option<&'a [f32]>,
    pub nth: usize,
    /// Bytes by which tile and scratch miss every alignment.
    pub skew: usize,
}

impl Call<'_> {
    /// Runs all threads' shares one after the other; the gaps of `y` must survive.
    pub fn run(&self, kernel: Kernel, x: &[f32]) -> Vec<f32> {
        let (rows, cols) = (self.signs.rows(), self.signs.cols());
        let (xs, ys) = (cols + self.gap, rows + self.gap);
        let mut tile = vec![0u8; self.skew + tile_bytes(rows, cols)];
        tile[self.skew..].copy_from_slice(self.signs.as_bytes());
        let stage = Stage { rows, cols, tile: &tile[self.skew..], pre: self.pre, post: self.post };
        let mut work = vec![0xa5u8; stage.work_size(self.n, self.mode) + self.skew];
        let mut spread = vec![f32::NAN; self.n * xs];
        let mut addend = vec![f32::NAN; self.n * ys];
        for t in 0..self.n {
            spread[t * xs..][..cols].copy_from_slice(&x[t * cols..][..cols]);
            if let Some(add) = self.add {
                addend[t * ys..][..rows].copy_from_slice(&add[t * rows..][..rows]);
            }
        }
        let mut y = vec![UNTOUCHED; self.n * ys];
        let add = self.add.map(|_| (addend.as_ptr(), ys));
        for ith in (0..self.nth).rev() {
            let work = &mut work[self.skew..];
            // SAFETY: the buffers hold n columns at these strides and this is the only thread.
            unsafe {
                stage.run(
                    kernel,
                    self.mode,
                    spread.as_ptr(),
                    xs,
                    self.n,
                    add,
                    y.as_mut_ptr(),
                    ys,
                    work,
                    ith,
                    self.nth,
                );
            }
        }
        for t in 0..self.n {
            assert!(y[t * ys + rows..(t + 1) * ys].iter().all(|y| *y == UNTOUCHED), "wrote beyond the rows");
        }
        (0..self.n).flat_map(|t| y[t * ys..][..rows].to_vec()).collect()
    }

    /// Every kernel against the oracle.
    pub fn check(&self, x: &[f32]) {
        let (rows, cols) = (self.signs.rows(), self.signs.cols());
        let mut want = Vec::new();
        for t in 0..self.n {
            let column = &x[t * cols..][..cols];
            let y = oracle(self.mode, self.signs, self.pre, self.post, column);
            want.extend(y.iter().enumerate().map(|(r, y)| self.add.map_or(*y, |a| a[t * rows + r] + y)));
        }
        for kernel in kernel::available() {
            let what = format!("{kernel} {:?} {rows}x{cols} n={} nth={}", self.mode, self.n, self.nth);
            assert_same(&self.run(kernel, x), &want, &what);
        }
    }
}
