//! Faults that need no promotion, and of which most must lead to none.

use super::*;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Light {
    /// The primary's processes stand still for a moment.
    PausePrimary,
    /// Its cable is pulled for a moment.
    CutPrimary,
    /// It hears nothing for a moment.
    DeafPrimary,
    /// Nobody hears it for a moment.
    MutePrimary,
    /// The balancers do not reach the primary, and its standby does.
    HidePrimary,
    /// One balancer does not reach it.
    HidePrimaryFrom(HostName),
    /// Primary and standby do not reach each other.
    PartServers,
    /// The primary's disk takes no new page of a table: it refuses writes.
    FillTables,
    /// The standby's disk takes no log: commits wait.
    FillStandby,
    /// Each process of the standby.
    KillStandby,
    /// Its cable is pulled for a moment.
    CutStandby,
    /// A balancer's daemon is gone.
    KillDaemon(HostName),
    /// It stands still.
    PauseDaemon(HostName),
    /// A balancer's cable is pulled, with that of the member of etcd beside it.
    CutBalancer(HostName),
    /// The balancers do not reach each other, and everything else.
    PartBalancers,
    /// A member of etcd is gone.
    KillMember(HostName),
    /// It stands still.
    PauseMember(HostName),
    /// All members but this one are gone: the primary goes on.
    KillMajority(HostName),
    /// A person wants another primary.
    Switchover,
    /// A person promotes the standby behind the balancers' backs.
    PromoteByHand,
}

impl Light {
    pub(super) fn choose(random: &mut fastrand::Rng) -> Self {
        let (balancer, member) = (BOTH[random.usize(..2)], ETCD[random.usize(..3)]);
        let all = [
            Self::PausePrimary,
            Self::CutPrimary,
            Self::DeafPrimary,
            Self::MutePrimary,
            Self::HidePrimary,
            Self::HidePrimaryFrom(balancer),
            Self::PartServers,
            Self::FillTables,
            Self::FillStandby,
            Self::KillStandby,
            Self::CutStandby,
            Self::KillDaemon(balancer),
            Self::PauseDaemon(balancer),
            Self::CutBalancer(balancer),
            Self::PartBalancers,
            Self::KillMember(member),
            Self::PauseMember(member),
            Self::KillMajority(member),
            Self::Switchover,
            Self::PromoteByHand,
        ];
        all[random.usize(..all.len())]
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Self::PausePrimary => "primary paused for 0.2 to 3 s",
            Self::CutPrimary => "primary cut off for 0.2 to 3 s",
            Self::DeafPrimary => "primary deaf for 0.2 to 3 s",
            Self::MutePrimary => "primary mute for 0.2 to 3 s",
            Self::HidePrimary => "primary hidden from balancers for 3 s",
            Self::HidePrimaryFrom(_) => "primary hidden from one of them for 3 s",
            Self::PartServers => "servers parted for 2 to 5 s",
            Self::FillTables => "no room for the primary's tables",
            Self::FillStandby => "no room for the standby's log",
            Self::KillStandby => "standby killed",
            Self::CutStandby => "standby cut off for 0.2 to 3 s",
            Self::KillDaemon(_) => "daemon killed",
            Self::PauseDaemon(_) => "daemon paused for 0.2 to 6 s",
            Self::CutBalancer(_) => "balancer cut off for 1 to 6 s",
            Self::PartBalancers => "balancers parted for 1 to 6 s",
            Self::KillMember(_) => "member of etcd killed",
            Self::PauseMember(_) => "member of etcd paused",
            Self::KillMajority(_) => "majority of etcd killed",
            Self::Switchover => "switchover",
            Self::PromoteByHand => "standby promoted by hand",
        }
    }
}

/// Both directions between a host and others.
fn between(others: &str) -> [String; 2] {
    [format!("in ip saddr {others}"), format!("out ip daddr {others}")]
}

