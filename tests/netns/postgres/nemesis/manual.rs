//! A person promotes, by one command.

use super::*;

/// What is done to the system.
#[derive(Clone, Copy, Debug)]
enum Fault {
    KillPrimary,
    CutPrimary,
    PausePrimary,
    DeafPrimary,
    KillStandby,
    CutStandby,
    KillDaemon(HostName),
    PauseDaemon(HostName),
    Switchover,
}

impl Fault {
    fn choose(random: &mut fastrand::Rng) -> Self {
        let node = BOTH[random.usize(..BOTH.len())];
        let all = [
            Self::KillPrimary,
            Self::CutPrimary,
            Self::PausePrimary,
            Self::DeafPrimary,
            Self::KillStandby,
            Self::CutStandby,
            Self::KillDaemon(node),
            Self::PauseDaemon(node),
            Self::Switchover,
        ];
        all[random.usize(..all.len())]
    }
}

/// Promotes the standby of a primary that is gone, as a person would, and makes the old one a standby.
fn replace(site: &Site, old: &str, new: &str, heal: impl FnOnce() -> Result<()>) -> Result<()> {
    eventually("the standby to be promoted", || {
        let output = site.ballast("pg promote --yes")?;
        // Until all have seen that it is down, it is refused.
        Ok(output.status.success().then_some(()))
    })?;
    heal()?;
    come_back(site, old)?;
    synchronous(site, new, old)
}

fn play(site: &Site, fault: Fault, random: &mut fastrand::Rng) -> Result<()> {
    let (primary, standby) = roles(site)?;
    let lab = site.lab();
    let while_it_lasts = Duration::from_millis(random.u64(200..3000));
    match fault {
        Fault::KillPrimary => {
            signal_all(site, primary, Signal::SIGKILL)?;
            replace(site, primary, standby, || Ok(()))
        }
        Fault::CutPrimary => {
            lab.cut(primary)?;
            replace(site, primary, standby, || lab.heal(primary))
        }
        Fault::PausePrimary => {
            signal_all(site, primary, Signal::SIGSTOP)?;
            std::thread::sleep(while_it_lasts);
            signal_all(site, primary, Signal::SIGCONT)
        }
        Fault::DeafPrimary => {
            part(site, host_of(primary), &["in".into()])?;
            std::thread::sleep(while_it_lasts);
            heal(site, host_of(primary))
        }
        Fault::KillStandby => {
            signal_all(site, standby, Signal::SIGKILL)?;
            std::thread::sleep(while_it_lasts);
            // It was started with the passwords that only this way has.
            come_back(site, standby)
        }
        Fault::CutStandby => {
            lab.cut(standby)?;
            std::thread::sleep(while_it_lasts);
            lab.heal(standby)
        }
        Fault::KillDaemon(node) => {
            lab.daemon(node.as_str()).kill()?;
            std::thread::sleep(while_it_lasts);
            lab.daemon(node.as_str()).start()
        }
        Fault::PauseDaemon(node) => {
            lab.daemon(node.as_str()).signal(Signal::SIGSTOP)?;
            std::thread::sleep(while_it_lasts);
            lab.daemon(node.as_str()).signal(Signal::SIGCONT)
        }
        Fault::Switchover => {
            site.obeys("pg switchover --yes --wait 30s --cut")?;
            come_back(site, primary)?;
            synchronous(site, standby, primary)
        }
    }
}

fn go_on(
    site: &Site,
    writers: &Writers,
    journal: &mut Journal,
    random: &mut fastrand::Rng,
) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < lasts() {
        let fault = Fault::choose(random);
        let since = Instant::now();
        journal.note(format!("{fault:?}"));
        play(site, fault, random).with_context(|| format!("{fault:?}"))?;
        steady(site).with_context(|| format!("after {fault:?}"))?;
        writers.more(20).with_context(|| format!("after {fault:?}"))?;
        journal.paused(&format!("{fault:?}"), writers.pause(since));
    }
    Ok(())
}

#[test]
fn no_acknowledged_write_is_lost_whatever_happens() -> Result<()> {
    let seed = seed();
    let mut journal = Journal::begin(seed);
    let key = Key::new("one key for both balancers\n")?;
    let site = pair("nemesis", &key)?;
    let config = peers::config(&key) + &postgres_config();
    site.write_config(&site.lab().with_hosts(&config))?;
    for host in BOTH {
        peers::obeys(&site, host, "reload")?;
    }
    make_synchronous(&site)?;
    steady(&site)?;
    on(site.client(), async || ask(5432, "create table acked (value bigint)").await)?;
    let clients = [(); 4].map(|()| Client::session(site.client()));
    let writers = Writers::start(&clients);
    let reader = Reader::start(site.client());
    let mut random = fastrand::Rng::with_seed(seed);
    let outcome = writers.more(50).and_then(|()| go_on(&site, &writers, &mut journal, &mut random));
    conclude(site, &journal, writers, reader, outcome, |_| Ok(()))
}
