//! From f32 to the types that this crate writes.

mod affine;
mod symmetric;

use super::GgmlType;
use crate::error::{Error, Result};
use half::{bf16, f16};

/// The types that [`encode`] writes.
pub const TYPES: [GgmlType; 8] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q6_K,
    GgmlType::Q5_0,
    GgmlType::Q4_K,
    GgmlType::Q4_0,
];

/// The type called `name` among [`TYPES`]. `Err` lists them.
pub fn type_named(name: &str) -> std::result::Result<GgmlType, String> {
    GgmlType::from_name(name).filter(|t| TYPES.contains(t)).ok_or_else(|| {
        let names: Vec<_> = TYPES.iter().map(|t| t.name().to_string()).collect();
        format!("this build writes {}", names.join(", "))
    })
}

/// `wanted`, or the type that llama-quantize takes in its place where rows of `ne0` values do not fill its blocks.
pub fn fitting(wanted: GgmlType, ne0: u64) -> GgmlType {
    let next = match wanted {
        _ if wanted.row_bytes(ne0).is_some() => return wanted,
        GgmlType::Q6_K => GgmlType::Q8_0,
        GgmlType::Q4_K => GgmlType::Q5_0,
        _ => GgmlType::F16,
    };
    if next.row_bytes(ne0).is_some() { next } else { GgmlType::F16 }
}

/// Appends `values` as `ty` (one of [`TYPES`]) to `out`: Q8_0 rounded as ggml's reference quantizer does it, the smaller
/// types with the scales that come nearest in least squares.
///
/// # Errors
/// [`Error::Usage`] for other types, values that do not fill whole blocks, and blocks whose values no f16 scale can hold.
pub fn encode(ty: GgmlType, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let block: fn(&[f32], &mut [u8]) = match ty {
        GgmlType::F32 => |x, out| out.copy_from_slice(&x[0].to_le_bytes()),
        GgmlType::F16 => |x, out| out.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
        GgmlType::BF16 => |x, out| out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q6_K => symmetric::q6_k,
        GgmlType::Q5_0 => symmetric::q5_0,
        GgmlType::Q4_K => affine::q4_k,
        GgmlType::Q4_0 => symmetric::q4_0,
        _ => return Err(Error::usage(format!("this build does not write {ty}"))),
    };
    let (elements, bytes) = ty.block().expect("these types have a geometry");
    let (elements, bytes) = (elements as usize, bytes as usize);
    if !values.len().is_multiple_of(elements) {
        return Err(Error::usage(format!("{} values cannot be written as {ty}", values.len())));
    }
    // The scales of blocks are f16, and their largest value is at least 6 times the scale.
    let most = match ty {
        GgmlType::F32 | GgmlType::BF16 => None,
        GgmlType::F16 => Some(f16::MAX.to_f32()),
        _ => Some(6.0 * f16::MAX.to_f32()),
    };
    let fits = |x: f32| most.is_none_or(|most| x.abs() <= most);
    if let Some(x) = values.iter().find(|x| !fits(**x)) {
        return Err(Error::usage(format!("the value {x} cannot be written as {ty}")));
    }
    let at = out.len();
    out.resize(at + values.len() / elements * bytes, 0);
    let blocks = out[at..].chunks_exact_mut(bytes).zip(values.chunks_exact(elements));
    blocks.for_each(|(out, x)| block(x, out));
    Ok(())
}

/// `x` rounded to f16, as it will be read back.
fn rounded(x: f32, out: &mut [u8]) -> f32 {
    let x = f16::from_f32(x);
    out[..2].copy_from_slice(&x.to_le_bytes());
    x.to_f32()
}

// d = max|x| / 127 in f32, values rounded half away from zero before d itself is rounded to f16.
fn q8_0(x: &[f32], out: &mut [u8]) {
    let d = x.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0;
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    rounded(d, out);
    out[2..].iter_mut().zip(x).for_each(|(q, x)| *q = (x * inverse).round() as i8 as u8);
}
