//! Two balancers that share the floating addresses.

use std::{
    net::UdpSocket,
    num::NonZero,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use xtask::{
    lab::HostName::{Client, Lb01, Lb02},
    shell,
};

use self::{
    gap::Probe,
    pair::{FLOATING, Pair},
};
use crate::{
    config::{web, web6},
    load::Load,
    site::{eventually, number},
};

mod floods;
mod gap;
mod hostile;
mod keepalived;
mod pair;
mod proxied;
mod restart;

/// No service of ours should be silent for so long, however loaded the machine is that runs the tests.
/// What it takes on an idle one is printed.
const LONGEST: Duration = Duration::from_secs(8);

#[test]
fn the_addresses_move_when_the_active_is_cut_off_and_stay_there() -> Result<()> {
    let pair = Pair::up("cut", &[])?;
    ensure!(pair.has_address(Lb01)? && !pair.has_address(Lb02)?);
    let probe = Probe::start(pair.host(Client));
    probe.more(200)?;
    println!("nothing happens: longest gap {:?}", probe.longest());
    pair.lab().cut("lb-01")?;
    pair.until_active(Lb02)?;
    probe.more(200)?;
    let gap = probe.longest();
    println!("Active cut off, 100 ms adverts: longest gap {gap:?}");
    ensure!(gap < LONGEST, "nobody answered for {gap:?}");
    // Its cable is out, so it does not even try.
    pair.until_role(Lb01, "initialize")?;
    ensure!(!pair.has_address(Lb01)?, "a node without a cable holds the address");
    ensure!(pair.status(Lb01)?.to_string().contains("its cable is out"));

    pair.lab().heal("lb-01")?;
    pair.until("lb-01 to follow lb-02", Lb01, |vrrp| {
        vrrp["role"] == "backup" && vrrp["active"] == "lb-02"
    })?;
    probe.more(200)?;
    let vrrp = pair.vrrp(Lb02)?;
    ensure!(vrrp["role"] == "active" && vrrp["takeovers"] == 1, "it has moved again: {vrrp}");
    let events = pair.events(Lb02)?;
    ensure!(events.contains("no advert of the Active came in time"), "{events}");
    drop(probe);
    pair.finish()
}

#[test]
fn adverts_of_ten_milliseconds_move_the_addresses_sooner() -> Result<()> {
    let pair = Pair::up("fast", &[("interval = \"100ms\"", "interval = \"10ms\"")])?;
    let probe = Probe::start(pair.host(Client));
    probe.more(200)?;
    println!("nothing happens: longest gap {:?}", probe.longest());
    pair.lab().cut("lb-01")?;
    pair.until_active(Lb02)?;
    probe.more(200)?;
    let gap = probe.longest();
    println!("Active cut off, 10 ms adverts: longest gap {gap:?}");
    ensure!(gap < LONGEST, "nobody answered for {gap:?}");
    drop(probe);
    pair.finish()
}

#[test]
fn a_node_that_reaches_fewer_backends_gives_way() -> Result<()> {
    let pair = Pair::up("fewer", &[])?;
    let load = Load::http(pair.host(Client), 2, web());
    load.more(50)?;
    // Only lb-01 cannot reach it.
    let rules = "table inet block {\n chain output {\n type filter hook output priority 0;\n \
                 ip daddr 192.0.2.23 drop\n }\n}\n";
    let mut command = pair.host(Lb01).command("nft");
    shell::output_of(command.args(["-f", "-"]), rules)?;
    pair.until_active(Lb02)?;
    let vrrp = pair.until_role(Lb01, "backup")?;
    ensure!(number(&vrrp["priority"]) < 90 && vrrp["configured_priority"] == 100, "{vrrp}");
    let events = pair.events(Lb01)?;
    ensure!(events.contains("2 of 12 backends cannot be reached from here"), "{events}");
    ensure!(pair.obeys(Lb01, "status")?.contains("(configured: 100)"));
    // It recovers, and the addresses stay where they are.
    let mut command = pair.host(Lb01).command("nft");
    shell::output(command.args(["delete", "table", "inet", "block"]))?;
    pair.until("lb-01 to be itself again", Lb01, |vrrp| vrrp["priority"] == 100)?;
    let vrrp = pair.vrrp(Lb02)?;
    ensure!(vrrp["role"] == "active" && vrrp["takeovers"] == 1, "{vrrp}");
    // What was under way when they moved may have broken; what begins now does not.
    drop(load.stop());
    let load = Load::http_requests(pair.host(Client), 2, 30, web()).end();
    load.ensure_none_failed()?;
    pair.finish()
}

#[test]
fn a_hand_over_loses_nothing() -> Result<()> {
    let pair = Pair::up("hand-over", &[])?;
    let probe = Probe::start(pair.host(Client));
    probe.more(200)?;
    let said = pair.obeys(Lb01, "release")?;
    ensure!(said == "vrid 51: lb-02 is Active\n", "{said}");
    ensure!(pair.vrrp(Lb01)?["role"] == "backup");
    probe.more(300)?;
    let gap = probe.longest();
    println!("release, 100 ms adverts: longest gap {gap:?}");
    ensure!(gap < LONGEST);
    // Back, by an orderly stop.
    pair.lab().daemon("lb-02").stop()?;
    pair.until_active(Lb01)?;
    ensure!(!pair.has_address(Lb02)?, "a node that has stopped in order holds the address");
    probe.more(300)?;
    let gap = probe.longest();
    println!("orderly stop, 100 ms adverts: longest gap {gap:?}");
    ensure!(gap < LONGEST);
    let events = pair.events(Lb01)?;
    ensure!(events.contains("the Active has handed over"), "{events}");
    drop(probe);

    // With nobody to take over, a release is refused, and a stop leaves everything as it is.
    let output = pair.ballast(Lb01, "release")?;
    let said = crate::site::text(&output);
    ensure!(output.status.code() == Some(1) && said.contains("nobody took over"), "{said}");
    ensure!(pair.vrrp(Lb01)?["role"] == "active");
    pair.lab().daemon("lb-01").stop()?;
    ensure!(pair.has_address(Lb01)?, "the last node took the address along");
    let load = Load::http(pair.host(Client), 2, web());
    load.more(50)?;
    pair.lab().daemon("lb-01").start()?;
    pair.until_active(Lb01)?;
    load.more(50)?;
    load.stop().ensure_none_failed()?;
    let events = pair.events(Lb01)?;
    ensure!(events.contains("it was Active a moment ago"), "it began anew: {events}");
    pair.finish()
}

#[test]
fn a_node_of_a_higher_priority_takes_the_addresses_back_if_it_may() -> Result<()> {
    let edit = ("interval = \"100ms\"", "interval = \"100ms\"\npreempt = true");
    let pair = Pair::up("preempt", &[edit])?;
    pair.lab().daemon("lb-01").stop()?;
    pair.until_active(Lb02)?;
    let probe = Probe::start(pair.host(Client));
    probe.more(200)?;
    pair.lab().daemon("lb-01").start()?;
    pair.until_active(Lb01)?;
    pair.until_role(Lb02, "backup")?;
    probe.more(300)?;
    let gap = probe.longest();
    println!("taken back, 100 ms adverts: longest gap {gap:?}");
    ensure!(gap < LONGEST);
    drop(probe);
    pair.finish()
}

#[test]
fn a_daemon_that_is_back_at_once_has_lost_nothing() -> Result<()> {
    // Adverts of a second, so that it is back in time on any machine.
    let pair = Pair::up("back", &[("interval = \"100ms\"", "interval = \"2s\"")])?;
    let load = Load::http(pair.host(Client), 4, web());
    load.more(100)?;
    pair.lab().daemon("lb-01").kill()?;
    pair.lab().daemon("lb-01").start()?;
    pair.until_active(Lb01)?;
    load.more(200)?;
    load.stop().ensure_none_failed()?;
    let events = pair.events(Lb01)?;
    ensure!(events.contains("it was Active a moment ago"), "{events}");
    let vrrp = pair.vrrp(Lb02)?;
    ensure!(vrrp["role"] == "backup" && vrrp["takeovers"] == 0, "{vrrp}");
    pair.finish()
}

#[test]
fn a_dead_daemon_answers_for_nothing_when_another_has_taken_over() -> Result<()> {
    let pair = Pair::up("dead", &[])?;
    pair.lab().daemon("lb-01").kill()?;
    pair.until_active(Lb02)?;
    // The dead one's kernel still has the addresses, and the program in front of it knows better.
    ensure!(pair.has_address(Lb01)?);
    for _ in 0..20 {
        for (family, vip) in [("-4", FLOATING[0]), ("-6", FLOATING[1])] {
            pair.ip(Client, &format!("{family} neigh flush all"))?;
            let answers = pair.who_answers(vip)?;
            ensure!(answers == Lb02.mac(), "{vip} is answered for by {answers}");
        }
    }
    let load = Load::http_requests(pair.host(Client), 2, 30, web()).end();
    load.ensure_none_failed()?;

    // It comes back, takes them off, and follows.
    pair.lab().daemon("lb-01").start()?;
    pair.until("lb-01 to follow lb-02", Lb01, |vrrp| {
        vrrp["role"] == "backup" && vrrp["active"] == "lb-02"
    })?;
    ensure!(!pair.has_address(Lb01)?, "the stale address is still there");
    let events = pair.events(Lb01)?;
    ensure!(events.contains("was left on eth0 by an earlier ballast"), "{events}");
    ensure!(!pair.events(Lb02)?.contains("two nodes are Active"));
    pair.finish()
}

#[test]
fn a_process_that_was_stopped_takes_nothing_over() -> Result<()> {
    let pair = Pair::up("stopped", &[])?;
    let pid = |host: &str| pair.lab().daemon(host).pid().expect("the daemon runs");
    // The Backup, for more than a second: all adverts wait for it.
    let sent = || Ok::<_, anyhow::Error>(number(&pair.vrrp(Lb01)?["sent"]));
    let until = sent()? + 12;
    kill(pid("lb-02"), Signal::SIGSTOP)?;
    eventually("twelve adverts", || Ok((sent()? >= until).then_some(())))?;
    kill(pid("lb-02"), Signal::SIGCONT)?;
    pair.until("lb-02 to have read them", Lb02, |vrrp| number(&vrrp["received"]) >= until)?;
    let vrrp = pair.vrrp(Lb02)?;
    ensure!(vrrp["role"] == "backup" && vrrp["takeovers"] == 0, "{vrrp}");

    // The Active, until the other one has taken over, as it should. It does not come between.
    kill(pid("lb-01"), Signal::SIGSTOP)?;
    pair.until_active(Lb02)?;
    kill(pid("lb-01"), Signal::SIGCONT)?;
    pair.until("lb-01 to follow lb-02", Lb01, |vrrp| {
        vrrp["role"] == "backup" && vrrp["active"] == "lb-02"
    })?;
    let vrrp = pair.vrrp(Lb01)?;
    ensure!(vrrp["takeovers"] == 1, "{vrrp}");
    let events = pair.events(Lb01)?;
    ensure!(events.contains("it did not run for"), "{events}");
    ensure!(!pair.events(Lb02)?.contains("two nodes are Active"), "it came between");
    pair.finish()
}

#[test]
fn a_machine_with_too_much_to_do_moves_nothing() -> Result<()> {
    let pair = Pair::up("busy", &[])?;
    let received = || Ok::<_, anyhow::Error>(number(&pair.vrrp(Lb02)?["received"]));
    let until = received()? + 150;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 * thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let outcome =
            eventually("adverts of fifteen seconds", || Ok((received()? >= until).then_some(())));
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    for (host, role, takeovers) in [(Lb01, "active", 1), (Lb02, "backup", 0)] {
        let vrrp = pair.vrrp(host)?;
        ensure!(vrrp["role"] == role && vrrp["takeovers"] == takeovers, "{host}: {vrrp}");
    }
    pair.finish()
}

#[test]
fn a_second_is_nothing_to_adverts_of_a_second() -> Result<()> {
    let pair = Pair::up("second", &[("interval = \"100ms\"", "interval = \"1s\"")])?;
    pair.until("an advert", Lb02, |vrrp| vrrp["peers"][0]["address"] == "192.0.2.11")?;
    let pid = pair.lab().daemon("lb-01").pid().expect("the daemon runs");
    kill(pid, Signal::SIGSTOP)?;
    pair.until("lb-02 to have heard nothing for more than a second", Lb02, |vrrp| {
        number(&vrrp["peers"][0]["last_advert_ms"]) > 1_300
    })?;
    kill(pid, Signal::SIGCONT)?;
    let heard = number(&pair.vrrp(Lb02)?["received"]);
    pair.until("more adverts", Lb02, |vrrp| number(&vrrp["received"]) > heard + 2)?;
    for (host, takeovers) in [(Lb01, 1), (Lb02, 0)] {
        let vrrp = pair.vrrp(host)?;
        ensure!(vrrp["takeovers"] == takeovers, "{host}: {vrrp}");
    }
    pair.finish()
}

#[test]
fn two_actives_are_noticed_and_repaired() -> Result<()> {
    let pair = Pair::up("split", &[])?;
    // Neither hears the other.
    for host in [Lb01, Lb02] {
        pair.deafen(host)?;
    }
    pair.until_active(Lb02)?;
    ensure!(pair.vrrp(Lb01)?["role"] == "active", "there is no split");
    pair.restore(Lb01)?;
    let vrrp = pair.until("lb-01 to notice", Lb01, |vrrp| vrrp["problem"].is_string())?;
    ensure!(vrrp["problem"] == "lb-02 is Active too: split brain", "{vrrp}");
    ensure!(pair.obeys(Lb01, "status")?.contains("warning: vrid 51: lb-02 is Active too"));
    ensure!(
        pair.events(Lb01)?.contains("two nodes are Active for vrid 51: lb-02 (192.0.2.12) is too")
    );
    pair.restore(Lb02)?;
    pair.until_role(Lb02, "backup")?;
    pair.until("it to be over", Lb01, |vrrp| vrrp["problem"].is_null())?;
    ensure!(pair.vrrp(Lb01)?["role"] == "active" && !pair.has_address(Lb02)?);
    ensure!(pair.events(Lb01)?.contains("lb-02 (192.0.2.12) is not Active for vrid 51 any more"));
    let load = Load::http_requests(pair.host(Client), 2, 30, web()).end();
    load.ensure_none_failed()?;
    pair.finish()
}

#[test]
fn addresses_of_ipv6_alone_move_too() -> Result<()> {
    // The services of IPv4 go where those of IPv6 are.
    let edits = [
        ("\"192.0.2.100/24\", ", ""),
        ("192.0.2.100:80", "[2001:db8::100]:81"),
        ("192.0.2.100:9000", "[2001:db8::100]:9001"),
        ("\"192.0.2.21:", "\"[2001:db8::21]:"),
        ("\"192.0.2.22:", "\"[2001:db8::22]:"),
        ("\"192.0.2.23:", "\"[2001:db8::23]:"),
    ];
    let pair = Pair::up("v6", &edits)?;
    let vrrp = pair.until("lb-02 to follow", Lb02, |vrrp| {
        vrrp["role"] == "backup" && vrrp["active"].is_string()
    })?;
    let active = vrrp["active"].to_string();
    ensure!(active.contains("fe80::"), "adverts come from a link-local address: {active}");
    pair.lab().daemon("lb-01").stop()?;
    pair.until_active(Lb02)?;
    let load = Load::http_requests(pair.host(Client), 2, 30, web6()).end();
    load.ensure_none_failed()?;
    pair.finish()
}

#[test]
fn a_reload_changes_what_vrrp_does() -> Result<()> {
    let pair = Pair::up("vrrp-reload", &[])?;
    pair.edit_config(&[
        ("interval = \"100ms\"", "interval = \"50ms\"\npreempt = true"),
        ("priority = 100", "priority = 80"),
    ])?;
    pair.obeys(Lb01, "reload")?;
    pair.obeys(Lb02, "reload")?;
    pair.until_active(Lb02)?;
    let vrrp = pair.until("lb-01 to follow", Lb01, |vrrp| vrrp["role"] == "backup")?;
    ensure!(vrrp["priority"] == 80 && vrrp["interval_ms"] == 50, "{vrrp}");
    // A virtual router that is gone gives its addresses up; the other node, not yet told, takes over.
    pair.edit_config(&[("vrid = 51", "vrid = 52")])?;
    pair.obeys(Lb02, "reload")?;
    pair.until_active(Lb01)?;
    pair.obeys(Lb01, "reload")?;
    pair.until("vrid 52 to have an Active", Lb01, |vrrp| {
        vrrp["vrid"] == 52 && vrrp["active"].is_string()
    })?;
    pair.finish()
}

/// Answers datagrams until the sender goes away.
#[test]
fn the_probe_sees_a_gap() -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let target = socket.local_addr()?;
    let probe = Probe::to(target);
    let server = thread::spawn(move || -> Result<()> {
        let mut buffer = [0; 16];
        for number in 0_u32.. {
            let (length, from) = socket.recv_from(&mut buffer)?;
            if length == 1 {
                break;
            }
            // A hundred are lost.
            if !(300..400).contains(&number) {
                socket.send_to(&buffer[..length], from)?;
            }
        }
        Ok(())
    });
    probe.more(500)?;
    let gap = probe.longest();
    ensure!(gap > Duration::from_millis(90), "it saw a gap of {gap:?} only");
    drop(probe);
    UdpSocket::bind("127.0.0.1:0")?.send_to(&[0], target)?;
    server.join().expect("join the server")
}
