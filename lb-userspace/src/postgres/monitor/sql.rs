//! What is asked, in SQL that versions 12 to 17 understand, and what the answers mean.

use serde::{Deserialize, Serialize};
use tokio_postgres::SimpleQueryRow;

use super::{
    conninfo,
    link::{Session, unfit},
};
use crate::postgres::{
    record::Mark,
    sample::{Failure, Receiver, Replica, Role, Sample},
    sync::SyncRule,
};
use std::time::Duration;

/// The oldest version that has `pg_promote`.
const OLDEST: u32 = 120_000;

/// One row about the server. It takes the settings from the view, which leaves out what the role may not
/// see, and does not fail.
const SERVER: &str = "\
select pg_is_in_recovery() as in_recovery, \
  current_setting('server_version_num') as version, \
  current_setting('is_superuser') as superuser, \
  pg_has_role(current_user, 'pg_monitor', 'member') as monitor, \
  (select system_identifier from pg_control_system()) as system_id, \
  extract(epoch from pg_postmaster_start_time())::bigint as started, \
  case when pg_is_in_recovery() \
    then greatest(w.received_tli, (select timeline_id from pg_control_checkpoint()), \
                  (select min_recovery_end_timeline from pg_control_recovery())) \
    else ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int \
  end as timeline, \
  case when pg_is_in_recovery() \
    then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
    else pg_current_wal_flush_lsn() end as received, \
  case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end \
    as replayed, \
  case when pg_is_in_recovery() then pg_is_wal_replay_paused() end as paused, \
  (select setting from pg_settings where name = 'recovery_min_apply_delay') as delay_ms, \
  (select setting from pg_settings where name = 'wal_receiver_timeout') as patience_ms, \
  w.status as receiver, w.sender_host as source, \
  extract(epoch from clock_timestamp() - w.last_msg_receipt_time)::float8 as heard_s, \
  (select setting from pg_settings where name = 'primary_conninfo') as conninfo, \
  (select setting from pg_settings where name = 'synchronous_standby_names') as sync_names, \
  (select setting from pg_settings where name = 'synchronous_commit') as sync_commit, \
  has_function_privilege('pg_promote(boolean, integer)', 'execute') as may_promote, \
  to_regclass('ballast.mark') is not null as has_mark \
from (select 1) as one left join pg_stat_wal_receiver as w on true";

const MARK: &str = "select epoch, server, node from ballast.mark order by epoch desc limit 1";

const REPLICAS: &str = "\
select application_name, host(client_addr) as address, state, sync_state from pg_stat_replication";

/// Asks a server what it is.
pub async fn sample(session: &Session) -> Result<Sample, Failure> {
    let version = session.value("select current_setting('server_version_num')");
    let row = match session.row(SERVER).await {
        Ok(row) => row,
        // An old one does not know all that is asked for.
        Err(failure) => {
            let version = version.await.ok().flatten().and_then(|it| it.parse::<u32>().ok());
            return Err(version.and_then(too_old).unwrap_or(failure));
        }
    };
    let text = |column: &str| row.try_get(column).ok().flatten();
    let missing = |column: &str| unfit(format!("it does not say its {column}"));
    let number = |column: &str| text(column).and_then(|it| it.parse().ok());
    let version = number("version").ok_or_else(|| missing("version"))? as u32;
    if let Some(failure) = too_old(version) {
        return Err(failure);
    }
    if text("monitor") == Some("f") && text("superuser") != Some("on") {
        return Err(unfit(
            "our role is no member of pg_monitor; `ballast pg setup` prints the SQL".into(),
        ));
    }
    let role = if text("in_recovery") == Some("t") { Role::Standby } else { Role::Primary };
    let lsn = |column: &str| text(column).and_then(|it| it.parse().ok());
    let received = lsn("received").ok_or_else(|| missing("place in the log"))?;
    let receiver = text("receiver").map(|status| Receiver {
        streaming: status == "streaming",
        host: text("source").unwrap_or_default().to_owned(),
        heard: seconds(&row, "heard_s"),
    });
    let waits = matches!(text("sync_commit"), Some("on" | "remote_apply" | "remote_write"));
    let sync = text("sync_names").filter(|_| waits).and_then(SyncRule::parse);
    let has_mark = text("has_mark") == Some("t");
    let mark = if has_mark { mark(session).await? } else { None };
    let replicas = if role == Role::Primary { replicas(session).await? } else { Vec::new() };
    let system_id = text("system_id").and_then(|it| it.parse().ok());
    Ok(Sample {
        role,
        system_id: system_id.ok_or_else(|| missing("system identifier"))?,
        timeline: number("timeline").ok_or_else(|| missing("timeline"))? as u32,
        received,
        replayed: lsn("replayed").unwrap_or(received),
        mark,
        receiver: receiver.filter(|_| role == Role::Standby),
        patience: number("patience_ms")
            .filter(|it| *it > 0)
            .map(|it: i64| Duration::from_millis(it as u64)),
        paused: text("paused") == Some("t"),
        delay: Duration::from_millis(number("delay_ms").unwrap_or(0).max(0) as u64),
        revoked: role == Role::Standby && text("conninfo").is_some_and(conninfo::is_revoked),
        sync,
        sync_names: text("sync_names").unwrap_or_default().to_owned(),
        replicas,
        lacks: if text("may_promote") != Some("t") {
            Some("EXECUTE on pg_promote".into())
        } else if !has_mark {
            Some("the table ballast.mark".into())
        } else {
            None
        },
        started: number("started").unwrap_or(0),
        version,
    })
}

