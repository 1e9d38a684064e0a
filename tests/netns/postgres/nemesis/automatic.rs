//! Nobody promotes by hand: the balancers do, where three members of etcd agree.

use super::*;
use crate::postgres::unattended;

mod faults;

use faults::{Fault, Light};

/// After a promotion without a person there is none for so long.
const CALM: Duration = Duration::from_secs(61);

/// How long nothing must happen where nothing may.
const WATCH: Duration = Duration::from_secs(4);

/// Whoever plays against the system.
struct Nemesis<'a> {
    site: &'a Site,
    writers: &'a Writers,
    journal: &'a mut Journal,
    random: fastrand::Rng,
    /// The last promotion.
    promoted: Option<Instant>,
    /// Timelines that a person has begun.
    by_hand: Vec<u64>,
    /// Commits go on without a standby that has been missing for a second.
    available: bool,
}

/// Who must be the primary afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Same,
    Other,
    Either,
}

impl Nemesis<'_> {
    fn go_on(&mut self) -> Result<()> {
        self.writers.more(50)?;
        let begin = Instant::now();
        while begin.elapsed() < lasts() {
            // It may be longer: daemons that were killed count anew.
            let told = database_of(self.site, HostName::Lb01)?["calm"] == true;
            let calm = told || self.promoted.is_some_and(|at| at.elapsed() < CALM);
            let fault = Fault::choose(&mut self.random, calm);
            self.journal.note(format!("{fault:?}"));
            self.play(fault).with_context(|| format!("{fault:?}"))?;
            steady(self.site).with_context(|| format!("after {fault:?}"))?;
            self.writers.more(20).with_context(|| format!("after {fault:?}"))?;
        }
        Ok(())
    }

    fn play(&mut self, fault: Fault) -> Result<()> {
        let since = Instant::now();
        let (before, standby) = roles(self.site)?;
        let expected = self.inflict(fault, before, standby)?;
        let (primary, _) = roles(self.site)?;
        self.writers.more(10)?;
        let pause = self.writers.pause(since);
        let changed = primary != before;
        let word = if changed { "replaced" } else { "stays" };
        self.journal.paused(&format!("{}: {word}", fault.class()), pause);
        match expected {
            Outcome::Same => ensure!(!changed, "{primary} was promoted, and {before} is well"),
            Outcome::Other => ensure!(changed, "{before} is still the primary"),
            Outcome::Either => {}
        }
        if changed {
            if fault != Fault::Light(Light::Switchover) {
                self.promoted = Some(Instant::now());
            }
            self.return_of(before, primary)?;
        }
        Ok(())
    }

    /// The old primary comes back, perhaps as it was: then nobody must reach it. In the end it follows.
    fn return_of(&mut self, old: &str, primary: &str) -> Result<()> {
        if !runs(self.site, old) && self.random.bool() {
            self.journal.note(format!("{old} is started as it was"));
            self.site.lab().start(old)?;
        }
        if runs(self.site, old) {
            both_see(self.site, &format!("{old} to be barred"), |it| {
                server(it, old)["answers"] == true
                    && ["read_write", "read_only"]
                        .iter()
                        .all(|service| server(it, old)[*service]["state"] == "barred")
            })?;
            let right = host_of(primary).ipv4().to_string();
            for port in [5432, 5433] {
                let led = eventually("an answer", || Ok(leads_to(self.site, port).ok()))?;
                ensure!(led == right, "port {port} leads to {led}");
            }
        }
        come_back(self.site, old)?;
        synchronous(self.site, primary, old)
    }

    /// Waits until the standby is the primary, as these balancers see it.
    fn until_replaced(&self, standby: &str, by: &[HostName]) -> Result<()> {
        for host in by {
            wait::until(PATIENCE, &format!("{host} to promote {standby}"), || {
                let it = database_of(self.site, *host)?;
                let there = it["phase"] == "serving" && it["writes_to"] == standby;
                Ok(there.then_some(()))
            })?;
        }
        Ok(())
    }

    /// Nobody is promoted for a while.
    fn nobody_is_promoted(&self, standby: &str) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < WATCH {
            for host in BOTH {
                let database = database_of(self.site, host)?;
                ensure!(
                    database["primary"] != standby && database["phase"] == "serving",
                    "{host} changes the primary: {database}"
                );
            }
        }
        Ok(())
    }

    fn sleep(&mut self, millis: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.random.u64(millis)));
    }
}

