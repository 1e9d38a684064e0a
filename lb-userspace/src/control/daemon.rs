//! The life of the daemon: from the checked configuration to the orderly end.
//!
//! At its end the data plane stays: the kernel program goes on forwarding with the last tables, so that
//! a restart or an upgrade loses nothing. `ballast detach` takes it away. The floating addresses are
//! handed over to another node; if there is none, they stay too.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use super::{
    kernel::{Kernel, Shared},
    task::{Handle, Setup, Task, anycast::INTERFACE as ANYCAST_INTERFACE, elder},
};
use crate::{
    admin, alert,
    config::{self, Config, Loaded, Node},
    dataplane::{self, Dataplane, resets::Noted},
    events::{Kind, Note, Timeline},
    net,
    postgres::{
        databases::{self, Databases},
        peers::{self, Channel},
    },
    proxy::Proxy,
    vrrp,
};

mod lock;
mod privilege;
mod resume;

use lock::Lock;
use resume::{Early, GivingWay};

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration's file, read again by a reload.
    pub config_path: PathBuf,
    /// Name of this node; the host's name if absent.
    pub node: Option<String>,
    /// In place of `paths.socket`.
    pub socket: Option<PathBuf>,
    /// In place of `paths.state`.
    pub state_dir: Option<PathBuf>,
    /// In place of `paths.pins`.
    pub pins: Option<PathBuf>,
    /// Throw pinned maps away instead of adopting them.
    pub discard_pins: bool,
}

/// Runs the daemon until it is told to end.
pub async fn run(options: Options, loaded: Loaded) -> anyhow::Result<()> {
    let Loaded { config, warnings, .. } = loaded;
    let node = find_node(&config, options.node.as_deref())?.clone();
    let socket = options.socket.unwrap_or_else(|| config.paths.socket.clone());
    let state_dir = options.state_dir.unwrap_or_else(|| config.paths.state.clone());
    let pins = options.pins.unwrap_or_else(|| config.paths.pins.clone());
    privilege::check()?;
    make_directory(parent(&socket), 0o755)?;
    make_directory(&state_dir, 0o750)?;
    let lock = Lock::take(&socket).await?;
    check_pins(&pins)?;
    let interface = net::interface(&node.interface).await.with_context(|| {
        format!(
            "find interface {}, which [[node]] {} names: `ip link` lists those that there are",
            node.interface, node.name
        )
    })?;
    let mut signals = Signals::listen()?;
    let dataplane = dataplane_options(&config, &pins, options.discard_pins);
    // First of all that takes long: another node waits for adverts.
    let early = Early::start(&config, &node, interface.ifindex, &dataplane).await;
    let giving_way = early.as_ref().map(Early::giving_way);
    let timeline = Arc::new(Timeline::new(Some(&state_dir)));
    let proxy = Proxy::default();
    let (databases_sender, database_configs) = watch::channel(config.databases.clone());
    let others = config.nodes.iter().filter(|it| it.name != node.name);
    let other_names = others.map(|it| it.name.clone()).collect();
    let warnings = super::task::warnings(&warnings);
    let (alerts_sender, alert_settings) =
        watch::channel(alert::task::Settings::new(&config, &warnings));
    let start = async {
        let kernel = open_kernel(dataplane).await?;
        let (macs, _task) = net::watch_macs().context("watch MAC addresses")?;
        tokio::spawn(tell_macs(Arc::clone(&kernel), macs));
        forget_stale_addresses(&config, &node, &timeline).await;
        let (wanted, receiver) = watch::channel(BTreeSet::<IpAddr>::new());
        let (next_hops, _task) = net::watch_next_hops(receiver).context("watch next hops")?;
        note_resets(&proxy).await?;
        Task::start(Setup {
            databases: databases_sender,
            alerts: alerts_sender,
            node: node.name.clone(),
            config_path: options.config_path,
            warnings,
            config,
            state_dir: state_dir.clone(),
            kernel,
            router: early.map(Early::into_parts),
            timeline: Arc::clone(&timeline),
            next_hops,
            wanted,
            proxy: proxy.clone(),
        })
        .await
    };
    let mut handle = GivingWay::unless(start.await, giving_way).await?;
    let databases = Databases::default();
    let setup = databases::Setup {
        node: node.name.clone(),
        peers: other_names,
        state_dir,
        control: handle.clone(),
        timeline: Arc::clone(&timeline),
        channel: Arc::new(Channel(handle.others().clone())),
    };
    let first = database_configs.borrow().clone();
    databases.follow(&setup, first).await;
    tokio::spawn(peers::listen(handle.others().clone(), databases.clone()));
    tokio::spawn(databases.clone().run(setup, database_configs));
    let alerts = alert::task::start(alert::task::Setup {
        node: node.name.clone(),
        control: handle.clone(),
        databases: databases.clone(),
        timeline: Arc::clone(&timeline),
        settings: alert_settings,
    });
    let server = admin::Server::bind(&socket)?;
    let server = tokio::spawn(server.run(handle.clone(), databases, Some(alerts)));
    let message = format!("ballast {} runs as node {}", env!("CARGO_PKG_VERSION"), node.name);
    timeline.add(Note::new(Kind::Started, message));

    let mut settled = handle.clone();
    tokio::spawn(async move {
        settled.settled().await;
        notify(&[NotifyState::Ready]);
    });
    let signal = signals.serve(&mut handle).await;
    notify(&[NotifyState::Stopping]);
    let lingering = handle.stop().await;
    server.abort();
    // New connections do not come to it any more.
    proxy.stop().await;
    if let Some(kept) = lingering {
        elder::give_up(kept).await?;
    }
    // After the end of the task, so that a follower of events sees it last.
    let message = "ballast ends; forwarding goes on as it is. `ballast detach` ends that too";
    timeline.add(Note::new(Kind::Stopped, message).because(signal));
    lock.release(&socket);
    Ok(())
}

