//! The channel to the other nodes, while there are any and there is a key.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use lb_common::news::Node;

use super::{Task, sweep::timeouts};
use crate::{
    config::Config,
    peer::{
        About, Board, Channel, Count, Ends, Others, Setup, generation::generation,
        wire::frame::Generation,
    },
};

/// The shortest key, bytes: what cannot be guessed by trying.
const SHORTEST_KEY: usize = 16;

/// The channel that is open, and what it was opened for.
#[derive(Debug)]
pub(super) struct Peers {
    open: Option<(Wanted, Channel)>,
    generation: Generation,
    ends: Ends,
    others: Others,
}

impl Default for Peers {
    fn default() -> Self {
        let (ends, others) = Ends::new();
        Self { open: None, generation: Generation::default(), ends, others }
    }
}

/// What makes another channel of it.
#[derive(Debug, PartialEq)]
struct Wanted {
    listen: SocketAddr,
    interface: String,
    others: Vec<(String, SocketAddr)>,
    secret: Vec<u8>,
    node: Node,
    timeouts: crate::dataplane::Timeouts,
}

impl Peers {
    /// How the other nodes stand; empty without a channel.
    pub(super) fn board(&self) -> Board {
        self.others.board().borrow().clone()
    }

    /// The other nodes, for the rest of the daemon.
    pub(super) fn others(&self) -> Others {
        self.others.clone()
    }
}

impl Task {
    /// Tells the kernel program which ports are this node's.
    pub(super) async fn share_ports(&self) -> anyhow::Result<()> {
        let (node, kernel) = (share(&self.config, &self.node), Arc::clone(&self.kernel));
        let told = tokio::task::spawn_blocking(move || kernel.set_node(node)).await?;
        told.context("share the ports among the nodes")
    }

    /// Talks to the nodes of the configuration, if there are others and there is a key.
    pub(super) async fn follow_peers(&mut self) {
        self.peers.generation = generation(&self.config);
        let result = self.try_follow_peers().await;
        self.fault("peer channel", result.err().map(|error| format!("{error:#}")));
        self.tell_peers();
    }

    async fn try_follow_peers(&mut self) -> anyhow::Result<()> {
        let wanted = wanted(&self.config, &self.node).await;
        if let (Some((open, _)), Ok(Some(wanted))) = (&self.peers.open, &wanted)
            && open == wanted
        {
            return Ok(());
        }
        // The port is free again before another channel takes it.
        if let Some((_, channel)) = self.peers.open.take() {
            channel.close().await;
        }
        self.share_ports().await?;
        let Some(wanted) = wanted? else { return Ok(()) };
        let setup = Setup {
            own: self.node.clone(),
            about: self.about(),
            listen: wanted.listen,
            interface: wanted.interface.clone(),
            others: wanted.others.clone(),
            secret: wanted.secret.clone(),
            node: wanted.node,
            timeouts: wanted.timeouts,
            kernel: Arc::clone(&self.kernel),
            timeline: Arc::clone(&self.timeline),
        };
        let channel = Channel::start(setup, &self.peers.ends).await?;
        self.peers.open = Some((wanted, channel));
        Ok(())
    }

    /// Whether this node may take the addresses from one that serves: not before it has that one's
    /// connections, and knows where those of its proxy are. Without a key it never has any, and there is nothing to wait for.
    pub(super) fn may_preempt(&self) -> bool {
        may_preempt(&self.config, || self.peers.board().in_sync && self.knows_elder())
    }

    /// Tells the other nodes how this one is.
    pub(super) fn tell_peers(&self) {
        if let Some((_, channel)) = &self.peers.open {
            channel.tell(self.about());
        }
    }

    fn about(&self) -> About {
        let (mut services, mut backends) = (Count::default(), Count::default());
        for service in self.state.services() {
            let serving = service.records.iter().filter(|record| record.verdict.serving).count();
            services.all += 1;
            services.fit += u32::from(serving > 0);
            backends.all += service.records.len() as u32;
            backends.fit += serving as u32;
        }
        let holds = self.addresses.holds();
        let (lingers_ms, leaves) = self.lingers();
        let generation = self.peers.generation;
        About { generation, services, backends, holds, lingers_ms, leaves }
    }
}

