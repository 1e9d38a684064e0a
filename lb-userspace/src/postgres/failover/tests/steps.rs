//! One balancer through a change of the primary.

use super::*;

/// A machine with a clock, whose ordinary actions are done at once.
pub(super) struct Site {
    pub(super) machine: Machine,
    pub(super) now: Duration,
    /// What was kept on disk.
    pub(super) disk: Option<Record>,
    /// What the store has.
    pub(super) store: Option<Record>,
    /// The store does not answer.
    pub(super) store_down: bool,
    /// Actions that are left to the test.
    left: Vec<Action>,
    /// What the tables say.
    pub(super) open: Option<String>,
}

impl Site {
    fn new(settings: Settings) -> Self {
        let machine = Machine::new(settings, None, false);
        let now = Duration::from_secs(100);
        Self {
            machine,
            now,
            disk: None,
            store: None,
            store_down: false,
            left: Vec::new(),
            open: None,
        }
    }

    /// pg-01 is the primary of two or three servers.
    pub(super) fn serving(settings: Settings) -> Self {
        let count = settings.servers.len();
        let mut site = Self::new(settings);
        site.sees("pg-01", Ok(primary(1000)));
        for server in &SERVERS[1..count] {
            site.sees(server, Ok(standby(1000)));
        }
        site.tick(250);
        site.sees("pg-01", Ok(primary(1000)));
        assert_eq!(site.open.as_deref(), Some("pg-01"));
        site
    }

    pub(super) fn sees(&mut self, server: &str, found: Result<Sample, Failure>) {
        self.take(Event::Seen { server: server.into(), asked: self.now, found });
    }

    pub(super) fn tick(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.take(Event::Tick);
    }

    pub(super) fn take(&mut self, event: Event) {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.machine.handle(event, self.now) {
                match action {
                    Action::Commit(record) => {
                        events.push_back(Event::Committed(record.revision));
                        self.disk = Some(*record);
                    }
                    Action::Gate(gate) => {
                        events.push_back(Event::Gated(gate.number));
                        self.open = gate.open;
                    }
                    Action::Note(_) | Action::Lease(_) => {}
                    Action::Propose { record, base } => {
                        events.push_back(self.propose(*record, base.as_deref()));
                    }
                    Action::Read => {
                        let found = self.store.clone().map(Box::new);
                        let found = if self.store_down { Err("gone".into()) } else { Ok(found) };
                        events.push_back(Event::Read { asked: self.now, found });
                    }
                    action => self.left.push(action),
                }
            }
        }
    }

    /// The store answers at once.
    fn propose(&mut self, record: Record, base: Option<&Record>) -> Event {
        let revision = record.revision;
        if self.store_down {
            return Event::Unstored(revision, "gone".into());
        }
        if let Some(theirs) = &self.store
            && Some(theirs) != base
            && *theirs != record
        {
            return Event::Conflict(revision, Box::new(theirs.clone()));
        }
        self.store = Some(record.clone());
        self.disk = Some(record);
        Event::Committed(revision)
    }

    /// Waits until the store has been asked.
    pub(super) fn stored(&mut self) {
        self.tick(500);
        assert_eq!(self.store, self.disk);
    }

    pub(super) fn left(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.left)
    }

    pub(super) fn promote(&mut self, may_lose: Option<u64>) {
        self.take(Event::Command(Command::Promote {
            server: None,
            may_lose,
            absent: BTreeSet::new(),
            force: false,
        }));
    }

    pub(super) fn kill_primary(&mut self) {
        self.tick(250);
        self.sees("pg-01", Err(failure(FailureKind::Dead)));
        let silent = Sample { receiver: None, ..standby(1000) };
        self.sees("pg-02", Ok(silent));
    }

    pub(super) fn revoked(&mut self, server: &str, received: u64) {
        let found = Sample { revoked: true, receiver: None, ..standby(received) };
        self.take(Event::Revoked { server: server.into(), found: Ok(found) });
    }

    pub(super) fn promoted(&mut self, server: &str) {
        let result = Ok(Promotion { timeline: 2, switch: Lsn(1000) });
        self.take(Event::Promoted { server: server.into(), result });
    }

    /// The daemon was killed, and starts again on what is on the disk.
    pub(super) fn restart(&mut self) {
        let settings = self.machine.settings.clone();
        self.machine = Machine::new(settings, self.disk.clone(), true);
        self.left.clear();
        self.tick(1000);
        self.sees("pg-01", Err(failure(FailureKind::Dead)));
        let record = self.disk.clone().unwrap();
        let sample = match record.mark {
            None => Sample { receiver: None, ..standby(1000) },
            mark => Sample { timeline: 2, mark, ..primary(1000) },
        };
        self.sees("pg-02", Ok(sample));
        self.tick(100);
    }

    pub(super) fn finished(&mut self) -> Result<String, String> {
        let left = self.left();
        let end = left.into_iter().find_map(|action| match action {
            Action::Finish(result) => Some(result),
            _ => None,
        });
        end.expect("the command has ended")
    }
}

