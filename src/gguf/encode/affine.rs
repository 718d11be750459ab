//! Types whose values are a scale times an integer less a minimum.

use super::rounded;

/// Steps that a trial widens or narrows the grid by, in eighths of its step.
const TRIALS: i32 = 8;

/// Scale and minimum, both not negative, with which `scale q - minimum` for q in 0 .. `levels` comes nearest to `x` in
/// least squares: for several widths of the grid the values are rounded, and the best pair for these integers follows.
fn scale_and_minimum(x: &[f32], levels: f32) -> [f32; 2] {
    let low = x.iter().copied().fold(0f32, f32::min);
    let high = x.iter().copied().fold(f32::MIN, f32::max);
    if high <= low {
        return [0.0, -low];
    }
    let n = x.len() as f32;
    let (mut best, mut least) = ([(high - low) / levels, -low], f32::MAX);
    for trial in -TRIALS..=TRIALS {
        let inverse = (levels + trial as f32 / 8.0) / (high - low);
        let (mut q1, mut q2, mut x1, mut xq) = (0f32, 0f32, 0f32, 0f32);
        for x in x {
            let q = ((x - low) * inverse).round().clamp(0.0, levels);
            q1 += q;
            q2 += q * q;
            x1 += x;
            xq += x * q;
        }
        let determinant = n * q2 - q1 * q1;
        let mut pair = [0.0, 0.0];
        if determinant > 0.0 {
            pair = [(n * xq - q1 * x1) / determinant, (q1 * xq - q2 * x1) / determinant];
        }
        // A minimum above zero cannot be stored: the best line through zero instead.
        if (determinant <= 0.0 || pair[1] < 0.0) && q2 > 0.0 {
            pair = [(xq / q2).max(0.0), 0.0];
        }
        let error: f32 = x
            .iter()
            .map(|x| {
                let q = ((x - low) * inverse).round().clamp(0.0, levels);
                (x - pair[0] * q + pair[1]).powi(2)
            })
            .sum();
        if pair[0] > 0.0 && error < least {
            (best, least) = (pair, error);
        }
    }
    best
}

// d, dmin f16, 12 bytes of 6-bit scales and minima, 128 bytes of nibbles: 64 values per 32 bytes, low nibbles first.
pub(super) fn q4_k(x: &[f32], out: &mut [u8]) {
    let pairs: Vec<[f32; 2]> = x.chunks_exact(32).map(|x| scale_and_minimum(x, 15.0)).collect();
    let units: [f32; 2] = [0, 1].map(|i| {
        let most = pairs.iter().fold(0f32, |a, p| a.max(p[i]));
        rounded(most / 63.0, &mut out[2 * i..])
    });
    let (head, nibbles) = out.split_at_mut(16);
    let packed = &mut head[4..];
    packed.fill(0);
    nibbles.fill(0);
    for (j, (x, pair)) in x.chunks_exact(32).zip(&pairs).enumerate() {
        let [s, m] = [0, 1].map(|i| {
            let steps = if units[i] != 0.0 { pair[i] / units[i] } else { 0.0 };
            steps.round().clamp(0.0, 63.0) as u8
        });
        // The upper four pairs have their low nibbles in bytes 8 to 11 and their upper bits beside the lower four pairs.
        if j < 4 {
            packed[j] |= s;
            packed[j + 4] |= m;
        } else {
            packed[j + 4] = s & 15 | (m & 15) << 4;
            packed[j - 4] |= s >> 4 << 6;
            packed[j] |= m >> 4 << 6;
        }
        let (scale, minimum) = (units[0] * f32::from(s), units[1] * f32::from(m));
        let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        let bytes = &mut nibbles[j / 2 * 32..];
        for (byte, x) in bytes.iter_mut().zip(x) {
            let q = ((x + minimum) * inverse).round().clamp(0.0, 15.0) as u8;
            *byte |= q << (4 * (j % 2));
        }
    }
}
