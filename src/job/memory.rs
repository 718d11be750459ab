//! How the process holds memory, and how much.

/// Keeps freed buffers for the next ones instead of returning every large one to the system: a training step frees
/// and takes hundreds of buffers of some MiB, and fresh pages cost a quarter of its time. The peak stays the same.
pub fn keep_freed_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, bytes) in
        [(libc::M_MMAP_THRESHOLD, 1 << 30), (libc::M_TRIM_THRESHOLD, i32::MAX), (libc::M_TOP_PAD, 64 << 20)]
    {
        // SAFETY: sets a parameter of the allocator; it may refuse, and then only speed is lost.
        unsafe { libc::mallopt(parameter, bytes) };
    }
}

/// Largest resident set of this process so far, in bytes; 0 where the system does not tell.
pub fn peak_rss() -> u64 {
    // SAFETY: getrusage fills the zeroed struct that it is given and keeps no pointer.
    let (status, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::getrusage(libc::RUSAGE_SELF, &mut usage), usage)
    };
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    if status == 0 { usage.ru_maxrss as u64 * unit } else { 0 }
}
