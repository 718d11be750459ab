//! Memory that ends at a page that must not be touched.

/// Memory whose last byte is followed by an inaccessible page.
pub struct Guarded<T> {
    base: *mut u8,
    bytes: usize,
    start: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    pub fn new(values: &[T]) -> Self {
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
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` values written at the start.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
    pub fn as_mut_slice(&mut self) -> &mut [T] {
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
