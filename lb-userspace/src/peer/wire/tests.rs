use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::{
    change::{Item, pack, unpack},
    frame::{About, Ack, Beat, Count, Fence, Frame, MAX_FENCE_NAME, MAX_PART, frames},
    *,
};
use crate::dataplane::sync::{Answered, Begun, Change, Ended};

fn hello() -> Hello {
    Hello { from: "lb-01".into(), to: "lb-02".into(), nonce: [7; 16], seen: NO_NONCE, done: false }
}

/// The keys of a session as its two ends derive them.
fn ends(secret: &[u8]) -> (SessionKeys, SessionKeys) {
    let keys = Keys::new(secret);
    let (a, b) = (End { name: "a", nonce: &[1; 16] }, End { name: "b", nonce: &[2; 16] });
    (keys.session(a, b), keys.session(b, a))
}

#[test]
fn a_hello_arrives_as_it_was() {
    let keys = Keys::new(b"secret");
    let datagram = keys.seal_hello(&hello());
    assert!(is_hello(&datagram));
    assert_eq!(keys.open_hello(&datagram), Ok(hello()));
    let long = Hello { from: "ä".repeat(64), to: "x".repeat(64), ..hello() };
    let datagram = keys.seal_hello(&long);
    assert!(datagram.len() < MAX_DATAGRAM);
    assert_eq!(keys.open_hello(&datagram), Ok(long));
}

#[test]
fn another_key_opens_nothing() {
    let datagram = Keys::new(b"secret").seal_hello(&hello());
    assert_eq!(Keys::new(b"Secret").open_hello(&datagram), Err(Refusal::Unauthentic));
    let ((a, b), (_, other)) = (ends(b"secret"), ends(b"other"));
    let datagram = a.seal(1, b"body");
    assert_eq!(b.open(&datagram), Ok((1, &b"body"[..])));
    assert_eq!(other.open(&datagram), Err(Refusal::Unauthentic));
    assert_eq!(a.open(&datagram), Err(Refusal::Unauthentic), "each direction has its own");
}

#[test]
fn each_pair_of_nonces_and_names_has_its_own_keys() {
    let keys = Keys::new(b"secret");
    let (one, two) = ([1; 16], [2; 16]);
    let (a, b) = (End { name: "a", nonce: &one }, End { name: "b", nonce: &two });
    let datagram = keys.session(a, b).seal(1, b"");
    for (own, peer) in [
        (End { nonce: &one, ..b }, a),
        (b, End { nonce: &two, ..a }),
        (End { name: "c", ..b }, a),
        (b, End { name: "", ..a }),
        (End { name: "", ..b }, End { name: "ab", ..a }),
    ] {
        assert_eq!(keys.session(own, peer).open(&datagram), Err(Refusal::Unauthentic));
    }
    assert!(keys.session(b, a).open(&datagram).is_ok());
}

#[test]
fn another_version_is_named() {
    let keys = Keys::new(b"secret");
    let mut datagram = keys.seal_hello(&hello());
    datagram[4] = 9;
    assert_eq!(keys.open_hello(&datagram), Err(Refusal::Version(9)));
}

#[test]
fn a_full_body_fits_a_datagram() {
    let (a, b) = ends(b"secret");
    let mut body = Vec::new();
    assert!(Frame::Beat(Beat::default()).write(&mut body));
    assert!(Frame::Ack(Ack::default()).write(&mut body));
    assert!(Frame::Part(1, &[0; MAX_PART]).write(&mut body));
    assert_eq!(body.len(), MAX_BODY);
    let before = body.clone();
    assert!(!Frame::Ack(Ack::default()).write(&mut body), "there is no room");
    assert_eq!(body, before);
    let datagram = a.seal(1, &body);
    assert_eq!(datagram.len(), MAX_DATAGRAM);
    assert_eq!(b.open(&datagram), Ok((1, &body[..])));
}

#[test]
fn what_is_not_known_is_passed_over() {
    let mut body = vec![200, 0, 3, 1, 2, 3];
    assert!(Frame::Ack(Ack { next: 4, later: 5 }).write(&mut body));
    let found: Vec<_> = frames(&body).collect();
    assert_eq!(found, [Frame::Ack(Ack { next: 4, later: 5 })]);
}

fn socket(v6: bool) -> impl Strategy<Value = SocketAddr> {
    let address = any::<[u8; 16]>().prop_map(move |bytes| {
        if v6 {
            IpAddr::from(bytes)
        } else {
            let [a, b, c, d, ..] = bytes;
            IpAddr::from([a, b, c, d])
        }
    });
    (address, any::<u16>()).prop_map(|(address, port)| SocketAddr::new(address, port))
}

