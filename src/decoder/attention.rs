//! Causal attention with grouped queries and an optional sliding window.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Queries handled at once: later keys of the block are the only ones computed in vain.
const QUERIES: usize = 128;

/// Shape of one attention call. Rows of the joined tensor are `q heads | k heads | v heads`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Windows in the batch.
    pub sequences: usize,
    /// Tokens of each.
    pub length: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub heads_kv: usize,
    /// Width of a query or key head.
    pub d_key: usize,
    /// Width of a value head.
    pub d_value: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// A query sees itself and this many keys less one before it.
    pub window: Option<usize>,
}

impl Shape {
    /// Width of a joined row.
    pub fn joined(&self) -> usize {
        self.heads * self.d_key + self.heads_kv * (self.d_key + self.d_value)
    }

    pub(super) fn group(&self) -> usize {
        self.heads / self.heads_kv
    }

    pub(super) fn key_at(&self, kv: usize) -> usize {
        (self.heads + kv) * self.d_key
    }

    pub(super) fn value_at(&self, kv: usize) -> usize {
        (self.heads + self.heads_kv) * self.d_key + kv * self.d_value
    }

    /// First key that any query of `from..` sees.
    pub(super) fn first_key(&self, from: usize) -> usize {
        self.window.map_or(0, |w| (from + 1).saturating_sub(w))
    }

    /// `rows x width` part of a joined or output tensor, starting at column `col`.
    fn part<'a>(
        &self,
        x: &'a [f32],
        stride: usize,
        sequence: usize,
        rows: std::ops::Range<usize>,
        col: usize,
        width: usize,
    ) -> MatRef<'a, f32> {
        let base = sequence * self.length;
        let x = &x[(base + rows.start) * stride..(base + rows.end) * stride];
        MatRef::from_row_major_slice(x, rows.len(), stride).subcols(col, width)
    }

    /// Softmax weights of queries `rows` on keys `first..rows.end`, row-major.
    fn weights(
        &self,
        joined: &[f32],
        sequence: usize,
        head: usize,
        rows: std::ops::Range<usize>,
    ) -> Vec<f32> {
        let first = self.first_key(rows.start);
        let keys = rows.end - first;
        let stride = self.joined();
        let mut p = vec![0f32; rows.len() * keys];
        let q = self.part(joined, stride, sequence, rows.clone(), head * self.d_key, self.d_key);
        let key_at = self.key_at(head / self.group());
        let k = self.part(joined, stride, sequence, first..rows.end, key_at, self.d_key);
        let out = MatMut::from_row_major_slice_mut(&mut p, rows.len(), keys);
        matmul(out, Accum::Replace, q, k.transpose(), self.scale, Par::Seq);
        for (i, row) in p.chunks_exact_mut(keys).enumerate() {
            let query = rows.start + i;
            let (from, to) = (self.first_key(query) - first, query + 1 - first);
            row[..from].fill(0.0);
            row[to..].fill(0.0);
            softmax(&mut row[from..to]);
        }
        p
    }

    fn blocks(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let length = self.length;
        (0..length).step_by(QUERIES).map(move |s| s..(s + QUERIES).min(length))
    }
}

/// Softmax of one row in place.
pub fn softmax(row: &mut [f32]) {
    let inverse = 1.0 / super::exp_below_max(row).1;
    row.iter_mut().for_each(|x| *x *= inverse);
}

/// Attention output, `tokens x (heads * d_value)`.
pub fn forward(s: &Shape, joined: &[f32]) -> Vec<f32> {
    let width = s.heads * s.d_value;
    let mut out = vec![0f32; s.sequences * s.length * width];
    let heads: Vec<Vec<f32>> = (0..s.sequences * s.heads)
        .into_par_iter()
        .map(|task| {
            let (sequence, head) = (task / s.heads, task % s.heads);
            let mut o = vec![0f32; s.length * s.d_value];
            for rows in s.blocks() {
                let p = s.weights(joined, sequence, head, rows.clone());
                let first = s.first_key(rows.start);
                let v_at = s.value_at(head / s.group());
                let v = s.part(joined, s.joined(), sequence, first..rows.end, v_at, s.d_value);
                let o = &mut o[rows.start * s.d_value..rows.end * s.d_value];
                let p = MatRef::from_row_major_slice(&p, rows.len(), rows.end - first);
                let o = MatMut::from_row_major_slice_mut(o, rows.len(), s.d_value);
                matmul(o, Accum::Replace, p, v, 1.0, Par::Seq);
            }
            o
        })
        .collect();
    for (task, o) in heads.iter().enumerate() {
        scatter(&mut out, o, width, task / s.heads * s.length, task % s.heads * s.d_value, s.d_value);
    }
    out
}