/// Takes away what a daemon left: floating addresses, program, maps. `socket` says whether one
/// still runs. Each thing that is done is told; what cannot be done does not keep the rest from it.
pub async fn detach(
    interface: &str,
    pins: &Path,
    socket: &Path,
    mut tell: impl FnMut(String),
) -> anyhow::Result<()> {
    privilege::check()?;
    if let Some(pid) = lock::holder(socket) {
        bail!("ballast runs (process {pid}) and needs them: stop it first");
    }
    // First, so that nobody sends packets to a node that forwards them no longer.
    let mut off = Vec::new();
    for interface in [ANYCAST_INTERFACE, interface] {
        let addresses = vrrp::address::remove_stale(interface, &[]).await;
        for (address, prefix) in addresses.as_deref().unwrap_or_default() {
            tell(format!("took {address}/{prefix} off {interface}"));
        }
        off.push(addresses.with_context(|| format!("take our addresses off {interface}")));
    }
    if pins.exists() {
        let path = pins.to_owned();
        tokio::task::spawn_blocking(move || dataplane::remove_pins(&path))
            .await?
            .with_context(|| format!("remove the pins in {}", pins.display()))?;
        tell(format!("took program and maps away ({})", pins.display()));
    }
    off.into_iter().collect::<anyhow::Result<Vec<_>>>().map(drop)
}

/// The node that this host is.
pub fn find_node<'a>(config: &'a Config, asked: Option<&str>) -> anyhow::Result<&'a Node> {
    let host = nix::unistd::gethostname().context("read the host's name")?;
    let host = host.to_string_lossy();
    let name = asked.unwrap_or(&host);
    let short = name.split('.').next().unwrap_or(name);
    let node = config.node(name).or_else(|| config.node(short).filter(|_| asked.is_none()));
    node.with_context(|| {
        let known: Vec<_> = config.nodes.iter().map(|node| node.name.as_str()).collect();
        let from = if asked.is_none() { ", which is this host's name" } else { "" };
        format!(
            "no [[node]] is called {name}{from}: choose one with --node; there are: {}",
            known.join(", ")
        )
    })
}

fn dataplane_options(config: &Config, pins: &Path, discard_pins: bool) -> dataplane::Options {
    dataplane::Options {
        pins: pins.to_owned(),
        max_flows: config.dataplane.max_flows,
        max_half_open: config.dataplane.max_half_open,
        sizes: config::sizes::sizes(config),
        discard_pins,
    }
}

async fn open_kernel(options: dataplane::Options) -> anyhow::Result<Arc<dyn Kernel>> {
    let dataplane = tokio::task::spawn_blocking(move || Dataplane::open(&options))
        .await?
        .context("open the data plane")?;
    Ok(Arc::new(Shared::new(dataplane)?))
}

