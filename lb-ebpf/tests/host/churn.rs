//! Connections of steered services never break while their backend lives, however backends come and go.
//!
//! User space is modelled by the rule that it follows: a slot that changes hands keeps its base; after a
//! time in which every live connection has sent something, the base follows; look-ups go on while an
//! entry says something else than the slot.

use std::collections::HashMap;

use lb_common::{
    backend::{DIRECT, FORWARD},
    flow::FlowKey4,
    maglev,
    reason::Reason,
    service::{LOOK_UP, Slot},
};
use lb_ebpf::{
    fake::{
        FakeTables, Frame, Net, Setup, Xdp, run,
        setup::{INGRESS, steered_at},
        tables::tuple,
    },
    family::{Ports, Tuple, V4, protocol},
    packet::tcp_flags::{ACK, SYN},
};

/// Connections; every eighth is one of UDP.
const FLOWS: u32 = 100_000;

/// Slots of each of the two services.
const SLOTS: u32 = 4093;

/// Each connection sends once in a round.
const ROUNDS: u32 = 9;

/// Changes of backends in a round.
const CHANGES: u32 = 3;

/// Rounds after which whatever is live has sent something since: the one that runs may be nearly over.
const GRACE: u32 = 2;

struct Flow {
    tuple: Tuple<u32>,
    udp: bool,
    first: Vec<u8>,
    later: Vec<u8>,
    /// Where it went; none before its first packet.
    backend: Option<u32>,
}

/// What user space knows of a slot, beside what the map holds.
#[derive(Clone, Copy)]
struct Known {
    slot: Slot,
    /// Round of its last change.
    changed: u32,
}

struct Churn {
    net: Net,
    tables: FakeTables,
    random: Random,
    flows: Vec<Flow>,
    slots: Vec<Known>,
    /// Backends that new connections go to, with their weights.
    serving: Vec<(u32, u32)>,
    /// Backends that still have their connections.
    living: Vec<u32>,
    next_id: u32,
    round: u32,
    moved: u64,
    ended: u64,
}

/// xorshift (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        maglev::slot((self.0 >> 32) as u32, end)
    }
}

/// A Maglev table (section 3.4 of the paper), each backend preferring slots by its identifier.
fn table(backends: &[(u32, u32)]) -> Vec<u32> {
    let seed = |id: u32, salt: u32| (id ^ salt).wrapping_mul(0x9e37_79b1) ^ id.rotate_left(11);
    let mut table = vec![None; SLOTS as usize];
    let mut steps = vec![0; backends.len()];
    let mut filled = 0;
    while filled < SLOTS {
        for (step, (id, weight)) in steps.iter_mut().zip(backends) {
            for _ in 0..*weight {
                if filled == SLOTS {
                    break;
                }
                loop {
                    let (one, other) = (seed(*id, 0x5bd1), seed(*id, 0xc2b2_ae35));
                    let slot = maglev::preference(one, other, *step, SLOTS) as usize;
                    *step += 1;
                    if table[slot].is_none() {
                        table[slot] = Some(*id);
                        filled += 1;
                        break;
                    }
                }
            }
        }
    }
    table.into_iter().map(|id| id.expect("all are filled")).collect()
}

impl Churn {
    fn new(seed: u64) -> Self {
        let net = Net::v4().steered();
        let serving: Vec<(u32, u32)> = (1..=8).map(|id| (id, 1)).collect();
        let slots: Vec<Slot> = table(&serving).into_iter().map(Slot::of).collect();
        let setup = Setup::default()
            .vip(net.vip.ip())
            .steered(net.vip, protocol::TCP, &slots)
            .steered(net.vip, protocol::UDP, &slots);
        let mut churn = Self {
            net,
            tables: FakeTables::new(&setup),
            random: Random(seed),
            flows: Vec::new(),
            slots: slots.into_iter().map(|slot| Known { slot, changed: 0 }).collect(),
            living: serving.iter().map(|(id, _)| *id).collect(),
            serving,
            next_id: 9,
            round: 0,
            moved: 0,
            ended: 0,
        };
        for id in 1..=8 {
            churn.add_backend(id);
        }
        for number in 0..FLOWS {
            churn.flows.push(churn.flow(number));
        }
        churn
    }

    fn flow(&self, number: u32) -> Flow {
        let client = self.net.other_client((number >> 8) as u16, (1024 + (number & 0xff)) as u16);
        let udp = number.is_multiple_of(8);
        let (first, later) = if udp {
            let frame = Frame::udp(client, self.net.vip, b"").build();
            (frame.clone(), frame)
        } else {
            (
                Frame::tcp(client, self.net.vip, SYN).build(),
                Frame::tcp(client, self.net.vip, ACK).build(),
            )
        };
        Flow { tuple: tuple::<V4>(client, self.net.vip), udp, first, later, backend: None }
    }

    /// A backend's MAC address shows its identifier.
    fn add_backend(&mut self, id: u32) {
        let mut backend = steered_at(self.net.backends[0], DIRECT);
        let [.., high, low] = id.to_be_bytes();
        backend.next_hop = [2, 0, 0, 9, high, low];
        self.tables.set_backend(id, backend);
    }

