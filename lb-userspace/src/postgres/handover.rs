//! What comes before an orderly change of the primary: long transactions come to their end, while everything
//! still goes on; and the rehearsal, which asks the servers all that the change will, and changes nothing.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use tokio::time::sleep;

use super::{
    lsn::Lsn,
    monitor::{Link, Session, sample},
    sample::{Failure, Role},
};
use crate::clock;

/// An orderly change, as the operator asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The next primary; the most advanced if absent.
    pub server: Option<String>,
    /// Balancers that are off.
    pub absent: BTreeSet<String>,
    /// How long transactions that are older than [`YOUNG`] may go on.
    pub wait: Duration,
    /// Then they are ended. If not, nothing is changed.
    pub cut: bool,
    /// Nothing is changed at all.
    pub rehearse: bool,
}

/// A transaction that began within this time is not waited for: busy clients begin one after the other, so
/// that there would never be none.
pub const YOUNG: Duration = Duration::from_secs(1);

/// How long transactions may go on if nobody says so.
pub const WAIT: Duration = Duration::from_secs(10);

/// Time between two looks at the transactions.
const LOOK: Duration = Duration::from_millis(20);

/// How long the standby may take, in a rehearsal, to receive what the primary has written.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How long connecting, and one statement, may take.
pub const STATEMENT: Duration = Duration::from_secs(5);

/// The transactions of clients, the oldest first.
const OPEN: &str = "\
select count(*) over () as count, usename as role, application_name as name, state, \
  extract(epoch from clock_timestamp() - xact_start)::float8 as age \
from pg_stat_activity where backend_type = 'client backend' and xact_start is not null \
  and pid <> pg_backend_pid() and application_name <> 'ballast' order by xact_start limit 1";

/// Connections of clients.
const SESSIONS: &str = "\
select count(*) from pg_stat_activity where backend_type = 'client backend' \
  and application_name <> 'ballast'";

/// The transactions that are open.
#[derive(Clone, Debug, Default, PartialEq)]
struct Open {
    count: u64,
    /// Age of the oldest.
    oldest: Duration,
    /// Whose that is.
    whose: String,
}

impl Open {
    async fn look(session: &Session) -> Result<Self, Failure> {
        let rows = session.rows(OPEN).await?;
        let Some(row) = rows.first() else { return Ok(Self::default()) };
        let text = |column: &str| row.try_get(column).ok().flatten().unwrap_or_default();
        let age = text("age").parse().unwrap_or(0.0_f64).max(0.0);
        let name = Some(text("name")).filter(|it| !it.is_empty());
        let name = name.map_or_else(String::new, |name| format!(", {name}"));
        Ok(Self {
            count: text("count").parse().unwrap_or(0),
            oldest: Duration::try_from_secs_f64(age).unwrap_or_default(),
            whose: format!("{}{name}, {}", text("role"), text("state")),
        })
    }

    fn are_young(&self) -> bool {
        self.oldest < YOUNG
    }

    fn describe(&self) -> String {
        match self.count {
            0 => "no transaction is open".into(),
            count => {
                let (oldest, whose) = (self.oldest.as_secs_f64(), &self.whose);
                format!("{count} transactions are open, the oldest for {oldest:.1} s ({whose})")
            }
        }
    }
}

/// Waits until no transaction on the primary is older than [`YOUNG`]. It is an error if some are when the
/// time is over, unless they may be cut.
pub async fn settle(primary: &Link, handover: &Handover) -> Result<(), String> {
    let work = async {
        let session = primary.connect_for(STATEMENT).await?;
        let until = clock::monotonic() + handover.wait;
        loop {
            let open = Open::look(&session).await?;
            if open.are_young() {
                return Ok(None);
            }
            if clock::monotonic() >= until {
                return Ok(Some(open));
            }
            sleep(LOOK).await;
        }
    };
    match work.await {
        Ok(Some(open)) if !handover.cut => Err(format!(
            "{}, after {} s: end it, wait longer (--wait), or let it be cut (--cut). Nothing has changed",
            open.describe(),
            handover.wait.as_secs()
        )),
        Ok(_) => Ok(()),
        Err(Failure { reason, .. }) => Err(format!("{}: {reason}", primary.server)),
    }
}

/// Asks both servers all that the change will, and says what it would find.
pub async fn rehearse(
    primary: &Link,
    standby: &Link,
    handover: &Handover,
) -> Result<String, String> {
    let (from, to) = (&primary.server, &standby.server);
    let at = |server: &str| {
        let server = server.to_owned();
        move |failure: Failure| format!("{server}: {}", failure.reason)
    };
    let old = primary.connect_for(STATEMENT).await.map_err(at(from))?;
    let new = standby.connect_for(STATEMENT).await.map_err(at(to))?;
    let found = sample(&new).await.map_err(at(to))?;
    if found.role != Role::Standby {
        return Err(format!("{to} is no standby"));
    }
    if let Some(lacks) = found.lacks {
        return Err(format!("{to}: our role lacks {lacks}"));
    }
    if found.paused {
        return Err(format!("{to}: its replay is paused"));
    }
    let mut out = String::new();
    // Writing to a `String` cannot fail.
    let open = Open::look(&old).await.map_err(at(from))?;
    let then = match (open.are_young(), handover.cut) {
        (true, _) => "none is waited for".to_owned(),
        (false, true) => format!("they may go on for {} s, and are cut", handover.wait.as_secs()),
        (false, false) => format!(
            "they may go on for {} s; if they are open then, nothing changes",
            handover.wait.as_secs()
        ),
    };
    let _ = writeln!(out, "transactions:  {}: {then}", open.describe());
    let sessions = old.value(SESSIONS).await.map_err(at(from))?.unwrap_or_default();
    let _ = writeln!(
        out,
        "connections:   {sessions} to {from} would be reset; new ones would wait, 10 s at most"
    );
    let end = old.value("select pg_current_wal_flush_lsn()").await.map_err(at(from))?;
    let end: Lsn = end
        .and_then(|end| end.parse().ok())
        .ok_or_else(|| format!("{from}: it does not say where its log ends"))?;
    let took = received(&new, end).await.map_err(at(to))?;
    let _ = writeln!(
        out,
        "log:           {to} had all of it, up to {end}, after {:.1} ms",
        took.as_secs_f64() * 1e3
    );
    let _ = writeln!(out, "nothing was done");
    Ok(out)
}

/// Waits until a standby has received the log up to there; says how long that took.
async fn received(session: &Session, end: Lsn) -> Result<Duration, Failure> {
    let began = clock::monotonic();
    loop {
        let found = sample(session).await?;
        let took = clock::monotonic().saturating_sub(began);
        if found.received >= end {
            return Ok(took);
        }
        if took >= CATCH_UP {
            return Err(Failure {
                kind: super::sample::FailureKind::Refuses,
                reason: format!("{} bytes of log do not come", end.since(found.received)),
            });
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_described_by_its_oldest() {
        assert!(Open::default().are_young());
        assert_eq!(Open::default().describe(), "no transaction is open");
        let open = Open {
            count: 3,
            oldest: Duration::from_millis(34_210),
            whose: "app, psql, idle in transaction".into(),
        };
        assert!(!open.are_young());
        assert_eq!(
            open.describe(),
            "3 transactions are open, the oldest for 34.2 s (app, psql, idle in transaction)"
        );
    }
}
