//! Factorized matrix products on the CPU, straight from the sign tile.
//!
//! One path of a factorized weight is two products of the same kind, each a [`Stage`]:
//!
//! ```text
//! t = l * (V^T (g * x))      pre = g, post = l
//! y = h * (U t)              pre = none, post = h
//! ```
//!
//! # What every kernel computes
//!
//! For a column `x` of `cols` floats ([`Mode::Int`]), in exactly this order of f32 operations, so that all
//! kernels return the same bits (a NaN is a NaN, its payload is not fixed):
//!
//! 1. `v_k = x_k * pre_k` (`x_k` without `pre`).
//! 2. One step `s` for the column by the group rule, [`quantize`]: as fine as `|q| <= 8191` and
//!    `|q_0| + .. + |q_3| <= 16383` in every aligned group of four allow.
//! 3. `q_k = round_ties_even(v_k / s)`.
//! 4. `i_r = sum_k sign(r, k) q_k`, exact in i32 for up to [`MAX_COLS`] columns.
//! 5. `y_r = add_r + ((f32(i_r) * s) * u) * post_r`, where `u` is 1 unless the column is so small that it was
//!    scaled up before step 2 ([`quantize::Step`]).
//!
//! [`Mode::F32`] leaves out the rounding: `v` is summed by fours in f32, chunks of [`F32_CHUNK`] columns in
//! f32, the chunks in f64, again in one fixed order for all kernels.
//!
//! A column that is not finite after step 1, or whose group sums overflow, gives a column of NaN in both
//! modes. Columns never influence each other, and neither the number of threads nor the batch size changes a
//! bit of a result.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod arithmetic;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dispatch;
mod lanes;
mod matmul;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod ops;
#[cfg(target_arch = "x86_64")]
mod pages;
pub mod quantize;
mod scalar;
mod scratch;
mod stage;

pub use arithmetic::Mode;
pub use dispatch::{ENV, Kernel, active, available, force, from_env};
pub use matmul::{PathRef, matmul};
pub use ops::F32_CHUNK;
pub use stage::{MAX_COLS, Stage};
