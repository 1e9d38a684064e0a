//! Many seeds on all processors, and one again.

use std::{
    num::NonZero,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// Names the one seed that is played again, as `KIND:SEED`.
const AGAIN: &str = "BALLAST_SIM";

/// Multiplies the number of seeds.
const TIMES: &str = "BALLAST_SIM_TIMES";

/// Plays `count` seeds of a kind. `play` gives what is wrong; its second argument asks it to tell every
/// step.
///
/// # Panics
/// At the first seed that is wrong, with the command that plays it again.
pub(crate) fn run(kind: &str, count: u64, play: impl Fn(u64, bool) -> Result<(), String> + Sync) {
    if let Ok(again) = std::env::var(AGAIN) {
        if let Some((_, seed)) = again.split_once(':').filter(|(name, _)| *name == kind) {
            let seed = seed.parse().expect("a number after the colon");
            let result = play(seed, true);
            assert_eq!(result, Ok(()), "seed {seed} of {kind}");
        }
        return;
    }
    let times = std::env::var(TIMES).map_or(1, |times| times.parse().expect("a number"));
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count * times {
                return None;
            }
            if let Err(wrong) = play(seed, false) {
                next.store(u64::MAX / 2, Ordering::Relaxed);
                return Some((seed, wrong));
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let wrong = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().map(|thread| thread.join().expect("play a seed"));
        results.flatten().min()
    });
    if let Some((seed, wrong)) = wrong {
        panic!(
            "seed {seed} of {kind}: {wrong}\nagain, step by step: \
             {AGAIN}={kind}:{seed} cargo test -p lb-tests --test sim {kind} -- --nocapture"
        );
    }
}
