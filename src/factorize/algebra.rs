//! Where the matrices of a factorization live and what computes with them: the algorithms are written once, for the CPU
//! ([`Host`]) and for a GPU.

use crate::cuda::Failure;
use std::borrow::Cow;
use std::ops::Range;

/// What a computation gives: a device may fail, the CPU does not.
pub(crate) type Computed<T> = std::result::Result<T, Failure>;

/// Memory for f32 numbers. Borrowed input lives for `'a`.
pub(super) trait Algebra<'a> {
    /// Numbers in that memory.
    type Values;

    /// Numbers of the caller, not to be changed.
    fn borrow(&self, values: &'a [f32]) -> Computed<Self::Values>;
    /// Numbers to keep.
    fn own(&self, values: Vec<f32>) -> Computed<Self::Values>;
    /// `n` numbers that will be overwritten.
    fn blank(&self, n: usize) -> Computed<Self::Values>;
    /// Part of them for the caller to read.
    fn read<'v>(&self, values: &'v Self::Values, part: Range<usize>) -> Computed<Cow<'v, [f32]>>;
    /// All of them for the caller to keep.
    fn take(&self, values: Self::Values) -> Computed<Vec<f32>>;
    /// Replaces those from `at` on.
    fn write(&self, values: &mut Self::Values, at: usize, from: &[f32]) -> Computed<()>;
}

/// The CPU, on the current rayon pool.
pub(super) struct Host;

impl<'a> Algebra<'a> for Host {
    type Values = Cow<'a, [f32]>;

    fn borrow(&self, values: &'a [f32]) -> Computed<Self::Values> {
        Ok(Cow::Borrowed(values))
    }

    fn own(&self, values: Vec<f32>) -> Computed<Self::Values> {
        Ok(Cow::Owned(values))
    }

    fn blank(&self, n: usize) -> Computed<Self::Values> {
        Ok(Cow::Owned(vec![0.0; n]))
    }

    fn read<'v>(&self, values: &'v Self::Values, part: Range<usize>) -> Computed<Cow<'v, [f32]>> {
        Ok(Cow::Borrowed(&values[part]))
    }

    fn take(&self, values: Self::Values) -> Computed<Vec<f32>> {
        Ok(values.into_owned())
    }

    fn write(&self, values: &mut Self::Values, at: usize, from: &[f32]) -> Computed<()> {
        values.to_mut()[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
}

/// The value on the CPU, where nothing fails.
pub(super) fn certain<T>(result: Computed<T>) -> T {
    result.expect("the CPU does not fail")
}
