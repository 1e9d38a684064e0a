//! The decapsulator in the kernel: packets in, packets out, and what is counted.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    maps::{LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::{TestRunOptions, Xdp},
};
use ballast::dataplane::decap::OBJECT;
use lb_common::{
    backend::{Backend, GUE, TUNNEL},
    decap::{COUNTS, Count, PROGRAM, SOURCES, Source},
};
use lb_ebpf::fake::{
    Frame,
    frame::{VLAN, VLAN_OUTER},
    outer::inside,
    setup::mapped_ip,
};

/// The loaded program. Packets come in by the loopback interface of this process's namespace, so the
/// addresses of the host are those of `lo`.
struct Decap(Ebpf);

impl Decap {
    /// `from`: an address and the length of its prefix, of the mapped one.
    fn load(from: (&str, u32)) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("create the maps")?;
        let program: &mut Xdp = ebpf.program_mut(PROGRAM).context("find it")?.try_into()?;
        program.load().context("load the program")?;
        let map = ebpf.map_mut(SOURCES).context("find the prefixes")?;
        let mut sources: LpmTrie<_, Source, u32> = map.try_into()?;
        let address = mapped_ip(from.0.parse()?);
        sources.insert(&Key::new(from.1, Source { address }), 1, 0)?;
        Ok(Self(ebpf))
    }

    fn anywhere() -> Result<Self> {
        Self::load(("::", 0))
    }

    /// The action and the frame after the program.
    fn run(&self, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let program: &Xdp = self.0.program(PROGRAM).context("find it")?.try_into()?;
        let mut after = vec![0; 4096];
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut after),
            ..TestRunOptions::default()
        })?;
        after.truncate(result.data_size_out as usize);
        Ok((result.return_value, after))
    }

    fn count(&self, count: Count) -> Result<u64> {
        let map: PerCpuArray<_, u64> = self.0.map(COUNTS).context("find the counts")?.try_into()?;
        Ok(map.get(&(count as u32), 0)?.iter().sum())
    }

    /// The frame passes as `expected`, and is counted once.
    #[track_caller]
    fn gives(&self, frame: &[u8], count: Count, expected: Option<&[u8]>) {
        let all = || Count::ALL.iter().map(|it| self.count(*it).expect("counters")).sum::<u64>();
        let (before, total) = (self.count(count).expect("a counter"), all());
        let (action, after) = self.run(frame).expect("the program runs");
        match expected {
            Some(expected) => {
                assert_eq!(action, PASS, "{count:?}");
                assert_eq!(after, expected, "{count:?}");
            }
            None => assert_eq!(action, DROP, "{count:?}"),
        }
        assert_eq!(self.count(count).expect("a counter"), before + 1, "{count:?}");
        assert_eq!(all(), total + 1, "counted once");
    }
}

const DROP: u32 = 1;
const PASS: u32 = 2;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The two ends of a tunnel of each family. The far one is this host's.
const TUNNELS: [(&str, &str); 2] = [("192.0.2.11", "127.0.0.1"), ("2001:db8::11", "::1")];

fn tunnel(ends: (&str, &str), flags: u16) -> Backend {
    Backend {
        address: mapped_ip(ip(ends.1)),
        source: mapped_ip(ip(ends.0)),
        flags: TUNNEL | flags,
        next_hop: [2, 0, 0, 0, 0, 0x21],
        source_mac: [2, 0, 0, 0, 0, 0xb],
        ..Backend::ZERO
    }
}

/// A packet of each family to a floating address.
fn packets() -> [Frame; 2] {
    let socket = |text: &str| text.parse::<SocketAddr>().expect("an address and port");
    [("192.0.2.9:40000", "192.0.2.100:80"), ("[2001:db8::9]:40000", "[2001:db8::100]:80")].map(
        |(client, vip)| {
            let frame = Frame::syn(socket(client), socket(vip));
            frame.link([2, 0, 0, 0, 0, 0xb], [2, 0, 0, 0, 0, 0x21])
        },
    )
}

/// Where the inner packet begins in a frame without tags.
fn inner_at(backend: &Backend) -> usize {
    let outer = if backend.address[..12] == mapped_ip(ip("0.0.0.0"))[..12] { 20 } else { 40 };
    14 + outer + if backend.flags & GUE == 0 { 0 } else { 8 }
}

/// Every combination of outer family, inner family and wrapping.
fn each(mut check: impl FnMut(&Backend, &Frame, Count)) {
    for ends in TUNNELS {
        for (flags, count) in [(0, Count::Ipip), (GUE, Count::Gue)] {
            for frame in packets() {
                check(&tunnel(ends, flags), &frame, count);
            }
        }
    }
}

#[test]
fn packets_come_out_as_they_went_in() -> Result<()> {
    let decap = Decap::anywhere()?;
    each(|backend, frame, count| {
        for frame in [
            frame.clone(),
            frame.clone().vlan(VLAN, 7),
            frame.clone().vlan(VLAN_OUTER, 5).vlan(VLAN, 7),
        ] {
            decap.gives(&inside(&frame, backend), count, Some(&frame.build()));
        }
    });
    Ok(())
}

