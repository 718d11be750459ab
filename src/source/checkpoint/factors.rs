//! From a layer's tensors to factors in the GGUF's order of rows.

use super::module::{Located, Module, PathTensors, Signs};
use crate::bits::SignMatrix;
use crate::error::{Error, Result};
use crate::factorize::{no_path, with_scales};
use crate::format::{FactorPath, Factors};
use crate::gguf::dequantize;
use crate::source::check_finite;
use crate::source::hf::interleave_rows;
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
    let (mut h, g) = (values(&p.h, shards)?, values(&p.g, shards)?);
    if let Some(heads) = m.rotary_heads {
        h = interleave_rows(&h, heads, m.d_out);
    }
    // Products of two bfloat16 or f16 numbers are exact in f32, but for their range.
    let mut l = vec![1.0; p.rank];
    for factor in &p.l {
        let factor = values(factor, shards)?;
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

/// Values of a tensor of floats.
fn values(at: &Located, shards: &[Shard]) -> Result<Vec<f32>> {
    let shard = &shards[at.shard];
    let mut bytes = Vec::new();
    shard.read(&at.entry, &mut bytes)?;
    let mut values = vec![0.0; at.entry.shape.iter().product::<u64>() as usize];
    let ty = at.entry.float(&shard.path)?;
    dequantize(ty, &bytes, &mut values).map_err(|e| Error::tensor(&shard.path, &at.entry.name, e))?;
    check_finite(&shard.path, &at.entry.name, &values)?;
    Ok(values)
}

/// Signs of `rows x cols`, rows interleaved for `heads`.
fn signs(at: &Signs, shards: &[Shard], rows: usize, cols: usize, heads: Option<usize>) -> Result<SignMatrix> {
    match at {
        Signs::Packed(at) => {
            let mut bytes = Vec::new();
            shards[at.shard].read(&at.entry, &mut bytes)?;
            let word = |b: &[u8]| u32::from_le_bytes(b.try_into().expect("4 bytes"));
            let mut words: Vec<u32> = bytes.chunks_exact(4).map(word).collect();
            if let Some(heads) = heads {
                words = interleave_rows(&words, heads, rows);
            }
            Ok(SignMatrix::from_words(rows, cols, &words))
        }
        Signs::Latent(at) => {
            let mut values = values(at, shards)?;
            if let Some(heads) = heads {
                values = interleave_rows(&values, heads, rows);
            }
            // sign(0) is +1.
            Ok(SignMatrix::from_row_major(rows, cols, &values))
        }
    }
}
