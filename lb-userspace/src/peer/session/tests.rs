use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::{
    dataplane::sync::Ended,
    peer::wire::frame::{Count, Generation},
};

const MS: Duration = Duration::from_millis(1);

/// Two nodes, and the network between them.
struct Pair {
    nodes: [Session; 2],
    now: Duration,
    nonces: u8,
    /// What has come out of each node, but for what it sent.
    news: [Vec<Output>; 2],
    /// All datagrams that were ever sent, by each node.
    sent: [Vec<Vec<u8>>; 2],
    /// Which datagrams are lost.
    lose: Box<dyn FnMut(usize) -> bool>,
}

impl Pair {
    fn new() -> Self {
        Self::with_secrets([b"secret", b"secret"])
    }

    fn with_secrets(secrets: [&[u8]; 2]) -> Self {
        let mut nonces = 0;
        let names = [("a", "b"), ("b", "a")];
        let nodes = [0, 1].map(|node| {
            let (own, peer) = names[node];
            let keys = Arc::new(Keys::new(secrets[node]));
            Session::new(own, peer, keys, &mut || next(&mut nonces))
        });
        Self {
            nodes,
            now: Duration::from_secs(1),
            nonces,
            news: Default::default(),
            sent: Default::default(),
            lose: Box::new(|_| false),
        }
    }

    /// A node is started anew.
    fn restart(&mut self, node: usize) {
        let (own, peer) = [("a", "b"), ("b", "a")][node];
        let keys = Arc::new(Keys::new(b"secret"));
        self.nodes[node] = Session::new(own, peer, keys, &mut || next(&mut self.nonces));
    }

    /// Gives a node a datagram.
    fn give(&mut self, node: usize, datagram: &[u8]) {
        let nonces = &mut self.nonces;
        self.nodes[node].receive(datagram, self.now, &mut || next(nonces));
    }

