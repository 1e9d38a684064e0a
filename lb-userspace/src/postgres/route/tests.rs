use super::*;
use crate::postgres::{
    record::{Branch, Mark},
    sample::{Failure, FailureKind},
};

const RULES: Rules =
    Rules { max_lag: 1000, read_from_primary: true, interval: Duration::from_millis(250) };

fn sample(role: Role, place: u64) -> Sample {
    Sample {
        role,
        system_id: 7,
        timeline: 1,
        received: Lsn(place),
        replayed: Lsn(place),
        mark: None,
        receiver: None,
        patience: Some(Duration::from_secs(2)),
        paused: false,
        delay: Duration::ZERO,
        revoked: false,
        sync: None,
        sync_names: String::new(),
        replicas: Vec::new(),
        lacks: None,
        started: 0,
        version: 150_000,
    }
}

struct Site {
    record: Record,
    servers: BTreeMap<String, Known>,
    lags: Lags,
    barred: BTreeMap<String, String>,
    now: Duration,
}

impl Site {
    fn new() -> Self {
        let branch = Branch { system_id: 7, timeline: 1, switch: Lsn(0) };
        let mut site = Self {
            record: Record::first("pg-01", branch, None),
            servers: BTreeMap::new(),
            lags: Lags::default(),
            barred: BTreeMap::new(),
            now: Duration::from_secs(50),
        };
        site.see("pg-01", sample(Role::Primary, 5000));
        site.see("pg-02", sample(Role::Standby, 5000));
        site
    }

    fn see(&mut self, name: &str, sample: Sample) {
        let primary = name == self.record.primary;
        self.now += Duration::from_millis(100);
        self.lags.see(name, &sample, primary, RULES.max_lag, self.now);
        let mut known = Known::default();
        known.see(Ok(sample), self.now, self.now);
        self.servers.insert(name.into(), known);
    }

    fn fail(&mut self, name: &str, kind: FailureKind) {
        let failure = Failure { kind, reason: "connection refused".into() };
        self.servers.get_mut(name).unwrap().see(Err(failure), self.now, self.now);
    }

    /// For pg-01 and pg-02: writes and reads, each as the first letter of what it is there for.
    fn routes(&self, rules: Rules, open: Result<&str, &str>) -> String {
        let names = ["pg-01".to_owned(), "pg-02".to_owned()];
        let view = View {
            record: Some(&self.record),
            open,
            barred: &self.barred,
            servers: &self.servers,
            lags: &self.lags,
        };
        let letter = |it: &Appointed| match it {
            Appointed::Serves(_) => 's',
            Appointed::Rests(_) => 'r',
            Appointed::Barred(_) => '-',
        };
        let routes = appoint(rules, &names, view, self.now);
        routes.values().flat_map(|(write, read)| [letter(write), letter(read)]).collect()
    }
}

#[test]
fn writes_go_to_the_primary_and_reads_to_the_standby() {
    let mut site = Site::new();
    assert_eq!(site.routes(RULES, Ok("pg-01")), "sr-s");
    // While there is no primary, reads go on.
    assert_eq!(site.routes(RULES, Err("changing")), "---s");
    site.barred.insert("pg-01".into(), "zombie".into());
    assert_eq!(site.routes(RULES, Ok("pg-02")), "--ss", "a primary alone serves reads too");
}

#[test]
fn reads_go_to_the_primary_while_no_standby_can() {
    let mut site = Site::new();
    site.fail("pg-02", FailureKind::Dead);
    assert_eq!(site.routes(RULES, Ok("pg-01")), "sr-s", "once is nothing");
    site.now += Duration::from_secs(1);
    assert_eq!(site.routes(RULES, Ok("pg-01")), "ss--");
    let strict = Rules { read_from_primary: false, ..RULES };
    assert_eq!(site.routes(strict, Ok("pg-01")), "sr--");
    let mut site = Site::new();
    site.fail("pg-02", FailureKind::Refuses);
    assert_eq!(site.routes(RULES, Ok("pg-01")), "ss--");
}

#[test]
fn other_histories_are_not_read() {
    let mut site = Site::new();
    site.see("pg-02", Sample { timeline: 2, ..sample(Role::Standby, 5000) });
    assert_eq!(site.routes(RULES, Ok("pg-01")), "ss--");
    let mark = |epoch| Some(Mark { epoch, server: "pg-01".into(), node: "lb-01".into() });
    site.record.mark = mark(3);
    for (carries, routes) in [(None, "ss--"), (mark(2), "ss--"), (mark(3), "sr-s")] {
        site.see("pg-02", Sample { mark: carries, ..sample(Role::Standby, 5000) });
        assert_eq!(site.routes(RULES, Ok("pg-01")), routes);
    }
}

#[test]
fn a_late_standby_rests_until_it_has_come_well_within_the_limit() {
    let mut site = Site::new();
    site.see("pg-01", sample(Role::Primary, 10_000));
    let mut turns = Vec::new();
    for behind in [1001, 1001, 1001, 900, 900, 900, 900, 800, 801, 800, 800, 800] {
        site.see("pg-02", sample(Role::Standby, 10_000 - behind));
        turns.push(site.routes(RULES, Ok("pg-01")).chars().nth(3).unwrap());
    }
    assert_eq!(turns.iter().collect::<String>(), "ssrrrrrrrrrs");
    // The primary reads for it meanwhile.
    site.see("pg-01", sample(Role::Primary, 90_000));
    for _ in 0..3 {
        site.see("pg-02", sample(Role::Standby, 10_000));
    }
    assert_eq!(site.routes(RULES, Ok("pg-01")), "ss-r");
}

#[test]
fn lag_is_counted_from_the_first_write_that_is_missing() {
    let mut site = Site::new();
    let idle = sample(Role::Standby, 5000);
    site.now += Duration::from_mins(5);
    let lag = site.lags.lag(&idle, site.now);
    assert_eq!((lag.bytes, lag.time), (0, Duration::ZERO), "nothing is missing of an idle one");
    let start = site.now;
    for step in 1..=4 {
        site.see("pg-01", sample(Role::Primary, 5000 + step * 100));
    }
    let first = start + Duration::from_millis(100);
    let lag = site.lags.lag(&idle, site.now);
    assert_eq!((lag.bytes, lag.time), (400, site.now.saturating_sub(first)));
    let lag = site.lags.lag(&sample(Role::Standby, 5350), site.now);
    assert_eq!((lag.bytes, lag.time), (50, Duration::ZERO));
}
