//! Two clocks.

/// Where seconds come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Of the calling thread; stands still while it waits for a processor.
    Thread,
    Wall,
}

impl Clock {
    pub fn of(threads: usize) -> Self {
        if threads == 1 { Clock::Thread } else { Clock::Wall }
    }

    /// Seconds since some moment.
    pub fn now(self) -> f64 {
        let id = match self {
            Clock::Thread => libc::CLOCK_THREAD_CPUTIME_ID,
            Clock::Wall => libc::CLOCK_MONOTONIC,
        };
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a valid clock and a place to write to.
        assert_eq!(unsafe { libc::clock_gettime(id, &mut t) }, 0);
        t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
    }
}