fn alone(servers: usize) -> Settings {
    settings("lb-01", &[], servers)
}

#[test]
fn the_only_primary_is_taken() {
    let mut site = Site::new(alone(2));
    site.sees("pg-01", Ok(primary(1000)));
    assert_eq!(site.open, None, "pg-02 has not been seen");
    site.sees("pg-02", Err(failure(FailureKind::Silent)));
    assert_eq!(site.open, None);
    site.sees("pg-02", Ok(standby(1000)));
    site.sees("pg-01", Ok(primary(1000)));
    assert_eq!(site.open.as_deref(), Some("pg-01"));
    assert_eq!(site.disk.as_ref().unwrap().epoch, 1);
}

#[test]
fn doubtful_beginnings_are_named() {
    let why = |servers: [Sample; 2]| {
        let mut site = Site::new(alone(2));
        for (name, sample) in SERVERS.into_iter().zip(servers) {
            site.sees(name, Ok(sample));
        }
        assert_eq!((site.open, &site.disk), (None, &None));
        site.machine.only_primary().unwrap_err()
    };
    assert!(why([primary(1000), primary(1000)]).contains("2 servers take writes: pg-01, pg-02"));
    assert!(why([standby(1000), standby(1000)]).contains("no server takes writes"));
    let other = Sample { system_id: 8, ..standby(1000) };
    assert!(why([primary(1000), other]).contains("standby of another cluster"));
    let newer = Sample { timeline: 2, ..standby(1000) };
    assert!(why([primary(1000), newer]).contains("newer timeline"));
}

#[test]
fn the_operator_settles_a_doubtful_beginning() {
    let mut site = Site::new(alone(2));
    site.sees("pg-01", Ok(primary(1000)));
    site.sees("pg-02", Ok(primary(1000)));
    let promote = |server: Option<&str>| {
        Event::Command(Command::Promote {
            server: server.map(str::to_owned),
            may_lose: Some(0),
            absent: BTreeSet::new(),
            force: false,
        })
    };
    site.take(promote(None));
    assert!(site.finished().unwrap_err().contains("name the server"));
    site.take(promote(Some("pg-02")));
    site.finished().unwrap();
    site.sees("pg-02", Ok(primary(1000)));
    assert_eq!(site.open.as_deref(), Some("pg-02"));
    assert!(site.machine.barred().contains_key("pg-01"), "the other takes writes too");
}