fn too_old(version: u32) -> Option<Failure> {
    let major = version / 10_000;
    (version < OLDEST).then(|| {
        unfit(format!(
            "it is PostgreSQL {major}, which is too old: 12 is the oldest that can be promoted"
        ))
    })
}

fn seconds(row: &SimpleQueryRow, column: &str) -> Option<Duration> {
    let seconds: f64 = row.try_get(column).ok().flatten()?.parse().ok()?;
    Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default())
}

async fn mark(session: &Session) -> Result<Option<Mark>, Failure> {
    let rows = session.rows(MARK).await?;
    Ok(rows.first().and_then(|row| {
        let text = |column: &str| row.try_get(column).ok().flatten();
        let (server, node) = (text("server")?.to_owned(), text("node")?.to_owned());
        Some(Mark { epoch: text("epoch")?.parse().ok()?, server, node })
    }))
}

async fn replicas(session: &Session) -> Result<Vec<Replica>, Failure> {
    let rows = session.rows(REPLICAS).await?;
    let text = |row: &SimpleQueryRow, column: &str| {
        row.try_get(column).ok().flatten().unwrap_or_default().to_owned()
    };
    let replicas = rows.iter().map(|row| Replica {
        name: text(row, "application_name"),
        address: text(row, "address").parse().ok(),
        state: text(row, "state"),
        sync_state: text(row, "sync_state"),
    });
    Ok(replicas.collect())
}

/// What changes slowly.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    /// Bytes of all databases.
    pub size_bytes: u64,
    /// Sessions of clients, and how many there may be.
    pub sessions: u32,
    /// `max_connections`.
    pub max_sessions: u32,
    /// Its replication slots.
    pub slots: Vec<SlotState>,
    /// The standbys that it feeds.
    pub standbys: Vec<StandbyState>,
    /// Our role may change `synchronous_standby_names`; absent where that cannot be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_degrade: Option<bool>,
    /// Why nothing can be written on its disk; absent if something can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cannot_write: Option<String>,
    /// What will go wrong at a change of the primary, or makes it slow.
    pub advice: Vec<String>,
}

/// A replication slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Name.
    pub name: String,
    /// It is used now.
    pub active: bool,
    /// Bytes of log that are kept for it.
    pub retained_bytes: u64,
    /// `reserved`, `extended`, `unreserved` or `lost`; empty before version 13.
    pub wal_status: String,
}

/// A standby, as the server that feeds it sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandbyState {
    /// `application_name`.
    pub name: String,
    /// Its address.
    pub address: String,
    /// `streaming`, `catchup`…
    pub state: String,
    /// `async`, `sync`, `potential` or `quorum`.
    pub sync_state: String,
    /// Bytes of log that it has not replayed.
    pub lag_bytes: u64,
}

