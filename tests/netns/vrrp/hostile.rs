//! Adverts that must be ignored, and counted.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ballast::vrrp::packet::{Advert, ChecksumForm, GROUP_V4, PROTOCOL, Password, Version};
use socket2::{Domain, Protocol, Socket, Type};
use xtask::lab::{
    HostName::{self, Client, Lb01, Lb02},
    topology::FLOATING_V4,
};

use super::pair::Pair;
use crate::site::number;

/// Sends VRRP in the name of others.
struct Stranger(Socket);

impl Stranger {
    fn on(pair: &Pair, host: HostName) -> Result<Self> {
        let socket = pair.host(host).within(|| -> Result<Socket> {
            let protocol = Protocol::from(i32::from(PROTOCOL));
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(protocol))?;
            socket.set_multicast_if_v4(&host.ipv4())?;
            // It writes the whole header, its source too.
            socket.set_header_included_v4(true)?;
            Ok(socket)
        })??;
        Ok(Self(socket))
    }

    fn send(&self, source: Ipv4Addr, to: Ipv4Addr, ttl: u8, message: &[u8]) -> Result<()> {
        let mut packet = vec![0x45, 0xc0, 0, 0, 0, 0, 0, 0, ttl, PROTOCOL, 0, 0];
        packet.extend(source.octets());
        packet.extend(to.octets());
        packet.extend(message);
        let target = SocketAddr::from((to, 0));
        self.0.send_to(&packet, &target.into()).context("send an advert")?;
        Ok(())
    }
}

fn advert(priority: u8) -> Advert {
    Advert {
        version: Version::V3,
        vrid: 51,
        priority,
        interval: Duration::from_millis(100),
        addresses: vec![IpAddr::V4(FLOATING_V4)],
        password: None,
    }
}

#[test]
fn malformed_and_hostile_adverts_are_ignored_and_counted() -> Result<()> {
    let pair = Pair::up("hostile", &[])?;
    let stranger = Stranger::on(&pair, Client)?;
    let from = Client.ipv4();
    let good = advert(254).encode(from.into(), GROUP_V4.into(), ChecksumForm::PseudoHeader);
    let with = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        message
    };
    let unicast = advert(254).encode(from.into(), Lb01.ipv4().into(), ChecksumForm::Message);
    let old = Advert { version: Version::V2, interval: Duration::from_secs(1), ..advert(254) };
    let old = old.encode(from.into(), GROUP_V4.into(), ChecksumForm::Message);
    let group = GROUP_V4;
    for (reason, source, to, ttl, message) in [
        ("hop_limit", from, group, 254, &good),
        ("checksum", from, group, 255, &with(2, 253)),
        ("length", from, group, 255, &good[..10].to_vec()),
        ("length", from, group, 255, &with(3, 200)),
        ("short", from, group, 255, &good[..5].to_vec()),
        ("version", from, group, 255, &with(0, 0x41)),
        ("type", from, group, 255, &with(0, 0x32)),
        ("other_version", from, group, 255, &old),
        ("unicast", from, Lb01.ipv4(), 255, &unicast),
    ] {
        let count = |vrrp: &serde_json::Value| vrrp["refused"][reason].as_u64().unwrap_or(0);
        let before = count(&pair.vrrp(Lb01)?);
        for _ in 0..3 {
            stranger.send(source, to, ttl, message)?;
        }
        pair.until(&format!("{reason} to be counted"), Lb01, |vrrp| count(vrrp) == before + 3)?;
    }
    // Another number is none of our business.
    stranger.send(from, group, 255, &with(1, 52))?;
    // In its own name: its kernel does not believe that.
    let replayed =
        advert(200).encode(Lb01.ipv4().into(), GROUP_V4.into(), ChecksumForm::PseudoHeader);
    stranger.send(Lb01.ipv4(), group, 255, &replayed)?;
    // A flood, of a priority that would win if its checksums were right.
    for _ in 0..50_000 {
        stranger.send(from, group, 255, &with(2, 253))?;
    }
    for (host, role, takeovers) in [(Lb01, "active", 1), (Lb02, "backup", 0)] {
        let vrrp = pair.vrrp(host)?;
        ensure!(vrrp["role"] == role && number(&vrrp["takeovers"]) == takeovers, "{host}: {vrrp}");
    }
    let shown = pair.obeys(Lb01, "status")?;
    for word in ["refused: ", "3 hop_limit", "3 short", "6 length", "last: 192.0.2.9"] {
        ensure!(shown.contains(word), "`{word}` is not in:\n{shown}");
    }
    let events = pair.events(Lb01)?;
    ensure!(events.contains("an advert of 192.0.2.9 is ignored (vrid 51)"), "{events}");
    ensure!(events.matches("its checksum is wrong").count() == 1, "one event for each kind");
    pair.finish()
}

