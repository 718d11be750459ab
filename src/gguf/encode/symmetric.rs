//! Types whose values are a scale times an integer.

use super::rounded;

/// Steps that a trial moves the largest value by, either way, in eighths of the grid's step.
const TRIALS: i32 = 8;

/// The scale with which integers from `-half` to `half - 1` come nearest to `x` in least squares: for several places of the
/// largest value on the grid the others are rounded, and the best scale for these integers follows. May be negative, so
/// that the larger side gets the longer half of the grid.
fn scale(x: &[f32], half: i32) -> f32 {
    let extreme = x.iter().copied().fold(0f32, |a, x| if x.abs() > a.abs() { x } else { a });
    if extreme == 0.0 {
        return 0.0;
    }
    let (low, high) = (-half as f32, (half - 1) as f32);
    let (mut best, mut most) = (extreme / low, f32::MIN);
    for at in (-TRIALS..=TRIALS).flat_map(|t| [low - t as f32 / 8.0, high + t as f32 / 8.0]) {
        let inverse = at / extreme;
        let (mut xq, mut qq) = (0f32, 0f32);
        for x in x {
            let q = (x * inverse).round().clamp(low, high);
            xq += x * q;
            qq += q * q;
        }
        // What is left is sum x^2 - xq^2 / qq.
        if qq > 0.0 && xq * xq / qq > most {
            (best, most) = (xq / qq, xq * xq / qq);
        }
    }
    best
}

/// Integers of `x` at the scale `d`, moved to 0 .. 2 half - 1.
fn integers<'a>(x: &'a [f32], d: f32, half: i32) -> impl Fn(usize) -> u8 + 'a {
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    move |i| ((x[i] * inverse).round().clamp(-half as f32, (half - 1) as f32) as i32 + half) as u8
}

// d f16, 16 bytes of two values each: low nibbles are values 0..16, high ones 16..32.
pub(super) fn q4_0(x: &[f32], out: &mut [u8]) {
    let d = rounded(scale(x, 8), out);
    let q = integers(x, d, 8);
    out[2..].iter_mut().enumerate().for_each(|(j, out)| *out = q(j) | q(j + 16) << 4);
}

// d f16, 32 fifth bits, nibbles as above.
pub(super) fn q5_0(x: &[f32], out: &mut [u8]) {
    let d = rounded(scale(x, 16), out);
    let q = integers(x, d, 16);
    let fifth = (0..32).fold(0u32, |bits, i| bits | u32::from(q(i) >> 4) << i);
    out[2..6].copy_from_slice(&fifth.to_le_bytes());
    out[6..].iter_mut().enumerate().for_each(|(j, out)| *out = q(j) & 15 | q(j + 16) << 4);
}

// 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales, d f16. Halves of 128 values; in each, quarters of
// 32 values share bytes.
pub(super) fn q6_k(x: &[f32], out: &mut [u8]) {
    let scales: Vec<f32> = x.chunks_exact(16).map(|x| scale(x, 32)).collect();
    let extreme = scales.iter().copied().fold(0f32, |a, s| if s.abs() > a.abs() { s } else { a });
    let d = rounded(extreme / -128.0, &mut out[208..]);
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    let (values, rest) = out.split_at_mut(192);
    values.fill(0);
    for (group, x) in x.chunks_exact(16).enumerate() {
        let s = (scales[group] * inverse).round().clamp(-128.0, 127.0) as i8;
        rest[group] = s as u8;
        let q = integers(x, d * f32::from(s), 32);
        let (half, quarter, side) = (group / 8, group % 8 / 2, group % 2);
        for l in 0..16 {
            let (q, l) = (q(l), side * 16 + l);
            values[half * 64 + quarter % 2 * 32 + l] |= (q & 15) << (4 * (quarter / 2));
            values[128 + half * 32 + l] |= q >> 4 << (2 * quarter);
        }
    }
}
