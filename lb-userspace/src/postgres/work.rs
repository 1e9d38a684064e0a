//! What a change of the primary does to the servers, over SQL. Each may be repeated.

use std::{net::SocketAddr, time::Duration};

use tokio::time::sleep;

use super::{
    failover::{PromoteError, Promotion},
    lsn::Lsn,
    monitor::{Link, Session, conninfo, sample},
    record::{Branch, Mark},
    sample::{Failure, FailureKind, Role, Sample},
    sync::SyncRule,
};
use crate::clock;

/// How long one statement of a change may take.
const STATEMENT: Duration = Duration::from_secs(5);

/// Tries to write a checkpoint, and the time between two.
const CHECKPOINT_TRIES: u32 = 30;
const CHECKPOINT_AGAIN: Duration = Duration::from_secs(1);

/// How long it is tried to reach a server on which a change depends: a moment in which it, or this host, is busy
/// must not end the change.
const CONNECT: Duration = Duration::from_secs(2);

/// How long one statement that changes what commits wait for may take, and how long it is tried to connect for it.
/// What arrives late does so before the setting may change again.
const SYNC_STATEMENT: Duration = Duration::from_secs(2);
const SYNC_CONNECT: Duration = Duration::from_secs(1);

/// How long a standby may take to let go of its source.
const REVOKE: Duration = Duration::from_secs(4);

/// How long a server may take from the order to the first write: what it has received and not replayed
/// comes first, at 50 MB a second or more.
const PROMOTE: Duration = Duration::from_mins(5);

/// How long open transactions of the old primary may go on in an orderly change.
const QUIESCE: Duration = Duration::from_secs(10);

/// How long a standby may take to receive the rest.
const CATCH_UP: Duration = Duration::from_secs(30);

/// Time between two looks while something is waited for.
const LOOK: Duration = Duration::from_millis(5);

