//! Waiting for something to become true.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::interrupt;

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(10);

/// Asks until there is an answer; an error is final. `what` ends the sentence "waited 5 s for …".
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        interrupt::check()?;
        if Instant::now() >= end {
            bail!("waited {limit:?} for {what}");
        }
        thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_again_until_there_is_an_answer() {
        let mut asked = 0;
        let answer = until(Duration::from_mins(1), "three", || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(answer.unwrap(), 3);
    }

    #[test]
    fn it_says_what_it_waited_for() {
        let error = until::<()>(Duration::ZERO, "the moon", || Ok(None)).unwrap_err();
        assert_eq!(error.to_string(), "waited 0ns for the moon");
    }
}
