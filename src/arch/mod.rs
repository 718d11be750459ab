//! Which tensors of a model are matrices that may be factorized.
//!
//! The patched llama.cpp replaces the products of a weight, `ggml_mul_mat` and `ggml_mul_mat_id`, and nothing
//! else. So a tensor may be factorized only if its name is known to be used by exactly one of them, which
//! [`tensor_ops`] takes from llama.cpp's own table. A few of those stay dense all the same: embeddings and heads
//! (they decide quality and are looked up by row where they are tied), routers of experts (tiny and decisive),
//! and stacks that only views take apart (multi-head latent attention).

mod tensor_ops;

use crate::format::factors::{RANK_STEP, slice_bits};
use crate::format::schema::base_name;
use crate::gguf::{GgmlType, MAX_NAME};
use std::fmt;

/// Below this many rows or columns a matrix is not worth factors.
pub const MIN_DIM: usize = 16;

/// Logical shape of a weight that may be factorized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Outputs.
    pub d_out: usize,
    /// Inputs.
    pub d_in: usize,
    /// Experts in the stack, 1 for a 2-D weight.
    pub experts: usize,
}

/// Why a tensor stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// Not `*.weight`.
    NotAWeight,
    /// Integers.
    NotReal,
    /// Token, position or type embeddings.
    Embedding,
    /// Output or classification head.
    Head,
    /// Chooses experts.
    Router,
    /// No architecture of the pinned llama.cpp has a tensor of this name.
    UnknownName,
    /// llama.cpp does something else with it than multiply.
    NotMultiplied,
    /// Number of dimensions that its product does not have.
    Dimensions(usize),
    /// The name leaves no room for the factors' suffix.
    NameTooLong,
    /// Fewer than [`MIN_DIM`] rows or columns.
    TooSmall,
    /// Factors of the lowest rank would be larger than f16.
    NoGain,
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeepReason::NotAWeight => write!(f, "not a weight"),
            KeepReason::NotReal => write!(f, "integer values"),
            KeepReason::Embedding => write!(f, "embeddings"),
            KeepReason::Head => write!(f, "output head"),
            KeepReason::Router => write!(f, "expert router"),
            KeepReason::UnknownName => write!(f, "llama.cpp knows no tensor of this name"),
            KeepReason::NotMultiplied => write!(f, "not used in a matrix product"),
            KeepReason::Dimensions(n) => write!(f, "{n} dimensions"),
            KeepReason::NameTooLong => write!(f, "name too long"),
            KeepReason::TooSmall => write!(f, "fewer than {MIN_DIM} rows or columns"),
            KeepReason::NoGain => write!(f, "factors would be larger than f16"),
        }
    }
}

/// Decides whether the tensor `name` of shape `dims` (ne, fastest first) may be factorized.
///
/// # Errors
/// The reason to keep it as it is.
pub fn factorizable(name: &str, dims: &[u64], ty: GgmlType) -> Result<Shape, KeepReason> {
    let base = base_name(name).ok_or(KeepReason::NotAWeight)?;
    if let Some(reason) = always_kept(base) {
        return Err(reason);
    }
    if [GgmlType::I8, GgmlType::I16, GgmlType::I32, GgmlType::I64].contains(&ty) {
        return Err(KeepReason::NotReal);
    }
    let dimensions = match operations(base).ok_or(KeepReason::UnknownName)? {
        ["MUL_MAT"] => 2,
        ["MUL_MAT_ID"] => 3,
        _ => return Err(KeepReason::NotMultiplied),
    };
    if dims.len() != dimensions {
        return Err(KeepReason::Dimensions(dims.len()));
    }
    if base.len() + ".lb_u".len() >= MAX_NAME {
        return Err(KeepReason::NameTooLong);
    }
    // Lengths beyond usize cannot belong to a file that was opened; to be kept is the safe answer.
    let length =
        |i: usize| dims.get(i).map_or(Ok(1), |&d| usize::try_from(d).map_err(|_| KeepReason::NoGain));
    let shape = Shape { d_in: length(0)?, d_out: length(1)?, experts: length(2)? };
    if shape.d_out.min(shape.d_in) < MIN_DIM || shape.experts == 0 {
        return Err(KeepReason::TooSmall);
    }
    if slice_bits(shape.d_out, shape.d_in, RANK_STEP) > 16 * shape.d_out as u64 * shape.d_in as u64 {
        return Err(KeepReason::NoGain);
    }
    Ok(shape)
}

/// What stays dense whatever llama.cpp does with it.
fn always_kept(base: &str) -> Option<KeepReason> {
    let last = base.rsplit('.').next().unwrap_or(base);
    let embedding = ["token_embd", "token_types", "position_embd", "per_layer_token_embd"];
    if embedding.iter().any(|e| base.starts_with(e)) || last == "embed_tokens" {
        return Some(KeepReason::Embedding);
    }
    if base == "output" || base == "cls" || base.starts_with("cls.") || last == "shared_head_head" {
        return Some(KeepReason::Head);
    }
    if last.starts_with("ffn_gate_inp") || last == "altup_router" {
        return Some(KeepReason::Router);
    }
    None
}