#[test]
fn a_wrong_password_is_ignored_and_counted() -> Result<()> {
    let edits = [
        ("interval = \"100ms\"", "interval = \"1s\"\nversion = 2\npassword = \"hunter2\""),
        (", \"2001:db8::100/64\"", ""),
        ("[2001:db8::100]:80", "192.0.2.100:81"),
        ("[2001:db8::100]:9000", "192.0.2.100:9001"),
        ("[2001:db8::21]", "192.0.2.21"),
        ("[2001:db8::22]", "192.0.2.22"),
        ("[2001:db8::23]", "192.0.2.23"),
    ];
    let pair = Pair::up("password", &edits)?;
    let stranger = Stranger::on(&pair, Client)?;
    let from = Client.ipv4();
    let second = Duration::from_secs(1);
    let old = Advert { version: Version::V2, interval: second, ..advert(254) };
    let says = |password: Option<&str>, interval: Duration| {
        let password = password.map(Password::new);
        let advert = Advert { password, interval, ..old.clone() };
        advert.encode(from.into(), GROUP_V4.into(), ChecksumForm::Message)
    };
    for (reason, message) in [
        ("password", says(Some("hunter3"), second)),
        ("authentication", says(None, second)),
        ("interval", says(Some("hunter2"), second * 2)),
        ("other_version", advert(254).encode(from.into(), GROUP_V4.into(), ChecksumForm::Message)),
    ] {
        stranger.send(from, GROUP_V4, 255, &message)?;
        pair.until(&format!("{reason} to be counted"), Lb01, |vrrp| vrrp["refused"][reason] == 1)?;
    }
    ensure!(pair.vrrp(Lb01)?["role"] == "active");
    // The password is nowhere to be read.
    for text in [pair.obeys(Lb01, "status --json")?, pair.events(Lb01)?] {
        ensure!(!text.contains("hunter"), "{text}");
    }
    pair.finish()
}

#[test]
fn both_forms_of_the_checksum_are_understood() -> Result<()> {
    let pair = Pair::up("forms", &[])?;
    for (host, form, word) in [
        (Client, ChecksumForm::Message, "rfc9568"),
        (HostName::App01, ChecksumForm::PseudoHeader, "pseudo_header"),
    ] {
        let stranger = Stranger::on(&pair, host)?;
        let from = host.ipv4();
        let message = advert(1).encode(from.into(), GROUP_V4.into(), form);
        stranger.send(from, GROUP_V4, 255, &message)?;
        pair.until("its form to be known", Lb01, |vrrp| {
            let peers = vrrp["peers"].as_array().into_iter().flatten();
            let source = from.to_string();
            peers.into_iter().any(|it| it["address"] == source && it["checksum"] == word)
        })?;
    }
    // Nobody gives way to a priority of 1.
    ensure!(pair.vrrp(Lb01)?["role"] == "active");
    pair.finish()
}

#[test]
fn a_number_that_is_in_use_is_noticed_before_it_is_joined() -> Result<()> {
    let pair = Pair::with("in-use", &[], xtask::lab::Balancers::None)?;
    let stranger = Stranger::on(&pair, Client)?;
    let from = Client.ipv4();
    let other = Advert { addresses: vec!["192.0.2.200".parse()?], ..advert(10) };
    let message = other.encode(from.into(), GROUP_V4.into(), ChecksumForm::PseudoHeader);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let talks = scope.spawn(|| -> Result<()> {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                stranger.send(from, GROUP_V4, 255, &message)?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        let checked = (|| {
            pair.lab().daemon("lb-01").start()?;
            let vrrp = pair.until("it to be noticed", Lb01, |vrrp| {
                number(&vrrp["received"]) > 60 && vrrp["problem"].is_string()
            })?;
            let problem = "192.0.2.9 has this vrid for other addresses: choose another one";
            ensure!(vrrp["problem"] == problem && vrrp["role"] == "backup", "{vrrp}");
            ensure!(pair.events(Lb01)?.contains("192.0.2.9 uses vrid 51 for other addresses"));
            Ok(())
        })();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        talks.join().expect("join the stranger")?;
        checked
    })?;
    // When the stranger is gone, the addresses are ours.
    pair.until_active(Lb01)?;
    pair.finish()
}