#[test]
fn what_is_no_tunnel_to_this_host_passes_unchanged() -> Result<()> {
    let decap = Decap::anywhere()?;
    for frame in packets() {
        let frame = frame.build();
        decap.gives(&frame, Count::Other, Some(&frame));
    }
    let dns = Frame::udp("192.0.2.9:6080".parse()?, "127.0.0.1:53".parse()?, b"question").build();
    decap.gives(&dns, Count::Other, Some(&dns));
    // Variant 0 of GUE has a header of its own, and may be for another program.
    let variant = Frame::udp("192.0.2.9:7".parse()?, "127.0.0.1:6080".parse()?, &[0; 40]).build();
    decap.gives(&variant, Count::Other, Some(&variant));
    let mut arp = vec![0xff; 14];
    arp[12..].copy_from_slice(&[8, 6]);
    decap.gives(&arp, Count::Other, Some(&arp));
    Ok(())
}

#[test]
fn what_contradicts_itself_is_dropped() -> Result<()> {
    let decap = Decap::anywhere()?;
    each(|backend, frame, _| {
        let good = inside(frame, backend);
        let at = inner_at(backend);
        let changed = |index: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[index] = value;
            bytes
        };
        // The inner packet is longer than the outer one says, or than the frame is.
        let length = if frame.src.is_ipv4() { at + 2 } else { at + 4 };
        decap.gives(&changed(length, 9), Count::Malformed, None);
        decap.gives(&good[..good.len() - 1], Count::Malformed, None);
        // It is of no version, or IP in IP announces the other one.
        let version = good[at] & 0xf;
        let wrong = if backend.flags & GUE == 0 { 0x50 } else { 0x70 };
        decap.gives(&changed(at, wrong | version), Count::Malformed, None);
        if backend.flags & GUE != 0 {
            decap.gives(&changed(at - 3, good[at - 3] ^ 1), Count::Malformed, None);
        }
        if at == 34 || at == 42 {
            decap.gives(&changed(24, good[24] ^ 1), Count::Checksum, None);
        }
    });
    Ok(())
}

#[test]
fn pieces_and_options_are_the_stacks_business() -> Result<()> {
    let decap = Decap::anywhere()?;
    let [v4, _] = packets();
    let packet = v4.ip_packet();
    let outer = Frame::other(ip("192.0.2.11"), ip("127.0.0.1"), 4, &packet);
    let piece = Frame { fragment: Some((0, true)), ..outer.clone() }.build();
    decap.gives(&piece, Count::Fragment, Some(&piece));
    let options = Frame { ip_options: vec![1; 4], ..outer }.build();
    decap.gives(&options, Count::Options, Some(&options));
    Ok(())
}

#[test]
fn tunnels_from_elsewhere_are_refused() -> Result<()> {
    for (ends, from) in TUNNELS.into_iter().zip([("192.0.2.0", 120), ("2001:db8::", 32)]) {
        let decap = Decap::load(from)?;
        let [frame, _] = packets();
        decap.gives(&inside(&frame, &tunnel(ends, 0)), Count::Ipip, Some(&frame.build()));
        let stranger = if ends.0.contains(':') { "2001:dead::1" } else { "198.51.100.7" };
        let strange = inside(&frame, &tunnel((stranger, ends.1), 0));
        decap.gives(&strange, Count::Denied, None);
    }
    Ok(())
}

#[test]
fn congestion_marks_are_carried_on() -> Result<()> {
    const CE: u8 = 3;
    let decap = Decap::anywhere()?;
    each(|backend, frame, count| {
        for (ecn, survives) in [(0, false), (1, true), (2, true), (3, true)] {
            let frame = Frame { traffic_class: 0x28 | ecn, ..frame.clone() };
            let mut wrapped = inside(&Frame { traffic_class: 0x28 | CE, ..frame.clone() }, backend);
            // The outer header is marked, and the inner one is as it was.
            let at = inner_at(backend);
            wrapped[at..at + frame.ip_packet().len()].copy_from_slice(&frame.ip_packet());
            let marked = Frame { traffic_class: 0x28 | CE, ..frame }.build();
            if survives {
                decap.gives(&wrapped, count, Some(&marked));
            } else {
                decap.gives(&wrapped, Count::Congestion, None);
            }
        }
    });
    Ok(())
}

#[test]
fn every_truncation_is_counted_once() -> Result<()> {
    let decap = Decap::anywhere()?;
    let mut counted = 0;
    each(|backend, frame, _| {
        let whole = inside(frame, backend);
        // The kernel runs no program for less than an Ethernet header.
        for len in 14..whole.len() {
            let (action, _) = decap.run(&whole[..len]).expect("the program runs");
            assert!(matches!(action, DROP | PASS));
            counted += 1;
        }
    });
    let mut total = 0;
    for &count in Count::ALL {
        total += decap.count(count)?;
    }
    ensure!(total == counted, "{counted} packets and {total} counts");
    Ok(())
}
