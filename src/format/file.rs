//! Reading a LittleBit GGUF: finding the factorized matrices, checking them, loading factors.

use crate::bits::{SignMatrix, TILE_ROWS, padded_cols, padded_rows, tile_bytes};
use crate::error::{Error, Result};
use crate::format::factors::{FactorPath, Factors, RANK_STEP};
use crate::format::schema::{self, Part, Shape, key};
use crate::gguf::{GgmlType, Gguf, TensorDesc, TensorInfo};
use half::f16;
use std::collections::HashMap;
use std::path::Path;

/// An open LittleBit GGUF whose factor tensors fit together.
#[derive(Debug)]
pub struct LittleBitFile {
    /// The file as GGUF.
    pub gguf: Gguf,
    matrices: Vec<MatrixEntry>,
    by_name: HashMap<String, usize>,
}

/// One factorized weight of the file.
#[derive(Clone, Debug)]
pub struct MatrixEntry {
    /// Base name: the weight's name without `.weight`.
    pub name: String,
    /// Logical shape.
    pub shape: Shape,
    /// Paths per expert.
    pub paths: usize,
    /// Where each part stands in `gguf.tensors`, in the order of [`Part::ALL`].
    parts: [usize; 5],
    /// Whether V, g and l belong to the block's input group and are shared with other matrices.
    pub grouped: bool,
}

impl MatrixEntry {
    /// Experts in the stack, 1 for an ordinary weight.
    pub fn experts(&self) -> usize {
        self.shape.slices / self.paths
    }
    /// Number of weights that the factors replace.
    pub fn weights(&self) -> u64 {
        (self.experts() * self.shape.d_out) as u64 * self.shape.d_in as u64
    }
}

/// Whether `gguf` declares itself a LittleBit file.
pub fn is_littlebit(gguf: &Gguf) -> bool {
    gguf.get(key::VERSION).is_some()
}

impl LittleBitFile {
    /// Opens `path` and checks version, presence, types and shapes of all factor tensors (not their content).
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_gguf(Gguf::open(path)?)
    }

    /// As [`LittleBitFile::open`] for a file that is already open.
    pub fn from_gguf(gguf: Gguf) -> Result<Self> {
        let number = |k: &str| gguf.get(k).and_then(|v| v.as_u64());
        let version = number(key::VERSION).ok_or_else(|| {
            Error::unsupported(
                &gguf.path,
                format!("not a LittleBit file: the key {} is missing or not an integer", key::VERSION),
            )
        })?;
        if version != u64::from(schema::VERSION) {
            return Err(Error::unsupported(
                &gguf.path,
                format!(
                    "LittleBit schema version {version}; this build reads version {}: use a newer littlebit",
                    schema::VERSION
                ),
            ));
        }
        let paths = match number(key::PATHS) {
            Some(p @ 1..=2) => p as usize,
            _ => return Err(Error::unsupported(&gguf.path, format!("{} must be 1 or 2", key::PATHS))),
        };
        let index: HashMap<&str, usize> =
            gguf.tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        let mut used = vec![false; gguf.tensors.len()];
        let mut matrices = Vec::new();
        for t in &gguf.tensors {
            // U is the one part that is never shared, so it announces a matrix.
            let Some(base) = t.name.strip_suffix(Part::U.suffix()) else { continue };
            matrices.push(entry(&gguf, &index, base, paths, &mut used)?);
        }
        for (t, used) in gguf.tensors.iter().zip(&used) {
            let orphan = !used && Part::split(&t.name).is_some();
            if orphan {
                return Err(Error::tensor(
                    &gguf.path,
                    &t.name,
                    "factor tensor without a matrix: the other parts are missing",
                ));
            }
        }
        let by_name = matrices.iter().enumerate().map(|(i, m)| (m.name.clone(), i)).collect();
        Ok(Self { gguf, matrices, by_name })
    }

    /// The factorized matrices in file order.
    pub fn matrices(&self) -> &[MatrixEntry] {
        &self.matrices
    }

    /// Tensors that are no parts of a matrix, in file order.
    pub fn kept(&self) -> impl Iterator<Item = &TensorInfo> {
        self.gguf.tensors.iter().filter(|t| Part::split(&t.name).is_none())
    }

    /// The model's tensors as if nothing had been factorized: of a weight that is, in the place of its U, the dense shape in
    /// f32 and its matrix.
    pub fn weights(&self) -> impl Iterator<Item = (TensorDesc, Option<&MatrixEntry>)> {
        self.gguf.tensors.iter().filter_map(|t| match Part::split(&t.name) {
            Some((base, Part::U)) => {
                let m = self.find(base).expect("open() found a matrix for every U");
                let mut dims = vec![m.shape.d_in as u64, m.shape.d_out as u64];
                // A stack has a third dimension.
                dims.extend((m.experts() > 1).then_some(m.experts() as u64));
                Some((TensorDesc { name: format!("{base}.weight"), dims, ty: GgmlType::F32 }, Some(m)))
            }
            Some(_) => None,
            None => Some((t.descriptor(), None)),
        })
    }

    /// The matrix called `name`, with or without `.weight`.
    pub fn find(&self, name: &str) -> Option<&MatrixEntry> {
        let base = schema::base_name(name).unwrap_or(name);
        self.by_name.get(base).map(|&i| &self.matrices[i])
    }

    /// Descriptor of one part of `matrix`.
    pub fn part(&self, matrix: &MatrixEntry, part: Part) -> &TensorInfo {
        &self.gguf.tensors[matrix.parts[part as usize]]
    }

    /// Bits that the factor tensors take, shared ones counted once.
    pub fn factor_bits(&self) -> u64 {
        let mut seen = vec![false; self.gguf.tensors.len()];
        self.matrices.iter().flat_map(|m| m.parts).for_each(|i| seen[i] = true);
        self.gguf.tensors.iter().zip(seen).filter(|(_, s)| *s).map(|(t, _)| t.nbytes * 8).sum()
    }

    /// Weights that the factors replace.
    pub fn factorized_weights(&self) -> u64 {
        self.matrices.iter().map(|m| m.weights()).sum()
    }

    /// Loads the factors of `matrix`; refuses nonzero padding and non-finite scales.
    pub fn read_factors(&self, matrix: &MatrixEntry) -> Result<Factors> {
        let Shape { d_out, d_in, rank, slices } = matrix.shape;
        let signs = |part: Part, rows: usize, cols: usize| -> Result<Vec<SignMatrix>> {
            let t = self.part(matrix, part);
            let mut bytes = Vec::new();
            self.gguf.read(t, &mut bytes)?;
            let step = tile_bytes(rows, cols);
            (0..slices)
                .map(|s| {
                    SignMatrix::from_tile(rows, cols, &bytes[s * step..(s + 1) * step]).map_err(|e| {
                        Error::malformed(
                            &self.gguf.path,
                            t.offset + (s * step) as u64,
                            format!("tensor '{}': {e}", t.name),
                        )
                    })
                })
                .collect()
        };
        let scales = |part: Part, n: usize| -> Result<Vec<Vec<f16>>> {
            let t = self.part(matrix, part);
            let mut bytes = Vec::new();
            self.gguf.read(t, &mut bytes)?;
            let all: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            if let Some(i) = all.iter().position(|x| !x.is_finite()) {
                return Err(Error::malformed(
                    &self.gguf.path,
                    t.offset + 2 * i as u64,
                    format!("tensor '{}': scale {i} is {}", t.name, all[i]),
                ));
            }
            Ok(all.chunks_exact(n).map(<[f16]>::to_vec).collect())
        };
        let (vt, u) = (signs(Part::V, rank, d_in)?, signs(Part::U, d_out, rank)?);
        let (g, l, h) = (scales(Part::G, d_in)?, scales(Part::L, rank)?, scales(Part::H, d_out)?);
        let slices = vt
            .into_iter()
            .zip(u)
            .zip(g.into_iter().zip(l).zip(h))
            .map(|((vt, u), ((g, l), h))| FactorPath { u, vt, h, l, g })
            .collect();
        Ok(Factors { paths: matrix.paths, slices })
    }
}

