//! Who may have lost writes by a promotion: the clients that sent something to the old primary after the last
//! moment at which all of its log is known to have been at the new one.
//!
//! The stamps in the flow table do not say that: the end of a primary sends a last packet over every connection.
//! So the connections are looked at while all is well, once a second or less often, and once more when the
//! primary begins to fail and when it is replaced. Who has sent more bytes since the last look before that moment
//! than empty packets have is named. A connection that has ended stays in the table for five seconds, so a look
//! finds those too that were shorter than the time between two; only where looks were further apart, as with a
//! very large table, may some be missing, and then the report says so.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{lsn::Lsn, record::Loss, store};
use crate::control::{status::NamedFlow, task::Handle as Control};

/// Connections that are looked at: more than a server has.
const MOST_FLOWS: usize = 20_000;

/// Clients that a report names; it counts the rest.
const MOST_CLIENTS: usize = 10_000;

/// Clients that `status` names.
const MOST_SHOWN: usize = 20;

/// Reports of a database that are kept.
const MOST_REPORTS: u64 = 20;

/// Bytes of an empty TCP packet with timestamps, Ethernet header included: over IPv4, and over IPv6.
const EMPTY: [u64; 2] = [66, 86];

/// Looks that follow each other within this time see every connection: one that is over is in the table for 5 s.
const NEAR: Duration = Duration::from_millis(4500);

/// Whom a report may miss, in words, if looks were further apart, or not at all that there was.
const UNSEEN: &str = "some that came and went between two looks may not be among them";

/// Looks that are younger are kept as they are.
const DENSE: Duration = Duration::from_secs(20);

/// Looks that are older are of no use: a standby that is further behind is not promoted unless nothing else
/// is left.
const OLDEST: Duration = Duration::from_mins(5);

/// A connection of a client to the old primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// The client.
    pub address: SocketAddr,
    /// It was connected at this time; it may have begun a look earlier, a second or less before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Timestamp>,
    /// Its last packet, or the last one to it.
    pub last: Timestamp,
    /// Bytes that it has sent since then, headers included.
    pub sent_bytes: u64,
}

/// Who may have lost writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The epoch that the promotion began.
    pub epoch: u64,
    /// When the report was made.
    pub time: Timestamp,
    /// The old primary.
    pub from: String,
    /// The new one.
    pub to: String,
    /// Where the new one's log ended when it was promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Lsn>,
    /// The last moment at which all of the old one's log is known to have been at the new one; none if that
    /// is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// The look that bytes are counted from; none if there was none before `since`, and then all are named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_from: Option<Timestamp>,
    /// How many clients there are, also if fewer are named.
    pub count: usize,
    /// The clients, the last one that was heard first.
    pub clients: Vec<Client>,
    /// Whom it may miss; empty if nobody.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unseen: String,
    /// The file that names them.
    #[serde(default)]
    pub file: PathBuf,
}

impl Report {
    /// As `status` shows it.
    #[must_use]
    pub fn shown(&self) -> Self {
        let clients = self.clients.iter().take(MOST_SHOWN).cloned().collect();
        Self { clients, ..self.clone() }
    }

    /// For a person.
    pub fn describe(&self) -> String {
        let Self { from, to, count, .. } = self;
        if self.loss.is_some_and(|loss| loss.proven) {
            return format!(
                "no acknowledged write is lost; {count} clients had connections to {from} that ended"
            );
        }
        let since = match self.since {
            Some(since) => format!(
                "since {}, the last time that {to} is known to have had all of its log",
                since.strftime("%T%.3f UTC")
            ),
            None => format!("at any time, as it is not known when {to} last had all of its log"),
        };
        let names: Vec<_> =
            self.clients.iter().take(MOST_SHOWN).map(|it| it.address.to_string()).collect();
        let names =
            if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
        let unseen = &self.unseen;
        let unseen = if unseen.is_empty() { String::new() } else { format!("; {unseen}") };
        format!("{count} clients may have lost writes to {from}, {since}{names}{unseen}")
    }
}