fn change() -> impl Strategy<Value = Item> {
    let families = (any::<bool>(), any::<bool>());
    let begun = families.prop_flat_map(|(v6, v6_backend)| {
        let sockets = (socket(v6), socket(v6), socket(v6_backend));
        let rest = (any::<[u8; 2]>(), any::<u16>(), any::<[u8; 6]>(), any::<u32>());
        let ack = prop::option::of(any::<u32>());
        (sockets, rest, ack).prop_map(|((client, listen, backend), rest, ack)| {
            let ([protocol, state], nat_port, client_mac, idle_ms) = rest;
            let begun =
                Begun { protocol, state, client, listen, backend, nat_port, client_mac, idle_ms };
            Item::Change(match ack {
                Some(ack) => Change::Answered(Answered { begun, ack }),
                None => Change::Begun(begun),
            })
        })
    });
    let ended = any::<bool>().prop_flat_map(|v6| {
        (any::<u8>(), socket(v6), socket(v6)).prop_map(|(protocol, backend, nat)| {
            Item::Change(Change::Ended(Ended { protocol, backend, nat }))
        })
    });
    prop_oneof![begun, ended, Just(Item::All), Just(Item::AllSent)]
}

proptest! {
    #[test]
    fn changes_arrive_as_they_were(items in prop::collection::vec(change(), 0..200)) {
        let parts = pack(&items);
        prop_assert!(parts.iter().all(|part| part.len() <= MAX_PART));
        let got: Vec<_> = parts.iter().flat_map(|part| unpack(part)).collect();
        prop_assert_eq!(got, items);
        // Who does not know them yet has nothing else to lose.
        for part in parts {
            let is_answered = |item: &Item| matches!(item, Item::Change(Change::Answered(_)));
            let of: Vec<bool> = unpack(&part).map(|item| is_answered(&item)).collect();
            prop_assert!(of.iter().all(|it| *it == of[0]), "{of:?}");
        }
    }

    #[test]
    fn frames_arrive_as_they_were(
        numbers in any::<[u64; 4]>(),
        counts in any::<[u32; 6]>(),
        generation in any::<[u8; 16]>(),
        holds: bool,
        name in prop::collection::vec(any::<char>(), 0..MAX_FENCE_NAME / 4),
        part in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let [clock_us, echo_us, next, later] = numbers;
        let [held_us, backlog, a, b, c, d] = counts;
        let services = Count { all: a, fit: b };
        let backends = Count { all: c, fit: d };
        let (lingers_ms, leaves) = (services.all / 2, !holds);
        let about = About { generation, services, backends, holds, lingers_ms, leaves };
        let fence = Fence { name: name.into_iter().collect(), generation: next };
        let all = [
            Frame::Beat(Beat { clock_us, echo_us, held_us, backlog, table_age_ms: later, about }),
            Frame::Ack(Ack { next, later }),
            Frame::Part(next, &part),
            Frame::Fence(fence.clone()),
            Frame::Fenced(fence),
        ];
        let mut body = Vec::new();
        for frame in &all {
            prop_assert!(frame.write(&mut body));
        }
        let got: Vec<_> = frames(&body).collect();
        prop_assert_eq!(&got[..], &all[..]);
    }

    /// Nothing that comes can make a node panic, whatever it is and wherever it ends.
    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
        let keys = Keys::new(b"secret");
        prop_assert!(keys.open_hello(&bytes).is_err());
        prop_assert!(ends(b"secret").1.open(&bytes).is_err());
        let _ = frames(&bytes).count();
        let _ = unpack(&bytes).count();
        let _ = read_hello(&bytes);
        // Behind a right beginning too.
        for kind in [HELLO, DATA] {
            let mut datagram = MAGIC.to_vec();
            datagram.extend_from_slice(&[VERSION, kind, 0, 0]);
            datagram.extend_from_slice(&bytes);
            prop_assert!(keys.open_hello(&datagram).is_err());
            prop_assert!(ends(b"secret").1.open(&datagram).is_err());
        }
    }

    /// No byte can be altered, added or left out.
    #[test]
    fn what_is_altered_is_refused(
        body in prop::collection::vec(any::<u8>(), 0..200),
        sequence: u64,
        at: prop::sample::Index,
        by in 1_u8..,
        len: prop::sample::Index,
    ) {
        let (a, b) = ends(b"secret");
        let keys = Keys::new(b"secret");
        for (datagram, opens) in [
            (a.seal(sequence, &body), (&|it: &[u8]| b.open(it).is_ok()) as &dyn Fn(&[u8]) -> bool),
            (keys.seal_hello(&hello()), &|it: &[u8]| keys.open_hello(it).is_ok()),
        ] {
            prop_assert!(opens(&datagram));
            let mut altered = datagram.clone();
            let place = at.index(altered.len());
            altered[place] ^= by;
            prop_assert!(!opens(&altered));
            prop_assert!(!opens(&datagram[..len.index(datagram.len())]));
            let mut longer = datagram.clone();
            longer.push(by);
            prop_assert!(!opens(&longer));
        }
    }
}