/// Collects and checks the five parts of `base`.
fn entry(
    gguf: &Gguf,
    index: &HashMap<&str, usize>,
    base: &str,
    paths: usize,
    used: &mut [bool],
) -> Result<MatrixEntry> {
    let own = |part: Part| index.get(format!("{base}{}", part.suffix()).as_str()).copied();
    let group = if own(Part::V).is_none() { schema::input_group(base) } else { None };
    let shared = |part: Part| match &group {
        Some(g) => index.get(format!("{g}{}", part.suffix()).as_str()).copied(),
        None => own(part),
    };
    let mut parts = [0; 5];
    for part in Part::ALL {
        let found = if matches!(part, Part::U | Part::H) { own(part) } else { shared(part) };
        parts[part as usize] = found.ok_or_else(|| {
            Error::tensor(&gguf.path, format!("{base}{}", part.suffix()), "factor tensor is missing")
        })?;
    }
    let info = |part: Part| &gguf.tensors[parts[part as usize]];
    let ne = |part: Part, i: usize| info(part).dims.get(i).copied().unwrap_or(1) as usize;
    let shape =
        Shape { d_out: ne(Part::H, 0), d_in: ne(Part::G, 0), rank: ne(Part::L, 0), slices: ne(Part::H, 1) };
    if shape.rank == 0 || !shape.rank.is_multiple_of(RANK_STEP) {
        return Err(Error::tensor(
            &gguf.path,
            &info(Part::L).name,
            format!("rank {} is not a multiple of {RANK_STEP}", shape.rank),
        ));
    }
    if shape.d_out == 0 || shape.d_in == 0 || shape.slices == 0 {
        return Err(Error::tensor(&gguf.path, format!("{base}.*"), "a factor tensor has a dimension of 0"));
    }
    if !shape.slices.is_multiple_of(paths) {
        return Err(Error::tensor(
            &gguf.path,
            &info(Part::H).name,
            format!("{} slices cannot be split into {paths} paths", shape.slices),
        ));
    }
    for part in Part::ALL {
        let t = info(part);
        if t.ty != schema::part_type(part) {
            return Err(Error::tensor(
                &gguf.path,
                &t.name,
                format!("type is {}, schema v1 wants {}", t.ty.name(), schema::part_type(part).name()),
            ));
        }
        let mut want = shape.dims(part);
        let mut got = t.dims.clone();
        // Tools drop trailing dimensions of 1.
        for d in [&mut want, &mut got] {
            while d.len() > 1 && d.last() == Some(&1) {
                d.pop();
            }
        }
        if want != got {
            return Err(Error::tensor(
                &gguf.path,
                &t.name,
                format!(
                    "shape is {got:?}, the scales of '{base}' (d_out {}, d_in {}, rank {}, {} slices) want {want:?}",
                    shape.d_out, shape.d_in, shape.rank, shape.slices
                ),
            ));
        }
    }
    debug_assert_eq!(info(Part::V).nbytes as usize % (TILE_ROWS * padded_cols(shape.d_in) / 8), 0);
    debug_assert_eq!(info(Part::U).nbytes as usize % (padded_rows(shape.d_out) * shape.rank / 8), 0);
    parts.iter().for_each(|&i| used[i] = true);
    Ok(MatrixEntry { name: base.to_owned(), shape, paths, parts, grouped: group.is_some() })
}