/// Operations of the tensor called `base`, `None` if the table has no such name.
fn operations(base: &str) -> Option<&'static [&'static str]> {
    tensor_ops::TENSOR_OPS.iter().find(|(pattern, _)| matches(pattern, base)).map(|(_, ops)| *ops)
}

/// Whether `name` is `pattern` with a decimal number for every `%d`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once("%d") {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            digits > 0 && matches(tail, &rest[digits..])
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(name: &str, dims: &[u64]) -> KeepReason {
        factorizable(name, dims, GgmlType::F16).unwrap_err()
    }

    #[test]
    fn linear_layers_are_factorized() {
        for name in [
            "blk.0.attn_q.weight",
            "blk.12.attn_output.weight",
            "blk.3.attn_qkv.weight",
            "blk.29.ffn_down.weight",
            "blk.1.ffn_gate_shexp.weight",
            "blk.7.ssm_in.weight",
            "blk.0.shortconv.in_proj.weight",
            "enc.blk.2.attn_k.weight",
        ] {
            let shape = factorizable(name, &[576, 1536], GgmlType::Q4_1);
            assert_eq!(shape, Ok(Shape { d_out: 1536, d_in: 576, experts: 1 }), "{name}");
        }
        let shape = factorizable("blk.0.ffn_up_exps.weight", &[256, 512, 8], GgmlType::F16);
        assert_eq!(shape, Ok(Shape { d_out: 512, d_in: 256, experts: 8 }));
    }

    #[test]
    fn what_decides_quality_or_is_not_multiplied_is_kept() {
        use KeepReason::*;
        for (name, reason) in [
            ("blk.0.attn_q.bias", NotAWeight),
            ("blk.0.attn_q", NotAWeight),
            (".weight", NotAWeight),
            ("token_embd.weight", Embedding),
            ("token_embd_norm.weight", Embedding),
            ("per_layer_token_embd.weight", Embedding),
            ("position_embd.weight", Embedding),
            ("blk.0.nextn.embed_tokens.weight", Embedding),
            ("output.weight", Head),
            ("cls.weight", Head),
            ("cls.output.weight", Head),
            ("blk.0.nextn.shared_head_head.weight", Head),
            ("blk.0.ffn_gate_inp.weight", Router),
            ("blk.0.ffn_gate_inp_shexp.weight", Router),
            ("blk.0.attn_norm.weight", NotMultiplied),
            ("blk.0.ssm_conv1d.weight", NotMultiplied),
            ("blk.0.shortconv.conv.weight", NotMultiplied),
            ("blk.0.attn_rel_b.weight", UnknownName),
            ("blk.x.attn_q.weight", UnknownName),
            ("blk..attn_q.weight", UnknownName),
            ("blk.0.attn_q.1.weight", UnknownName),
            ("model.layers.0.mlp.up_proj.weight", UnknownName),
        ] {
            assert_eq!(keep(name, &[576, 576]), reason, "{name}");
        }
    }

    #[test]
    fn dimensions_must_be_those_of_the_product() {
        // Multi-head latent attention keeps its per-head matrices in 3-D tensors of plain products.
        assert_eq!(keep("blk.0.attn_k_b.weight", &[128, 512, 16]), KeepReason::Dimensions(3));
        assert_eq!(keep("blk.0.ffn_up_exps.weight", &[128, 512]), KeepReason::Dimensions(2));
        assert_eq!(keep("blk.0.attn_q.weight", &[128]), KeepReason::Dimensions(1));
        assert_eq!(factorizable("blk.0.attn_q.weight", &[64, 64], GgmlType::I32), Err(KeepReason::NotReal));
    }

    #[test]
    fn small_matrices_are_not_worth_factors() {
        assert_eq!(keep("blk.0.attn_q.weight", &[4096, 15]), KeepReason::TooSmall);
        assert_eq!(keep("blk.0.ffn_up_exps.weight", &[64, 64, 0]), KeepReason::TooSmall);
        // 16 x 16: padded signs and scales take 2560 bits against 4096 in f16.
        assert!(factorizable("blk.0.attn_q.weight", &[16, 16], GgmlType::F16).is_ok());
        assert!(slice_bits(16, 16, RANK_STEP) <= 16 * 16 * 16);
    }

    #[test]
    fn names_leave_room_for_the_suffix() {
        let number = "0".repeat(64 - "blk..attn_q.lb_u".len());
        assert_eq!(keep(&format!("blk.{number}.attn_q.weight"), &[64, 64]), KeepReason::NameTooLong);
        let name = format!("blk.{}.attn_q.weight", &number[1..]);
        assert!(factorizable(&name, &[64, 64], GgmlType::F16).is_ok());
    }
}
