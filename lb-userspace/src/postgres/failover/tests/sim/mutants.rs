//! Machines that are broken on purpose: a simulation that does not find that out proves nothing.

use super::*;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// A record replaces whatever is there: to degrade and to fail over may both begin.
    ComparesNothing,
    /// Commits wait for nobody before the record says so.
    DegradesFirst,
    /// The record says that commits wait again, and they do not.
    RestoresByWord,
    /// Leases last longer than a promotion waits for.
    LeasesLast,
    /// A balancer confirms that its gate is closed, and it is not.
    ConfirmsEarly,
    /// Standbys go on following the old primary.
    RevokesNobody,
}

/// So much longer do leases last.
pub(super) const LATE: Duration = Duration::from_millis(1500);

/// Lives in which it must be found out.
const LIVES: u64 = 2000;

impl Site {
    /// The setting comes before the record, if that is what is wrong.
    pub(super) fn set_before_kept(&mut self, record: &Record, base: Option<&Record>) {
        let new = record.degraded().is_some_and(|it| !it.restoring);
        let old = base.is_some_and(|base| base.degraded().is_some());
        if self.mutant != Some(Mutant::DegradesFirst) || !new || old {
            return;
        }
        let server = server_at(&record.primary);
        self.servers[server].sync = false;
        let waiting = self.servers[server].waiting.clone();
        self.acknowledge(server, &waiting);
    }
}

/// A life in which degrading and failing over compete, again and again.
fn compete(seed: u64, mutant: Mutant) {
    let mut site = Site::new(seed, true, Some(mutant));
    for _ in 0..5 {
        site.contest();
    }
    site.heal(seed);
}

/// Plays lives until one goes wrong.
fn is_found(mutant: Mutant, play: impl Fn(u64, Mutant) + std::panic::RefUnwindSafe) {
    let wrong = (0..LIVES).find(|seed| std::panic::catch_unwind(|| play(*seed, mutant)).is_err());
    println!("{mutant:?}: seed {wrong:?}");
    assert!(wrong.is_some(), "nobody notices {mutant:?}");
}

fn live_with(seed: u64, mutant: Mutant) {
    live(seed, true, Some(mutant));
}

#[test]
fn a_store_that_compares_nothing_is_found_out() {
    is_found(Mutant::ComparesNothing, compete);
}

#[test]
fn a_setting_before_the_record_is_found_out() {
    is_found(Mutant::DegradesFirst, compete);
}

#[test]
fn a_record_before_the_setting_is_found_out() {
    is_found(Mutant::RestoresByWord, live_with);
}

#[test]
fn a_lease_that_lasts_is_found_out() {
    is_found(Mutant::LeasesLast, live_with);
}

#[test]
fn a_gate_that_is_open_is_found_out() {
    is_found(Mutant::ConfirmsEarly, live_with);
    is_found(Mutant::ConfirmsEarly, |seed, mutant| {
        live(seed, false, Some(mutant));
    });
}

#[test]
fn a_standby_that_follows_is_found_out() {
    is_found(Mutant::RevokesNobody, compete);
}
