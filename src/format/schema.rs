//! Names, keys and shapes of LittleBit GGUF schema v1; the writing half.
//!
//! For each factorized weight `B.weight` (`d_out x d_in`, maybe a stack of experts) the file holds, instead of it:
//!
//! | tensor | type | ne, fastest first | content |
//! |---|---|---|---|
//! | `B.lb_v` | I8 | `[32, kv/8, r/32, S]` | sign tile of V^T, kv = `d_in` padded to 16 |
//! | `B.lb_u` | I8 | `[32, r/8, m/32, S]` | sign tile of U, m = `d_out` padded to 32 |
//! | `B.lb_g` | F16 | `[d_in, S]` | input scales |
//! | `B.lb_l` | F16 | `[r, S]` | latent scales |
//! | `B.lb_h` | F16 | `[d_out, S]` | output scales |
//!
//! `S = experts * paths`, path fastest. Names never end in `weight`: stock tools would try to quantize them.

use crate::bits::{TILE_ROWS, padded_cols, padded_rows};
use crate::format::Factors;
use crate::gguf::{GgmlType, TensorDesc, Value};
use half::f16;

/// The only schema version that this build writes and reads.
pub const VERSION: u32 = 1;
/// `general.alignment` of every LittleBit GGUF: GGUF's default. Stock llama-quantize and llama-gguf-split pad to it
/// whatever the key says, so a file with a larger alignment comes out of them shifted and silently wrong.
pub const ALIGNMENT: u64 = crate::gguf::DEFAULT_ALIGNMENT;

/// Name and version for [`key::TOOL`].
pub const TOOL: &str = concat!("littlebit-convert ", env!("CARGO_PKG_VERSION"));

/// Keys of the `littlebit.*` block.
pub mod key {
    /// u32, schema version.
    pub const VERSION: &str = "littlebit.version";
    /// u32, paths of every factorized matrix of the file (1 or 2).
    pub const PATHS: &str = "littlebit.paths";
    /// u64, weights of the model as if nothing had been factorized.
    pub const N_PARAMS: &str = "littlebit.n_params";
    /// f32, bits of the factor tensors over the weights they replace.
    pub const BPW: &str = "littlebit.bpw";
    /// f32, bits of all tensors over all weights.
    pub const BPW_FILE: &str = "littlebit.bpw_file";
    /// string, factorization method and its options.
    pub const METHOD: &str = "littlebit.method";
    /// string, program and version that wrote the file.
    pub const TOOL: &str = "littlebit.tool";
    /// u64, seed of the random starts.
    pub const SEED: &str = "littlebit.seed";
    /// string, name of the model that was compressed.
    pub const SOURCE_NAME: &str = "littlebit.source.name";
    /// string, SHA-256 of its weight file(s).
    pub const SOURCE_SHA256: &str = "littlebit.source.sha256";
    /// string, what the importance statistics were collected on.
    pub const CALIBRATION_DATASET: &str = "littlebit.calibration.dataset";
    /// u64, how many tokens of it (0: not known).
    pub const CALIBRATION_TOKENS: &str = "littlebit.calibration.tokens";
    /// strings, texts that the file was compared with its source on; the arrays below go with them.
    pub const EVALUATION_TEXT: &str = "littlebit.evaluation.text";
    /// f32s, perplexity of the file.
    pub const EVALUATION_PERPLEXITY: &str = "littlebit.evaluation.perplexity";
    /// f32s, its standard error.
    pub const EVALUATION_PERPLEXITY_ERROR: &str = "littlebit.evaluation.perplexity_error";
    /// f32s, perplexity of its source.
    pub const EVALUATION_SOURCE: &str = "littlebit.evaluation.source_perplexity";
    /// f32s, its standard error.
    pub const EVALUATION_SOURCE_ERROR: &str = "littlebit.evaluation.source_perplexity_error";
    /// f32s, mean KL divergence from the source in nats.
    pub const EVALUATION_KLD: &str = "littlebit.evaluation.kld";
    /// f32s, its standard error.
    pub const EVALUATION_KLD_ERROR: &str = "littlebit.evaluation.kld_error";
    /// f32s, median of the divergence in nats.
    pub const EVALUATION_KLD_MEDIAN: &str = "littlebit.evaluation.kld_median";
    /// f32s, its 99.9 % quantile in nats.
    pub const EVALUATION_KLD_999: &str = "littlebit.evaluation.kld_999";
    /// f32s, share of equal top tokens.
    pub const EVALUATION_SAME_TOP: &str = "littlebit.evaluation.same_top";
    /// f32s, its standard error.
    pub const EVALUATION_SAME_TOP_ERROR: &str = "littlebit.evaluation.same_top_error";
    /// string, one sentence for the user of a llama.cpp that cannot run the file.
    pub const REQUIRES: &str = "littlebit.requires";
}

/// Value of [`key::REQUIRES`]. Load logs cut strings at 40 characters, so the point comes first.
pub const REQUIRES: &str = "llama.cpp with the littlebit patches; a stock build stops at the first missing weight. \
     Build one with scripts/llama of the littlebit project, or convert with --lossy for stock llama.cpp.";

