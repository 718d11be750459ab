//! What every stage of a run took, read off its events.

use super::memory;
use super::report::{Event, StageReport};
use std::time::Instant;

/// Listens to a run.
pub(super) struct Stages {
    last: Instant,
    all: Vec<StageReport>,
}

impl Stages {
    /// The run begins.
    pub fn new() -> Self {
        Self { last: Instant::now(), all: Vec::new() }
    }

    /// A stage ends with its last event, and the next one begins.
    pub fn hear(&mut self, event: &Event) {
        let name = match event {
            Event::Stage { name, .. } => *name,
            Event::Matrix { .. } => "write",
            // Part of a stage that goes on.
            _ => return,
        };
        let now = Instant::now();
        if self.all.last().is_none_or(|s| s.name != name) {
            self.all.push(StageReport { name: name.into(), seconds: 0.0, peak_rss: 0 });
        }
        let stage = self.all.last_mut().expect("there is one");
        stage.seconds += now.duration_since(self.last).as_secs_f64();
        stage.peak_rss = memory::peak_rss();
        self.last = now;
    }

    /// In order.
    pub fn done(self) -> Vec<StageReport> {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_between_events_belongs_to_the_stage_of_the_later_one() {
        let mut stages = Stages::new();
        let wait = || std::thread::sleep(std::time::Duration::from_millis(20));
        let event = |name| Event::Stage { name, done: 1, total: 2, value: None };
        for name in ["a", "a", "b"] {
            wait();
            stages.hear(&event(name));
            stages.hear(&Event::Note("nothing"));
        }
        let all = stages.done();
        assert_eq!(all.iter().map(|s| &*s.name).collect::<Vec<_>>(), ["a", "b"]);
        assert!(all[0].seconds >= 0.04 && all[1].seconds >= 0.02 && all[1].seconds < all[0].seconds + 10.0);
        assert!(all[0].peak_rss <= all[1].peak_rss);
    }
}
