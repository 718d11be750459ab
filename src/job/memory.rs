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

/// Bytes of memory that this process can have at most: the machine's, or less where its control group says so. `None` where the
/// system does not tell.
pub fn machine() -> Option<u64> {
    // SAFETY: sysconf takes numbers and returns one.
    let [pages, page] = [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
    let all = u64::try_from(pages).ok()?.checked_mul(u64::try_from(page).ok()?)?;
    // Control groups, version 2 and 1, as a container sees its own.
    let groups = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = groups.iter().filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
    limits.chain([all]).min()
}
