//! Figures: the same again and again, in a new lab each time. Once, unless `BALLAST_REPEATS` says how often.

use super::*;

/// How often figures are taken.
const REPEATS: &str = "BALLAST_REPEATS";

/// Does something as often as is asked for, and prints how long each took, the median and the longest.
pub(super) fn repeated(what: &str, once: impl Fn() -> Result<Duration>) -> Result<()> {
    let times = match std::env::var(REPEATS) {
        Ok(times) => times.parse().with_context(|| format!("read {REPEATS}"))?,
        Err(_) => 1,
    };
    let mut taken = Vec::new();
    for _ in 0..times {
        let took = once()?;
        println!("{what}: {took:?}");
        taken.push(took);
    }
    taken.sort();
    if let [.., longest] = taken[..]
        && times > 1
    {
        let median = (taken[(times - 1) / 2] + taken[times / 2]) / 2;
        println!("{what}: {times} times, median {median:?}, longest {longest:?}");
    }
    Ok(())
}
