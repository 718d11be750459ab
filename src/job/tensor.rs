//! What becomes of one tensor: bytes for the writer and a line for the report.

use crate::calibrate::imatrix::Imatrix;
use crate::error::Result;
use crate::factorize::{Device, Job, factorize_on};
use crate::format::schema::{self, Part};
use crate::format::{Factors, lossy};
use crate::gguf::GgmlType;
use crate::gguf::encode::{self, encode};
use crate::job::convert::Options;
use crate::job::header::base;
use crate::job::journal::Journal;
use crate::job::report::MatrixReport;
use crate::plan::MatrixSpec;
use crate::source::TensorSource;
use rayon::prelude::*;
use std::time::Instant;

/// Values that one task encodes, whole blocks of every type.
const PIECE: usize = 1 << 16;

/// Values of a kept tensor that are in memory at once, as far as whole rows allow.
const AT_ONCE: usize = 1 << 24;

/// What a worker hands to the writer.
pub(super) enum Done {
    Factorized { parts: Vec<(String, Vec<u8>)>, report: MatrixReport },
    Kept(Vec<u8>),
}

/// Bytes of a kept tensor in its output type.
pub(super) fn keep(source: &dyn TensorSource, i: usize, ty: GgmlType) -> Result<Vec<u8>> {
    if ty == source.tensors()[i].ty {
        let mut bytes = Vec::new();
        source.read_raw(i, &mut bytes)?;
        return Ok(bytes);
    }
    let t = &source.tensors()[i];
    if t.dims.len() != 2 {
        return encoded(ty, &source.read_f32(i)?);
    }
    // In pieces: embeddings as floats can be several times the largest matrix that is factorized.
    let (width, height) = (t.dims[0] as usize, t.dims[1] as usize);
    let piece = (AT_ONCE / width).max(1);
    let mut bytes = Vec::with_capacity(ty.tensor_bytes(&t.dims).unwrap_or(0) as usize);
    for first in (0..height).step_by(piece) {
        let rows = piece.min(height - first);
        bytes.extend(encoded(ty, &source.read_rows(i, first, rows)?)?);
    }
    Ok(bytes)
}

/// [`encode`] on all threads.
pub(super) fn encoded(ty: GgmlType, values: &[f32]) -> Result<Vec<u8>> {
    let one = |piece: &[f32]| {
        let mut bytes = Vec::new();
        encode(ty, piece, &mut bytes).map(|()| bytes)
    };
    let pieces: Vec<Vec<u8>> = values.par_chunks(PIECE).map(one).collect::<Result<_>>()?;
    Ok(pieces.concat())
}

/// Factors of one tensor with their relative errors (plain, weighted) and the seconds they took.
type Record = (Factors, (f64, f64), f64);

/// Factorizes all experts of tensor `i`, number `at` of the plan, unless the journal has them.
#[allow(clippy::too_many_arguments)]
pub(super) fn factorize_tensor(
    source: &dyn TensorSource,
    device: &Device,
    i: usize,
    at: usize,
    spec: &MatrixSpec,
    rank: usize,
    options: &Options,
    imatrix: &Option<Imatrix>,
    journal: &Journal,
) -> Result<Done> {
    let name = format!("matrix-{at}");
    if let Some((factors, error, seconds)) = journal.get::<Record>(&name)? {
        return finished(spec, &factors, error, seconds, options);
    }
    let started = Instant::now();
    let w = source.read_f32(i)?;
    let (d_out, d_in) = (spec.d_out, spec.d_in);
    let mut slices = Vec::new();
    let (mut error, mut weighted_error) = (0.0, 0.0);
    for (e, w) in w.chunks_exact(d_out * d_in).enumerate() {
        let name = if spec.experts == 1 { spec.name.clone() } else { format!("{}[{e}]", spec.name) };
        let importance = imatrix.as_ref().and_then(|im| im.importance(&spec.name, e, d_in));
        let job = Job {
            name: &name,
            w,
            d_out,
            d_in,
            rank,
            paths: options.paths,
            method: options.method,
            rotate: options.rotate,
            importance,
            seed: options.seed,
            iterations: options.iterations,
        };
        let outcome = factorize_on(device, &job)?;
        error += outcome.error_plain / spec.experts as f64;
        weighted_error += outcome.error_weighted / spec.experts as f64;
        slices.extend(outcome.paths);
    }
    let factors = Factors { paths: options.paths, slices };
    let record: Record = (factors, (error, weighted_error), started.elapsed().as_secs_f64());
    journal.put(&name, &format!("the factors of '{}'", spec.name), &record)?;
    finished(spec, &record.0, record.1, record.2, options)
}

/// What the writer takes of finished factors.
pub(super) fn finished(
    spec: &MatrixSpec,
    factors: &Factors,
    (error, weighted_error): (f64, f64),
    seconds: f64,
    options: &Options,
) -> Result<Done> {
    let (d_out, d_in, rank) = (spec.d_out, spec.d_in, factors.slices[0].rank());
    let parts: Vec<(String, Vec<u8>)> = match options.lossy {
        None => Part::ALL
            .iter()
            .map(|&p| (format!("{}{}", base(&spec.name), p.suffix()), schema::part_bytes(factors, p)))
            .collect(),
        Some(ty) => {
            let ty = encode::fitting(ty, d_in as u64);
            vec![(spec.name.clone(), lossy::dense_bytes(factors, ty)?)]
        }
    };
    let bits = crate::format::factors::slice_bits(d_out, d_in, rank) * (spec.experts * options.paths) as u64;
    let report = MatrixReport {
        name: spec.name.clone(),
        d_out,
        d_in,
        experts: spec.experts,
        rank,
        paths: options.paths,
        bits,
        bpw: bits as f64 / (d_out * d_in * spec.experts) as f64,
        error,
        weighted_error,
        seconds,
    };
    Ok(Done::Factorized { parts, report })
}