fn literal(text: &str) -> String {
    // With this prefix, a backslash is one whatever the server's settings are.
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Connects to a server that has answered a moment ago.
async fn connect(link: &Link) -> Result<Session, Failure> {
    persist(CONNECT, || link.connect_soon()).await
}

/// Tries to connect for so long. What a server that lives says is not asked for twice.
async fn persist<F>(time: Duration, connect: impl Fn() -> F) -> Result<Session, Failure>
where
    F: Future<Output = Result<Session, Failure>>,
{
    let until = clock::monotonic() + time;
    loop {
        match connect().await {
            Err(failure) if failure.kind.is_down() && clock::monotonic() < until => {
                sleep(LOOK * 10).await;
            }
            result => return result,
        }
    }
}

async fn reload(session: &Session) -> Result<(), Failure> {
    session.rows("select pg_reload_conf()").await.map(drop)
}

async fn setting(session: &Session, name: &str) -> Result<String, Failure> {
    let name = literal(name);
    let value =
        session.value(&format!("select setting from pg_settings where name = {name}")).await;
    Ok(value?.unwrap_or_default())
}

/// Takes a standby's way to its source, and waits until it has let go; then says how it stands. One
/// that does not allow that is told as it is.
pub async fn revoke(link: &Link) -> Result<Sample, Failure> {
    let session = connect(link).await?;
    if let Err(failure) = try_revoke(&session).await {
        // Its place in the log is worth knowing all the same.
        tracing::warn!(server = link.server, reason = failure.reason, "take a standby off");
        return sample(&session).await;
    }
    let until = clock::monotonic() + REVOKE;
    let mut quiet = 0;
    loop {
        let found = sample(&session).await?;
        let streams = found.receiver.as_ref().is_some_and(|receiver| receiver.streaming);
        // Twice, as the receiver may have been about to start.
        quiet = if found.revoked && !streams { quiet + 1 } else { 0 };
        if quiet >= 2 || clock::monotonic() >= until {
            // It may be the one that is promoted.
            link.give_back(session);
            return Ok(Sample { revoked: quiet >= 2, ..found });
        }
        sleep(LOOK).await;
    }
}

async fn try_revoke(session: &Session) -> Result<(), Failure> {
    let current = setting(session, "primary_conninfo").await?;
    let new = conninfo::revoke(&current)
        .map_err(|error| Failure { kind: FailureKind::Unfit, reason: error.to_string() })?;
    if new != current {
        session.run(&format!("alter system set primary_conninfo = {}", literal(&new))).await?;
    }
    reload(session).await
}

/// Lets a standby follow the primary at `source`.
pub async fn follow(standby: &Link, primary: &Link) -> Result<(), Failure> {
    let session = standby.connect_for(STATEMENT).await?;
    let current = setting(&session, "primary_conninfo").await?;
    let source: SocketAddr = primary.address;
    let new = conninfo::follow(&current, source)
        .map_err(|error| Failure { kind: FailureKind::Unfit, reason: error.to_string() })?;
    let slot = setting(&session, "primary_slot_name").await?;
    if !slot.is_empty() && make_slot(primary, &slot).await.is_err() {
        // Without its slot it would not get anything.
        session.run("alter system set primary_slot_name = ''").await?;
    }
    session.run(&format!("alter system set primary_conninfo = {}", literal(&new))).await?;
    reload(&session).await
}

async fn make_slot(primary: &Link, slot: &str) -> Result<(), Failure> {
    let session = primary.connect_for(STATEMENT).await?;
    let slot = literal(slot);
    let statement = format!(
        "select pg_create_physical_replication_slot({slot}, true) where not exists \
         (select from pg_replication_slots where slot_name = {slot})"
    );
    session.rows(&statement).await.map(drop)
}

/// Waits until no client has a transaction open on the primary, and says where its log ends.
pub async fn quiesce(link: &Link) -> Result<Lsn, String> {
    let work = async {
        let session = link.connect_for(STATEMENT).await?;
        let until = clock::monotonic() + QUIESCE;
        loop {
            let open = session
                .value(
                    "select count(*) from pg_stat_activity where backend_type = 'client backend' \
                     and xact_start is not null and pid <> pg_backend_pid() \
                     and application_name <> 'ballast'",
                )
                .await?;
            if open.as_deref() == Some("0") {
                let end = session.value("select pg_current_wal_flush_lsn()").await?;
                let end = end.and_then(|end| end.parse().ok());
                return end.ok_or_else(|| Failure {
                    kind: FailureKind::Unfit,
                    reason: "it does not say where its log ends".into(),
                });
            }
            if clock::monotonic() >= until {
                return Err(Failure {
                    kind: FailureKind::Refuses,
                    reason: format!(
                        "{} transactions are open after {} s",
                        open.unwrap_or_default(),
                        QUIESCE.as_secs()
                    ),
                });
            }
            sleep(LOOK * 4).await;
        }
    };
    work.await.map_err(|failure| format!("{}: {}", link.server, failure.reason))
}

/// Waits until a standby has received the log up to `end`.
pub async fn catch_up(link: &Link, end: Lsn) -> Result<(), String> {
    let work = async {
        let session = link.connect_for(STATEMENT).await?;
        let until = clock::monotonic() + CATCH_UP;
        loop {
            let found = sample(&session).await?;
            if found.received >= end {
                return Ok(());
            }
            if clock::monotonic() >= until {
                let missing = end.since(found.received);
                let reason = format!("{missing} bytes of log do not come");
                return Err(Failure { kind: FailureKind::Refuses, reason });
            }
            sleep(LOOK).await;
        }
    };
    work.await.map_err(|failure| format!("{}: {}", link.server, failure.reason))
}

/// Promotes a standby of the history `from`, unless it has left that already, and shows by a write that
/// it is a primary.
pub async fn promote(link: &Link, mark: &Mark, from: Branch) -> Result<Promotion, PromoteError> {
    let mut sent = false;
    try_promote(link, mark, from, &mut sent)
        .await
        .map_err(|failure| PromoteError { sent, why: failure.reason })
}

async fn try_promote(
    link: &Link,
    mark: &Mark,
    from: Branch,
    sent: &mut bool,
) -> Result<Promotion, Failure> {
    let unfit = |reason: String| Failure { kind: FailureKind::Unfit, reason };
    let session = connect(link).await?;
    let before = sample(&session).await?;
    if before.system_id != from.system_id {
        return Err(unfit("it belongs to another cluster".into()));
    }
    if let Some(lacks) = before.lacks {
        return Err(unfit(format!("our role lacks {lacks}")));
    }
    if before.role == Role::Primary && before.timeline <= from.timeline {
        return Err(unfit("it is no standby".into()));
    }
    if before.role == Role::Standby {
        *sent = true;
        session.rows("select pg_promote(false)").await?;
        let until = clock::monotonic() + PROMOTE;
        while session.value("select pg_is_in_recovery()").await?.as_deref() != Some("f") {
            if clock::monotonic() >= until {
                return Err(unfit("it is in recovery still".into()));
            }
            sleep(LOOK).await;
        }
    }
    // It waits for no standby, as there may be none: that writes are possible is what is asked.
    let (epoch, server, node) = (mark.epoch, literal(&mark.server), literal(&mark.node));
    session
        .run(&format!(
            "begin; set local synchronous_commit = local; \
             insert into ballast.mark (epoch, server, node) values ({epoch}, {server}, {node}) \
             on conflict (epoch) do update set server = excluded.server, node = excluded.node, \
             written = now(); commit"
        ))
        .await?;
    let row = session
        .row(
            "select ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int \
             as timeline, coalesce(pg_last_wal_replay_lsn(), pg_current_wal_lsn()) as switch",
        )
        .await?;
    let text = |column: &str| row.try_get(column).ok().flatten();
    let timeline = text("timeline").and_then(|it| it.parse().ok());
    let switch = text("switch").and_then(|it| it.parse().ok());
    match (timeline, switch) {
        (Some(timeline), Some(switch)) => Ok(Promotion { timeline, switch }),
        _ => Err(unfit("it does not say its timeline".into())),
    }
}

/// Says whether the checkpointer waits for something to do, where it has taken new settings. Who decides
/// whether commits wait reads what that process has taken.
const TAKEN: &str = "select count(*) from pg_stat_activity where backend_type = 'checkpointer' \
                     and wait_event in ('CheckpointerMain', 'CheckpointWriteDelay')";

/// Sets `synchronous_standby_names`, and waits until it is in force. With `need`, so many of the standbys
/// must be there, and are waited for until commits wait for them and they have all that was committed
/// before: then it says where the log ended.
pub async fn set_sync(link: &Link, names: &str, need: usize) -> Result<Lsn, Failure> {
    let session = persist(SYNC_CONNECT, || link.connect_for(SYNC_STATEMENT)).await?;
    let unfit = |reason: String| Failure { kind: FailureKind::Unfit, reason };
    let rule = SyncRule::parse(names);
    if let Some(rule) = rule.filter(|_| need > 0) {
        let there = sample(&session).await?.there(&rule);
        if there < need {
            return Err(unfit(format!("{there} of {need} synchronous standbys are there")));
        }
    }
    session
        .run(&format!("alter system set synchronous_standby_names = {}", literal(names)))
        .await?;
    reload(&session).await?;
    let until = clock::monotonic() + if need > 0 { CATCH_UP } else { REVOKE };
    let mut end: Option<Lsn> = None;
    loop {
        if end.is_none()
            && setting(&session, "synchronous_standby_names").await? == names
            && (need == 0 || session.value(TAKEN).await?.as_deref() != Some("0"))
        {
            let at = session
                .value(
                    "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() \
                        else pg_current_wal_lsn() end",
                )
                .await?;
            end = Some(at.and_then(|at| at.parse().ok()).unwrap_or_default());
        }
        if let Some(end) = end {
            let have = format!(
                "select count(*) from pg_stat_replication where state = 'streaming' \
                 and sync_state in ('sync', 'quorum') and flush_lsn >= '{end}'"
            );
            let have = if need > 0 { session.value(&have).await? } else { None };
            if have.and_then(|it| it.parse().ok()).unwrap_or(0) >= need {
                return Ok(end);
            }
        }
        if clock::monotonic() >= until {
            return Err(unfit(match end {
                None => "the new setting does not come into force".into(),
                Some(end) => format!("too few standbys have the log up to {end}"),
            }));
        }
        sleep(LOOK * 4).await;
    }
}

/// The clients that come back to a new primary are not to wait for the disk while it writes its checkpoint.
const REST: Duration = Duration::from_secs(2);

/// Writes a checkpoint, when those have come back who wait for the server. One that is busy with its first clients
/// may refuse another for a while.
pub async fn checkpoint(link: &Link) -> Result<(), Failure> {
    sleep(REST).await;
    let mut tries = 0;
    loop {
        let done = match link.connect_for(Duration::from_mins(10)).await {
            Ok(session) => session.run("checkpoint").await,
            Err(failure) => Err(failure),
        };
        tries += 1;
        if done.is_ok() || tries == CHECKPOINT_TRIES {
            return done;
        }
        sleep(CHECKPOINT_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use super::*;
    use crate::postgres::fixture::one_server;

    /// A server that lets us in with the connection of this number, and whose others hang.
    fn server(serves: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for number in 1..=serves {
                let (mut stream, _) = listener.accept().unwrap();
                if number == serves {
                    let mut hello = [0; 512];
                    assert!(stream.read(&mut hello).unwrap() > 8);
                    // AuthenticationOk, and ReadyForQuery (PostgreSQL's protocol 3.0).
                    stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").unwrap();
                }
                kept.push(stream);
            }
            // Until the client goes.
            let _ = kept.last_mut().map(|it| it.read(&mut [0; 512]));
        });
        address
    }

    fn link(address: SocketAddr) -> Link {
        let (database, server) = one_server(address, Duration::from_millis(200));
        Link::new(&database, &server)
    }

    #[tokio::test]
    async fn one_connection_that_hangs_ends_nothing() {
        let link = link(server(2));
        let session = persist(Duration::from_mins(1), || link.connect_for(SYNC_STATEMENT)).await;
        assert!(session.is_ok(), "{session:?}");
    }
}
