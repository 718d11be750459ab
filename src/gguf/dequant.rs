//! From stored blocks to f32. The arithmetic follows ggml's reference order, so the values are bit-identical to it.

use super::GgmlType;
use half::{bf16, f16};

/// Whether [`dequantize`] knows `ty`.
pub const fn supported(ty: GgmlType) -> bool {
    matches!(
        ty,
        GgmlType::F32
            | GgmlType::F16
            | GgmlType::BF16
            | GgmlType::Q4_0
            | GgmlType::Q4_1
            | GgmlType::Q5_0
            | GgmlType::Q5_1
            | GgmlType::Q8_0
            | GgmlType::Q2_K
            | GgmlType::Q3_K
            | GgmlType::Q4_K
            | GgmlType::Q5_K
            | GgmlType::Q6_K
    )
}

/// Values of `bytes`, whole blocks of `ty`, into `out`. `Err` is a sentence without file and tensor name.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), String> {
    if !supported(ty) {
        return Err(format!(
            "type {ty} cannot be read; convert the model first: llama-quantize --allow-requantize IN.gguf OUT.gguf F16"
        ));
    }
    let (elements, block_bytes) = ty.block().expect("supported types have a geometry");
    let (elements, block_bytes) = (elements as usize, block_bytes as usize);
    if !out.len().is_multiple_of(elements) || bytes.len() != out.len() / elements * block_bytes {
        return Err(format!("{} bytes are not {} values of type {ty}", bytes.len(), out.len()));
    }
    let block: fn(&[u8], &mut [f32]) = match ty {
        GgmlType::F32 => |b, y| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        GgmlType::F16 => |b, y| y[0] = half(b),
        GgmlType::BF16 => |b, y| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q2_K => q2_k,
        GgmlType::Q3_K => q3_k,
        GgmlType::Q4_K => q4_k,
        GgmlType::Q5_K => q5_k,
        _ => q6_k,
    };
    for (b, y) in bytes.chunks_exact(block_bytes).zip(out.chunks_exact_mut(elements)) {
        block(b, y);
    }
    Ok(())
}

fn half(b: &[u8]) -> f32 {
    f16::from_le_bytes([b[0], b[1]]).to_f32()
}

// d f16, 16 bytes of two values each: low nibbles are values 0..16, high ones 16..32.
fn q4_0(b: &[u8], y: &mut [f32]) {
    let d = half(b);
    for (j, q) in b[2..].iter().enumerate() {
        y[j] = f32::from((q & 15) as i8 - 8) * d;
        y[j + 16] = f32::from((q >> 4) as i8 - 8) * d;
    }
}

// d, m f16, nibbles as above.
fn q4_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half(b), half(&b[2..]));
    for (j, q) in b[4..].iter().enumerate() {
        y[j] = f32::from(q & 15) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// Fifth bit of values `j` and `j + 16`, in place.
fn fifth(qh: u32, j: usize) -> (u8, u8) {
    (((qh >> j) << 4) as u8 & 16, (qh >> (j + 12)) as u8 & 16)
}

// d f16, 32 fifth bits, nibbles.
fn q5_0(b: &[u8], y: &mut [f32]) {
    let d = half(b);
    let qh = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    for (j, q) in b[6..].iter().enumerate() {
        let (h0, h1) = fifth(qh, j);
        y[j] = f32::from((q & 15 | h0) as i8 - 16) * d;
        y[j + 16] = f32::from((q >> 4 | h1) as i8 - 16) * d;
    }
}

// d, m f16, 32 fifth bits, nibbles.
fn q5_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half(b), half(&b[2..]));
    let qh = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    for (j, q) in b[8..].iter().enumerate() {
        let (h0, h1) = fifth(qh, j);
        y[j] = f32::from(q & 15 | h0) * d + m;
        y[j + 16] = f32::from(q >> 4 | h1) * d + m;
    }
}

