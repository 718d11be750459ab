//! Teams of threads on cores of their own: threads that were just made share the core of their maker until the system moves them, which
//! takes longer than a sample.

/// Runs `job(i, part i)` of all parts side by side, the first of them on the calling thread; a single part just there.
pub fn team<T: Send>(parts: impl IntoIterator<Item = T>, job: impl Fn(usize, T) + Sync) {
    let mut parts = parts.into_iter().enumerate().peekable();
    let (first, part) = parts.next().expect("at least one part");
    if parts.peek().is_none() {
        return job(first, part);
    }
    let (cores, job) = (Cores::allowed(), &job);
    std::thread::scope(|scope| {
        for (i, part) in parts {
            scope.spawn(move || {
                cores.take(i);
                job(i, part);
            });
        }
        cores.take(first);
        job(first, part);
    });
    cores.leave();
}

/// The cores that this process may use.
#[derive(Clone, Copy)]
struct Cores(libc::cpu_set_t);

impl Cores {
    fn allowed() -> Self {
        // SAFETY: an empty set is all zeros.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: a set of this size, of the calling thread.
        assert_eq!(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) }, 0);
        Cores(set)
    }

    /// Moves the calling thread to the `i`-th of them, counted round.
    fn take(&self, i: usize) {
        // SAFETY: numbers within the set.
        let there = (0..libc::CPU_SETSIZE as usize).filter(|&c| unsafe { libc::CPU_ISSET(c, &self.0) });
        let cores: Vec<usize> = there.collect();
        // SAFETY: an empty set is all zeros.
        let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: a number within the set.
        unsafe { libc::CPU_SET(cores[i % cores.len()], &mut one) };
        set(&one);
    }

    /// Lets the calling thread go where it may.
    fn leave(&self) {
        set(&self.0);
    }
}

fn set(cores: &libc::cpu_set_t) {
    // SAFETY: a set of this size, for the calling thread.
    assert_eq!(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cores) }, 0);
}
