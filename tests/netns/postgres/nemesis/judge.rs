//! Compares what clients have seen with what there is.

use std::collections::BTreeMap;

use ballast::postgres::record::{Phase, Record};

use super::{readers::Reads, writers::History, *};

/// Each acknowledged write is there, once, what was refused is not, and there were never two servers that
/// took writes.
pub(super) fn judge(site: &Site, history: &History) -> Result<()> {
    let (primary, _) = roles(site)?;
    let all = site.lab().query_app(primary, "select value from acked")?;
    let mut has = BTreeMap::<u64, usize>::new();
    for value in all.lines().filter_map(|value| value.parse().ok()) {
        *has.entry(value).or_default() += 1;
    }
    let lost: Vec<_> =
        history.acknowledged.iter().filter(|it| !has.contains_key(&it.value)).collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    ensure!(has.values().all(|&count| count == 1), "a value is there twice");
    let there: Vec<_> = history.refused.iter().filter(|value| has.contains_key(value)).collect();
    ensure!(there.is_empty(), "refused, and there: {there:?}");
    one_server_at_a_time(history)
}

fn one_server_at_a_time(history: &History) -> Result<()> {
    let mut servers = BTreeMap::new();
    for write in &history.acknowledged {
        let server = servers.entry(write.timeline).or_insert(&write.server);
        ensure!(*server == &write.server, "{write:?}, and {server} took writes on that timeline");
    }
    let mut by_begin = history.acknowledged.clone();
    by_begin.sort_by_key(|it| it.invoked);
    let mut newest = Newest::new(history);
    for write in &by_begin {
        let newest = newest.before(write.invoked);
        ensure!(
            write.timeline >= newest,
            "{write:?} was acknowledged after a server of timeline {newest} had taken a write"
        );
    }
    Ok(())
}

/// The newest timeline of which a write was acknowledged.
struct Newest {
    by_end: std::iter::Peekable<std::vec::IntoIter<(Instant, u64)>>,
    timeline: u64,
}

impl Newest {
    fn new(history: &History) -> Self {
        let writes = history.acknowledged.iter();
        let mut by_end: Vec<_> = writes.map(|it| (it.completed, it.timeline)).collect();
        by_end.sort_unstable();
        Self { by_end: by_end.into_iter().peekable(), timeline: 0 }
    }

    /// Before `at`, which only grows.
    fn before(&mut self, at: Instant) -> u64 {
        while let Some((_, timeline)) = self.by_end.next_if(|(completed, _)| *completed < at) {
            self.timeline = self.timeline.max(timeline);
        }
        self.timeline
    }
}

/// A primary that answers reads is not an old one.
pub(super) fn judge_reads(history: &History, reads: &Reads) -> Result<()> {
    let mut newest = Newest::new(history);
    for read in &reads.of_primaries {
        let newest = newest.before(read.invoked);
        ensure!(
            read.timeline >= newest,
            "{} answered a read on timeline {}, after a server of timeline {newest} had taken a write",
            read.server,
            read.timeline
        );
    }
    Ok(())
}

/// Asks etcd; it answers in JSON.
fn ask_etcd(site: &Site, path: &str, body: &Value) -> Result<Value> {
    let url = format!("http://{}:2379{path}", HostName::Witness.ipv4());
    let body = body.to_string();
    let answer =
        site.run(HostName::Witness, &["curl", "-sS", "-m", "10", "-f", "-d", &body, &url])?;
    Ok(serde_json::from_str(&answer)?)
}

/// All records that etcd ever had, the oldest first.
fn records(site: &Site) -> Result<Vec<Record>> {
    let key = STANDARD.encode("/ballast/lab/appdb");
    let mut found = Vec::new();
    let mut revision = String::from("0");
    loop {
        // 0 is now.
        let body = serde_json::json!({ "key": key, "revision": revision });
        let answer = ask_etcd(site, "/v3/kv/range", &body)?;
        let Some(entry) = answer["kvs"].get(0) else { break };
        let text = STANDARD.decode(entry["value"].as_str().context("find the value")?)?;
        found.push(serde_json::from_slice(&text)?);
        let changed: u64 = entry["mod_revision"].as_str().context("find the version")?.parse()?;
        if entry["create_revision"] == entry["mod_revision"] {
            break;
        }
        revision = (changed - 1).to_string();
    }
    found.reverse();
    Ok(found)
}

/// The timelines that servers have begun, by their own logs.
fn timelines(site: &Site) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for (name, host) in [("pg-01", HostName::Pg01), ("pg-02", HostName::Pg02)] {
        for log in [site.lab().log(host, "postgres"), rejoin_log(site, name)] {
            let text = fs::read_to_string(log).unwrap_or_default();
            let words =
                text.lines().filter_map(|line| line.split("selected new timeline ID: ").nth(1));
            for word in words {
                found.push(word.trim().parse().context("read the number of a timeline")?);
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The record went forward only, each epoch has had one candidate and one primary, and each promotion an epoch
/// of its own, but for timelines that a person has begun. Gives the number of the last epoch.
pub(super) fn judge_records(site: &Site, by_hand: &[u64]) -> Result<u64> {
    let records = records(site)?;
    let mut candidates = BTreeMap::<u64, String>::new();
    let mut primaries = BTreeMap::<u64, (String, u32)>::new();
    for pair in records.windows(2) {
        ensure!(pair[0].place() < pair[1].place(), "{:?} follows {:?}", pair[1], pair[0]);
    }
    for record in &records {
        let candidate = record.run.as_ref().and_then(|run| run.candidate.clone());
        if let Some(candidate) = candidate.filter(|_| record.phase == Phase::Promoting) {
            let first = candidates.entry(record.epoch).or_insert_with(|| candidate.clone());
            ensure!(*first == candidate, "epoch {}: {first}, and {candidate}", record.epoch);
        }
        let now = (record.primary.clone(), record.branch.timeline);
        let first = primaries.entry(record.epoch).or_insert_with(|| now.clone());
        ensure!(*first == now, "epoch {}: {first:?}, and {now:?}", record.epoch);
    }
    let begun: Vec<_> = primaries.values().map(|(_, timeline)| *timeline).collect();
    ensure!(begun.is_sorted_by(|one, next| one < next), "timelines by epoch: {begun:?}");
    let last = records.last().context("find a record")?.epoch;
    let mut promotions = timelines(site)?;
    for timeline in by_hand {
        let at = promotions.iter().position(|it| it == timeline);
        promotions.remove(at.context("find a promotion by hand")?);
    }
    ensure!(promotions.is_sorted_by(|one, next| one < next), "begun twice: {promotions:?}");
    ensure!(
        promotions.len() as u64 + 1 == last,
        "epoch {last}, and servers were promoted to the timelines {promotions:?}"
    );
    Ok(last)
}
