//! The factors of one weight: what the compressor produces, the format stores and the kernels multiply.

use crate::bits::{SignMatrix, padded_cols, padded_rows};
use half::f16;

/// Ranks are multiples of this, so that U's columns and V's rows need no padding.
pub const RANK_STEP: usize = 32;

/// One path: `diag(h) U diag(l) V^T diag(g)`.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "convert", derive(serde::Serialize, serde::Deserialize))]
pub struct FactorPath {
    /// U, `d_out x r`.
    pub u: SignMatrix,
    /// V transposed, `r x d_in`.
    pub vt: SignMatrix,
    /// Output scales, `d_out`.
    pub h: Vec<f16>,
    /// Latent scales, `r`.
    pub l: Vec<f16>,
    /// Input scales, `d_in`.
    pub g: Vec<f16>,
}

impl FactorPath {
    /// Number of outputs.
    pub fn d_out(&self) -> usize {
        self.u.rows()
    }
    /// Number of inputs.
    pub fn d_in(&self) -> usize {
        self.vt.cols()
    }
    /// Rank r.
    pub fn rank(&self) -> usize {
        self.vt.rows()
    }

    /// Adds this path's dense product to `w` (row-major `d_out x d_in`).
    pub fn add_dense(&self, w: &mut [f32]) {
        let (d_out, d_in, r) = (self.d_out(), self.d_in(), self.rank());
        assert_eq!(w.len(), d_out * d_in);
        let g: Vec<f32> = self.g.iter().map(|x| x.to_f32()).collect();
        let l: Vec<f32> = self.l.iter().map(|x| x.to_f32()).collect();
        // Right half once: B = diag(l) V^T, r x d_in; then row o of the product is h_o * (u_o B) * g.
        let mut b = self.vt.to_row_major();
        for (row, l) in b.chunks_exact_mut(d_in).zip(&l) {
            row.iter_mut().for_each(|x| *x *= l);
        }
        let (mut u, mut acc) = (vec![0f32; r], vec![0f64; d_in]);
        for (o, out) in w.chunks_exact_mut(d_in).enumerate() {
            self.u.row_f32(o, &mut u);
            acc.fill(0.0);
            for (u, row) in u.iter().zip(b.chunks_exact(d_in)) {
                if *u > 0.0 {
                    acc.iter_mut().zip(row).for_each(|(a, x)| *a += f64::from(*x));
                } else {
                    acc.iter_mut().zip(row).for_each(|(a, x)| *a -= f64::from(*x));
                }
            }
            let h = f64::from(self.h[o].to_f32());
            for ((x, a), g) in out.iter_mut().zip(&acc).zip(&g) {
                *x += (h * a * f64::from(*g)) as f32;
            }
        }
    }
}

/// All slices of one weight: `experts * paths` of equal shape and rank, path fastest.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "convert", derive(serde::Serialize, serde::Deserialize))]
pub struct Factors {
    /// Paths per matrix, 1 or 2.
    pub paths: usize,
    /// Slices in file order: expert 0 path 0, expert 0 path 1, expert 1 path 0, ...
    pub slices: Vec<FactorPath>,
}

impl Factors {
    /// Number of experts (1 for an ordinary 2-D weight).
    pub fn experts(&self) -> usize {
        self.slices.len() / self.paths
    }

    /// Dense products of all experts, one after the other.
    pub fn dense_all(&self) -> Vec<f32> {
        (0..self.experts()).flat_map(|e| self.dense(e)).collect()
    }

    /// Dense `d_out x d_in` product of expert `e`, row-major f32.
    pub fn dense(&self, e: usize) -> Vec<f32> {
        let s = &self.slices[e * self.paths..(e + 1) * self.paths];
        let mut w = vec![0.0; s[0].d_out() * s[0].d_in()];
        s.iter().for_each(|p| p.add_dense(&mut w));
        w
    }
}

/// Bits that one slice takes in the file: signs with padding, and three f16 vectors.
pub const fn slice_bits(d_out: usize, d_in: usize, rank: usize) -> u64 {
    let signs = rank as u64 * (padded_rows(d_out) + padded_cols(d_in)) as u64;
    signs + 16 * (d_out + d_in + rank) as u64
}
