//! Carving a caller's unaligned scratch bytes into tables and accumulators.

use bytemuck::{AnyBitPattern, NoUninit, Pod, Zeroable};

/// A cache line, the unit of tables and scratch memory.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u8; 64]);

impl Line {
    pub const ZERO: Line = Line([0; 64]);
}

pub(super) const LINE: usize = size_of::<Line>();

/// The whole aligned lines inside `bytes`.
pub(super) fn lines(bytes: &mut [u8]) -> &mut [Line] {
    let start = bytes.as_ptr().align_offset(LINE).min(bytes.len());
    let bytes = &mut bytes[start..];
    let whole = bytes.len() / LINE * LINE;
    bytemuck::cast_slice_mut(&mut bytes[..whole])
}

/// Lines seen as values whose size is a multiple or a fraction of a line's.
pub(super) fn view<T: NoUninit + AnyBitPattern>(lines: &mut [Line]) -> &mut [T] {
    bytemuck::cast_slice_mut(lines)
}
