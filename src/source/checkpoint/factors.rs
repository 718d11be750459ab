//! From a layer's tensors to factors in the GGUF's order of rows.

use super::module::{Located, Module, PathTensors, Signs};
use crate::bits::SignMatrix;
use crate::error::Result;
use crate::factorize::{no_path, with_scales};
use crate::format::{FactorPath, Factors};
use crate::source::hf::interleaved;
use crate::source::shard::Shard;
use half::f16;

/// Factors of `m` with `paths` paths, those that it lacks being 0.
pub(super) fn read(m: &Module, shards: &[Shard], paths: usize) -> Result<Factors> {
    let read = |p: &PathTensors| path(m, p, shards);
    let mut slices: Vec<FactorPath> = m.paths.iter().map(read).collect::<Result<_>>()?;
    slices.resize_with(paths, || no_path(m.d_out, m.d_in, m.rank()));
    Ok(Factors { paths, slices })
}

fn path(m: &Module, p: &PathTensors, shards: &[Shard]) -> Result<FactorPath> {
    let rank = m.rank();
    let u = signs(&p.u, shards, m.d_out, p.rank, m.rotary_heads)?;
    let vt = signs(&p.v, shards, p.rank, m.d_in, None)?;
    let values = |at: &Located| shards[at.shard].read_f32(&at.entry);
    let (h, g) = (interleaved(values(&p.h)?, m.rotary_heads, m.d_out), values(&p.g)?);
    // Products of two bfloat16 or f16 numbers are exact in f32, but for their range.
    let mut l = vec![1.0; p.rank];
    for factor in &p.l {
        let factor = values(factor)?;
        l.iter_mut().zip(factor).for_each(|(l, f)| *l *= f);
    }
    l.resize(rank, 0.0);
    let path = FactorPath {
        // Latents that the padding adds have l = 0.
        u: SignMatrix::from_fn(m.d_out, rank, |i, k| k >= p.rank || u.is_plus(i, k)),
        vt: SignMatrix::from_fn(rank, m.d_in, |k, j| k >= p.rank || vt.is_plus(k, j)),
        h: rounded(&h),
        l: rounded(&l),
        g: rounded(&g),
    };
    let exact = |stored: &[f16], values: &[f32]| stored.iter().zip(values).all(|(a, b)| a.to_f32() == *b);
    if exact(&path.h, &h) && exact(&path.l, &l) && exact(&path.g, &g) {
        return Ok(path);
    }
    // Bfloat16 has a wider range than f16: the magnitude moves to where it fits.
    with_scales(&m.base, &path, &h, &l, &g)
}

fn rounded(values: &[f32]) -> Vec<f16> {
    values.iter().map(|x| f16::from_f32(*x)).collect()
}

/// Signs of `rows x cols`, rows interleaved for `heads`.
fn signs(at: &Signs, shards: &[Shard], rows: usize, cols: usize, heads: Option<usize>) -> Result<SignMatrix> {
    Ok(match at {
        Signs::Packed(at) => {
            let words = interleaved(shards[at.shard].read_words(&at.entry)?, heads, rows);
            SignMatrix::from_words(rows, cols, &words)
        }
        // sign(0) is +1.
        Signs::Latent(at) => {
            let latents = interleaved(shards[at.shard].read_f32(&at.entry)?, heads, rows);
            SignMatrix::from_row_major(rows, cols, &latents)
        }
    })
}