/// Loads what tells the proxy of the resets of backends.
async fn note_resets(proxy: &Proxy) -> anyhow::Result<()> {
    match tokio::task::spawn_blocking(Noted::load).await? {
        Ok(resets) => proxy.note_resets(Arc::new(resets)),
        // Requests are then repeated as seldom as without it.
        Err(error) => tracing::warn!(error = format!("{error:#}"), "note resets of backends"),
    }
    Ok(())
}

/// Keeps the kernel program told of this node's MAC addresses. Ends when nobody follows them any more; cancelling
/// it leaves the program with those that it was told last.
async fn tell_macs(kernel: Arc<dyn Kernel>, mut macs: watch::Receiver<net::Macs>) {
    while macs.changed().await.is_ok() {
        let known = macs.borrow_and_update().clone();
        let kernel = Arc::clone(&kernel);
        let told = tokio::task::spawn_blocking(move || kernel.set_macs(&known)).await;
        if let Err(error) = told.map_err(anyhow::Error::from).flatten() {
            tracing::warn!(error = format!("{error:#}"), "tell the program of the MAC addresses");
        }
    }
}

/// Takes floating addresses off that an earlier daemon, with another configuration, left behind.
async fn forget_stale_addresses(config: &Config, node: &Node, timeline: &Timeline) {
    // Those that it shares with other nodes, VRRP takes off if they are not this one's.
    let floating = config.floating.iter().flat_map(|block| block.addresses.iter().copied());
    let anycast =
        config.anycast.iter().map(|address| (*address, if address.is_ipv4() { 32 } else { 128 }));
    for (interface, keep) in [
        (node.interface.as_str(), floating.collect::<Vec<_>>()),
        (ANYCAST_INTERFACE, anycast.collect()),
    ] {
        match vrrp::address::remove_stale(interface, &keep).await {
            Ok(removed) => {
                for (address, prefix) in removed {
                    let message = format!(
                        "{address}/{prefix} was left on {interface} by an earlier ballast, and is gone now"
                    );
                    timeline.add(Note::new(Kind::Address, message));
                }
            }
            Err(error) => {
                let message = format!("look for stale addresses on {interface}");
                timeline.add(Note::new(Kind::Fault, message).because(error.to_string()));
            }
        }
    }
}

/// What the operator's shell or systemd sends.
struct Signals {
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            reload: on(SignalKind::hangup())?,
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
        })
    }

    /// Serves until a signal says to end. Answers with its name.
    async fn serve(&mut self, handle: &mut Handle) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.reload.recv() => {
                    if let Ok(now) = NotifyState::monotonic_usec_now() {
                        notify(&[NotifyState::Reloading, now]);
                    }
                    // The timeline tells how it went; nobody else waits for the answer.
                    let _ = handle.reload().await;
                    notify(&[NotifyState::Ready]);
                }
            }
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    // Without systemd this does nothing; with it, a failure delays its verdict and no more.
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "notify the service manager");
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn make_directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.with_context(|| format!("create directory {}", path.display()))
}

/// Pins live only on a BPF file system.
fn check_pins(pins: &Path) -> anyhow::Result<()> {
    let there = pins.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat =
        nix::sys::statfs::statfs(there).with_context(|| format!("look at {}", there.display()))?;
    if stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC {
        return Ok(());
    }
    bail!(
        "{} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`, or choose \
         another place with --pin-dir",
        pins.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_need_a_bpf_file_system() {
        let error = check_pins(Path::new("/tmp/ballast-pins")).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf"), "{error}");
    }

    #[test]
    fn an_unknown_node_is_told_the_known_ones() {
        let node = |name: &str| Node {
            name: name.into(),
            address: "192.0.2.11".parse().unwrap(),
            interface: "eth0".into(),
            priority: 100,
        };
        let config = crate::config::parse(
            "test.toml",
            r#"
            [cluster]
            name = "edge"
            [[node]]
            name = "lb-01"
            address = "192.0.2.11"
            interface = "eth0"
            priority = 100
            "#,
        );
        let mut config = match config {
            Ok(loaded) => loaded.config,
            Err(rejected) => panic!("{rejected}"),
        };
        config.nodes = vec![node("lb-01"), node("lb-02")];
        assert_eq!(find_node(&config, Some("lb-02")).unwrap().name, "lb-02");
        let error = find_node(&config, Some("lb-07")).unwrap_err().to_string();
        assert!(error.contains("lb-07") && error.contains("lb-01, lb-02"), "{error}");
        assert!(find_node(&config, Some("lb-01.example.org")).is_err(), "asked for by name");
    }
}
