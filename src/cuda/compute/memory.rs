//! Memory of the device.

use super::Session;
use crate::cuda::Failure;
use crate::cuda::driver::checked;
use cudarc::driver::sys;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError};

/// Device memory of numbers, freed when it is dropped. Stays on the thread whose session allocated it.
#[derive(Debug)]
pub struct Buffer {
    pointer: sys::CUdeviceptr,
    /// Numbers of 4 bytes.
    len: usize,
    /// The context is that of a thread.
    _thread: std::marker::PhantomData<*const ()>,
}

/// Bytes that are allocated for `n` numbers.
fn allocation(n: usize) -> usize {
    4 * n.max(1)
}

impl Buffer {
    /// Address of number `at`.
    ///
    /// # Panics
    /// If it lies beyond the end.
    pub fn at(&self, at: usize) -> u64 {
        assert!(at <= self.len, "number {at} of {}", self.len);
        self.pointer + 4 * at as u64
    }

    /// Address of the first number.
    pub fn start(&self) -> u64 {
        self.pointer
    }

    /// Numbers in it.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once. The driver waits for launches that use it.
        unsafe { sys::cuMemFree_v2(self.pointer) };
    }
}

/// Memory that nobody uses at the moment: what comes next takes it, or it is freed where room is needed. Allocations and their
/// ends make a GPU wait, and products come by the thousand, in few sizes.
#[derive(Debug, Default)]
pub(super) struct Idle(Mutex<Vec<(sys::CUdeviceptr, usize)>>);

impl Idle {
    fn all(&self) -> std::sync::MutexGuard<'_, Vec<(sys::CUdeviceptr, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees it; on a thread that has the context.
    pub(super) fn free(&self) {
        for (pointer, _) in self.all().drain(..) {
            // SAFETY: allocated once, and here it has no owner.
            unsafe { sys::cuMemFree_v2(pointer) };
        }
    }
}

/// Device memory that may stay longer than a session and go from thread to thread; it becomes idle when it is dropped.
#[derive(Debug)]
pub struct Kept {
    buffer: ManuallyDrop<Buffer>,
    idle: Arc<Idle>,
}

// SAFETY: an address and its length. What is done with it needs a session; that it is dropped calls nothing of the driver's.
unsafe impl Send for Kept {}
// SAFETY: as above.
unsafe impl Sync for Kept {}

impl Deref for Kept {
    type Target = Buffer;
    fn deref(&self) -> &Buffer {
        &self.buffer
    }
}

impl DerefMut for Kept {
    fn deref_mut(&mut self) -> &mut Buffer {
        &mut self.buffer
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Launches that still use it come before those that will: all are on one stream.
        self.idle.all().push((self.buffer.pointer, allocation(self.buffer.len)));
    }
}

impl Session<'_> {
    /// Memory for `n` numbers of any content, of what lies idle if it fits exactly.
    ///
    /// # Errors
    /// As [`Session::blank`].
    pub fn reuse(&self, n: usize) -> Result<Kept, Failure> {
        let capacity = allocation(n);
        let found = {
            let mut all = self.gpu.idle.all();
            all.iter().rposition(|(_, bytes)| *bytes == capacity).map(|at| all.swap_remove(at))
        };
        let buffer = match found {
            Some((pointer, _)) => Buffer { pointer, len: n, _thread: std::marker::PhantomData },
            None => self.blank(n)?,
        };
        Ok(Kept { buffer: ManuallyDrop::new(buffer), idle: self.gpu.idle.clone() })
    }

    /// Copies numbers to such memory.
    ///
    /// # Errors
    /// As [`Session::blank`].
    pub fn send<T: bytemuck::Pod>(&self, values: &[T]) -> Result<Kept, Failure> {
        let mut kept = self.reuse(size_of_val(values) / 4)?;
        self.write(&mut kept, 0, values)?;
        Ok(kept)
    }

    /// Frees what lies idle.
    pub fn free_idle(&self) {
        self.gpu.idle.free();
    }

    /// Memory for `n` numbers of any content.
    ///
    /// # Errors
    /// [`Failure::Memory`], [`Failure::Driver`].
    pub fn blank(&self, n: usize) -> Result<Buffer, Failure> {
        let capacity = allocation(n);
        let mut pointer = 0;
        // SAFETY: writes an address.
        let mut result = unsafe { sys::cuMemAlloc_v2(&mut pointer, capacity) };
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            self.free_idle();
            // SAFETY: as above.
            result = unsafe { sys::cuMemAlloc_v2(&mut pointer, capacity) };
        }
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(Failure::Memory(capacity as u64));
        }
        checked("cuMemAlloc", result)?;
        Ok(Buffer { pointer, len: n, _thread: std::marker::PhantomData })
    }

    /// Copies numbers to the device.
    ///
    /// # Errors
    /// As [`Session::blank`].
    pub fn upload<T: bytemuck::Pod>(&self, values: &[T]) -> Result<Buffer, Failure> {
        let mut buffer = self.blank(size_of_val(values) / 4)?;
        self.write(&mut buffer, 0, values)?;
        Ok(buffer)
    }

    /// Replaces those from number `at` on.
    ///
    /// # Errors
    /// [`Failure::Driver`].
    pub fn write<T: bytemuck::Pod>(
        &self,
        buffer: &mut Buffer,
        at: usize,
        values: &[T],
    ) -> Result<(), Failure> {
        let bytes = size_of_val(values);
        assert!(4 * at + bytes <= 4 * buffer.len, "{bytes} bytes at {at} of {}", buffer.len);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as many bytes as the slice has, which fit behind `at`; the call returns when the slice is read.
        checked("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoD_v2(buffer.at(at), values.as_ptr().cast(), bytes) })
    }

    /// Numbers `part` (counted in 4 bytes) of the device, once all launches are done.
    ///
    /// # Errors
    /// [`Failure::Driver`], also for a fault of a launch before.
    pub fn download<T: bytemuck::Pod>(&self, buffer: &Buffer, part: Range<usize>) -> Result<Vec<T>, Failure> {
        assert!(part.end <= buffer.len && (4 * part.len()).is_multiple_of(size_of::<T>()));
        let mut values = vec![T::zeroed(); 4 * part.len() / size_of::<T>()];
        if !part.is_empty() {
            // SAFETY: as many bytes as the vector has, which the buffer has from there on. The copy waits for the default stream.
            checked("cuMemcpyDtoH", unsafe {
                sys::cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), buffer.at(part.start), 4 * part.len())
            })?;
        }
        Ok(values)
    }

    /// Bytes that are free.
    ///
    /// # Errors
    /// [`Failure::Driver`].
    pub fn free(&self) -> Result<u64, Failure> {
        Ok(self.memory()?[0])
    }

    /// Bytes that are free or lie idle, and all that the device has.
    ///
    /// # Errors
    /// [`Failure::Driver`].
    pub fn room(&self) -> Result<[u64; 2], Failure> {
        let idle: usize = self.gpu.idle.all().iter().map(|(_, bytes)| bytes).sum();
        let [free, total] = self.memory()?;
        Ok([free + idle as u64, total])
    }

    fn memory(&self) -> Result<[u64; 2], Failure> {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: writes two numbers.
        checked("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok([free as u64, total as u64])
    }
}
