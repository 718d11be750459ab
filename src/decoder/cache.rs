//! Attention of one token at a time over the keys and values of those before it.

use super::attention::{Shape, softmax};
use half::bf16;
use rayon::prelude::*;

/// Keys that are multiplied with a query at once: several sums side by side hide the time that each addition takes.
const KEYS: usize = 64;
/// Columns of the values that are summed up at once.
const COLUMNS: usize = 64;

/// Keys and values of the tokens that sequences of equal length have so far, in bfloat16: reading them takes time.
#[derive(Debug)]
pub struct Cache {
    rows: Vec<Rows>,
    length: usize,
}

/// Of one sequence.
#[derive(Clone, Debug, Default)]
struct Rows {
    /// `[tokens/64][heads * d_key][64]`, what is not there yet is zero.
    keys: Vec<u16>,
    /// `[tokens][heads * d_value]`.
    values: Vec<u16>,
}

impl Cache {
    /// Of `sequences` without tokens.
    pub fn new(sequences: usize) -> Self {
        Self { rows: vec![Rows::default(); sequences], length: 0 }
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
        let mut out = vec![0f32; self.rows.len() * width];
        let at = self.length;
        let each = out.par_chunks_mut(width).zip(joined.par_chunks(stride)).zip(&mut self.rows);
        each.for_each(|((out, joined), rows)| {
            rows.push(s, at, joined);
            in_vectors(|| attend_one(s, &joined[..s.heads * s.d_key], rows, at, out));
        });
        self.length += 1;
        out
    }
}

impl Rows {
    /// Takes over key and value of token `at`.
    fn push(&mut self, s: &Shape, at: usize, joined: &[f32]) {
        let (wide_k, wide_v) = (s.heads_kv * s.d_key, s.heads_kv * s.d_value);
        let short = |x: &f32| bf16::from_f32(*x).to_bits();
        let (block, lane) = (at / KEYS, at % KEYS);
        if lane == 0 {
            self.keys.resize((block + 1) * wide_k * KEYS, 0);
        }
        let to = self.keys[block * wide_k * KEYS + lane..].iter_mut().step_by(KEYS);
        to.zip(&joined[s.key_at(0)..][..wide_k]).for_each(|(to, x)| *to = short(x));
        self.values.extend(joined[s.value_at(0)..][..wide_v].iter().map(short));
    }
}

/// The query of every head, `q`, of token `at` on the keys and values of its sequence.
#[inline(always)]
fn attend_one(s: &Shape, q: &[f32], rows: &Rows, at: usize, out: &mut [f32]) {
    let (wide_k, wide_v) = (s.heads_kv * s.d_key, s.heads_kv * s.d_value);
    let first = s.first_key(at);
    let from = first / KEYS * KEYS;
    let mut weights = vec![0f32; (at / KEYS + 1) * KEYS - from];
    for (head, (out, q)) in out.chunks_exact_mut(s.d_value).zip(q.chunks_exact(s.d_key)).enumerate() {
        let kv = head / s.group();
        let blocks = rows.keys[from * wide_k..].chunks_exact(wide_k * KEYS);
        for (weights, keys) in weights.chunks_exact_mut(KEYS).zip(blocks) {
            let keys = keys[kv * s.d_key * KEYS..].as_chunks::<KEYS>().0;
            let mut sums = [0f32; KEYS];
            // Loops: closures would not be compiled for the vectors of the caller.
            for (q, keys) in q.iter().zip(keys) {
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum += q * wide(*key);
                }
            }
            for (weight, sum) in weights.iter_mut().zip(&sums) {
                *weight = s.scale * sum;
            }
        }
        let weights = &mut weights[first - from..at + 1 - from];
        softmax(weights);
        let values = rows.values[first * wide_v..].chunks_exact(wide_v);
        for (c, out) in out.chunks_mut(COLUMNS).enumerate() {
            let column = kv * s.d_value + c * COLUMNS;
            let values = values.clone().zip(&*weights);
            match <&mut [f32; COLUMNS]>::try_from(&mut *out) {
                Ok(out) => {
                    let mut sums = [0f32; COLUMNS];
                    for (v, w) in values {
                        let v: &[u16; COLUMNS] =
                            v[column..][..COLUMNS].try_into().expect("so many columns were taken");
                        for (sum, v) in sums.iter_mut().zip(v) {
                            *sum += w * wide(*v);
                        }
                    }
                    *out = sums;
                }
                Err(_) => {
                    out.fill(0.0);
                    for (v, w) in values {
                        for (o, v) in out.iter_mut().zip(&v[column..]) {
                            *o += w * wide(*v);
                        }
                    }
                }
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

#[cfg(test)]
mod tests {
    use super::super::attention::forward;
    use super::*;

    #[test]
    fn token_by_token_is_what_whole_passes_give() {
        // Full blocks and a rest of keys; a window that begins within a block; values wider than a block and not.
        for (length, window, d_key, d_value) in
            [(150, None, 8, 64), (150, Some(70), 5, 80), (3, Some(1), 64, 4)]
        {
            let one =
                Shape { sequences: 2, length: 1, heads: 6, heads_kv: 2, d_key, d_value, scale: 0.4, window };
            let stride = one.joined();
            // Numbers that bfloat16 holds, so that nothing is lost in the cache.
            let value = |i: usize| bf16::from_f32(((i * i + 7 * i) % 113) as f32 / 50.0 - 1.1).to_f32();
            let joined: Vec<f32> = (0..2 * length * stride).map(value).collect();
            let whole = forward(&Shape { length, ..one }, &joined);
            let (mut cache, width) = (Cache::new(2), 6 * d_value);
            for t in 0..length {
                let rows = [0, 1].map(|s| &joined[(s * length + t) * stride..][..stride]).concat();
                let out = cache.attend(&one, &rows);
                for (i, out) in out.iter().enumerate() {
                    let want = whole[(i / width * length + t) * width + i % width];
                    assert!((out - want).abs() < 1e-4, "{one:?}: token {t}, {i}: {out} against {want}");
                }
            }
            assert_eq!((cache.length(), cache.sequences()), (length, 2));
        }
    }
}
