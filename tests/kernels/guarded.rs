//! Every buffer ends at a page that must not be touched.

use crate::oracle::Random;
use littlebit::kernel::{self, Mode, Stage};

/// Memory whose last byte is followed by an inaccessible page.
struct Guarded<T> {
    base: *mut u8,
    bytes: usize,
    start: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    fn new(values: &[T]) -> Self {
        const PAGE: usize = 64 << 10;
        let inner = size_of_val(values).next_multiple_of(PAGE);
        let bytes = inner + PAGE;
        // SAFETY: a fresh anonymous mapping; its last page is then closed.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base =
                libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            let base = base.cast::<u8>();
            assert_eq!(libc::mprotect(base.add(inner).cast(), PAGE, libc::PROT_NONE), 0);
            let start = base.add(inner - size_of_val(values)).cast::<T>();
            std::ptr::copy_nonoverlapping(values.as_ptr(), start, values.len());
            Guarded { base, bytes, start, len: values.len() }
        }
    }
    fn as_slice(&self) -> &[T] {
        // SAFETY: `len` values written at the start.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
    fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

#[test]
fn nothing_beyond_the_buffers_is_touched() {
    let mut random = Random(10);
    for (rows, cols) in [(1, 1), (33, 17), (9, 4097), (40, 31), (64, 64), (12, 8203)] {
        for n in [1, 3] {
            let signs = random.signs(rows, cols);
            let tile = Guarded::new(signs.as_bytes());
            let pre = Guarded::new(&random.scales(cols, 1.0));
            let post = Guarded::new(&random.scales(rows, 1.0));
            let x: Vec<f32> = (0..cols * n).map(|_| random.normal()).collect();
            let x = Guarded::new(&x);
            let add = Guarded::new(&vec![1f32; rows * n]);
            for (kernel, mode) in
                kernel::available().into_iter().flat_map(|k| [(k, Mode::Int), (k, Mode::F32)])
            {
                let stage = Stage {
                    rows,
                    cols,
                    tile: tile.as_slice(),
                    pre: Some(pre.as_slice()),
                    post: Some(post.as_slice()),
                };
                let mut work = Guarded::new(&vec![0u8; stage.work_size(n, mode)]);
                let mut y = Guarded::new(&vec![0f32; rows * n]);
                let addend = Some((add.as_slice().as_ptr(), rows));
                let (xp, yp) = (x.as_slice().as_ptr(), y.as_mut_slice().as_mut_ptr());
                // SAFETY: n dense columns each.
                unsafe { stage.run(kernel, mode, xp, cols, n, addend, yp, rows, work.as_mut_slice(), 0, 1) };
                assert!(y.as_slice().iter().all(|y| y.is_finite()));
            }
        }
    }
}