/// When a connection had its last packet, and what its client has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// It was there then.
    first: Duration,
    last: Duration,
    bytes: u64,
    packets: u64,
}

/// The connections to a server, as they were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    clients: BTreeMap<SocketAddr, Seen>,
    /// There were more than are kept.
    partial: bool,
}

impl Connections {
    /// Looks at those of one service. `now` is on the monotonic clock.
    pub async fn look(control: &Control, service: &str, server: &str, now: Duration) -> Self {
        let mut seen = Self::default();
        match control.flows(Some(service.to_owned()), MOST_FLOWS).await {
            Ok(mut batches) => {
                let mut count = 0;
                while let Some(Ok(batch)) = batches.recv().await {
                    count += batch.len();
                    seen.add(&batch, server, now);
                }
                seen.partial = count >= MOST_FLOWS;
            }
            Err(error) => {
                tracing::warn!(%error, service, "look at the connections");
                seen.partial = true;
            }
        }
        seen
    }

    fn add(&mut self, flows: &[NamedFlow], server: &str, now: Duration) {
        for NamedFlow { flow, .. } in
            flows.iter().filter(|it| it.backend_name.as_deref() == Some(server))
        {
            let last = now.saturating_sub(Duration::from_millis(flow.idle_ms));
            let (bytes, packets) = (flow.forward_bytes, flow.forward_packets);
            self.insert(flow.client, Seen { first: last, last, bytes, packets });
        }
    }

    fn insert(&mut self, client: SocketAddr, new: Seen) {
        let known = self.clients.entry(client).or_insert(new);
        // One that began anew at the same port has sent less than the one before.
        let [older, newer] = if new.last > known.last { [*known, new] } else { [new, *known] };
        let same = older.bytes <= newer.bytes;
        let first = if same { older.first.min(newer.first) } else { newer.first };
        *known = Seen { first, ..newer };
    }

    /// Adds those that another look has seen.
    pub fn join(&mut self, other: &Self) {
        for (&client, &seen) in &other.clients {
            self.insert(client, seen);
        }
        self.partial |= other.partial;
    }

    /// Leaves those that were heard last, if there are more than a look may have.
    fn limit(&mut self, most: usize) {
        let Some(over) = self.clients.len().checked_sub(most).filter(|over| *over > 0) else {
            return;
        };
        let mut ages: Vec<_> = self.clients.values().map(|seen| seen.last).collect();
        let (_, oldest, _) = ages.select_nth_unstable(over - 1);
        let oldest = *oldest;
        self.clients.retain(|_, seen| seen.last > oldest);
        self.partial = true;
    }
}

/// A look, or several that have become one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Look {
    /// When the last of them was taken.
    at: Duration,
    seen: Connections,
    /// The longest time between each of them and the one before.
    apart: Duration,
}

/// The looks of the past: dense lately, and the sparser the older.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(VecDeque<Look>);

