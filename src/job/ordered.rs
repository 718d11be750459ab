//! Work on many threads, results in order, with a bounded number of items under way.

use crate::error::Result;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};

struct State<R> {
    next: usize,
    delivered: usize,
    done: BTreeMap<usize, Result<R>>,
    stop: bool,
}

/// Runs `work(0..n)` on `workers` threads and hands the results to `sink` on the calling thread in order.
///
/// At most `2 * workers` items are started and not yet delivered, which bounds memory. The first error, in
/// item order, ends the run and is returned.
pub fn run<R: Send>(
    n: usize,
    workers: usize,
    work: impl Fn(usize) -> Result<R> + Sync,
    mut sink: impl FnMut(usize, R) -> Result<()>,
) -> Result<()> {
    let window = 2 * workers.max(1);
    let state = Mutex::new(State { next: 0, delivered: 0, done: BTreeMap::new(), stop: false });
    let changed = Condvar::new();
    let worker = || {
        // A worker that panics must not leave the sink waiting for its item.
        let _stop = Stop { state: &state, changed: &changed, only_on_panic: true };
        loop {
            let i = {
                let mut s = state.lock().expect("no panic under the lock");
                while !s.stop && s.next < n && s.next >= s.delivered + window {
                    s = changed.wait(s).expect("no panic under the lock");
                }
                if s.stop || s.next >= n {
                    return;
                }
                s.next += 1;
                s.next - 1
            };
            let r = work(i);
            state.lock().expect("no panic under the lock").done.insert(i, r);
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        // Workers stop on every way out of this scope.
        let _stop = Stop { state: &state, changed: &changed, only_on_panic: false };
        for _ in 0..workers.clamp(1, n.max(1)) {
            scope.spawn(worker);
        }
        for i in 0..n {
            let r = {
                let mut s = state.lock().expect("no panic under the lock");
                loop {
                    if let Some(r) = s.done.remove(&i) {
                        break r;
                    }
                    if s.stop {
                        // A worker panicked; leaving the scope passes the panic on.
                        return Ok(());
                    }
                    s = changed.wait(s).expect("no panic under the lock");
                }
            };
            sink(i, r?)?;
            state.lock().expect("no panic under the lock").delivered = i + 1;
            changed.notify_all();
        }
        Ok(())
    })
}

/// Ends the run when dropped.
struct Stop<'a, R> {
    state: &'a Mutex<State<R>>,
    changed: &'a Condvar,
    only_on_panic: bool,
}

impl<R> Drop for Stop<'_, R> {
    fn drop(&mut self) {
        if !self.only_on_panic || std::thread::panicking() {
            self.state.lock().unwrap_or_else(|e| e.into_inner()).stop = true;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn keeps_order_and_window() {
        for workers in [1, 2, 5] {
            let live = Mutex::new((0usize, 0usize));
            let mut got = Vec::new();
            run(
                200,
                workers,
                |i| {
                    let mut l = live.lock().unwrap();
                    l.0 += 1;
                    l.1 = l.1.max(l.0);
                    Ok(i * i)
                },
                |i, r| {
                    live.lock().unwrap().0 -= 1;
                    got.push((i, r));
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(got, (0..200).map(|i| (i, i * i)).collect::<Vec<_>>());
            assert!(live.lock().unwrap().1 <= 2 * workers);
        }
    }

    #[test]
    fn first_error_wins_and_stops() {
        let work = |i| if i >= 7 { Err(Error::usage(format!("{i}"))) } else { Ok(i) };
        let mut seen = 0;
        let e = run(1000, 4, work, |_, _| {
            seen += 1;
            Ok(())
        });
        assert_eq!(e.unwrap_err().to_string(), "7");
        assert_eq!(seen, 7);
        let e = run(10, 2, Ok, |i, _| if i == 3 { Err(Error::usage("sink")) } else { Ok(()) });
        assert_eq!(e.unwrap_err().to_string(), "sink");
        run(0, 3, Ok, |_, _| Ok(())).unwrap();
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let r = std::panic::catch_unwind(|| {
            run(50, 3, |i| if i == 5 { panic!("boom") } else { Ok(i) }, |_, _| Ok(()))
        });
        assert!(r.is_err());
    }
}
