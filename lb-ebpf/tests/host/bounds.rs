//! No packet, however short or wrong, makes the data path read or write outside it.

use lb_common::{
    backend::{DIRECT, GUE, TUNNEL},
    reason::{Disposition, Reason},
    service::{LOOK_UP, Slot},
};
use lb_ebpf::{
    Action,
    fake::{
        FakeTables, Frame, Net, assert_valid,
        fixtures::fixtures,
        setup::{INGRESS, Setup, steered_at},
    },
    family::protocol,
    forward,
    packet::{Packet, tcp_flags::ACK},
    reset,
    tables::Tables as _,
};
use proptest::prelude::*;

/// One page of memory between two that trap.
struct Guarded {
    start: *mut u8,
}

const PAGE: usize = 4096;

impl Guarded {
    fn new() -> Self {
        // SAFETY: an anonymous mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                3 * PAGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "map three pages");
        let start = start.cast::<u8>().wrapping_add(PAGE);
        // SAFETY: the page in the middle of the mapping above.
        let status =
            unsafe { libc::mprotect(start.cast(), PAGE, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(status, 0, "make the middle page usable");
        Self { start }
    }

    /// Runs a frame that lies at `offset` in the page, the rest of which is full of `guard`. Gives the
    /// frame afterwards, and the decision; checks that nothing else was written.
    fn run(
        &mut self,
        frame: &[u8],
        offset: usize,
        guard: u8,
        tables: &FakeTables,
    ) -> (Vec<u8>, Result<Action, Reason>) {
        // SAFETY: the page is ours (`new`), and nothing else refers to it.
        let page = unsafe { std::slice::from_raw_parts_mut(self.start, PAGE) };
        page.fill(guard);
        page[offset..offset + frame.len()].copy_from_slice(frame);
        let at = self.start as usize + offset;
        // SAFETY: the bytes lie in the page; `page` is not used while the packet is.
        let packet = unsafe { Packet::new(at, at + frame.len(), INGRESS) };
        let decision = forward(packet, tables);
        let mut len = frame.len();
        if let Err(reason) = decision
            && reason.disposition() == Disposition::Reset
        {
            len = reset::answer(&packet).unwrap_or(len);
        }
        // SAFETY: as above.
        let page = unsafe { std::slice::from_raw_parts(self.start, PAGE) };
        let after = &page[offset..offset + frame.len()];
        let mut outside = page[..offset].iter().chain(&page[offset + frame.len()..]);
        assert!(outside.all(|byte| *byte == guard), "wrote outside of {frame:02x?}");
        (after[..len].to_vec(), decision)
    }

    /// As [`Self::run`] at the end of the page, for a frame that may grow at its front. Gives what leaves
    /// if it does.
    fn run_growing(&mut self, frame: &[u8], tables: &FakeTables) -> Option<Vec<u8>> {
        const GUARD: u8 = 0x5a;
        // SAFETY: as in `run`.
        let page = unsafe { std::slice::from_raw_parts_mut(self.start, PAGE) };
        page.fill(GUARD);
        let mut start = PAGE - frame.len();
        page[start..].copy_from_slice(frame);
        // SAFETY: as in `run`.
        let packet = |start| unsafe {
            Packet::new(self.start as usize + start, self.start as usize + PAGE, INGRESS)
        };
        let decision = forward(packet(start), tables);
        if let Ok(Action::Encapsulate(tunnel)) = decision {
            start -= tunnel.grows as usize;
            let backend = tables.backend(tunnel.backend).expect("it was there before");
            tunnel.advance(&packet(start)).expect("room for the tags");
            tunnel.write(&packet(start), tables, backend).expect("room for the outer header");
        }
        // SAFETY: as in `run`.
        let page = unsafe { std::slice::from_raw_parts(self.start, PAGE) };
        assert!(page[..start].iter().all(|byte| *byte == GUARD), "wrote outside of {frame:02x?}");
        decision.is_ok().then(|| page[start..].to_vec())
    }

    /// Runs a frame against both ends of the page, with different bytes around it: the result must not
    /// depend on these. `tables` gives the same state each time.
    fn run_everywhere(
        &mut self,
        frame: &[u8],
        tables: impl Fn() -> FakeTables,
    ) -> (Vec<u8>, Result<Action, Reason>) {
        let end = PAGE - frame.len();
        let result = self.run(frame, end, 0x00, &tables());
        for (offset, guard) in [(end, 0xff), (0, 0x00), (0, 0x45)] {
            assert_eq!(self.run(frame, offset, guard, &tables()), result, "depends on {guard:#x}");
        }
        result
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, whole.
        unsafe { libc::munmap(self.start.wrapping_sub(PAGE).cast(), 3 * PAGE) };
    }
}

/// How far the connection of [`fixtures`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unknown,
    HalfOpen,
    Established,
}

const STAGES: [Stage; 3] = [Stage::Unknown, Stage::HalfOpen, Stage::Established];

fn tables(net: &Net, setup: &Setup, stage: Stage) -> FakeTables {
    let tables = FakeTables::new(setup);
    let nat = net.nat(net.client.port());
    let syn = Frame::syn(net.client, net.vip);
    let question = Frame::udp(net.client, net.vip, b"question");
    let answer = net.sent_by_backend(Frame::syn_ack(net.backends[0], nat), 1);
    let reply = net.sent_by_backend(Frame::udp(net.backends[0], nat, b"reply"), 1);
    let history: &[Frame] = match stage {
        Stage::Unknown => &[],
        Stage::HalfOpen => &[syn, question],
        Stage::Established => &[syn, question, answer, reply],
    };
    for frame in history {
        let (_, decision) = lb_ebpf::fake::run(&frame.build(), INGRESS, &tables);
        assert_eq!(decision, Ok(Action::Transmit), "{stage:?}");
    }
    tables
}

/// Where the headers that forwarding needs end, by a parser of its own.
fn headers_end(frame: &[u8]) -> usize {
    let mut l3 = 14;
    while matches!(frame[l3 - 2..l3], [0x81, 0x00] | [0x88, 0xa8]) {
        l3 += 4;
    }
    let (protocol, l4) = ip_header(frame, l3);
    match protocol {
        6 => l4 + 20,
        17 => l4 + 8,
        // An ICMP error: its own header, the quoted packet's IP header, and eight bytes.
        _ => ip_header(frame, l4 + 8).1 + 8,
    }
}

fn ip_header(frame: &[u8], l3: usize) -> (u8, usize) {
    if frame[l3] >> 4 == 4 {
        (frame[l3 + 9], l3 + usize::from(frame[l3] & 0xf) * 4)
    } else {
        (frame[l3 + 6], l3 + 40)
    }
}

#[test]
fn every_truncation_of_every_fixture() {
    let mut page = Guarded::new();
    for net in Net::both() {
        let setup = net.single();
        for (name, frame) in fixtures(&net) {
            for stage in STAGES {
                for len in 0..=frame.len() {
                    let cut = &frame[..len];
                    let (after, decision) =
                        page.run_everywhere(cut, || tables(&net, &setup, stage));
                    let context = format!("{name}, {stage:?}, {len} of {} bytes", frame.len());
                    match decision {
                        Ok(_) => {
                            assert!(len >= headers_end(&frame), "forwarded {context}");
                            if len == frame.len() {
                                assert_valid(&after);
                            }
                        }
                        Err(reason) => match reason.disposition() {
                            Disposition::Pass => assert_eq!(after, cut, "touched {context}"),
                            Disposition::Reset if after != cut => assert_valid(&after),
                            Disposition::Cookie | Disposition::HandOn => assert_valid(&after),
                            Disposition::Reset | Disposition::Drop | Disposition::TooBig => {}
                        },
                    }
                    if len < 14 {
                        assert_eq!(decision, Err(Reason::Truncated), "{context}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_truncation_of_every_fixture_of_steered_services() {
    let mut page = Guarded::new();
    for net in Net::both() {
        for outer in Net::both() {
            for flags in [DIRECT, TUNNEL, TUNNEL | GUE] {
                let slot = Slot { backend: 1, base: 1 | LOOK_UP };
                for slot in [Slot::of(1), slot] {
                    let setup = Setup::default()
                        .vip(net.vip.ip())
                        .backend(1, steered_at(outer.backends[0], flags))
                        .steered(net.vip, protocol::TCP, &[slot])
                        .steered(net.vip, protocol::UDP, &[slot]);
                    // Nothing but counters is written in such slots.
                    let tables = FakeTables::new(&setup);
                    let mut forwarded = 0;
                    for (name, frame) in fixtures(&net) {
                        for len in 0..=frame.len() {
                            let Some(after) = page.run_growing(&frame[..len], &tables) else {
                                continue;
                            };
                            let context = format!("{name}, {len} of {} bytes", frame.len());
                            assert!(len >= headers_end(&frame), "forwarded {context}");
                            if len == frame.len() {
                                assert_valid(&after);
                                forwarded += 1;
                            }
                        }
                    }
                    assert!(forwarded > 15, "{forwarded}");
                }
            }
        }
    }
}

#[test]
fn whole_fixtures_are_forwarded_when_their_connection_is_known() {
    // Guards the test above: it would prove little if nothing were forwarded.
    for net in Net::both() {
        let setup = net.single();
        let forwarded = fixtures(&net)
            .iter()
            .filter(|(_, frame)| {
                let tables = tables(&net, &setup, Stage::Established);
                lb_ebpf::fake::run(frame, INGRESS, &tables).1.is_ok()
            })
            .count();
        assert!(forwarded > 20, "{forwarded}");
    }
}

#[test]
fn known_flows_are_forwarded_whole_or_not_at_all() {
    // The hot path reads the headers that it rewrites, and no length: a datagram shorter than it says
    // is for its receiver to drop. But never with half a header rewritten.
    for net in Net::both() {
        let setup = net.single();
        let frame = Frame::tcp(net.client, net.vip, ACK).build();
        for len in 0..frame.len() {
            let tables = tables(&net, &setup, Stage::Established);
            let (outcome, decision) = lb_ebpf::fake::run(&frame[..len], INGRESS, &tables);
            assert!(decision.is_err(), "{len}");
            assert_eq!(outcome.frame, &frame[..len]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), ethernet in 0..5_usize) {
        let mut page = Guarded::new();
        let mut bytes = bytes;
        if bytes.len() > 14 {
            let types = [[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8], [0x08, 0x06]];
            bytes[12..14].copy_from_slice(&types[ethernet]);
        }
        let net = Net::v4();
        let setup = net.single();
        let (after, decision) = page.run_everywhere(&bytes, || FakeTables::new(&setup));
        if decision.is_err_and(|reason| reason.disposition() == Disposition::Pass) {
            prop_assert_eq!(after, bytes);
        }
    }

    #[test]
    fn fixtures_with_bytes_changed(
        pick in any::<prop::sample::Index>(),
        v6 in any::<bool>(),
        stage in 0..3_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in any::<prop::sample::Index>(),
        cut_it in proptest::bool::weighted(0.2),
    ) {
        let net = if v6 { Net::v6() } else { Net::v4() };
        let fixtures = fixtures(&net);
        let (_, mut frame) = fixtures[pick.index(fixtures.len())].clone();
        for (at, byte) in changes {
            // Headers are where it matters.
            let at = at.index(frame.len().min(110));
            frame[at] = byte;
        }
        if cut_it {
            frame.truncate(cut.index(frame.len()));
        }
        let setup = net.single();
        let mut page = Guarded::new();
        let (after, decision) =
            page.run_everywhere(&frame, || tables(&net, &setup, STAGES[stage]));
        if decision.is_err_and(|reason| reason.disposition() == Disposition::Pass) {
            prop_assert_eq!(after, frame);
        }
    }
}
