//! The NEON kernel (aarch64): a vector holds 16 rows of a row block, a lookup of 16 bytes answers all of them.
//!
//! No fused multiply-add anywhere: it would round differently from the portable kernel. f32 activations, a way of
//! checking, take the portable code.

mod int;

use super::ops::{IntTables, Ops, Output};
use super::quantize::{self, Extent};
use super::scalar::{self, write_rows};
use half::f16;
use std::arch::aarch64::*;
use std::arch::asm;

pub(super) const OPS: Ops = Ops {
    run_cols: int::RUN_COLS,
    vectors: int::VECTORS,
    extent,
    int_tables: IntTables::Each(int::tables),
    f32_tables: scalar::f32_tables,
    index: None,
    lanes: None,
    int_rows: int::rows,
    f32_rows: scalar::f32_rows,
    int_out: int::out,
    f32_out: scalar::f32_out,
};

/// Calls `f(i, pre * x of columns 8 i ..)` for `i < groups`; columns beyond the end of `x` are 0.
#[inline]
#[target_feature(enable = "neon")]
fn each_eight(x: &[f32], pre: Option<&[f16]>, groups: usize, mut f: impl FnMut(usize, [float32x4_t; 2])) {
    let whole = x.len() / 8;
    let pre = pre.map(|g| &g[..x.len()]);
    for i in 0..whole.min(groups) {
        // SAFETY: `8 i + 8 <= x.len() == g.len()`.
        let v = [0, 4].map(|j| unsafe {
            let v = vld1q_f32(x.as_ptr().add(8 * i + j));
            match pre {
                Some(g) => vmulq_f32(v, scales(g.as_ptr().add(8 * i + j))),
                None => v,
            }
        });
        f(i, v);
    }
    for i in whole..groups {
        let rest = quantize::eight(x, pre, 8 * i);
        // SAFETY: an array of eight floats.
        f(i, [0, 4].map(|j| unsafe { vld1q_f32(rest.as_ptr().add(j)) }));
    }
}

/// Four f16 scales as f32.
///
/// # Safety
/// `p` is valid for four values.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn scales(p: *const f16) -> float32x4_t {
    // SAFETY: eight bytes, by the caller's promise.
    let half = unsafe { vld1_u16(p.cast()) };
    let out: float32x4_t;
    // The intrinsic of this instruction is unstable.
    // SAFETY: part of every NEON; touches its operands alone.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) out, in(vreg) half, options(pure, nomem, nostack, preserves_flags))
    };
    out
}

#[target_feature(enable = "neon")]
fn extent(x: &[f32], pre: Option<&[f16]>) -> Extent {
    let (mut value, mut group) = (vdupq_n_u32(0), vdupq_n_u32(0));
    each_eight(x, pre, x.len().div_ceil(8), |_, v| {
        let v = v.map(|v| vabsq_f32(v));
        for v in v {
            value = vmaxq_u32(value, vreinterpretq_u32_f32(v));
        }
        let pairs = vpaddq_f32(v[0], v[1]);
        let fours = vabsq_f32(vpaddq_f32(pairs, pairs));
        group = vmaxq_u32(group, vreinterpretq_u32_f32(fours));
    });
    Extent { value: vmaxvq_u32(value), group: vmaxvq_u32(group) }
}

/// Writes the rows of `out`, four at a time; `sums(i)` are the rows from `4 i` as f32.
///
/// # Safety
/// `out.y` and `out.add` are valid for `out.rows` floats.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn write(out: Output<'_>, sums: impl Fn(usize) -> float32x4_t) {
    if let Some(post) = out.post {
        assert!(post.len() >= out.rows);
    }
    let whole = out.rows / 4;
    for i in 0..whole {
        let mut v = vmulq_n_f32(vmulq_n_f32(sums(i), out.step.step), out.step.unshift);
        // SAFETY: rows `4 i .. 4 i + 4` exist, so do their scales, by the assertion above.
        unsafe {
            if let Some(post) = out.post {
                v = vmulq_f32(v, scales(post.as_ptr().add(4 * i)));
            }
            if let Some(add) = out.add {
                v = vaddq_f32(vld1q_f32(add.add(4 * i)), v);
            }
            vst1q_f32(out.y.add(4 * i), v);
        }
    }
    if out.rows > 4 * whole {
        let mut rest = [0f32; 4];
        // SAFETY: an array of four floats; the rows are the caller's.
        unsafe {
            vst1q_f32(rest.as_mut_ptr(), sums(whole));
            write_rows(rest.into_iter(), 4 * whole, out);
        }
    }
}