#[test]
fn a_dead_primary_is_replaced_step_by_step() {
    let mut site = Site::serving(alone(2));
    site.kill_primary();
    assert_eq!(site.open.as_deref(), Some("pg-01"), "its failure alone changes nothing");
    assert!(site.left().is_empty());
    site.promote(Some(0));
    assert_eq!(site.open, None);
    assert_eq!(site.disk.as_ref().unwrap().phase, Phase::Fencing);
    assert_eq!(site.left(), [Action::Revoke("pg-02".into())]);
    site.revoked("pg-02", 1000);
    assert_eq!(site.disk.as_ref().unwrap().phase, Phase::Promoting);
    let mark = Mark { epoch: 2, server: "pg-02".into(), node: "lb-01".into() };
    let from = Branch { system_id: 7, timeline: 1, switch: Lsn(0) };
    let order = Action::Promote { server: "pg-02".into(), mark: mark.clone(), from };
    assert_eq!(site.left(), [order]);
    assert_eq!(site.open, None);
    site.promoted("pg-02");
    let record = site.disk.clone().unwrap();
    assert_eq!((record.epoch, record.phase), (2, Phase::Serving));
    assert_eq!((record.mark, record.branch.timeline), (Some(mark), 2));
    assert_eq!(site.open.as_deref(), Some("pg-02"));
    let left = site.left();
    assert!(left.contains(&Action::CutOff("pg-01".into())), "{left:?}");
    assert!(left.contains(&Action::Checkpoint("pg-02".into())), "{left:?}");
    assert!(matches!(&left[0], Action::Finish(Ok(text)) if text.contains("timeline 2")));
    // The old primary comes back as it was, and gets no packet.
    site.sees("pg-01", Ok(primary(1000)));
    assert_eq!(site.open.as_deref(), Some("pg-02"));
    assert!(site.machine.barred()["pg-01"].contains("takes writes on timeline 1"));
}

/// What the test does after each step of a promotion.
fn promotion_with_a_kill_after(step: usize) -> Site {
    let mut site = Site::serving(alone(2));
    site.kill_primary();
    site.promote(Some(0));
    if step == 0 {
        assert_eq!(site.disk.as_ref().unwrap().phase, Phase::Fencing);
        site.restart();
        assert_eq!(site.open, None);
        assert_eq!(site.left(), [Action::Revoke("pg-02".into())], "it goes on");
    }
    site.revoked("pg-02", 1000);
    if step == 1 {
        assert_eq!(site.disk.as_ref().unwrap().phase, Phase::Promoting);
        site.restart();
        assert_eq!(site.open, None);
        assert!(matches!(&site.left()[..], [Action::Promote { server, .. }] if server == "pg-02"));
    }
    if step == 2 {
        // It was promoted, but the answer did not come.
        site.restart();
        site.sees("pg-02", Ok(Sample { timeline: 2, ..primary(1100) }));
        assert_eq!(site.open, None, "not verified");
        assert!(matches!(&site.left()[..], [Action::Promote { server, .. }] if server == "pg-02"));
    }
    site.promoted("pg-02");
    site
}

#[test]
fn a_daemon_killed_at_any_step_goes_on() {
    for step in 0..4 {
        let mut site = promotion_with_a_kill_after(step);
        assert_eq!(site.open.as_deref(), Some("pg-02"), "step {step}");
        let record = site.disk.clone().unwrap();
        assert_eq!((record.epoch, record.phase), (2, Phase::Serving), "step {step}");
        assert_eq!(record.follow_up, None, "connections to the old primary were cut");
        assert!(site.left().contains(&Action::CutOff("pg-01".into())), "step {step}");
        site.restart();
        assert_eq!(site.open.as_deref(), Some("pg-02"), "step {step}");
    }
}

#[test]
fn what_is_left_to_do_is_done_after_a_restart() {
    let mut site = promotion_with_a_kill_after(9);
    let mut record = site.disk.clone().unwrap();
    record.follow_up = Some(crate::postgres::record::FollowUp { from: "pg-01".into() });
    site.disk = Some(record);
    site.restart();
    assert!(site.left().contains(&Action::CutOff("pg-01".into())));
    assert_eq!(site.disk.unwrap().follow_up, None);
}

#[test]
fn a_primary_that_lives_is_not_replaced() {
    let mut site = Site::serving(alone(2));
    site.promote(Some(0));
    assert!(site.finished().unwrap_err().contains("pg-01 answers"));
    // The balancer does not reach it, but the standby does.
    site.sees("pg-01", Err(failure(FailureKind::Silent)));
    site.tick(1000);
    site.sees("pg-02", Ok(standby(1000)));
    site.promote(Some(0));
    assert!(site.finished().unwrap_err().contains("pg-02 still hears pg-01"));
    // It says something, if only that it is starting.
    site.sees("pg-02", Ok(Sample { receiver: None, ..standby(1000) }));
    site.sees("pg-01", Err(failure(FailureKind::Refuses)));
    site.promote(Some(0));
    assert!(site.finished().unwrap_err().contains("pg-01 lives"));
    assert_eq!(site.open.as_deref(), Some("pg-01"));
}