const SIZES: &str = "\
select (select coalesce(sum(size), 0) from (select pg_database_size(oid) as size \
    from pg_database where datallowconn) as sizes)::bigint as size, \
  (select count(*) from pg_stat_activity where backend_type = 'client backend') as sessions, \
  current_setting('max_connections') as most, \
  current_setting('wal_log_hints') = 'on' or current_setting('data_checksums') = 'on' \
    as rewinds, \
  (select setting from pg_settings where name = 'wal_receiver_timeout') as receiver_ms, \
  current_setting('hot_standby') = 'on' as hot, \
  current_setting('server_version_num')::int >= 150000 as grants, \
  current_setting('is_superuser') = 'on' as superuser";

/// Sorts half a megabyte with the least memory, so that a file of that size is written where tables are, and removed
/// again. It needs no right, changes nothing that is kept, and is the same on a standby. All is one transaction.
const WRITE: &str = "\
set local work_mem = '64kB'; set local temp_tablespaces = ''; \
select count(*) from (select repeat(md5(number::text), 8) as line \
  from generate_series(1, 2000) as number order by line) as lines";

/// Before version 15 only a superuser may.
const MAY_DEGRADE: &str =
    "select has_parameter_privilege('synchronous_standby_names', 'alter system')";

/// Looks at what changes slowly.
pub(super) async fn detail(session: &Session, role: Role) -> Result<Detail, Failure> {
    let row = session.row(SIZES).await?;
    let text = |row: &SimpleQueryRow, column: &str| {
        row.try_get(column).ok().flatten().unwrap_or_default().to_owned()
    };
    let number = |row: &SimpleQueryRow, column: &str| -> u64 {
        text(row, column).split('.').next().and_then(|it| it.parse().ok()).unwrap_or(0)
    };
    let end =
        if role == Role::Primary { "pg_current_wal_lsn()" } else { "pg_last_wal_replay_lsn()" };
    let sent = if role == Role::Primary { end } else { "pg_last_wal_receive_lsn()" };
    let slots = session
        .rows(&format!(
            "select slot_name as name, active, pg_wal_lsn_diff({end}, restart_lsn) as retained, \
             to_jsonb(slot) ->> 'wal_status' as wal_status from pg_replication_slots as slot"
        ))
        .await?;
    let standbys = session
        .rows(&format!(
            "select application_name as name, host(client_addr) as address, state, sync_state, \
             greatest(pg_wal_lsn_diff({sent}, replay_lsn), 0) as lag from pg_stat_replication"
        ))
        .await?;
    let may_degrade = match (text(&row, "superuser").as_str(), text(&row, "grants").as_str()) {
        ("t", _) => Some(true),
        (_, "t") => session.value(MAY_DEGRADE).await?.map(|it| it == "t"),
        _ => Some(false),
    };
    let cannot_write = session.refusal(WRITE).await?;
    let mut advice = Vec::new();
    if text(&row, "rewinds") == "f" {
        advice.push(
            "no wal_log_hints and no checksums: after a change of the primary it cannot be \
                     rewound, only cloned anew"
                .to_owned(),
        );
    }
    if number(&row, "receiver_ms") > 5000 {
        advice.push(
            "wal_receiver_timeout is above 5 s: a standby takes that long to say that the \
                     primary is silent"
                .to_owned(),
        );
    }
    Ok(Detail {
        size_bytes: number(&row, "size"),
        sessions: number(&row, "sessions") as u32,
        max_sessions: number(&row, "most") as u32,
        slots: slots
            .iter()
            .map(|slot| SlotState {
                name: text(slot, "name"),
                active: text(slot, "active") == "t",
                retained_bytes: number(slot, "retained"),
                wal_status: text(slot, "wal_status"),
            })
            .collect(),
        standbys: standbys
            .iter()
            .map(|standby| StandbyState {
                name: text(standby, "name"),
                address: text(standby, "address"),
                state: text(standby, "state"),
                sync_state: text(standby, "sync_state"),
                lag_bytes: number(standby, "lag"),
            })
            .collect(),
        may_degrade,
        cannot_write,
        advice,
    })
}
