//! Values rounded to block types.

use crate::gguf::encode::{TYPES, fitting};
use crate::gguf::{GgmlType, dequantize, encode};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BLOCKS: [GgmlType; 5] =
    [GgmlType::Q8_0, GgmlType::Q6_K, GgmlType::Q5_0, GgmlType::Q4_K, GgmlType::Q4_0];

fn back(ty: GgmlType, x: &[f32]) -> Vec<f32> {
    let (mut bytes, mut y) = (Vec::new(), vec![f32::NAN; x.len()]);
    encode(ty, x, &mut bytes).unwrap();
    dequantize(ty, &bytes, &mut y).unwrap();
    y
}

fn error(x: &[f32], y: &[f32]) -> f64 {
    let squares = |f: &dyn Fn(usize) -> f32| (0..x.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>();
    (squares(&|i| x[i] - y[i]) / squares(&|i| x[i])).sqrt()
}

/// Sums of uniform numbers with a few values far outside.
fn bell(n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut one = || (0..8).map(|_| rng.random_range(-1f32..1.0)).sum::<f32>();
    let mut x: Vec<f32> = (0..n).map(|_| one()).collect();
    (0..n).step_by(97).for_each(|i| x[i] *= 3.0);
    x
}

/// Round to nearest on a grid from the largest magnitude, in real numbers: what no fitted scale may be worse than.
fn plain(x: &[f32], block: usize, half: f32) -> Vec<f32> {
    let of_block = |x: &[f32]| -> Vec<f32> {
        let d = x.iter().fold(0f32, |a, x| a.max(x.abs())) / (half - 1.0);
        x.iter().map(|x| (x / d).round() * d).collect()
    };
    x.chunks_exact(block).flat_map(of_block).collect()
}

#[test]
fn fitted_scales_beat_the_largest_magnitude() {
    let x = bell(1 << 15);
    for (ty, block, half) in [
        (GgmlType::Q4_0, 32, 8.0),
        (GgmlType::Q5_0, 32, 16.0),
        (GgmlType::Q6_K, 16, 32.0),
        (GgmlType::Q4_K, 32, 8.0),
    ] {
        let (ours, usual) = (error(&x, &back(ty, &x)), error(&x, &plain(&x, block, half)));
        assert!(ours < 0.97 * usual, "{ty}: {ours} against {usual}");
    }
}

/// Values of blocks whose grids are used from end to end: the search finds them again, so every field is where the reader
/// looks for it.
#[test]
fn values_on_a_full_grid_come_back() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for _ in 0..20 {
        for (ty, half) in [(GgmlType::Q4_0, 8i32), (GgmlType::Q5_0, 16)] {
            let mut q: Vec<i32> = (0..32).map(|_| rng.random_range(-half..half)).collect();
            q[rng.random_range(0..32)] = -half;
            let x: Vec<f32> = q.iter().map(|&q| q as f32 * 0.25).collect();
            assert_eq!(back(ty, &x), x, "{ty}");
        }
        let mut scales: Vec<i32> = (0..16).map(|_| rng.random_range(-128..128)).collect();
        scales[rng.random_range(0..16)] = -128;
        let mut x = Vec::new();
        for s in &scales {
            let mut q: Vec<i32> = (0..16).map(|_| rng.random_range(-32..32)).collect();
            q[rng.random_range(0..16)] = -32;
            x.extend(q.iter().map(|q| (q * s) as f32 * 0.125));
        }
        assert_eq!(back(GgmlType::Q6_K, &x), x);
        let mut pairs: Vec<[u32; 2]> =
            (0..8).map(|_| [rng.random_range(1..64), rng.random_range(0..64)]).collect();
        pairs[rng.random_range(0..8)] = [63, 63];
        let mut x = Vec::new();
        for [s, m] in pairs {
            let mut q: Vec<u32> = (0..32).map(|_| rng.random_range(0..16)).collect();
            let ends = rng.random_range(0..31);
            (q[ends], q[ends + 1]) = (0, 15);
            x.extend(q.iter().map(|q| (q * s) as f32 * 0.5 - m as f32 * 0.25));
        }
        let y = back(GgmlType::Q4_K, &x);
        assert!(error(&x, &y) < 1e-6, "{:?}", x.iter().zip(&y).find(|(x, y)| x != y));
    }
}

#[test]
fn blocks_of_equal_tiny_and_huge_values() {
    for ty in BLOCKS {
        let n = ty.block().unwrap().0 as usize;
        assert_eq!(back(ty, &vec![0.0; n]), vec![0.0; n], "{ty}");
        for value in [1.0, -3.0, 1e-2, 3e5, -3e5] {
            let x = vec![value; n];
            let e = error(&x, &back(ty, &x));
            assert!(e < 1e-2, "{ty}: {value}: {e}");
        }
        // Below what f16 scales hold: rounded to zero or near, never more.
        assert!(back(ty, &vec![1e-12; n]).iter().all(|y| y.abs() <= 1e-11), "{ty}");
        let mut x = vec![0.5; n];
        x[7] = 1e6;
        let refused = encode(ty, &x, &mut Vec::new()).unwrap_err().to_string();
        assert!(refused.contains("1000000") && refused.contains(&ty.to_string()), "{refused}");
        x[7] = f32::NAN;
        assert!(encode(ty, &x, &mut Vec::new()).is_err(), "{ty}");
        assert!(encode(ty, &x[1..], &mut Vec::new()).is_err(), "{ty}");
    }
    assert!(encode(GgmlType::F16, &[7e4], &mut Vec::new()).is_err());
}

#[test]
fn rows_that_do_not_fill_blocks_take_the_next_type() {
    let cases = [
        (GgmlType::Q6_K, 576, GgmlType::Q8_0),
        (GgmlType::Q4_K, 576, GgmlType::Q5_0),
        (GgmlType::Q4_K, 512, GgmlType::Q4_K),
        (GgmlType::Q4_K, 200, GgmlType::F16),
        (GgmlType::Q4_0, 200, GgmlType::F16),
        (GgmlType::BF16, 3, GgmlType::BF16),
    ];
    for (wanted, ne0, ty) in cases {
        assert_eq!(fitting(wanted, ne0), ty, "{wanted} {ne0}");
        assert!(TYPES.contains(&ty));
    }
}