/// The five tensors of a matrix, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Sign tile of V^T.
    V,
    /// Sign tile of U.
    U,
    /// Input scales.
    G,
    /// Latent scales.
    L,
    /// Output scales.
    H,
}

impl Part {
    /// All parts in file order.
    pub const ALL: [Part; 5] = [Part::V, Part::U, Part::G, Part::L, Part::H];

    /// Base name and part of a factor tensor, `None` for the name of any other.
    pub fn split(name: &str) -> Option<(&str, Part)> {
        Part::ALL.into_iter().find_map(|part| Some((name.strip_suffix(part.suffix())?, part)))
    }

    /// Suffix after the weight's base name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Part::V => ".lb_v",
            Part::U => ".lb_u",
            Part::G => ".lb_g",
            Part::L => ".lb_l",
            Part::H => ".lb_h",
        }
    }
}

/// Logical shape of a factorized weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Outputs per expert.
    pub d_out: usize,
    /// Inputs.
    pub d_in: usize,
    /// Rank of each path, a multiple of 32.
    pub rank: usize,
    /// `experts * paths`.
    pub slices: usize,
}

impl Shape {
    /// ne of one part, always with the slice dimension (1 for a single slice).
    pub fn dims(&self, part: Part) -> Vec<u64> {
        let tile = |rows: usize, cols: usize| {
            vec![
                TILE_ROWS as u64,
                (padded_cols(cols) / 8) as u64,
                (padded_rows(rows) / TILE_ROWS) as u64,
                self.slices as u64,
            ]
        };
        match part {
            Part::V => tile(self.rank, self.d_in),
            Part::U => tile(self.d_out, self.rank),
            Part::G => vec![self.d_in as u64, self.slices as u64],
            Part::L => vec![self.rank as u64, self.slices as u64],
            Part::H => vec![self.d_out as u64, self.slices as u64],
        }
    }
}

/// Type of a part on disk.
pub const fn part_type(part: Part) -> GgmlType {
    match part {
        Part::V | Part::U => GgmlType::I8,
        Part::G | Part::L | Part::H => GgmlType::F16,
    }
}

/// `B` of `B.weight`, or `None` for any other name.
pub fn base_name(weight: &str) -> Option<&str> {
    weight.strip_suffix(".weight").filter(|b| !b.is_empty())
}

/// Base name of the input group that the weight `base` may share V, g and l with.
pub fn input_group(base: &str) -> Option<String> {
    let (block, matrix) = base.rsplit_once('.')?;
    let group = match matrix {
        "attn_q" | "attn_k" | "attn_v" => "attn_qkv",
        "ffn_gate" | "ffn_up" => "ffn_gate_up",
        _ => return None,
    };
    Some(format!("{block}.{group}"))
}

/// Descriptors of the five tensors of the weight `base`.
pub fn descriptors(base: &str, shape: &Shape) -> Vec<TensorDesc> {
    Part::ALL
        .iter()
        .map(|&part| TensorDesc {
            name: format!("{base}{}", part.suffix()),
            dims: shape.dims(part),
            ty: part_type(part),
        })
        .collect()
}

/// Content of one part, slice after slice.
pub fn part_bytes(factors: &Factors, part: Part) -> Vec<u8> {
    let mut out = Vec::new();
    let scales =
        |out: &mut Vec<u8>, v: &[f16]| v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
    for s in &factors.slices {
        match part {
            Part::V => out.extend_from_slice(s.vt.as_bytes()),
            Part::U => out.extend_from_slice(s.u.as_bytes()),
            Part::G => scales(&mut out, &s.g),
            Part::L => scales(&mut out, &s.l),
            Part::H => scales(&mut out, &s.h),
        }
    }
    out
}

/// `general.file_type` (llama.cpp's LLAMA_FTYPE) of a file whose weights are mostly `ty`, where there is one.
pub fn file_type(ty: GgmlType) -> Option<u32> {
    Some(match ty {
        GgmlType::F32 => 0,
        GgmlType::F16 => 1,
        GgmlType::Q4_0 => 2,
        GgmlType::Q4_1 => 3,
        GgmlType::Q8_0 => 7,
        GgmlType::Q5_0 => 8,
        GgmlType::Q5_1 => 9,
        GgmlType::Q2_K => 10,
        GgmlType::Q3_K => 12,
        GgmlType::Q4_K => 15,
        GgmlType::Q5_K => 17,
        GgmlType::Q6_K => 18,
        GgmlType::BF16 => 32,
        _ => return None,
    })
}

/// Sets `general.file_type` to the type of the largest of `tensors` that holds no signs, if llama.cpp has a number for it.
pub fn set_file_type(kv: &mut Vec<(String, Value)>, tensors: &[TensorDesc]) {
    let largest = tensors.iter().filter(|d| d.ty != GgmlType::I8).max_by_key(|d| d.nbytes());
    if let Some(ft) = largest.and_then(|d| file_type(d.ty)) {
        set(kv, "general.file_type", Value::U32(ft));
    }
}

/// Replaces the value of `key` where it stands, or appends the pair.
pub fn set(kv: &mut Vec<(String, Value)>, key: &str, value: Value) {
    match kv.iter_mut().find(|(k, _)| k == key) {
        Some((_, v)) => *v = value,
        None => kv.push((key.to_owned(), value)),
    }
}
