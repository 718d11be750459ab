//! The threads of a run.

use super::report::Event;
use crate::error::{Error, Result};
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
