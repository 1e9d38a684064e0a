use lb_common::flow::state;

use super::*;
use crate::{
    dataplane::{
        Timeouts,
        sync::{Begun, Ended},
    },
    peer::wire::Nonce,
};

const MS: Duration = Duration::from_millis(1);

fn refresh() -> Refresh {
    let second = 1_000_000_000;
    Refresh::new(&Timeouts {
        tcp_idle_ns: 7440 * second,
        tcp_closing_ns: 240 * second,
        udp_idle_ns: 120 * second,
    })
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 11 + node as u8], 9181))
}

/// Hubs of several nodes, and their tables as lists of changes.
struct Cluster {
    hubs: Vec<Hub>,
    tables: Vec<Vec<Change>>,
    steps: Vec<Vec<Step>>,
    notes: Vec<Vec<Note>>,
    fenced: Vec<(String, Fence)>,
    now: Duration,
    nonces: u8,
}

impl Cluster {
    fn new(secrets: &[&[u8]]) -> Self {
        let names: Vec<String> = (1..=secrets.len()).map(|it| format!("lb-0{it}")).collect();
        let now = Duration::from_secs(100);
        let mut nonces = 0;
        let hubs = secrets.iter().enumerate().map(|(own, secret)| {
            let others: Vec<_> = (0..names.len())
                .filter(|node| *node != own)
                .map(|node| (names[node].clone(), address(node)))
                .collect();
            let keys = Arc::new(Keys::new(secret));
            let time = (now, Timestamp::UNIX_EPOCH);
            Hub::new(&names[own], &others, &keys, refresh(), time, &mut || next(&mut nonces))
        });
        let hubs: Vec<Hub> = hubs.collect();
        let empty = || (0..hubs.len()).map(|_| Vec::new()).collect();
        let (tables, notes) = (empty(), (0..hubs.len()).map(|_| Vec::new()).collect());
        let steps = (0..hubs.len()).map(|_| Vec::new()).collect();
        Self { hubs, tables, steps, notes, fenced: Vec::new(), now, nonces }
    }

    /// Lets time pass. `all` is what each node's walks find, in one step.
    fn run(&mut self, time: Duration, all: &[Change]) {
        let end = self.now + time;
        while self.now < end {
            self.now += 10 * MS;
            for node in 0..self.hubs.len() {
                self.hubs[node].tick(self.now, Timestamp::UNIX_EPOCH);
                if let Some(walk) = self.hubs[node].walk(self.now) {
                    self.hubs[node].walked(walk, all, false);
                }
            }
            while self.carry() {}
        }
    }

    /// Until two nodes know how old each other's tables are, and nothing has been sent of them.
    fn meet(&mut self) {
        let has_met = |hub: &Hub, now| hub.neighbours[0].session.table_age(now).is_some();
        while !self.hubs.iter().all(|hub| has_met(hub, self.now)) {
            self.now += 10 * MS;
            for hub in &mut self.hubs {
                hub.tick(self.now, Timestamp::UNIX_EPOCH);
            }
            while self.carry() {}
        }
    }

    fn carry(&mut self) -> bool {
        let mut carried = false;
        for node in 0..self.hubs.len() {
            let Effects { datagrams, steps, notes, wishes, fenced, .. } = self.hubs[node].take();
            self.tables[node].extend(steps.iter().filter_map(|step| match step {
                Step::Change(change) => Some(*change),
                Step::All | Step::AllCame(_) => None,
            }));
            self.steps[node].extend(steps);
            self.notes[node].extend(notes);
            self.fenced.extend(fenced);
            for (from, fence) in wishes {
                let time = (self.now, Timestamp::UNIX_EPOCH);
                self.hubs[node].fenced(&from, fence, time);
            }
            for (to, datagram) in datagrams {
                carried = true;
                let to = (0..self.hubs.len()).find(|it| address(*it) == to).unwrap();
                let time = (self.now, Timestamp::UNIX_EPOCH);
                let nonces = &mut self.nonces;
                self.hubs[to].receive(address(node), &datagram, time, &mut || next(nonces));
            }
        }
        carried
    }

    fn told(&self, node: usize) -> Vec<&str> {
        self.notes[node].iter().map(|note| note.message.as_str()).collect()
    }
}

fn next(nonces: &mut u8) -> Nonce {
    *nonces += 1;
    [*nonces; 16]
}

fn begun(port: u16) -> Change {
    Change::Begun(Begun {
        protocol: 6,
        state: state::CLIENT_FIN as u8,
        client: SocketAddr::from(([192, 0, 2, 9], port)),
        listen: SocketAddr::from(([192, 0, 2, 100], 80)),
        backend: SocketAddr::from(([192, 0, 2, 21], 8080)),
        nat_port: port,
        client_mac: [2; 6],
        idle_ms: 5,
    })
}

fn ended(port: u16) -> Change {
    let nat = SocketAddr::from(([192, 0, 2, 100], port));
    let backend = SocketAddr::from(([192, 0, 2, 21], 8080));
    Change::Ended(Ended { protocol: 6, backend, nat })
}

