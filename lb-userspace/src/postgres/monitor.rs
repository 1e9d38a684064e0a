//! Asks the servers of a database, each on its own connection, and again and again.
//!
//! A server that hangs hangs nothing: connecting and each question have a limit, after which the
//! connection is given up. Every two seconds a new connection takes the place of the old one, so that a
//! server whose old sessions live while it takes no new ones is found out.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

use super::sample::{Failure, FailureKind, Sample};
use crate::clock;

pub mod conninfo;
pub mod link;
mod sql;

pub use link::{Link, Session};
pub use sql::{Detail, SlotState, StandbyState, sample};

/// A connection is replaced after this time.
const RENEW: Duration = Duration::from_secs(2);

/// Time between two looks at what changes slowly.
const DETAIL: Duration = Duration::from_secs(5);

/// What was found at a server.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub server: String,
    /// When it was asked, on the monotonic clock.
    pub asked: Duration,
    /// What it said.
    pub sample: Result<Sample, Failure>,
    /// More about it, now and then.
    pub detail: Option<Detail>,
    /// What is wrong although it answers.
    pub trouble: Option<String>,
}

/// Asks a server until it is aborted.
pub fn watch(link: Arc<Link>, every: Duration, found: mpsc::Sender<Found>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Watch { link, session: None, next: None, detailed: None, trouble: None };
        loop {
            ticks.tick().await;
            if found.send(watch.ask().await).await.is_err() {
                return;
            }
        }
    })
}

struct Watch {
    link: Arc<Link>,
    /// The connection, and when it was made.
    session: Option<(Session, Duration)>,
    /// A connection that was begun when an answer was late, and when.
    next: Option<Begun>,
    detailed: Option<Duration>,
    trouble: Option<String>,
}

impl Watch {
    async fn ask(&mut self) -> Found {
        let next = self.next.take();
        let asked = next.as_ref().map_or_else(clock::monotonic, |(begun, _)| *begun);
        let sample = match next {
            None => self.sample(asked).await,
            Some((begun, next)) => match next.await {
                Ok(Ok(session)) => {
                    self.session = Some((session, begun));
                    self.sample(asked).await
                }
                Ok(Err(failure)) => Err(failure),
                Err(panicked) => {
                    let reason = panicked.to_string();
                    Err(Failure { kind: FailureKind::Refuses, reason })
                }
            },
        };
        let due = self.detailed.is_none_or(|at| asked >= at + DETAIL);
        let mut detail = None;
        if let (Ok(sample), Some((session, _)), true) = (&sample, &self.session, due) {
            self.detailed = Some(asked);
            // What is missing of it now comes the next time.
            detail = sql::detail(session, sample.role).await.ok();
        }
        let trouble = self.trouble.clone();
        Found { server: self.link.server.clone(), asked, sample, detail, trouble }
    }

    async fn sample(&mut self, now: Duration) -> Result<Sample, Failure> {
        if self.session.as_ref().is_none_or(|(_, made)| now >= *made + RENEW) {
            match (self.link.connect().await, &self.session) {
                (Ok(session), _) => {
                    self.session = Some((session, now));
                    self.trouble = None;
                }
                (Err(failure), None) => return Err(failure),
                // The old one may still do.
                (Err(failure), Some(_)) => {
                    self.trouble = Some(format!("no new connections: {}", failure.reason));
                }
            }
        }
        let Some((session, _)) = &self.session else {
            let reason = "not connected".to_owned();
            return Err(Failure { kind: FailureKind::Silent, reason });
        };
        let (sample, next) = ask_twice(&self.link, session).await;
        if sample.is_err() {
            (self.session, self.next) = (None, next);
        } else if let Some((_, next)) = next {
            next.abort();
        }
        sample
    }
}

/// A connection that is being made, and since when.
type Begun = (Duration, JoinHandle<Result<Session, Failure>>);

/// Asks a server. If it is late, a new connection is begun meanwhile: whether that comes to nothing too is then
/// known the sooner.
async fn ask_twice(
    link: &Arc<Link>,
    session: &Session,
) -> (Result<Sample, Failure>, Option<Begun>) {
    let mut work = pin!(sql::sample(session));
    if let Ok(sample) = timeout(link.limit / 2, &mut work).await {
        return (sample, None);
    }
    let (begun, link) = (clock::monotonic(), Arc::clone(link));
    let next = tokio::spawn(async move { link.connect().await });
    (work.await, Some((begun, next)))
}

#[cfg(test)]
mod tests;