#[test]
fn more_is_not_lost_than_was_agreed_to() {
    let mut site = Site::serving(alone(2));
    site.tick(250);
    site.sees("pg-01", Ok(primary(5000)));
    site.kill_primary();
    site.promote(Some(100));
    let why = site.finished().unwrap_err();
    // 4000 bytes in 250 ms were its rate, and it was last seen 250 ms before it failed.
    assert!(why.contains("may lose 8000 bytes"), "{why}");
    assert_eq!(site.disk.as_ref().unwrap().phase, Phase::Serving, "nothing was fenced");
    site.promote(Some(8000));
    site.revoked("pg-02", 900);
    let why = site.finished().unwrap_err();
    assert!(why.contains("may lose 8100 bytes") && why.contains("pg-01 goes on"), "{why}");
    assert_eq!(site.open.as_deref(), Some("pg-01"), "as before");
    // The standby follows it again.
    site.tick(250);
    let follow = Action::Follow { standby: "pg-02".into(), primary: "pg-01".into() };
    assert_eq!(site.left(), [follow]);
}

#[test]
fn synchronous_replication_needs_no_guess() {
    let mut site = Site::serving(alone(3));
    let replica = |name: &str| Replica {
        name: name.to_owned(),
        address: Some(address(name)),
        state: "streaming".into(),
        sync_state: "quorum".into(),
    };
    let rule = SyncRule::parse("ANY 1 (\"pg-01\", \"pg-02\", \"pg-03\")");
    let replicas = vec![replica("pg-02"), replica("pg-03")];
    // What was acknowledged before the rule was seen is no part of the proof.
    for log in [1000, 9000] {
        site.tick(250);
        let (sync, replicas) = (rule.clone(), replicas.clone());
        site.sees("pg-01", Ok(Sample { sync, replicas, ..primary(log) }));
    }
    site.sees("pg-03", Ok(Sample { receiver: None, ..standby(1000) }));
    site.kill_primary();
    site.promote(Some(0));
    site.left();
    site.revoked("pg-02", 8000);
    assert!(site.left().is_empty(), "pg-03 may have more");
    site.revoked("pg-03", 8500);
    let run = site.disk.as_ref().unwrap().run.clone().unwrap();
    assert_eq!(run.candidate.as_deref(), Some("pg-03"));
    assert_eq!(run.loss, Some(Loss { known: 0, at_most: 0, proven: true }));
}

#[test]
fn a_candidate_that_cannot_be_told_leaves_the_primary() {
    let mut site = Site::serving(alone(2));
    site.kill_primary();
    site.promote(Some(0));
    site.revoked("pg-02", 1000);
    site.left();
    for _ in 0..3 {
        let result = Err(PromoteError { sent: false, why: "connection refused".into() });
        site.take(Event::Promoted { server: "pg-02".into(), result });
        site.tick(1100);
    }
    assert!(site.left().into_iter().any(|it| matches!(it, Action::Finish(Err(_)))));
    assert_eq!(site.open.as_deref(), Some("pg-01"));
    assert_eq!(site.disk.unwrap().phase, Phase::Serving);
}

#[test]
fn a_promotion_that_may_have_been_is_never_taken_back() {
    let mut site = Site::serving(alone(2));
    site.kill_primary();
    site.promote(Some(0));
    site.revoked("pg-02", 1000);
    for _ in 0..20 {
        let result = Err(PromoteError { sent: true, why: "timeout".into() });
        site.take(Event::Promoted { server: "pg-02".into(), result });
        site.tick(1100);
    }
    let record = site.disk.clone().unwrap();
    assert_eq!(record.phase, Phase::Frozen);
    assert!(record.run.unwrap().stuck.unwrap().contains("timeout"));
    assert_eq!(site.open, None);
    site.sees("pg-01", Ok(primary(1000)));
    assert_eq!(site.open, None, "nor when the old primary is back");
    site.left();
    // The operator may go on with the same one, also after a restart.
    site.restart();
    assert_eq!(site.open, None);
    let unfence = |force| Event::Command(Command::Unfence { server: "pg-01".into(), force });
    site.take(unfence(false));
    assert!(site.finished().unwrap_err().contains("two histories"));
    site.promote(Some(0));
    assert!(matches!(&site.left()[..], [Action::Promote { server, .. }] if server == "pg-02"));
    site.promoted("pg-02");
    assert_eq!(site.open.as_deref(), Some("pg-02"));
}

