//! From f32 to the types that this crate writes.

use super::GgmlType;
use crate::error::{Error, Result};
use half::{bf16, f16};

/// The types that [`encode`] writes.
pub const TYPES: [GgmlType; 4] = [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0];

/// Appends `values` as `ty` (one of [`TYPES`]) to `out`, rounded as ggml's reference quantizer does.
pub fn encode(ty: GgmlType, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    match ty {
        GgmlType::F32 => values.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
        GgmlType::F16 => values.iter().for_each(|x| out.extend_from_slice(&f16::from_f32(*x).to_le_bytes())),
        GgmlType::BF16 => {
            values.iter().for_each(|x| out.extend_from_slice(&bf16::from_f32(*x).to_le_bytes()))
        }
        GgmlType::Q8_0 if values.len().is_multiple_of(32) => {
            values.chunks_exact(32).for_each(|b| q8_0(b, out))
        }
        _ => return Err(Error::Usage(format!("{} values cannot be written as {ty}", values.len()))),
    }
    Ok(())
}

// d = max|x| / 127 in f32, values rounded half away from zero before d itself is rounded to f16.
fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let d = x.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0;
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    out.extend(x.iter().map(|x| (x * inverse).round() as i8 as u8));
}
