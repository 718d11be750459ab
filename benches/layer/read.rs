//! How fast memory can be read: what streaming weights cannot beat.

use crate::cores::team;

/// Words of 64 bytes.
type Line = [u64; 8];

/// Bytes that are asked for ahead; the fastest of a few tried.
const PREFETCH: usize = 4096;

pub struct Memory(Vec<Line>);

impl Memory {
    pub fn new(bytes: usize) -> Self {
        // Written, so that every page is there.
        Memory((0..bytes / size_of::<Line>()).map(|i| [i as u64; 8]).collect())
    }

    /// Reads everything once, each thread its part.
    pub fn read(&self, threads: usize) {
        team(self.0.chunks(self.0.len().div_ceil(threads)), |_, part| {
            std::hint::black_box(fold(part));
        });
    }
}

fn fold(lines: &[Line]) -> Line {
    let mut all = [0; 8];
    for line in lines {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch may point anywhere.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().wrapping_byte_add(PREFETCH).cast());
        }
        all.iter_mut().zip(line).for_each(|(all, word)| *all ^= word);
    }
    all
}
