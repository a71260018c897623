//! The embedded registry for tests that are not async, such as those that run the program.

use std::ops::Deref;
use std::time::Duration;

use ocifs::demo::registry::{Content, Record, Registry};
use tokio::runtime::{Builder, Runtime};

/// An embedded registry on a runtime of its own; all methods of [`Registry`] can be called on it.
#[derive(Debug)]
pub(crate) struct Embedded {
    // Dropped first, while there is a runtime to end its connections on.
    registry: Registry,
    _runtime: Runtime,
}

impl Embedded {
    pub(crate) fn start(content: Content) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("registry").enable_all().build();
        let runtime = runtime.expect("a thread can be started");
        let registry = runtime.block_on(Registry::start(content)).expect("a port is free");
        Self { registry, _runtime: runtime }
    }

    /// A name for an image in it: `127.0.0.1:PORT/repository:tag`.
    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.registry.addr())
    }
}

impl Deref for Embedded {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}

/// The most requests of which each began after the one before had ended: round trips, if each takes a while.
pub(crate) fn round_trips(records: &[Record]) -> usize {
    let mut spans: Vec<_> = records.iter().filter_map(|record| Some((record.ended?, record.arrived))).collect();
    spans.sort();
    let mut last = Duration::ZERO;
    spans
        .iter()
        .filter(|(ended, arrived)| {
            *arrived >= last && {
                last = *ended;
                true
            }
        })
        .count()
}