/// Gradient of the joined tensor from that of the output; the weights are computed again.
///
/// With `P` the weights and `dP = dO V^T`: `dS = P (dP - rowsum(P dP)) scale`, `dQ = dS K`, `dK = dS^T Q`,
/// `dV = P^T dO`.
pub fn backward(s: &Shape, joined: &[f32], dout: &[f32]) -> Vec<f32> {
    let (stride, width, dk, dv) = (s.joined(), s.heads * s.d_value, s.d_key, s.d_value);
    let parts: Vec<(Vec<f32>, Vec<f32>, Vec<f32>)> = (0..s.sequences * s.heads_kv)
        .into_par_iter()
        .map(|task| {
            let (sequence, kv) = (task / s.heads_kv, task % s.heads_kv);
            let mut dq = vec![0f32; s.group() * s.length * dk];
            let (mut dkey, mut dval) = (vec![0f32; s.length * dk], vec![0f32; s.length * dv]);
            for member in 0..s.group() {
                let head = kv * s.group() + member;
                for rows in s.blocks() {
                    let first = s.first_key(rows.start);
                    let (n, keys) = (rows.len(), rows.end - first);
                    let p = s.weights(joined, sequence, head, rows.clone());
                    let d_o = s.part(dout, width, sequence, rows.clone(), head * dv, dv);
                    let v = s.part(joined, stride, sequence, first..rows.end, s.value_at(kv), dv);
                    let k = s.part(joined, stride, sequence, first..rows.end, s.key_at(kv), dk);
                    let q = s.part(joined, stride, sequence, rows.clone(), head * dk, dk);
                    let pm = MatRef::from_row_major_slice(&p, n, keys);
                    let out =
                        MatMut::from_row_major_slice_mut(&mut dval[first * dv..rows.end * dv], keys, dv);
                    matmul(out, Accum::Add, pm.transpose(), d_o, 1.0, Par::Seq);
                    let mut ds = vec![0f32; n * keys];
                    let out = MatMut::from_row_major_slice_mut(&mut ds, n, keys);
                    matmul(out, Accum::Replace, d_o, v.transpose(), 1.0, Par::Seq);
                    for (ds, p) in ds.chunks_exact_mut(keys).zip(p.chunks_exact(keys)) {
                        let dot: f32 = ds.iter().zip(p).map(|(a, b)| a * b).sum();
                        ds.iter_mut().zip(p).for_each(|(a, p)| *a = p * (*a - dot) * s.scale);
                    }
                    let ds = MatRef::from_row_major_slice(&ds, n, keys);
                    let at = (member * s.length + rows.start) * dk;
                    let out = MatMut::from_row_major_slice_mut(&mut dq[at..at + n * dk], n, dk);
                    matmul(out, Accum::Replace, ds, k, 1.0, Par::Seq);
                    let out =
                        MatMut::from_row_major_slice_mut(&mut dkey[first * dk..rows.end * dk], keys, dk);
                    matmul(out, Accum::Add, ds.transpose(), q, 1.0, Par::Seq);
                }
            }
            (dq, dkey, dval)
        })
        .collect();
    let mut out = vec![0f32; s.sequences * s.length * stride];
    for (task, (dq, dkey, dval)) in parts.iter().enumerate() {
        let (row, kv) = (task / s.heads_kv * s.length, task % s.heads_kv);
        for (member, dq) in dq.chunks_exact(s.length * dk).enumerate() {
            scatter(&mut out, dq, stride, row, (kv * s.group() + member) * dk, dk);
        }
        scatter(&mut out, dkey, stride, row, s.key_at(kv), dk);
        scatter(&mut out, dval, stride, row, s.value_at(kv), dv);
    }
    out
}

/// Copies the rows of `part` (`n x width`) to column `col` of rows `row..` of `out`.
fn scatter(out: &mut [f32], part: &[f32], stride: usize, row: usize, col: usize, width: usize) {
    for (i, x) in part.chunks_exact(width).enumerate() {
        out[(row + i) * stride + col..][..width].copy_from_slice(x);
    }
}