// d f16, 32 signed bytes.
fn q8_0(b: &[u8], y: &mut [f32]) {
    let d = half(b);
    for (y, q) in y.iter_mut().zip(&b[2..]) {
        *y = f32::from(*q as i8) * d;
    }
}

// 16 bytes of 4-bit scale and minimum, 64 bytes of 2-bit values, d, dmin f16. Halves of 128 values; in each, 4 shifts
// of 32 bytes, a scale for every 16 values.
fn q2_k(b: &[u8], y: &mut [f32]) {
    let (scales, qs) = (&b[..16], &b[16..80]);
    let (d, dmin) = (half(&b[80..]), half(&b[82..]));
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
        let (dl, ml) = (d * f32::from(scales[group] & 15), dmin * f32::from(scales[group] >> 4));
        let q = &qs[half * 32 + side * 16..];
        for (y, q) in y.iter_mut().zip(q) {
            *y = dl * f32::from(q >> shift & 3) - ml;
        }
    }
}

// 32 bytes of third bits (clear means 4 less), 64 bytes of 2-bit values, 12 bytes of 6-bit scales, d f16.
fn q3_k(b: &[u8], y: &mut [f32]) {
    let (hmask, qs, scales) = (&b[..32], &b[32..96], &b[96..108]);
    let d = half(&b[108..]);
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let low = if group < 8 { scales[group] & 15 } else { scales[group - 8] >> 4 };
        let high = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let dl = d * f32::from((low | high << 4) as i8 - 32);
        let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
        let bit = 1u8 << (group / 2);
        let q = &qs[half * 32 + side * 16..];
        for (l, (y, q)) in y.iter_mut().zip(q).enumerate() {
            let third = if hmask[side * 16 + l] & bit != 0 { 0 } else { 4 };
            *y = dl * f32::from((q >> shift & 3) as i8 - third);
        }
    }
}

/// Scale and minimum `j` of the eight 6-bit pairs in 12 bytes of Q4_K and Q5_K.
fn scale_min(j: usize, s: &[u8]) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    }
}

// d, dmin f16, 12 bytes of scales, 128 bytes of nibbles: 64 values per 32 bytes, low nibbles first.
fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half(b), half(&b[2..]));
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_min(group, &b[4..16]);
        let (d1, m1) = (d * f32::from(sc), dmin * f32::from(m));
        let shift = 4 * (group % 2);
        for (y, q) in y.iter_mut().zip(&b[16 + group / 2 * 32..]) {
            *y = d1 * f32::from(q >> shift & 15) - m1;
        }
    }
}

// As Q4_K with 32 bytes of fifth bits between scales and nibbles.
fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half(b), half(&b[2..]));
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_min(group, &b[4..16]);
        let (d1, m1) = (d * f32::from(sc), dmin * f32::from(m));
        let shift = 4 * (group % 2);
        let fifths = &b[16..48];
        for (l, (y, q)) in y.iter_mut().zip(&b[48 + group / 2 * 32..]).enumerate() {
            let fifth = (fifths[l] >> group & 1) << 4;
            *y = d1 * f32::from((q >> shift & 15) + fifth) - m1;
        }
    }
}

// 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales, d f16. Halves of 128 values; in each, quarters of
// 32 values share bytes.
fn q6_k(b: &[u8], y: &mut [f32]) {
    let (ql, qh, scales) = (&b[..128], &b[128..192], &b[192..208]);
    let d = half(&b[208..]);
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (half, quarter) = (group / 4, group % 4);
        let low = &ql[half * 64 + quarter % 2 * 32..];
        let high = &qh[half * 32..];
        for (l, y) in y.iter_mut().enumerate() {
            let nibble = low[l] >> (4 * (quarter / 2)) & 15;
            let q = (nibble | (high[l] >> (2 * quarter) & 3) << 4) as i8 - 32;
            *y = d * f32::from(scales[group * 2 + l / 16] as i8) * f32::from(q);
        }
    }
}