impl Nemesis<'_> {
    pub(super) fn disturb(
        &mut self,
        fault: Light,
        primary: &str,
        standby: &str,
    ) -> Result<Outcome> {
        let (site, lab) = (self.site, self.site.lab());
        match fault {
            Light::PausePrimary => {
                signal_all(site, primary, Signal::SIGSTOP)?;
                self.sleep(200..3000);
                signal_all(site, primary, Signal::SIGCONT)?;
                return Ok(Outcome::Either);
            }
            Light::CutPrimary => {
                self.cut(primary, 200..3000)?;
                return Ok(Outcome::Either);
            }
            Light::DeafPrimary => {
                self.hide(host_of(primary), &["in".into()], 200..3000)?;
                return Ok(Outcome::Either);
            }
            Light::MutePrimary => {
                self.hide(host_of(primary), &["out".into()], 200..3000)?;
                return Ok(Outcome::Either);
            }
            Light::Switchover => {
                site.obeys("pg switchover --yes --wait 30s --cut")?;
                return Ok(Outcome::Other);
            }
            Light::HidePrimary => {
                let others = between("{ 192.0.2.11, 192.0.2.12, 192.0.2.100 }");
                self.hide(host_of(primary), &others, 3000..3500)?;
            }
            Light::HidePrimaryFrom(balancer) => {
                let other = between(&balancer.ipv4().to_string());
                self.hide(host_of(primary), &other, 3000..3500)?;
            }
            Light::PartServers => {
                let other = between(&host_of(standby).ipv4().to_string());
                self.hide(host_of(primary), &other, 2000..5000)?;
            }
            Light::FillTables => self.fill_tables(primary)?,
            Light::FillStandby => self.fill_standby(primary, standby)?,
            Light::KillStandby => {
                signal_all(site, standby, Signal::SIGKILL)?;
                self.sleep(200..3000);
                // It was started with the passwords that only this way has.
                come_back(site, standby)?;
            }
            Light::CutStandby => self.cut(standby, 200..3000)?,
            Light::KillDaemon(balancer) => {
                lab.daemon(balancer.as_str()).kill()?;
                self.sleep(200..6000);
                lab.daemon(balancer.as_str()).start()?;
            }
            Light::PauseDaemon(balancer) => {
                lab.daemon(balancer.as_str()).signal(Signal::SIGSTOP)?;
                self.sleep(200..6000);
                lab.daemon(balancer.as_str()).signal(Signal::SIGCONT)?;
            }
            Light::CutBalancer(balancer) => self.cut(balancer.as_str(), 1000..6000)?,
            Light::PartBalancers => {
                let other = between(&HostName::Lb02.ipv4().to_string());
                self.hide(HostName::Lb01, &other, 1000..6000)?;
            }
            Light::KillMember(member) => {
                self.member(member).kill()?;
                self.sleep(200..3000);
                self.writers.more(20)?;
                self.member(member).start()?;
            }
            Light::PauseMember(member) => {
                self.member(member).signal(Signal::SIGSTOP)?;
                self.sleep(200..3000);
                self.writers.more(20)?;
                self.member(member).signal(Signal::SIGCONT)?;
            }
            Light::PromoteByHand => {
                let timeline = self.writers.none_direct(|| self.promote_by_hand(standby))?;
                self.by_hand.push(timeline);
            }
            Light::KillMajority(member) => {
                let killed = self.kill_majority(member)?;
                self.nobody_is_promoted(standby)?;
                self.writers.more(20)?;
                killed.iter().try_for_each(|host| self.member(*host).spawn())?;
            }
        }
        Ok(Outcome::Same)
    }

    /// Promotes the standby of a primary that is well, and makes it a standby again. Gives the timeline that it
    /// began.
    fn promote_by_hand(&self, standby: &str) -> Result<u64> {
        let lab = self.site.lab();
        lab.query(standby, "select pg_promote()")?;
        // Only a checkpoint says in `pg_control` which it is.
        lab.query(standby, "checkpoint")?;
        let timeline = lab.query(standby, "select timeline_id from pg_control_checkpoint()")?;
        both_see(self.site, "the standby to be barred", |it| {
            let services = ["read_write", "read_only"];
            services.iter().all(|service| server(it, standby)[*service]["state"] == "barred")
        })?;
        come_back(self.site, standby)?;
        timeline.parse().context("read the number of a timeline")
    }

    /// Pulls a cable for a while.
    fn cut(&mut self, host: &str, millis: std::ops::Range<u64>) -> Result<()> {
        self.site.lab().cut(host)?;
        self.sleep(millis);
        self.site.lab().heal(host)
    }

    /// Drops packets on a host for a while.
    fn hide(
        &mut self,
        host: HostName,
        rules: &[String],
        millis: std::ops::Range<u64>,
    ) -> Result<()> {
        part(self.site, host, rules)?;
        self.sleep(millis);
        heal(self.site, host)
    }
}
