//! Two nodes that serve one address at the same time, and a router that shares the packets out: with real
//! BIRD, and the files that `docs/anycast.md` shows.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use xtask::{
    lab::{
        Balancers, HostName,
        HostName::{Client, Lb01, Lb02, Witness},
        Options,
        topology::FLOATING_V4,
        with_key,
    },
    shell,
};

use crate::{
    config::{APPS, Service, text},
    http::{Connection, all_go_on},
    load::Load,
    site::{Site, Status, eventually},
};

const NODE: &str = include_str!("../../docs/anycast/node.conf");
const ROUTER: &str = include_str!("../../docs/anycast/router.conf");

/// The address of the documentation, and the lab's.
const SHOWN: &str = "198.51.100.80";

/// The app servers answer there by themselves.
const PORT: u16 = 81;

/// Connections that are open.
const OPEN: usize = 40;

/// How long an open connection may wait while routes change.
const PATIENCE: Duration = Duration::from_secs(30);

/// BIRD on a host; killed when it is dropped.
struct Bird {
    child: Child,
    log: PathBuf,
}

impl Bird {
    fn start(site: &Site, host: HostName, text: &str) -> Result<Self> {
        let folder = site.lab().state_dir().join(host.as_str());
        let (file, log) = (folder.join("bird.conf"), folder.join("bird.log"));
        fs::write(&file, text.replace(SHOWN, &FLOATING_V4.to_string()))
            .context("write bird.conf")?;
        let mut command = site.host(host).command("bird");
        command.args(["-f", "-c"]).arg(&file).arg("-s").arg(folder.join("bird.ctl"));
        let out = File::create(&log).context("open its log")?;
        let err = out.try_clone().context("share its log")?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        Ok(Self { child: child.context("start bird")?, log })
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        // Shown if the test fails.
        println!("--- bird\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config() -> String {
    let web = APPS.iter().fold(Service::new("web", (FLOATING_V4, PORT).into()), |it, app| {
        it.backend(app.as_str(), app.sockets(PORT)[0], "")
    });
    let web = web
        .key("forward = \"tunnel\"")
        .health("probe = \"http\"")
        .health("path = \"/id\"")
        .health("expect = \"200\"");
    let text = text(&[web]);
    let (head, tail) = text.split_once("[[floating]]").expect("the text has floating addresses");
    let (_, services) = tail.split_once("\n\n").expect("services follow");
    let second = format!(
        "[[node]]\nname = \"lb-02\"\naddress = \"{}\"\ninterface = \"eth0\"\npriority = 90\n\n",
        Lb02.ipv4()
    );
    let anycast = format!("[[anycast]]\naddresses = [\"{FLOATING_V4}\"]\n\n");
    with_key(&format!("{head}{second}{anycast}{services}"))
}

/// Waits until the router's packets go to these nodes, and to no others.
fn until_routed(site: &Site, nodes: &[HostName]) -> Result<()> {
    eventually(&format!("the router to use {nodes:?}"), || {
        let routes = site.ip(Witness, &format!("route show {FLOATING_V4}"))?;
        let used = |node: HostName| routes.contains(&format!("via {} ", node.ipv4()));
        Ok([Lb01, Lb02].iter().all(|node| used(*node) == nodes.contains(node)).then_some(()))
    })
}

fn status(site: &Site, host: HostName) -> Result<Status> {
    let mut command = site.lab().ballast_command(host.as_str(), "status");
    let text = shell::output(command.arg("--json").stdin(Stdio::null()))?;
    Ok(Status(serde_json::from_str(&text).context("read the status")?))
}

fn until_offered(site: &Site, host: HostName, offered: bool) -> Result<()> {
    eventually(&format!("{host} to offer the address: {offered}"), || {
        Ok((status(site, host)?.0["anycast"][0]["held"] == offered).then_some(()))
    })
}

/// New connections are answered, whichever way they take.
fn requests_are_answered(site: &Site) -> Result<()> {
    let report = Load::http_requests(site.client(), 4, 20, (FLOATING_V4, PORT).into()).end();
    report.ensure_none_failed()
}

#[test]
fn a_router_shares_the_packets_out_and_a_node_may_go() -> Result<()> {
    // Named, so that a daemon can be started again.
    let ballast = Some(xtask::build::ballast()?);
    let options = Options {
        config: Some(config()),
        balancers: Balancers::Both,
        steered: true,
        ballast,
        ..Options::default()
    };
    let site = Site::with("anycast", options)?;
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/eth0/send_redirects", "0"),
        ("net/ipv4/fib_multipath_hash_policy", "1"),
    ] {
        site.set(Witness, key, value)?;
    }
    site.ip(Client, &format!("route add {FLOATING_V4}/32 via {}", Witness.ipv4()))?;
    let _router = Bird::start(&site, Witness, ROUTER)?;
    let lb_01 = Bird::start(&site, Lb01, NODE)?;
    let second = NODE.replace(&Lb01.ipv4().to_string(), &Lb02.ipv4().to_string());
    let _lb_02 = Bird::start(&site, Lb02, &second)?;
    for host in [Lb01, Lb02] {
        until_offered(&site, host, true)?;
    }
    until_routed(&site, &[Lb01, Lb02])?;

    let target = (FLOATING_V4, PORT).into();
    let open = (0..OPEN).map(|_| Connection::open(site.client(), target)?.patient(PATIENCE));
    let mut connections = open.collect::<Result<Vec<_>>>()?;
    requests_are_answered(&site)?;
    for host in [Lb01, Lb02] {
        let carried = status(&site, host)?.sum("web", "forward_packets");
        ensure!(carried > 0, "{host} carries nothing");
    }

    // A node is gone from one moment to the next: its router daemon and its cable too.
    site.lab().daemon("lb-01").kill()?;
    site.lab().cut("lb-01")?;
    all_go_on(&mut connections, "after a node is gone")?;
    until_routed(&site, &[Lb02])?;
    requests_are_answered(&site)?;
    // It is back, with all that it had.
    site.lab().heal("lb-01")?;
    site.lab().daemon("lb-01").start()?;
    until_offered(&site, Lb01, true)?;
    until_routed(&site, &[Lb01, Lb02])?;
    all_go_on(&mut connections, "after it is back")?;

    // A node that reaches no backend leaves the address to the others.
    let rules = "table inet block {\n chain output {\n type filter hook output priority 0;\n \
                 ip daddr { 192.0.2.21, 192.0.2.22, 192.0.2.23 } drop\n }\n}\n";
    shell::output_of(site.host(Lb02).command("nft").args(["-f", "-"]), rules)?;
    until_offered(&site, Lb02, false)?;
    until_routed(&site, &[Lb01])?;
    requests_are_answered(&site)?;
    let mut events = site.lab().ballast_command("lb-02", "events");
    let events = shell::output(events.stdin(Stdio::null()))?;
    ensure!(events.contains("is off lo: other nodes are to serve it"), "{events}");
    ensure!(events.contains("no backend of web is fit"), "{events}");
    shell::output(site.host(Lb02).command("nft").args(["delete", "table", "inet", "block"]))?;
    until_routed(&site, &[Lb01, Lb02])?;

    eventually("lb-02 to find all backends fit", || {
        Ok((status(&site, Lb02)?.0["services"][0]["serving_count"] == APPS.len()).then_some(()))
    })?;
    // An orderly stop does the same.
    site.lab().daemon("lb-01").stop()?;
    ensure!(!site.ip(Lb01, "-o address show dev lo")?.contains(&FLOATING_V4.to_string()));
    until_routed(&site, &[Lb02])?;
    all_go_on(&mut connections, "after an orderly stop")?;
    drop(lb_01);
    site.finish()
}
