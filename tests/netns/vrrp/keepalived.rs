//! Real keepalived as the other node, in each of the ways that it speaks VRRP.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::lab::{
    Balancers,
    HostName::{Client, Lb01, Lb02},
};

use super::pair::Pair;
use crate::{config::web, load::Load, site::eventually};

/// keepalived on lb-02; killed when it is dropped.
struct Keepalived {
    child: Child,
    log: PathBuf,
}

impl Keepalived {
    fn start(pair: &Pair, priority: u8, lines: &str) -> Result<Self> {
        let folder = pair.lab().state_dir().join("lb-02");
        let (file, log) = (folder.join("keepalived.conf"), folder.join("keepalived.log"));
        let text = format!(
            "global_defs {{\n router_id lb-02\n}}\nvrrp_instance VI_1 {{\n state BACKUP\n \
             interface eth0\n virtual_router_id 51\n priority {priority}\n {lines}\n \
             virtual_ipaddress {{\n  192.0.2.100/24\n }}\n}}\n"
        );
        fs::write(&file, text).context("write keepalived.conf")?;
        let mut command = pair.host(Lb02).command("keepalived");
        command.args(["--dont-fork", "--vrrp", "--log-console", "--log-detail", "--use-file"]);
        command.arg(&file).arg("--pid").arg(folder.join("keepalived.pid"));
        command.arg("--vrrp_pid").arg(folder.join("keepalived-vrrp.pid"));
        let out = File::options().create(true).append(true).open(&log).context("open its log")?;
        let err = out.try_clone().context("share its log")?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        Ok(Self { child: child.context("start keepalived")?, log })
    }

    /// Ends it in order: it says that it leaves.
    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        self.child.wait().context("wait for keepalived")?;
        Ok(())
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- keepalived\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
        // It may have ended. Its own child ends when its parent is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Plays the whole story. `edits` change ballast's configuration, `lines` are keepalived's; `form` is the
/// checksum that keepalived is known by.
fn story(name: &str, edits: &[(&str, &str)], lines: &str, version: u8, form: &str) -> Result<()> {
    let pair = Pair::with(name, edits, Balancers::First)?;
    pair.until_active(Lb01)?;
    let has = |wanted: bool| {
        eventually("the address to come or go", || {
            let shown = pair.ip(Lb02, "-o address show dev eth0")?;
            Ok((shown.contains("192.0.2.100/") == wanted).then_some(()))
        })
    };
    // ballast is Active, and keepalived a Backup, which says nothing.
    let peer = Keepalived::start(&pair, 90, lines)?;
    eventually("keepalived to be Backup", || {
        let log = fs::read_to_string(&peer.log).unwrap_or_default();
        Ok(log.contains("Entering BACKUP STATE").then_some(()))
    })?;
    let sent = pair.vrrp(Lb01)?["sent"].as_u64().unwrap_or(0);
    pair.until("some adverts", Lb01, |vrrp| vrrp["sent"].as_u64() > Some(sent + 4))?;
    ensure!(!pair.ip(Lb02, "-o address show dev eth0")?.contains("192.0.2.100/"));
    let load = Load::http(pair.host(Client), 2, web());
    load.more(50)?;
    load.stop().ensure_none_failed()?;

    // Handed over, and taken over.
    let said = pair.obeys(Lb01, "release")?;
    ensure!(said.contains("192.0.2.12 is Active") || said.contains("lb-02 is Active"), "{said}");
    has(true)?;
    ensure!(!pair.has_address(Lb01)?, "two hosts have the address");
    let vrrp = pair.until("lb-01 to follow keepalived", Lb01, |vrrp| {
        vrrp["role"] == "backup" && vrrp["peers"][0]["adverts"].as_u64() > Some(3)
    })?;
    let peer_status = &vrrp["peers"][0];
    ensure!(peer_status["checksum"] == form && peer_status["priority"] == 90, "{vrrp}");
    ensure!(vrrp["version"] == version && vrrp["refused"] == serde_json::json!({}), "{vrrp}");
    ensure!(pair.obeys(Lb01, "status")?.contains(form));

    // keepalived ends in order.
    peer.stop()?;
    pair.until_active(Lb01)?;
    ensure!(pair.events(Lb01)?.contains("the Active has handed over"));
    has(false)?;

    // One of a higher priority takes over by itself; ballast yields.
    let peer = Keepalived::start(&pair, 200, lines)?;
    pair.until_role(Lb01, "backup")?;
    has(true)?;
    ensure!(pair.events(Lb01)?.contains("its priority is 200"));
    // And dies without a word.
    pair.lab().kill("lb-02")?;
    drop(peer);
    pair.until_active(Lb01)?;
    // Its kernel may still answer for the address, which is why ballast has leases. One of its two
    // processes may have outlived the other for long enough to take it off.
    let _ = pair.ip(Lb02, "address del 192.0.2.100/24 dev eth0");
    let load = Load::http(pair.host(Client), 2, web());
    load.more(50)?;
    load.stop().ensure_none_failed()?;
    ensure!(pair.vrrp(Lb01)?["problem"].is_null());
    pair.finish()
}

#[test]
fn version_3_by_multicast() -> Result<()> {
    story("ka3", &[], "version 3\n advert_int 0.1", 3, "pseudo_header")
}

#[test]
fn version_3_by_unicast() -> Result<()> {
    let edit = ("interval = \"100ms\"", "interval = \"100ms\"\nunicast = true");
    let lines = "version 3\n advert_int 0.1\n unicast_src_ip 192.0.2.12\n \
                 unicast_peer {\n  192.0.2.11\n }";
    story("ka3-unicast", &[edit], lines, 3, "pseudo_header")
}

#[test]
fn version_2_with_a_password() -> Result<()> {
    // Version 2 has no IPv6: those services go.
    let edits = [
        ("interval = \"100ms\"", "interval = \"1s\"\nversion = 2\npassword = \"hunter2\""),
        (", \"2001:db8::100/64\"", ""),
        ("[2001:db8::100]:80", "192.0.2.100:81"),
        ("[2001:db8::100]:9000", "192.0.2.100:9001"),
        ("[2001:db8::21]", "192.0.2.21"),
        ("[2001:db8::22]", "192.0.2.22"),
        ("[2001:db8::23]", "192.0.2.23"),
    ];
    let lines = "version 2\n advert_int 1\n authentication {\n  auth_type PASS\n  \
                 auth_pass hunter2\n }";
    story("ka2", &edits, lines, 2, "rfc9568")
}
