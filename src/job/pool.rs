//! The threads of a run.

use super::report::Event;
use crate::error::{Error, Result};
use crate::plan::{MatrixSpec, Plan};
use crate::tune::BlockOutcome;

/// Starts `threads` threads.
pub(super) fn start(threads: usize) -> Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Error::usage(format!("cannot start {threads} threads: {e}")))
}

/// Runs `work` on `pool` while its events are shown by this thread.
pub(super) fn in_pool<T: Send>(
    pool: &rayon::ThreadPool,
    work: impl FnOnce(&mut dyn FnMut(Event)) -> Result<T> + Send,
    show: &mut dyn FnMut(Event),
) -> Result<T> {
    enum Message {
        Stage(&'static str, usize, usize, Option<f64>),
        Block(usize, usize, BlockOutcome),
        Note(String),
    }
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            pool.install(|| {
                work(&mut |e: Event| {
                    let message = match e {
                        Event::Stage { name, done, total, value } => Message::Stage(name, done, total, value),
                        Event::Block { index, count, outcome } => Message::Block(index, count, *outcome),
                        Event::Note(text) => Message::Note(text.to_owned()),
                        // The thread that shows them sends these itself.
                        Event::Planned(_) | Event::Rule { .. } | Event::Warning(_) | Event::Matrix { .. } => {
                            return;
                        }
                    };
                    // Nobody listens any more only if this thread is unwinding.
                    let _ = send.send(message);
                })
            })
        });
        for message in receive {
            match message {
                Message::Stage(name, done, total, value) => show(Event::Stage { name, done, total, value }),
                Message::Block(index, count, outcome) => {
                    show(Event::Block { index, count, outcome: &outcome });
                }
                Message::Note(text) => show(Event::Note(&text)),
            }
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Threads that factorize different matrices at once: as many as asked for, while their working sets
/// (about six times the largest matrix in f32: weight, products and both factors with their duals) fit in
/// 1 GiB together. Below that number the matrices themselves are computed in parallel.
pub(super) fn workers(threads: usize, specs: &[MatrixSpec], plan: &Plan) -> usize {
    let set = specs.iter().zip(&plan.entries).map(|(s, e)| {
        let (m, n, r) = (s.d_out, s.d_in, e.rank);
        4 * (2 * m * n + 5 * r * (m + n) + 2 * r * r)
    });
    let largest = set.max().unwrap_or(1);
    ((1 << 30) / largest).clamp(1, threads.max(1))
}
