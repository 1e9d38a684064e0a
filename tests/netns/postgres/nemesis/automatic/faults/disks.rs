//! Disks that are full.

use super::*;

/// How long a disk takes no log at most.
const FULL: Duration = Duration::from_secs(15);

impl Nemesis<'_> {
    /// The primary's tables cannot grow until clients have been told.
    pub(super) fn fill_tables(&mut self, primary: &str) -> Result<()> {
        let told = || self.writers.look(|history| history.disk_full);
        let before = told();
        self.site.lab().fill_disk(primary)?;
        let seen = wait::until(PATIENCE, "writers to be told that the disk is full", || {
            Ok((told() > before).then_some(()))
        });
        self.sleep(200..2000);
        self.note_state(primary);
        self.site.lab().free_disk(primary)?;
        seen
    }

    /// The primary cannot begin another segment of its log. It panics, and does not come up again while there
    /// is no room, or only to panic again.
    pub(super) fn fill_log(&mut self, primary: &str, standby: &str) -> Result<Outcome> {
        self.site.lab().fill_disk(primary)?;
        let begin = Instant::now();
        let mut replaced = false;
        while begin.elapsed() < FULL && !replaced {
            // What there is of segments made in advance is used up.
            let _ = self.site.lab().query(primary, "select pg_switch_wal()");
            self.sleep(100..200);
            replaced = BOTH.iter().all(|host| {
                database_of(self.site, *host).is_ok_and(|it| it["writes_to"] == standby)
            });
        }
        self.note_state(primary);
        self.site.lab().free_disk(primary)?;
        if !replaced && !runs(self.site, primary) {
            self.until_replaced(standby, &BOTH)?;
        }
        Ok(Outcome::Either)
    }

    /// The standby cannot keep the log.
    pub(super) fn fill_standby(&mut self, primary: &str, standby: &str) -> Result<()> {
        self.site.lab().fill_disk(standby)?;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) {
            let _ = self.site.lab().query(primary, "select pg_switch_wal()");
            self.sleep(100..200);
        }
        self.note_state(standby);
        self.site.lab().free_disk(standby)?;
        if !runs(self.site, standby) {
            come_back(self.site, standby)?;
        }
        Ok(())
    }

    /// What the balancers say of a server.
    fn note_state(&mut self, name: &str) {
        for host in BOTH {
            let Ok(it) = database_of(self.site, host) else { continue };
            let found = server(&it, name);
            let text = format!(
                "{host}: {name} answers: {}, {}; warnings {}, refused {}",
                found["answers"], found["failure"], it["warnings"], it["refused"]
            );
            self.journal.note(text);
        }
    }
}