    /// Sends the next packet of a flow, and checks where it goes.
    fn send(&mut self, number: usize) {
        let flow = &mut self.flows[number];
        let frame = if flow.backend.is_none() { &flow.first } else { &flow.later };
        let (outcome, decision) = run(frame, INGRESS, &self.tables);
        let went = match outcome.xdp {
            Xdp::Transmit if decision.is_ok() => {
                let [high, low] = [outcome.frame[4], outcome.frame[5]];
                Some(u32::from(u16::from_be_bytes([high, low])))
            }
            _ => None,
        };
        let Some(backend) = flow.backend else {
            assert!(went.is_some(), "flow {number} is not taken: {decision:?}");
            flow.backend = went;
            return;
        };
        if self.living.contains(&backend) {
            assert_eq!(went, Some(backend), "round {}: flow {number} breaks", self.round);
            return;
        }
        // Its backend is gone. Datagrams go on with another; a connection is reset, by us or by that
        // other one, and begins anew with its next packet.
        self.ended += 1;
        match went {
            Some(id) => assert!(self.living.contains(&id), "backend {id} is gone"),
            None => assert_eq!((flow.udp, decision), (false, Err(Reason::BackendGone))),
        }
        flow.backend = if flow.udp { went } else { None };
    }

    /// Adds, removes, or weighs a backend, as an operator or the health checks would.
    fn change(&mut self) {
        let index = self.random.below(self.serving.len() as u32) as usize;
        match self.random.below(4) {
            0 => {
                let id = self.next_id;
                self.next_id += 1;
                self.add_backend(id);
                self.serving.push((id, 1 + self.random.below(3)));
                self.living.push(id);
            }
            1 => self.serving[index].1 = 1 + self.random.below(4),
            // It is drained: its connections live on. Later it may come back.
            2 if self.serving.len() > 3 => {
                self.serving.remove(index);
            }
            // It is dead.
            3 if self.serving.len() > 3 => {
                let (id, _) = self.serving.remove(index);
                self.living.retain(|living| *living != id);
                self.tables.set_flag(id, FORWARD, false);
            }
            _ => {
                if let Some(id) = self
                    .living
                    .iter()
                    .find(|id| self.serving.iter().all(|(serving, _)| serving != *id))
                {
                    self.serving.push((*id, 1));
                }
            }
        }
        self.rebuild();
    }

    /// The rule: a slot that changes hands keeps its base.
    fn rebuild(&mut self) {
        for (number, owner) in (0..).zip(table(&self.serving)) {
            let known = &mut self.slots[number as usize];
            if known.slot.backend != owner {
                let base = known.slot.base & !LOOK_UP;
                // Back at its base, others' connections may have entries.
                let base = if owner == base { base | LOOK_UP } else { base };
                *known = Known { slot: Slot { backend: owner, base }, changed: self.round };
                self.write(number);
            }
        }
        self.settle();
    }

    /// The rule: the base follows when the time is over, or when it is gone.
    fn settle(&mut self) {
        let others = self.entries_that_differ();
        for number in 0..SLOTS {
            let Known { slot, changed } = self.slots[number as usize];
            let base = slot.base & !LOOK_UP;
            let over = self.round >= changed + GRACE || !self.living.contains(&base);
            if slot.base == slot.backend || !over && base != slot.backend {
                continue;
            }
            let look_up = if others.contains_key(&number) { LOOK_UP } else { 0 };
            self.slots[number as usize].slot.base = slot.backend | look_up;
            self.write(number);
        }
    }

    fn write(&mut self, number: u32) {
        let slot = self.slots[number as usize].slot;
        self.tables.set_slot(number, slot);
        self.tables.set_slot(SLOTS + number, slot);
    }

    /// Slots that have entries for other backends than new connections go to.
    fn entries_that_differ(&self) -> HashMap<u32, u32> {
        let mut slots = HashMap::new();
        for (key, entry) in self.tables.v4.flows() {
            let number = maglev::slot(key_tuple(&key).hash(), SLOTS);
            if entry.backend != self.slots[number as usize].slot.backend {
                *slots.entry(number).or_default() += 1;
            }
        }
        slots
    }

    /// How many connections are where the present table would not send them.
    fn count_moved(&mut self) {
        for flow in &self.flows {
            let slot = self.slots[maglev::slot(flow.tuple.hash(), SLOTS) as usize].slot;
            self.moved += u64::from(flow.backend.is_some_and(|id| id != slot.backend));
        }
    }
}

fn key_tuple(key: &FlowKey4) -> Tuple<u32> {
    Tuple {
        src: u32::from_ne_bytes(key.src),
        dst: u32::from_ne_bytes(key.dst),
        ports: Ports::new(key.src_port, key.dst_port),
    }
}

#[test]
fn no_connection_of_a_living_backend_breaks() {
    let mut churn = Churn::new(0x2545_f491_4f6c_dd1d);
    // Far apart from one to the next, in another order than they were made.
    let order = |step: u32| (u64::from(step) * 61_803 % u64::from(FLOWS)) as usize;
    for round in 0..ROUNDS {
        churn.round = round;
        churn.settle();
        for step in 0..FLOWS {
            // None in the first round, so that most connections are from before the first change.
            if round > 0 && step % (FLOWS / CHANGES) == FLOWS / CHANGES / 2 {
                churn.change();
            }
            churn.send(order(step));
            // Some end, and their tuples are used anew.
            if churn.random.below(50) == 0 && !churn.flows[order(step)].udp {
                churn.flows[order(step)].backend = None;
            }
        }
        churn.count_moved();
        churn.tables.bury();
    }
    assert!(churn.moved > u64::from(FLOWS), "{}: the changes changed little", churn.moved);
    assert!(churn.ended > 1000, "{}: few backends have died", churn.ended);

    // When nothing changes any longer, and what was before is over, no entry is left to look for.
    churn.round += GRACE;
    churn.settle();
    let keys: Vec<FlowKey4> = churn.tables.v4.flows().into_keys().collect();
    assert!(!keys.is_empty());
    for key in keys {
        churn.tables.v4.evict_flow(&key);
    }
    churn.settle();
    assert!(churn.slots.iter().all(|known| known.slot.base == known.slot.backend));
}