impl History {
    /// Adds a look.
    pub fn add(&mut self, now: Duration, seen: Connections) {
        let apart = self.0.back().map_or(Duration::ZERO, |last| now.saturating_sub(last.at));
        self.0.push_back(Look { at: now, seen, apart });
        let age = |look: &Look| now.saturating_sub(look.at);
        while self.0.front().is_some_and(|look| age(look) > OLDEST) {
            self.0.pop_front();
        }
        // Of two that stand between one and another at most twice as young, one says enough: the later one
        // takes what the other has seen, and so still names who came and went before it.
        let mut at = 1;
        while at + 1 < self.0.len() {
            if age(&self.0[at]) >= DENSE
                && age(&self.0[at - 1]) <= 2 * age(&self.0[at + 1])
                && let Some(gone) = self.0.remove(at)
            {
                let next = &mut self.0[at];
                next.seen.join(&gone.seen);
                next.seen.limit(MOST_FLOWS);
                next.apart = next.apart.max(gone.apart);
            } else {
                at += 1;
            }
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The last look until then, and what all later ones have seen, until `now`.
    fn split(&self, since: Option<Duration>, now: Duration) -> (Option<&Look>, Look) {
        let is_before = |look: &&Look| since.is_some_and(|since| look.at <= since);
        let last = self.0.back().map_or(now, |look| look.at);
        let apart = now.saturating_sub(last);
        let mut later = Look { at: now, apart, ..Look::default() };
        for look in self.0.iter().filter(|look| !is_before(look)) {
            later.seen.join(&look.seen);
            later.apart = later.apart.max(look.apart);
        }
        (self.0.iter().rev().find(is_before), later)
    }
}

/// Who has sent something since the look `base`, the last first; all without one. `now` and `wall` are one
/// moment on the two clocks.
fn senders(
    seen: &Connections,
    base: Option<&Connections>,
    now: Duration,
    wall: Timestamp,
) -> Vec<Client> {
    let more = |(client, seen): (&SocketAddr, &Seen)| {
        // A connection that began anew at the same port has sent less than the one before.
        let known = base.and_then(|base| base.clients.get(client));
        let known = known.filter(|old| old.bytes <= seen.bytes);
        let first = known.map_or(seen.first, |old| old.first.min(seen.first));
        let old = known.copied().unwrap_or_default();
        let (bytes, packets) = (seen.bytes - old.bytes, seen.packets.saturating_sub(old.packets));
        let empty = packets * EMPTY[usize::from(client.is_ipv6())];
        (base.is_none() || bytes > empty).then_some((*client, [first, seen.last], bytes))
    };
    let mut all: Vec<_> = seen.clients.iter().filter_map(more).collect();
    all.sort_by_key(|(_, [_, last], _)| Reverse(*last));
    let client = |(address, [first, last], sent_bytes): (_, [Duration; 2], _)| Client {
        address,
        first: Some(at(first, now, wall)),
        last: at(last, now, wall),
        sent_bytes,
    };
    all.into_iter().map(client).collect()
}

/// A point of the monotonic clock on the wall clock.
fn at(point: Duration, now: Duration, wall: Timestamp) -> Timestamp {
    let ago = now.saturating_sub(point);
    jiff::SignedDuration::try_from(ago).map_or(wall, |ago| wall - ago)
}

/// What is known when the candidate is told to become the primary.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The epoch that it begins.
    pub epoch: u64,
    /// The old primary.
    pub from: String,
    /// The new one.
    pub to: String,
    /// Where the new one's log ends.
    pub received: Option<Lsn>,
    /// The last moment at which all of the old one's log was there, on the monotonic clock.
    pub since: Option<Duration>,
    /// What is lost.
    pub loss: Option<Loss>,
}

impl Draft {
    /// The report. The `last` look was taken at `looked`; `now` and `wall` are one moment on the two clocks.
    pub fn report(
        self,
        history: &History,
        (looked, last): (Duration, &Connections),
        now: Duration,
        wall: Timestamp,
    ) -> Report {
        let (base, mut later) = history.split(self.since, looked);
        later.seen.join(last);
        let mut clients = senders(&later.seen, base.map(|look| &look.seen), now, wall);
        let count = clients.len();
        let unseen = later.apart > NEAR || later.seen.partial;
        clients.truncate(MOST_CLIENTS);
        Report {
            epoch: self.epoch,
            time: wall,
            from: self.from,
            to: self.to,
            received: self.received,
            since: self.since.map(|since| at(since, now, wall)),
            counted_from: base.map(|look| at(look.at, now, wall)),
            loss: self.loss,
            count,
            clients,
            unseen: if unseen { UNSEEN.into() } else { String::new() },
            file: PathBuf::new(),
        }
    }
}

fn file(directory: &Path, database: &str, epoch: u64) -> PathBuf {
    directory.join(format!("postgres-{}.losses-{epoch}.json", store::escaped(database)))
}

/// Keeps a report, and forgets the oldest. Gives it back with the name of its file.
pub fn save(directory: &Path, database: &str, report: Report) -> io::Result<Report> {
    let path = file(directory, database, report.epoch);
    let report = Report { file: path.clone(), ..report };
    store::replace(&path, &serde_json::to_vec_pretty(&report)?)?;
    if let Some(old) = report.epoch.checked_sub(MOST_REPORTS) {
        // There may be none of that epoch.
        let _ = fs::remove_file(file(directory, database, old));
    }
    Ok(report)
}

/// The report of this epoch, if there is one.
pub fn load(directory: &Path, database: &str, epoch: u64) -> Option<Report> {
    serde_json::from_slice(&fs::read(file(directory, database, epoch)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch;

    /// Clients with the second of their last packet, the bytes that they have sent, and in how many packets.
    fn seen(clients: &[(&str, u64, u64, u64)]) -> Connections {
        let mut seen = Connections::default();
        for &(client, second, bytes, packets) in clients {
            let last = Duration::from_secs(second);
            seen.insert(client.parse().unwrap(), Seen { first: last, last, bytes, packets });
        }
        seen
    }

    const WALL: i64 = 1_700_000_000;

    /// When the last look was taken.
    const LOOKED: Duration = Duration::from_secs(94);

    /// All of the log was there at second 50; now is second 100.
    fn report(history: &History, last: &Connections) -> Report {
        let draft = Draft {
            epoch: 25,
            from: "pg-01".into(),
            to: "pg-02".into(),
            received: Some(Lsn(100)),
            since: Some(Duration::from_secs(50)),
            loss: Some(Loss { known: 5, at_most: 9, proven: false }),
        };
        let wall = Timestamp::from_second(WALL).unwrap();
        draft.report(history, (LOOKED, last), Duration::from_secs(100), wall)
    }

    #[test]
    fn who_has_sent_something_since_then_is_named() {
        let mut history = History::default();
        let before = [("192.0.2.1:1", 30, 1000, 9), ("192.0.2.2:2", 45, 2000, 9)];
        history.add(Duration::from_secs(49), seen(&before));
        // It has gone before the last look.
        history.add(Duration::from_mins(1), seen(&[("192.0.2.5:5", 59, 700, 4)]));
        let last = seen(&[
            // It has acknowledged the end, and nothing else.
            ("192.0.2.1:1", 99, 1000 + 66, 10),
            ("192.0.2.2:2", 98, 2000 + 66 + 90, 11),
            // It is new.
            ("192.0.2.3:3", 97, 500, 4),
            // It is another connection than the one at that port before.
            ("[2001:db8::4]:4", 96, 900, 5),
        ]);
        let report = report(&history, &last);
        let ports: Vec<_> = report.clients.iter().map(|it| it.address.port()).collect();
        assert_eq!((ports, report.count), (vec![2, 3, 4, 5], 4));
        let client = &report.clients[0];
        assert_eq!(client.sent_bytes, 66 + 90);
        assert_eq!(client.first, Some(Timestamp::from_second(WALL - 55).unwrap()));
        assert_eq!(client.last, Timestamp::from_second(WALL - 2).unwrap());
        assert_eq!(report.since, Some(Timestamp::from_second(WALL - 50).unwrap()));
        assert_eq!(report.counted_from, Some(Timestamp::from_second(WALL - 51).unwrap()));
        let text = report.describe();
        assert!(text.starts_with("4 clients may have lost writes to pg-01"), "{text}");
        assert!(text.ends_with(UNSEEN), "looks were 34 s apart: {text}");
    }

    #[test]
    fn a_connection_that_one_look_has_seen_is_named_however_long_ago() {
        // A client each second, each in the table for five seconds.
        let client = |second: u64| SocketAddr::from(([192, 0, 2, 9], 1000 + second as u16));
        let mut history = History::default();
        for second in 0..LOOKED.as_secs() {
            let mut look = Connections::default();
            for began in second.saturating_sub(4)..=second {
                let last = Duration::from_secs(began);
                look.insert(client(began), Seen { first: last, last, bytes: 700, packets: 5 });
            }
            history.add(Duration::from_secs(second), look);
        }
        assert!(history.0.len() < 30, "{}", history.0.len());
        let report = report(&history, &Connections::default());
        let named: Vec<_> = report.clients.iter().map(|it| it.address).collect();
        for second in 51..LOOKED.as_secs() {
            assert!(named.contains(&client(second)), "{second}");
        }
        let last = report.clients.iter().find(|it| it.address == client(60)).unwrap();
        assert_eq!(last.first, Some(last.last));
        assert_eq!(last.last, Timestamp::from_second(WALL - 40).unwrap());
        assert_eq!(report.unseen, "", "no two looks were far apart");
        assert!(!report.describe().ends_with(UNSEEN));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let mut many = Connections::default();
        for port in 1..=100 {
            let last = Duration::from_secs(u64::from(port));
            let client = SocketAddr::from(([192, 0, 2, 9], port));
            many.insert(client, Seen { first: last, last, bytes: 700, packets: 5 });
        }
        many.limit(100);
        assert!(!many.partial);
        many.limit(10);
        let ports: Vec<_> = many.clients.keys().map(SocketAddr::port).collect();
        assert_eq!(ports, Vec::from_iter(91..=100));
        let mut history = History::default();
        for second in 40..LOOKED.as_secs() {
            history.add(Duration::from_secs(second), Connections::default());
        }
        assert_eq!(report(&history, &Connections::default()).unseen, "");
        assert_eq!(report(&history, &many).unseen, UNSEEN);
    }

    #[test]
    fn without_a_look_before_all_are_named() {
        let mut history = History::default();
        history.add(Duration::from_secs(51), seen(&[("192.0.2.1:1", 30, 66, 1)]));
        let report = report(&history, &seen(&[("192.0.2.2:2", 40, 66, 1)]));
        assert_eq!((report.count, report.counted_from), (2, None));
    }

    #[test]
    fn old_looks_are_thinned_out() {
        let mut history = History::default();
        for second in 0..3600 {
            history.add(Duration::from_secs(second), Connections::default());
        }
        let ages: Vec<u64> = history.0.iter().map(|look| 3599 - look.at.as_secs()).collect();
        assert!(ages.len() < 35 && ages.ends_with(&[3, 2, 1, 0]), "{ages:?}");
        // There is one before each moment that is not more than twice as old.
        assert!(ages.windows(2).all(|pair| pair[0] <= 2 * pair[1] + 2), "{ages:?}");
        assert!(ages[0] > 150, "{ages:?}");
    }

    #[test]
    fn what_is_proven_is_said() {
        let loss = Some(Loss { known: 0, at_most: 0, proven: true });
        let last = seen(&[("192.0.2.1:1", 99, 500, 1)]);
        let text = Report { loss, ..report(&History::default(), &last) }.describe();
        assert!(text.starts_with("no acknowledged write is lost; 1 clients"), "{text}");
    }

    #[test]
    fn reports_are_kept_and_the_oldest_go() {
        let directory = scratch::Directory::new("losses");
        let last = seen(&[("192.0.2.1:1", 99, 500, 1)]);
        for epoch in [5, 25] {
            let kept = Report { epoch, ..report(&History::default(), &last) };
            let kept = save(directory.path(), "a/b", kept).unwrap();
            assert!(kept.file.ends_with(format!("postgres-a%2fb.losses-{epoch}.json")));
            assert_eq!(load(directory.path(), "a/b", epoch), Some(kept));
        }
        assert_eq!(load(directory.path(), "a/b", 5), None);
    }
}
