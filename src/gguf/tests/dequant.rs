//! Blocks with known values, bit for bit. The values are those of llama.cpp's gguf-py for the same bytes.

use crate::gguf::{GgmlType, dequantize, encode};

/// A block of `ty` with the bytes of [`block`].
struct Golden {
    ty: GgmlType,
    /// Positions and bits of its f16 scales, in place of the pattern.
    halves: &'static [(usize, u16)],
    /// First three values.
    first: [f32; 3],
    last: f32,
    /// FNV-1a over the values' little-endian bytes.
    hash: u64,
}

#[rustfmt::skip]
const GOLDEN: &[Golden] = &[
    Golden { ty: GgmlType::Q4_0, halves: &[(0, 0x2e66)], first: [-0.6998291, -0.29992676, -0.49987793], last: 0.0, hash: 0xbe6706901ac0263c },
    Golden { ty: GgmlType::Q4_1, halves: &[(0, 0x2e66), (2, 0xb19a)], first: [0.12487793, 0.9246826, 1.1246338], last: -0.17504883, hash: 0x39d6608c205b94af },
    Golden { ty: GgmlType::Q5_0, halves: &[(0, 0x2e66)], first: [1.2996826, -0.6998291, -0.099975586], last: 0.99975586, hash: 0x8e7d9dc980d0c06b },
    Golden { ty: GgmlType::Q5_1, halves: &[(0, 0x2e66), (2, 0xb19a)], first: [2.9241943, 2.9241943, 0.72473145], last: 0.5247803, hash: 0xb9d3269f384a2022 },
    Golden { ty: GgmlType::Q8_0, halves: &[(0, 0x2e66)], first: [-7.8980713, 11.697144, -12.496948], last: -4.098999, hash: 0xef6e503130eb2e38 },
    Golden { ty: GgmlType::Q2_K, halves: &[(80, 0x2e66), (82, 0x319a)], first: [2.0994873, 2.0994873, 0.6998291], last: -0.4251709, hash: 0xb04597a96ac8766a },
    Golden { ty: GgmlType::Q3_K, halves: &[(108, 0x2e66)], first: [6.8983154, 6.8983154, 2.2994385], last: 0.7998047, hash: 0x847182105408d18c },
    Golden { ty: GgmlType::Q4_K, halves: &[(0, 0x2e66), (2, 0x319a)], first: [-3.3270264, -3.3270264, -5.126587], last: 9.767944, hash: 0x36f3de2adfedc5aa },
    Golden { ty: GgmlType::Q5_K, halves: &[(0, 0x2e66), (2, 0x319a)], first: [1.4718018, 1.4718018, -0.3277588], last: 13.167114, hash: 0xefa66cc9f30c5f60 },
    Golden { ty: GgmlType::Q6_K, halves: &[(208, 0x2e66)], first: [163.26013, 163.26013, -106.474], last: -38.99048, hash: 0x8c09b176d4e1e51f },
];

/// A pattern that reaches every field of a block, with finite scales.
fn block(golden: &Golden) -> Vec<u8> {
    let n = golden.ty.block().unwrap().1 as usize;
    let mut bytes: Vec<u8> = (0..n).map(|i| (i * i * 37 + i * 11 + 7) as u8).collect();
    for (at, bits) in golden.halves {
        bytes[*at..at + 2].copy_from_slice(&bits.to_le_bytes());
    }
    bytes
}

fn fnv(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn blocks_have_ggml_s_values() {
    for golden in GOLDEN {
        let mut values = vec![0.0; golden.ty.block().unwrap().0 as usize];
        dequantize(golden.ty, &block(golden), &mut values).unwrap();
        assert_eq!(values[..3], golden.first, "{}", golden.ty);
        assert_eq!(values.last(), Some(&golden.last), "{}", golden.ty);
        assert_eq!(fnv(&values), golden.hash, "{}: {values:?}", golden.ty);
    }
}

#[test]
fn every_quantized_type_that_can_be_read_has_a_golden_block() {
    let plain = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];
    for ty in GgmlType::ALL {
        let covered = plain.contains(ty) || GOLDEN.iter().any(|g| g.ty == *ty);
        assert_eq!(ty.can_dequantize(), covered, "{ty}");
    }
}

#[test]
fn plain_types_keep_their_bits() {
    let mut y = [0.0; 3];
    // One, the smallest subnormal, -65504.
    dequantize(GgmlType::F16, &[0x00, 0x3c, 0x01, 0x00, 0xff, 0xfb], &mut y).unwrap();
    assert_eq!(y, [1.0, 5.960_464_5e-8, -65504.0]);
    dequantize(GgmlType::BF16, &[0x80, 0x3f, 0x00, 0xc0, 0x80, 0x7f], &mut y).unwrap();
    assert_eq!(y, [1.0, -2.0, f32::INFINITY]);
    let values = [0.1, -0.0, f32::MIN_POSITIVE];
    let mut bytes = Vec::new();
    encode(GgmlType::F32, &values, &mut bytes).unwrap();
    dequantize(GgmlType::F32, &bytes, &mut y).unwrap();
    assert_eq!(y.map(f32::to_bits), values.map(f32::to_bits));
}

#[test]
fn several_blocks_are_independent() {
    for golden in GOLDEN {
        let (one, n) = (block(golden), golden.ty.block().unwrap().0 as usize);
        let mut values = vec![0.0; 3 * n];
        dequantize(golden.ty, &one.repeat(3), &mut values).unwrap();
        assert!(values[..n] == values[n..2 * n] && values[..n] == values[2 * n..], "{}", golden.ty);
    }
}

#[test]
fn q8_0_rounds_as_the_reference_quantizer() {
    // d = 127/127 = 1: halves go away from zero, the block's end is exact.
    let mut x = [0.0f32; 32];
    x[..5].copy_from_slice(&[127.0, 0.5, -0.5, 1.49, -126.5]);
    let mut bytes = Vec::new();
    encode(GgmlType::Q8_0, &x, &mut bytes).unwrap();
    assert_eq!(bytes[..2], 0x3c00u16.to_le_bytes());
    assert_eq!(bytes[2..7].iter().map(|b| *b as i8).collect::<Vec<_>>(), [127, 1, -1, 1, -127]);
    // Zeros have no scale.
    bytes.clear();
    encode(GgmlType::Q8_0, &[0.0; 32], &mut bytes).unwrap();
    assert_eq!(bytes, [0; 34]);
}

#[test]
fn wrong_lengths_and_types_are_refused() {
    let mut y = [0.0; 32];
    assert!(dequantize(GgmlType::Q8_0, &[0; 33], &mut y).unwrap_err().contains("33 bytes are not 32 values"));
    assert!(dequantize(GgmlType::Q8_0, &[0; 34], &mut y[..31]).is_err());
    assert!(dequantize(GgmlType::IQ2_XS, &[], &mut []).unwrap_err().contains("llama-quantize"));
    assert!(dequantize(GgmlType(4), &[], &mut []).is_err());
    for ty in [GgmlType::Q4_1, GgmlType::I8, GgmlType(99)] {
        assert!(encode(ty, &y, &mut Vec::new()).is_err(), "{ty}");
    }
    assert!(encode(GgmlType::Q8_0, &y[..31], &mut Vec::new()).is_err());
}