#[test]
fn three_nodes_have_each_others_connections() {
    let mut cluster = Cluster::new(&[b"secret", b"secret", b"secret"]);
    assert!(!cluster.hubs[0].board(cluster.now).in_sync, "it has only begun");
    cluster.run(500 * MS, &[begun(1)]);
    for node in 0..3 {
        let board = cluster.hubs[node].board(cluster.now);
        assert!(board.in_sync && board.peers.iter().all(|peer| peer.up && peer.in_sync));
        assert_eq!(cluster.tables[node], [begun(1), begun(1)], "of two others");
        assert!(cluster.told(node).contains(&"node lb-03 is there") || node == 2);
    }
    cluster.hubs[1].tell(&[begun(2), ended(1)]);
    cluster.run(20 * MS, &[]);
    assert_eq!(cluster.tables[0][2..], [begun(2), ended(1)]);
    assert_eq!(cluster.tables[2][2..], [begun(2), ended(1)]);
    assert_eq!(cluster.tables[1].len(), 2, "not to itself");
    // And what is in use is said again.
    cluster.run(refresh().every, &[begun(7)]);
    assert!(cluster.tables[0][4..].contains(&begun(7)));
}

#[test]
fn two_nodes_know_which_of_them_has_lost_its_connections() {
    let mut cluster = Cluster::new(&[b"secret", b"secret"]);
    let now = cluster.now;
    cluster.hubs[0].set_created(now.saturating_sub(50 * MS));
    cluster.meet();
    let now = cluster.now;
    let walk = cluster.hubs[1].walk(now).expect("a walk for the other node");
    let shown = format!("{walk:?}");
    assert!(shown.contains("All { table_age_ns: "), "{shown}");
    cluster.run(500 * MS, &[begun(1)]);
    for node in 0..2 {
        let steps = &cluster.steps[node];
        assert_eq!(steps[..2], [Step::All, Step::Change(begun(1))]);
        let Step::AllCame(age) = steps[2] else { panic!("{steps:?}") };
        // The first has an old table, and the second has just made one.
        let second = Duration::from_secs(1);
        assert_eq!(age < second, node == 1, "{age:?} at {node}");
    }
}

#[test]
fn a_node_alone_is_in_sync_after_a_while() {
    let mut cluster = Cluster::new(&[b"secret", b"other key"]);
    cluster.run(PATIENCE.saturating_sub(100 * MS), &[]);
    assert!(!cluster.hubs[0].board(cluster.now).in_sync);
    cluster.run(200 * MS, &[]);
    let board = cluster.hubs[0].board(cluster.now);
    assert!(board.in_sync && !board.peers[0].up);
    assert!(board.peers[0].problem.as_ref().unwrap().contains("secret_file"));
    assert_eq!(cluster.told(0), ["what comes from lb-02 is refused"], "once");
}

#[test]
fn another_configuration_is_told_until_it_is_the_same() {
    let mut cluster = Cluster::new(&[b"secret", b"secret"]);
    let about = |byte| About { generation: [byte; 16], ..About::default() };
    cluster.hubs[0].set_about(about(1));
    cluster.hubs[1].set_about(about(2));
    cluster.run(500 * MS, &[]);
    assert_eq!(cluster.hubs[0].board(cluster.now).peers[0].same_config, Some(false));
    for (node, other) in [(0, "lb-02"), (1, "lb-01")] {
        let wanted = format!("the configuration of {other} is another");
        assert_eq!(cluster.told(node).iter().filter(|it| it.starts_with(&wanted)).count(), 1);
    }
    cluster.hubs[0].set_about(about(2));
    cluster.run(500 * MS, &[]);
    assert_eq!(cluster.hubs[1].board(cluster.now).peers[0].same_config, Some(true));
    for (node, other) in [(0, "lb-02"), (1, "lb-01")] {
        let wanted = format!("the configuration of {other} is the same again");
        assert!(cluster.told(node).contains(&wanted.as_str()), "{:?}", cluster.told(node));
    }
}

#[test]
fn strangers_are_told_of_and_not_heard() {
    let mut cluster = Cluster::new(&[b"secret", b"secret"]);
    for port in 1..100 {
        let from = SocketAddr::from(([192, 0, 2, 77], port));
        let time = (cluster.now, Timestamp::UNIX_EPOCH);
        cluster.hubs[0].receive(from, b"hello", time, &mut || [0; 16]);
    }
    let notes = cluster.hubs[0].take().notes;
    assert_eq!(notes.len(), MOST_STRANGERS);
    assert!(notes[0].message.contains("192.0.2.77:1"));
}

#[test]
fn every_node_answers_a_wish_to_fence() {
    let mut cluster = Cluster::new(&[b"secret", b"secret", b"secret"]);
    cluster.run(500 * MS, &[]);
    let fence = Fence { name: "appdb/pg-01".into(), generation: 3 };
    cluster.hubs[0].fence(&fence, cluster.now);
    cluster.run(300 * MS, &[]);
    cluster.fenced.sort();
    let answers: Vec<_> = cluster.fenced.iter().map(|(node, _)| node.as_str()).collect();
    assert_eq!(answers, ["lb-02", "lb-03"]);
    assert!(cluster.fenced.iter().all(|(_, it)| *it == fence));
}

#[test]
fn a_walk_that_fails_is_made_again() {
    let mut cluster = Cluster::new(&[b"secret", b"secret"]);
    cluster.meet();
    assert!(cluster.hubs[0].walk(cluster.now).is_some());
    cluster.hubs[0].give_up_walk();
    cluster.run(500 * MS, &[begun(1)]);
    assert!(cluster.hubs[1].board(cluster.now).in_sync);
    assert_eq!(cluster.tables[1], [begun(1)]);
}
