//! Integer tables of two 7-bit halves, as in the AVX2 kernel, which says why.

use super::super::ops::{IntSums, Output, Run};
use super::super::quantize::Step;
use super::super::scratch::Line;
use super::{each_eight, write};
use half::f16;
use std::arch::aarch64::*;

/// Columns of one accumulation run: 16-bit accumulators take 256 sums of two 7-bit table entries.
pub(super) const RUN_COLS: usize = 2048;

/// Vectors of activations that share the extraction of indices: half the registers are their sums.
pub(super) const VECTORS: usize = 2;

/// All ones where bit j of the entry's number is set, for entries 0 .. 8.
const BITS: [[u16; 8]; 3] = {
    let mut bits = [[0; 8]; 3];
    let mut i = 0;
    while i < 24 {
        bits[i / 8][i % 8] = if (i % 8) >> (i / 8) & 1 == 1 { u16::MAX } else { 0 };
        i += 1;
    }
    bits
};

/// A line holds the tables of two groups A, B of four columns: low halves of A and B, high halves of A and B,
/// 16 bytes each. Returns minus the sum of `|q|`.
#[target_feature(enable = "neon")]
pub(super) fn tables(x: &[f32], pre: Option<&[f16]>, step: Step, tables: &mut [Line]) -> i32 {
    let (shift, divisor) = (vdupq_n_f32(step.shift), vdupq_n_f32(step.step));
    let mut total = vdupq_n_s32(0);
    each_eight(x, pre, tables.len(), |i, v| {
        let line = tables[i].0.as_mut_ptr();
        for (group, v) in v.into_iter().enumerate() {
            let q = vcvtnq_s32_f32(vdivq_f32(vmulq_f32(v, shift), divisor));
            total = vaddq_s32(total, vabsq_s32(q));
            let (low, high) = agreeing_sums(vmovn_s32(q));
            // SAFETY: a line is 64 bytes.
            unsafe {
                vst1q_u8(line.add(16 * group), low);
                vst1q_u8(line.add(32 + 16 * group), high);
            }
        }
    });
    -vaddvq_s32(total)
}

/// Low and high 7-bit halves of `T` of one group: `T[i] = sum over set bits j of q_j - sum of the negative q_j`.
#[inline]
#[target_feature(enable = "neon")]
fn agreeing_sums(q: int16x4_t) -> (uint8x16_t, uint8x16_t) {
    let negative = vaddlv_s16(vmin_s16(q, vdup_n_s16(0)));
    let mut t = vdupq_n_s16(-negative as i16);
    let each = [vdupq_lane_s16::<0>(q), vdupq_lane_s16::<1>(q), vdupq_lane_s16::<2>(q)];
    for (q, bits) in each.into_iter().zip(&BITS) {
        // SAFETY: eight words.
        let bits = unsafe { vld1q_u16(bits.as_ptr()) };
        t = vaddq_s16(t, vandq_s16(q, vreinterpretq_s16_u16(bits)));
    }
    let t0 = vreinterpretq_u16_s16(t);
    let t8 = vreinterpretq_u16_s16(vaddq_s16(t, vdupq_lane_s16::<3>(q)));
    let low = vandq_u8(vcombine_u8(vmovn_u16(t0), vmovn_u16(t8)), vdupq_n_u8(127));
    (low, vcombine_u8(vshrn_n_u16::<7>(t0), vshrn_n_u16::<7>(t8)))
}

/// Adds `2 T` of all lookups to the sums of every row block.
#[target_feature(enable = "neon")]
pub(super) fn rows(run: &Run<'_>, sums: &mut [IntSums]) {
    assert!(run.byte_cols <= RUN_COLS / 8);
    match run.vectors {
        1 => row_blocks::<1>(run, sums),
        VECTORS => row_blocks::<VECTORS>(run, sums),
        more => unreachable!("{more} vectors"),
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn row_blocks<const N: usize>(run: &Run<'_>, sums: &mut [IntSums]) {
    let blocks = sums.len() / N;
    for b in 0..blocks {
        let tile = &run.tile[b * run.stride..][..32 * run.byte_cols];
        let tables = std::array::from_fn(|i| &run.tables[i * run.table_stride..][..run.byte_cols]);
        for (i, halves) in row_block::<N>(tile, tables).into_iter().enumerate() {
            add(halves, &mut sums[i * blocks + b]);
        }
    }
}

/// 16-bit sums of the low and high halves of 32 rows.
type Halves = [[uint16x8_t; 4]; 2];

/// One row block: `tile` is 32 bytes per line of tables. Returns `T` for each vector of activations.
#[inline]
#[target_feature(enable = "neon")]
fn row_block<const N: usize>(tile: &[u8], tables: [&[Line]; N]) -> [Halves; N] {
    let nibble = vdupq_n_u8(15);
    let mut out = [[[vdupq_n_u16(0); 4]; 2]; N];
    let tables = tables.map(|t| t.as_ptr().cast::<u8>());
    for (i, bytes) in tile.chunks_exact(32).enumerate() {
        let index = [0, 16].map(|at| {
            // SAFETY: 32 bytes of signs.
            let v = unsafe { vld1q_u8(bytes.as_ptr().add(at)) };
            [vandq_u8(v, nibble), vshrq_n_u8::<4>(v)]
        });
        for (halves, t) in out.iter_mut().zip(tables) {
            for (half, sums) in halves.iter_mut().enumerate() {
                // SAFETY: one line of tables for every 32 bytes of signs.
                let table = [0, 16].map(|at| unsafe { vld1q_u8(t.add(64 * i + 32 * half + at)) });
                for (sums, index) in sums.chunks_exact_mut(2).zip(index) {
                    let pair = vaddq_u8(vqtbl1q_u8(table[0], index[0]), vqtbl1q_u8(table[1], index[1]));
                    sums[0] = vaddw_u8(sums[0], vget_low_u8(pair));
                    sums[1] = vaddw_high_u8(sums[1], pair);
                }
            }
        }
    }
    out
}

/// Adds `2 (low + 128 high)`.
#[inline]
#[target_feature(enable = "neon")]
fn add([low, high]: Halves, sums: &mut IntSums) {
    for ((low, high), sums) in low.into_iter().zip(high).zip(sums.chunks_exact_mut(8)) {
        let t = [
            vaddw_u16(vshll_n_u16::<7>(vget_low_u16(high)), vget_low_u16(low)),
            vaddw_high_u16(vshll_high_n_u16::<7>(high), low),
        ];
        for (t, sums) in t.into_iter().zip(sums.chunks_exact_mut(4)) {
            let p = sums.as_mut_ptr();
            // SAFETY: four integers.
            unsafe { vst1q_s32(p, vaddq_s32(vld1q_s32(p), vreinterpretq_s32_u32(vshlq_n_u32::<1>(t)))) };
        }
    }
}

/// # Safety
/// As [`write`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn out(sums: &IntSums, out: Output<'_>) {
    // SAFETY: four of 32 integers; the rest is passed on.
    unsafe { write(out, |i| vcvtq_f32_s32(vld1q_s32(sums[4 * i..4 * i + 4].as_ptr()))) }
}
