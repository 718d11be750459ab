//! The exponential function over slices, in the vectors that the machine has.
//!
//! A softmax over keys or over a vocabulary is a large share of a training step if every element costs a call. The
//! polynomial uses only additions and multiplications, which round alike in vectors of any width, so every path
//! gives the same bits.

/// `e^x` within 2 units in the last place for `-87 <= x <= 88`; below 0 (about 1e-38), above `e^88`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with zeros at its end, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < 88.0 { x } else { 88.0 };
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_65;
    let p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    let power = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32).wrapping_add(127);
    y * f32::from_bits((power as u32) << 23)
}

#[inline(always)]
fn exp_below_max_of(x: &mut [f32]) -> (f32, f32) {
    // Sixteen running maxima and sums, whatever the vectors' width.
    let (mut tops, mut sums) = ([f32::NEG_INFINITY; 16], [0f32; 16]);
    let (chunks, rest) = x.as_chunks_mut::<16>();
    for chunk in &*chunks {
        chunk.iter().zip(&mut tops).for_each(|(x, top)| *top = top.max(*x));
    }
    let max = tops.iter().chain(&*rest).fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    for chunk in chunks {
        for (x, s) in chunk.iter_mut().zip(&mut sums) {
            *x = exp(*x - max);
            *s += *x;
        }
    }
    for (x, s) in rest.iter_mut().zip(&mut sums) {
        *x = exp(*x - max);
        *s += *x;
    }
    (max, sums.iter().sum())
}

#[inline(always)]
fn sigmoid_of(x: &[f32], out: &mut [f32]) {
    for (x, y) in x.iter().zip(out) {
        *y = 1.0 / (1.0 + exp(-x));
    }
}

/// Compiles a function once more for wider vectors and chooses at run time.
macro_rules! dispatched {
    ($(#[$doc:meta])* $name:ident => $body:ident ( $($arg:ident : $ty:ty),* ) $(-> $ret:ty)?) => {
        $(#[$doc])*
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has AVX-512.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}

dispatched!(
    /// Replaces every `x` by `e^(x - max)`; returns the largest `x` and the sum of the exponentials, whose
    /// `max + ln(sum)` is `ln(sum e^x)`.
    exp_below_max => exp_below_max_of(x: &mut [f32]) -> (f32, f32)
);
dispatched!(
    /// `1 / (1 + e^-x)` of every element.
    sigmoid => sigmoid_of(x: &[f32], out: &mut [f32])
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_two_units_of_the_true_value() {
        for i in -8_700_000..8_800_000i32 {
            if i % 7 != 0 {
                continue;
            }
            let x = i as f32 * 1e-5;
            let want = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * want;
            let got = f64::from(exp(x));
            assert!((got - want).abs() <= unit, "exp({x}) = {got}, should be {want}");
        }
        assert!(exp(-1000.0) < 2e-38 && exp(1000.0).is_finite() && exp(0.0) == 1.0);
    }

    #[test]
    fn sums_and_sigmoids_on_every_path_are_the_same_bits() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.7).sin() * 30.0).collect();
        let (mut a, mut b) = (x.clone(), x.clone());
        let (max, sum) = exp_below_max(&mut a);
        assert_eq!(
            [max, sum].map(f32::to_bits),
            <[f32; 2]>::from(exp_below_max_of(&mut b)).map(f32::to_bits)
        );
        assert_eq!(a, b);
        let (mut a, mut b) = (x.clone(), x.clone());
        sigmoid(&x, &mut a);
        sigmoid_of(&x, &mut b);
        assert_eq!(a, b);
        let direct = x.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((f64::from(max) + f64::from(sum).ln() - direct).abs() < 1e-5);
    }
}
