//! Causal attention with grouped queries and an optional sliding window.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::bf16;
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

    fn group(&self) -> usize {
        self.heads / self.heads_kv
    }

    fn key_at(&self, kv: usize) -> usize {
        (self.heads + kv) * self.d_key
    }

    fn value_at(&self, kv: usize) -> usize {
        (self.heads + self.heads_kv) * self.d_key + kv * self.d_value
    }

    /// First key that any query of `from..` sees.
    fn first_key(&self, from: usize) -> usize {
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

/// Keys and values of the tokens that sequences of equal length have so far.
#[derive(Debug)]
pub struct Cache {
    /// For each sequence, one key and one value row for each token, in bfloat16: reading them is what takes the time.
    rows: Vec<[Vec<u16>; 2]>,
    length: usize,
}

impl Cache {
    /// Of `sequences` without tokens.
    pub fn new(sequences: usize) -> Self {
        Self { rows: vec![[Vec::new(), Vec::new()]; sequences], length: 0 }
    }

    /// Sequences.
    pub fn sequences(&self) -> usize {
        self.rows.len()
    }

    /// Tokens of each.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Attention output of one more token of each sequence, whose joined rows are given.
    pub fn attend(&mut self, s: &Shape, joined: &[f32]) -> Vec<f32> {
        let (stride, width) = (s.joined(), s.heads * s.d_value);
        let (wide_k, wide_v) = (s.heads_kv * s.d_key, s.heads_kv * s.d_value);
        let mut out = vec![0f32; self.rows.len() * width];
        let first = s.first_key(self.length);
        let each = out.par_chunks_mut(width).zip(joined.par_chunks(stride)).zip(&mut self.rows);
        each.for_each(|((out, joined), [keys, values])| {
            let short = |x: &f32| bf16::from_f32(*x).to_bits();
            keys.extend(joined[s.key_at(0)..][..wide_k].iter().map(short));
            values.extend(joined[s.value_at(0)..][..wide_v].iter().map(short));
            let rows = [&keys[first * wide_k..], &values[first * wide_v..]];
            in_vectors(|| attend_one(s, &joined[..s.heads * s.d_key], rows, out));
        });
        self.length += 1;
        out
    }
}

/// One query of every head, `q`, on keys and values of one sequence.
#[inline(always)]
fn attend_one(s: &Shape, q: &[f32], [keys, values]: [&[u16]; 2], out: &mut [f32]) {
    let (wide_k, wide_v) = (s.heads_kv * s.d_key, s.heads_kv * s.d_value);
    let mut weights = vec![0f32; keys.len() / wide_k];
    for (head, (out, q)) in out.chunks_exact_mut(s.d_value).zip(q.chunks_exact(s.d_key)).enumerate() {
        let kv = head / s.group();
        // A loop: closures of `collect` would not be compiled for the vectors of the caller.
        for (w, k) in weights.iter_mut().zip(keys.chunks_exact(wide_k)) {
            *w = s.scale * dot(q, &k[kv * s.d_key..][..s.d_key]);
        }
        softmax(&mut weights);
        for (v, w) in values.chunks_exact(wide_v).zip(&weights) {
            for (o, v) in out.iter_mut().zip(&v[kv * s.d_value..][..s.d_value]) {
                *o += w * wide(*v);
            }
        }
    }
}

/// Runs `work`, which must be inlined, in the widest vectors that the processor has; they round alike.
#[inline(always)]
fn in_vectors(work: impl FnOnce()) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn widest(work: impl FnOnce()) {
            work();
        }
        #[target_feature(enable = "avx2")]
        fn middle(work: impl FnOnce()) {
            work();
        }
        if is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has it.
            return unsafe { widest(work) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has it.
            return unsafe { middle(work) };
        }
    }
    work();
}

/// The number of a bfloat16's bits.
#[inline(always)]
fn wide(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// In lanes that a processor adds at once.
#[inline(always)]
fn dot(a: &[f32], b: &[u16]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut lanes = [0f32; 16];
    for (a, b) in a.iter().zip(b) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a * wide(*b));
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += a * wide(*b);
    }
    // Halves onto halves: one after the other, the sums would take longer than the products.
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
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