/// This node among the others, in the order of the file.
fn share(config: &Config, node: &str) -> Node {
    let number = config.nodes.iter().position(|it| it.name == node).unwrap_or(0);
    Node::share(number as u16, config.nodes.len() as u16)
}

fn may_preempt(config: &Config, in_sync: impl FnOnce() -> bool) -> bool {
    config.cluster.secret_file.is_none() || config.nodes.len() < 2 || in_sync()
}

/// What the channel is to be; none if there is nobody to talk to, or no key.
async fn wanted(config: &Config, own: &str) -> anyhow::Result<Option<Wanted>> {
    let (Some(node), Some(path)) = (config.node(own), &config.cluster.secret_file) else {
        return Ok(None);
    };
    if config.nodes.len() < 2 {
        return Ok(None);
    }
    let text = tokio::fs::read(path).await;
    let text = text.with_context(|| format!("read the cluster's key from {}", path.display()))?;
    let secret = text.trim_ascii().to_vec();
    anyhow::ensure!(
        secret.len() >= SHORTEST_KEY,
        "the cluster's key in {} has {} bytes: write at least {SHORTEST_KEY}, such as `openssl rand \
         -hex 32` prints",
        path.display(),
        secret.len(),
    );
    let at = |address| SocketAddr::new(address, config.cluster.peer_port);
    let others = config.nodes.iter().filter(|it| it.name != own);
    Ok(Some(Wanted {
        listen: at(node.address),
        interface: node.interface.clone(),
        others: others.map(|it| (it.name.clone(), at(it.address))).collect(),
        secret,
        node: share(config, own),
        timeouts: timeouts(&config.dataplane),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Directory;

    fn config(nodes: usize, secret: &std::path::Path) -> Config {
        let mut text = format!("[cluster]\nname = \"edge\"\nsecret_file = {secret:?}\n");
        for node in 1..=nodes {
            let line = format!(
                "[[node]]\nname = \"lb-{node}\"\naddress = \"192.0.2.{node}\"\ninterface = \"eth0\"\n"
            );
            text.push_str(&line);
        }
        match crate::config::parse("test.toml", &text) {
            Ok(loaded) => loaded.config,
            Err(rejected) => panic!("{rejected}"),
        }
    }

    #[test]
    fn only_who_waits_for_another_nodes_connections_may_not_preempt() {
        let directory = Directory::new("preempt");
        let path = directory.path().join("key");
        std::fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
        let mut two = config(2, &path);
        assert!(!may_preempt(&two, || false));
        assert!(may_preempt(&two, || true));
        two.cluster.secret_file = None;
        assert!(may_preempt(&two, || false), "without a key there is nothing to wait for");
        assert!(may_preempt(&config(1, &path), || false));
    }

    #[tokio::test]
    async fn there_is_a_channel_to_every_other_node_if_there_is_a_key() {
        let directory = Directory::new("peers");
        let path = directory.path().join("key");
        std::fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(wanted(&config(1, &path), "lb-1").await.unwrap(), None, "nobody to talk to");
        let three = config(3, &path);
        let found = wanted(&three, "lb-2").await.unwrap().unwrap();
        assert_eq!(found.listen, "192.0.2.2:9181".parse().unwrap());
        let others: Vec<_> = found.others.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(others, ["lb-1", "lb-3"]);
        assert_eq!(found.secret, b"0123456789abcdef0123456789abcdef", "without the line's end");
        assert_eq!((found.node.port_mask, found.node.port_bits), (3, 1));
        let mut without = three.clone();
        without.cluster.secret_file = None;
        assert_eq!(wanted(&without, "lb-2").await.unwrap(), None);
        std::fs::write(&path, "short\n").unwrap();
        let error = wanted(&three, "lb-2").await.unwrap_err().to_string();
        assert!(error.contains("openssl rand") && !error.contains("short\n"), "{error}");
    }
}
