//! Faults of the primary that only a promotion mends.

use super::*;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Grave {
    /// Each process of the primary, from one moment to the next.
    KillPrimary,
    /// The same, and a balancer's daemon.
    KillPrimaryAnd(HostName),
    /// The same, while a member of etcd is down.
    KillPrimaryWithout(HostName),
    /// The same, while etcd has no majority, but this member: nobody is promoted until it has one.
    KillPrimaryUnheard(HostName),
    /// Each process of the primary, while the standby is cut off: it is late.
    KillPrimaryOfLate,
    /// Its cable is pulled.
    CutPrimary,
    /// Its processes stand still.
    PausePrimary,
    /// It hears nothing, and speaks.
    DeafPrimary,
    /// It hears, and nobody hears it.
    MutePrimary,
    /// Its disk takes no new segment of the log: the server panics.
    FillLog,
}

impl Grave {
    pub(super) fn choose(random: &mut fastrand::Rng) -> Self {
        let (balancer, member) = (BOTH[random.usize(..2)], ETCD[random.usize(..3)]);
        let all = [
            Self::KillPrimary,
            Self::KillPrimaryAnd(balancer),
            Self::KillPrimaryWithout(member),
            Self::KillPrimaryUnheard(member),
            Self::KillPrimaryOfLate,
            Self::CutPrimary,
            Self::PausePrimary,
            Self::DeafPrimary,
            Self::MutePrimary,
            Self::FillLog,
        ];
        all[random.usize(..all.len())]
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Self::KillPrimary => "primary killed",
            Self::KillPrimaryAnd(_) => "primary killed with a balancer",
            Self::KillPrimaryWithout(_) => "primary killed, a member of etcd down",
            Self::KillPrimaryUnheard(_) => "primary killed, etcd back after 4 s",
            Self::KillPrimaryOfLate => "primary killed, standby back after 1 s",
            Self::CutPrimary => "primary cut off",
            Self::PausePrimary => "primary paused",
            Self::DeafPrimary => "primary deaf",
            Self::MutePrimary => "primary mute",
            Self::FillLog => "no room for the primary's log",
        }
    }
}

impl Nemesis<'_> {
    pub(super) fn strike(&mut self, fault: Grave, primary: &str, standby: &str) -> Result<Outcome> {
        let (site, lab) = (self.site, self.site.lab());
        match fault {
            Grave::KillPrimary => {
                signal_all(site, primary, Signal::SIGKILL)?;
                self.until_replaced(standby, &BOTH)?;
            }
            Grave::KillPrimaryAnd(balancer) => {
                lab.daemon(balancer.as_str()).kill()?;
                signal_all(site, primary, Signal::SIGKILL)?;
                let others: Vec<_> = BOTH.into_iter().filter(|it| *it != balancer).collect();
                self.until_replaced(standby, &others)?;
                lab.daemon(balancer.as_str()).start()?;
            }
            Grave::KillPrimaryWithout(member) => {
                self.member(member).kill()?;
                signal_all(site, primary, Signal::SIGKILL)?;
                self.until_replaced(standby, &BOTH)?;
                self.member(member).start()?;
            }
            Grave::KillPrimaryUnheard(member) => {
                let killed = self.kill_majority(member)?;
                both_see(site, "etcd to be missed", |it| {
                    it["warnings"].to_string().contains("etcd does not answer")
                })?;
                signal_all(site, primary, Signal::SIGKILL)?;
                self.nobody_is_promoted(standby)?;
                killed.iter().try_for_each(|host| self.member(*host).spawn())?;
                self.until_replaced(standby, &BOTH)?;
            }
            Grave::KillPrimaryOfLate => {
                lab.cut(standby)?;
                self.sleep(300..2000);
                signal_all(site, primary, Signal::SIGKILL)?;
                self.sleep(900..1000);
                lab.heal(standby)?;
                if self.available && self.is_degraded(standby)? {
                    // Nobody can tell what the standby lacks.
                    self.nobody_is_promoted(standby)?;
                    lab.start(primary)?;
                    return Ok(Outcome::Same);
                }
                self.until_replaced(standby, &BOTH)?;
            }
            Grave::CutPrimary => {
                lab.cut(primary)?;
                self.until_replaced(standby, &BOTH)?;
                lab.heal(primary)?;
            }
            Grave::PausePrimary => {
                signal_all(site, primary, Signal::SIGSTOP)?;
                self.until_replaced(standby, &BOTH)?;
                signal_all(site, primary, Signal::SIGCONT)?;
            }
            Grave::DeafPrimary | Grave::MutePrimary => {
                let way = if fault == Grave::DeafPrimary { "in" } else { "out" };
                part(site, host_of(primary), &[way.into()])?;
                self.until_replaced(standby, &BOTH)?;
                heal(site, host_of(primary))?;
            }
            Grave::FillLog => return self.fill_log(primary, standby),
        }
        Ok(Outcome::Other)
    }

    /// Whether commits had gone on without the standby, which is the primary otherwise.
    fn is_degraded(&self, standby: &str) -> Result<bool> {
        wait::until(PATIENCE, "a promotion, or why there is none", || {
            let [one, two] = BOTH.map(|host| database_of(self.site, host));
            let both = [one?, two?];
            if both.iter().all(|it| it["phase"] == "serving" && it["writes_to"] == standby) {
                return Ok(Some(false));
            }
            let degraded = both.iter().all(|it| {
                !it["degraded"].is_null() && it["phase"] == "serving" && !it["refused"].is_null()
            });
            Ok(degraded.then_some(true))
        })
    }
}