    /// Carries what has come out, until there is nothing.
    fn carry(&mut self) {
        loop {
            let mut quiet = true;
            for node in 0..2 {
                for output in self.nodes[node].take() {
                    quiet = false;
                    match output {
                        Output::Send(datagram) => {
                            self.sent[node].push(datagram.clone());
                            if !(self.lose)(node) {
                                self.give(1 - node, &datagram);
                            }
                        }
                        news => self.news[node].push(news),
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += 10 * MS;
            for node in &mut self.nodes {
                node.tick(self.now);
            }
            self.carry();
        }
    }

    fn is_up(&self) -> [bool; 2] {
        [0, 1].map(|node| self.nodes[node].summary().up)
    }

    fn take_news(&mut self, node: usize) -> Vec<Output> {
        std::mem::take(&mut self.news[node])
    }
}

fn next(nonces: &mut u8) -> Nonce {
    *nonces += 1;
    [*nonces; 16]
}

fn change(number: u16) -> Item {
    let socket = SocketAddr::from(([192, 0, 2, 9], number));
    Item::Change(Change::Ended(Ended { protocol: 6, backend: socket, nat: socket }))
}

fn changes(news: &[Output]) -> Vec<Item> {
    let of = |it: &Output| match it {
        Output::Change(change) => Some(Item::Change(*change)),
        _ => None,
    };
    news.iter().filter_map(of).collect()
}

fn fence(generation: u64) -> Fence {
    Fence { name: "pg-01".into(), generation }
}

#[test]
fn two_nodes_find_each_other_and_notice_when_one_is_gone() {
    let mut pair = Pair::new();
    pair.run(500 * MS);
    assert_eq!(pair.is_up(), [true, true]);
    assert_eq!(pair.news[0][0], Output::Up);
    assert!(pair.nodes[0].summary().round_trip.is_some());
    assert!(!pair.news.iter().flatten().any(|it| matches!(it, Output::Refused(_))));
    pair.lose = Box::new(|_| true);
    pair.run(SILENT.saturating_sub(300 * MS));
    assert_eq!(pair.is_up(), [true, true]);
    pair.run(600 * MS);
    assert_eq!(pair.is_up(), [false, false]);
    assert!(pair.news[1].contains(&Output::Down));
    pair.lose = Box::new(|_| false);
    pair.run(500 * MS);
    assert_eq!(pair.is_up(), [true, true]);
}

#[test]
fn a_node_that_was_started_anew_gets_a_new_session() {
    let mut pair = Pair::new();
    pair.run(500 * MS);
    pair.take_news(0);
    pair.restart(1);
    pair.run(500 * MS);
    assert_eq!(pair.is_up(), [true, true]);
    let news = pair.take_news(0);
    assert!(news.contains(&Output::Up), "{news:?}");
    assert!(!news.contains(&Output::Down));
}

#[test]
fn with_another_key_there_is_no_session_and_it_is_said() {
    let mut pair = Pair::with_secrets([b"one", b"two"]);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.is_up(), [false, false]);
    for node in 0..2 {
        assert!(pair.news[node].contains(&Output::Refused(Refusal::Unauthentic)));
    }
}

#[test]
fn what_is_for_another_node_is_refused() {
    let mut pair = Pair::new();
    let keys = Keys::new(b"secret");
    for (from, to) in [("c", "a"), ("b", "c"), ("a", "b"), ("a", "a")] {
        let (from, to) = (from.into(), to.into());
        let hello = Hello { from, to, nonce: [9; 16], seen: NO_NONCE, done: false };
        pair.give(0, &keys.seal_hello(&hello));
        assert_eq!(pair.nodes[0].take(), [Output::Refused(Refusal::Misdirected)]);
    }
}

#[test]
fn changes_arrive_in_order_whatever_is_lost() {
    let mut pair = Pair::new();
    pair.run(500 * MS);
    let mut number = 0_u32;
    pair.lose = Box::new(move |_| {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        number >> 30 == 0
    });
    pair.nodes[0].send(&[Item::All]);
    let wanted: Vec<Item> = (0..3000).map(change).collect();
    for some in wanted.chunks(100) {
        pair.nodes[0].send(some);
        pair.run(20 * MS);
    }
    assert!(!pair.nodes[1].summary().in_sync);
    pair.nodes[0].send(&[Item::AllSent]);
    pair.run(Duration::from_secs(20));
    let news = pair.take_news(1);
    assert_eq!(changes(&news), wanted);
    assert!(news.contains(&Output::InSync));
    let (from, to) = (pair.nodes[0].summary(), pair.nodes[1].summary());
    assert!(to.in_sync && !from.in_sync, "one has all of the other's, which has none of its");
    assert_eq!((from.sent, to.received, from.backlog), (3000, 3000, 0));
    assert!(from.repeated > 0);
}

#[test]
fn too_many_changes_are_said_to_be_lost() {
    let mut pair = Pair::new();
    pair.run(500 * MS);
    pair.lose = Box::new(|_| true);
    let many: Vec<Item> = (0..u16::MAX).map(change).collect();
    while pair.nodes[0].room() > 0 {
        pair.nodes[0].send(&many);
    }
    assert!(pair.nodes[0].take_lost());
    assert!(!pair.nodes[0].take_lost(), "once");
}

#[test]
fn what_a_node_says_of_itself_arrives() {
    let mut pair = Pair::new();
    let generation: Generation = [5; 16];
    let services = Count { all: 3, fit: 2 };
    let about = About { generation, services, holds: true, ..About::default() };
    pair.nodes[0].set_about(about);
    pair.run(500 * MS);
    assert_eq!(pair.nodes[1].summary().about, Some(about));
    let other = About { holds: false, ..about };
    pair.nodes[0].set_about(other);
    pair.run(20 * MS);
    assert!(pair.take_news(1).contains(&Output::About(other)), "with the next tick");
}

#[test]
fn a_wish_to_fence_is_repeated_until_it_is_answered() {
    let mut pair = Pair::new();
    pair.nodes[0].fence(fence(7), pair.now);
    pair.lose = Box::new(|_| true);
    pair.run(500 * MS);
    pair.lose = Box::new(|_| false);
    pair.run(500 * MS);
    let wanted =
        pair.take_news(1).iter().filter(|it| **it == Output::FenceWanted(fence(7))).count();
    assert!(wanted >= 1, "asked before there was a session");
    // The answer is lost; it is given again without asking.
    pair.lose = Box::new(|node| node == 1);
    pair.nodes[1].fenced(fence(7));
    pair.run(50 * MS);
    assert!(!pair.take_news(0).contains(&Output::Fenced(fence(7))));
    pair.lose = Box::new(|_| false);
    pair.take_news(1);
    pair.run(500 * MS);
    let answers = pair.take_news(0).iter().filter(|it| **it == Output::Fenced(fence(7))).count();
    assert_eq!(answers, 1);
    assert!(!pair.take_news(1).contains(&Output::FenceWanted(fence(7))));
    // An older one is no longer asked for once there is a newer.
    pair.lose = Box::new(|_| true);
    pair.nodes[0].fence(fence(8), pair.now);
    pair.nodes[0].fence(fence(9), pair.now);
    pair.lose = Box::new(|_| false);
    pair.run(300 * MS);
    let news = pair.take_news(1);
    assert!(news.contains(&Output::FenceWanted(fence(9))));
    assert!(!news.contains(&Output::FenceWanted(fence(8))));
}

#[test]
fn words_arrive_whatever_their_length_and_are_not_repeated() {
    let mut pair = Pair::new();
    pair.nodes[0].say(b"without a session");
    pair.run(1000 * MS);
    let words = |pair: &mut Pair| {
        let news = pair.take_news(1).into_iter();
        let words = news.filter_map(|it| match it {
            Output::Word(word) => Some(word),
            _ => None,
        });
        words.collect::<Vec<_>>()
    };
    assert!(words(&mut pair).is_empty());
    let long = vec![7; 5000];
    pair.nodes[0].say(b"short");
    pair.nodes[0].say(&long);
    pair.run(1000 * MS);
    assert_eq!(words(&mut pair), [b"short".to_vec(), long]);
    pair.lose = Box::new(|_| true);
    pair.nodes[0].say(b"lost");
    pair.carry();
    pair.lose = Box::new(|_| false);
    pair.run(1000 * MS);
    assert!(words(&mut pair).is_empty());
}

#[test]
fn a_fence_that_nobody_answers_is_given_up() {
    let mut pair = Pair::new();
    pair.run(500 * MS);
    pair.nodes[0].fence(fence(1), pair.now);
    pair.run(FENCE_FOR + 100 * MS);
    pair.take_news(1);
    pair.run(500 * MS);
    assert!(!pair.take_news(1).contains(&Output::FenceWanted(fence(1))));
    pair.nodes[0].fence(Fence { name: "x".repeat(MAX_FENCE_NAME + 1), generation: 1 }, pair.now);
    pair.run(500 * MS);
    assert!(pair.take_news(1).is_empty());
}

#[test]
fn whoever_plays_old_hellos_gets_few_answers() {
    let mut pair = Pair::new();
    pair.run(500 * MS);
    pair.restart(1);
    pair.run(500 * MS);
    let old: Vec<_> = pair.sent[1].iter().filter(|it| wire::is_hello(it)).cloned().collect();
    pair.take_news(0);
    pair.take_news(1);
    let before = pair.sent[0].len();
    for _ in 0..1000 {
        for datagram in &old {
            pair.give(0, datagram);
        }
    }
    pair.carry();
    assert!(pair.sent[0].len() - before <= MOST_ANSWERS as usize);
    assert_eq!(pair.is_up(), [true, true]);
    pair.run(Duration::from_secs(3));
    assert!(!pair.take_news(0).iter().any(|it| matches!(it, Output::Up | Output::Down)));
}

proptest! {
    /// Whoever records all that two nodes say, and says it again in any order, to either of them, before
    /// and after restarts, changes nothing.
    #[test]
    fn nothing_that_was_said_once_is_believed_twice(
        played in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..2, 0_usize..2), 1..60),
        restarts: [bool; 2],
    ) {
        let mut pair = Pair::new();
        pair.nodes[0].fence(fence(1), pair.now);
        pair.run(300 * MS);
        pair.nodes[0].send(&[Item::All, change(1), Item::AllSent]);
        pair.run(300 * MS);
        for (node, restart) in restarts.into_iter().enumerate() {
            if restart {
                pair.restart(node);
                pair.run(500 * MS);
            }
        }
        prop_assert_eq!(pair.is_up(), [true, true]);
        pair.news = Default::default();
        let recorded = pair.sent.clone();
        for (index, from, to) in played {
            let datagram = &recorded[from][index.index(recorded[from].len())];
            pair.give(to, datagram);
            pair.carry();
        }
        for node in 0..2 {
            for news in pair.take_news(node) {
                prop_assert!(matches!(news, Output::Refused(_)), "{:?} at node {}", news, node);
            }
        }
        // And the session goes on.
        pair.run(SILENT * 2);
        prop_assert_eq!(pair.is_up(), [true, true]);
        prop_assert!(!pair.news.iter().flatten().any(|it| matches!(it, Output::Up | Output::Down)));
    }

    #[test]
    fn any_datagram_is_taken_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
        let mut pair = Pair::new();
        pair.run(300 * MS);
        pair.news = Default::default();
        pair.give(0, &bytes);
        pair.carry();
        prop_assert!(matches!(pair.news[0][..], [Output::Refused(_)]));
    }
}
