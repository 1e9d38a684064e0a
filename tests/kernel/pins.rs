//! Pins of one test, as the daemon makes them.

use anyhow::Result;
use ballast::dataplane::{Dataplane, Options, Sizes, remove_pins};

/// A directory of pins, removed at the test's end.
pub(crate) struct Pins(Options);

impl Pins {
    /// Named after the test; small tables.
    pub(crate) fn new(test: &str) -> Self {
        let pins = format!("/sys/fs/bpf/ballast-test-{test}-{}", std::process::id()).into();
        Self(Options {
            pins,
            max_flows: 4096,
            max_half_open: 1024,
            sizes: Sizes::default(),
            discard_pins: false,
        })
    }

    /// As a daemon does at its start: what is pinned is gone on with.
    pub(crate) fn open(&self) -> Result<Dataplane> {
        Dataplane::open(&self.0)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        remove_pins(&self.0.pins).expect("remove the pins");
    }
}