#[test]
fn a_primary_that_contradicts_the_record_gets_nothing() {
    let mut site = Site::serving(alone(2));
    for sample in [
        Sample { timeline: 3, ..primary(1000) },
        Sample { system_id: 8, ..primary(1000) },
        Sample { started: 9, ..standby(1000) },
    ] {
        site.sees("pg-01", Ok(sample));
        assert_eq!(site.open, None);
        site.sees("pg-01", Ok(primary(1000)));
        assert_eq!(site.open.as_deref(), Some("pg-01"));
    }
}

#[test]
fn an_orderly_change_waits_for_the_end_of_the_log() {
    let mut site = Site::serving(alone(2));
    let switchover = Command::Switchover { server: None, absent: BTreeSet::new() };
    site.take(Event::Command(switchover));
    assert_eq!(site.open, None);
    assert_eq!(site.left(), [Action::Quiesce("pg-01".into())]);
    site.take(Event::Quiesced(Ok(Lsn(1500))));
    let catch_up = Action::CatchUp { server: "pg-02".into(), end: Lsn(1500) };
    assert_eq!(site.left(), [catch_up]);
    site.take(Event::CaughtUp(Ok(())));
    assert_eq!(site.left(), [Action::Revoke("pg-02".into())]);
    site.revoked("pg-02", 1499);
    let why = site.finished().unwrap_err();
    assert!(why.contains("may lose 1 bytes"), "{why}");
    assert_eq!(site.open.as_deref(), Some("pg-01"));
}

#[test]
fn an_orderly_change_that_cannot_go_on_leaves_the_primary() {
    let mut site = Site::serving(alone(2));
    let switchover =
        || Event::Command(Command::Switchover { server: None, absent: BTreeSet::new() });
    site.take(switchover());
    site.take(Event::Quiesced(Err("a transaction is open for 30 s".into())));
    assert!(site.finished().unwrap_err().contains("pg-01 goes on"));
    assert_eq!(site.open.as_deref(), Some("pg-01"));
    // A standby that does not stream is no candidate.
    site.sees("pg-02", Ok(Sample { receiver: None, ..standby(1000) }));
    site.take(switchover());
    assert!(site.finished().unwrap_err().contains("does not stream"));
}

#[test]
fn a_fence_is_kept_until_it_is_taken_back() {
    let mut site = Site::serving(alone(2));
    site.take(Event::Command(Command::Fence("pg-01".into())));
    assert_eq!(site.open, None);
    site.restart();
    assert_eq!(site.open, None);
    site.take(Event::Command(Command::Unfence { server: "pg-01".into(), force: false }));
    site.sees("pg-01", Ok(primary(1000)));
    assert_eq!(site.open.as_deref(), Some("pg-01"));
    site.take(Event::Command(Command::Fence("pg-09".into())));
    assert!(site.left().into_iter().any(
        |it| matches!(it, Action::Finish(Err(why)) if why.contains("no server is called pg-09"))
    ));
}

#[test]
fn nothing_begins_that_cannot_be_kept() {
    let mut site = Site::serving(alone(2));
    site.kill_primary();
    let command =
        Command::Promote { server: None, may_lose: Some(0), absent: BTreeSet::new(), force: false };
    let actions = site.machine.handle(Event::Command(command), site.now);
    let revision = actions.iter().find_map(|action| match action {
        Action::Commit(record) => Some(record.revision),
        _ => None,
    });
    site.take(Event::NotCommitted(revision.unwrap(), "no space left on device".into()));
    assert!(site.finished().unwrap_err().contains("no space left"));
    assert_eq!(site.open.as_deref(), Some("pg-01"));
}