/// Whether the server's main process is there.
fn runs(site: &Site, server: &str) -> bool {
    processes(site, host_of(server), "postgres").is_ok_and(|all| !all.is_empty())
}

/// A lab with two balancers, three members of etcd, synchronous replication, and a disk for each server.
fn site(key: &Key, available: bool) -> Result<Site> {
    let mut config = unattended::config(key, "automatic");
    if available {
        let line = "promotion = \"automatic\"\n";
        config = config.replacen(line, &format!("{line}durability = \"available 1s\"\n"), 1);
    }
    let options = Options {
        config: Some(config.clone()),
        ballast: Some(xtask::build::ballast()?),
        balancers: Balancers::None,
        postgres: true,
        etcd: true,
        apps: 0,
        ..Options::default()
    };
    let site = Site::with("nemesis-auto", options)?;
    let mut config = site.lab().with_hosts(&config);
    for server in ["pg-02", "pg-01"] {
        site.lab().kill(server)?;
    }
    for server in ["pg-01", "pg-02"] {
        let folder = site.lab().give_disk(server)?;
        let old = site.lab().data_dir().join(server);
        let line = |path: &Path| format!("data_directory = \"{}\"", path.display());
        config = config.replace(&line(&old), &line(&folder));
        site.lab().start(server)?;
    }
    site.write_config(&config)?;
    for host in BOTH {
        site.lab().daemon(host.as_str()).start()?;
    }
    unattended::settle(&site)?;
    // Two clients that know the way to one balancer and no other, whoever has the address.
    for (host, balancer) in [(HostName::App01, HostName::Lb01), (HostName::App02, HostName::Lb02)] {
        let mac = balancer.mac();
        site.ip(host, &format!("neigh replace 192.0.2.100 lladdr {mac} dev eth0 nud permanent"))?;
    }
    Ok(site)
}

#[test]
fn no_acknowledged_write_is_lost_while_nobody_looks() -> Result<()> {
    let seed = seed();
    let mut journal = Journal::begin(seed);
    let key = Key::new("one key for both balancers\n")?;
    let mut random = fastrand::Rng::with_seed(seed);
    let available = random.bool();
    journal.note(if available { "durability is \"available 1s\"" } else { "durability is strict" });
    let site = site(&key, available)?;
    steady(&site)?;
    on(site.client(), async || ask(5432, "create table acked (value bigint)").await)?;
    let client = site.client();
    let clients = [
        Client::session(client),
        Client::session(client),
        Client::fresh(client),
        Client::session(site.host(HostName::App01)),
        Client::session(site.host(HostName::App02)),
        // Whom the balancers do not protect, synchronous replication does.
        Client::direct(site.host(HostName::App03), HostName::Pg01),
        Client::direct(site.host(HostName::App03), HostName::Pg02),
    ];
    let writers = Writers::start(&clients);
    let reader = Reader::start(site.client());
    let mut nemesis = Nemesis {
        site: &site,
        writers: &writers,
        journal: &mut journal,
        random,
        promoted: None,
        by_hand: Vec::new(),
        available,
    };
    let outcome = nemesis.go_on();
    let by_hand = nemesis.by_hand;
    conclude(site, &journal, writers, reader, outcome, |site| {
        let epoch = judge::judge_records(site, &by_hand)?;
        println!("the last epoch is {epoch}");
        Ok(())
    })
}
