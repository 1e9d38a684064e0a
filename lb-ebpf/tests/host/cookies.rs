//! SYNs for the proxy that are answered with SYN cookies.

use lb_common::{
    flow::MAX_TCP_OPTIONS,
    reason::Reason,
    service::{LISTENED, PROXIED},
};
use lb_ebpf::{
    cookie::{Cookie, Offer},
    fake::{
        FakeTables, Frame, Net, Xdp,
        frame::{SYN_OPTIONS, VLAN},
        setup::{CLIENT_MAC, OUR_MAC},
    },
    packet::tcp_flags::{ACK, SYN},
};

use crate::driver::Host;

const COOKIE: Cookie = Cookie { seq: 0xdead_beef, mss: 1440 };

/// Whether a listener is short of room, and how the node's own stack scales windows.
fn host(net: Net, cookie: Option<Cookie>, own_scale: Option<u8>) -> Host {
    let tables = FakeTables::new(&net.single().flagged(LISTENED | PROXIED));
    tables.set_cookie(cookie, own_scale);
    tables.set_now_ns(1_234_567_000_000);
    Host { net, tables }
}

fn answer(net: &Net, options: &[u8]) -> Frame {
    Frame::tcp(net.vip, net.client, SYN | ACK)
        .numbers(COOKIE.seq, 0x0102_0305)
        .tcp_options(options)
        .label(0)
        .link(OUR_MAC, CLIENT_MAC)
}

#[test]
fn a_listener_that_has_room_gets_the_syn() {
    for net in Net::both() {
        host(net, None, Some(7)).assert_refused(&Frame::syn(net.client, net.vip), Reason::Proxied);
    }
}

#[test]
fn one_that_has_none_answers_with_the_kernels_cookie() {
    for net in Net::both() {
        let host = host(net, Some(COOKIE), None);
        let syn = Frame::syn(net.client, net.vip);
        for frame in [syn.clone(), syn.clone().payload(b"early"), syn.clone().trailer(&[0; 3])] {
            let outcome = host.assert_refused(&frame, Reason::SynCookie);
            assert_eq!(outcome.frame, answer(&net, &[2, 4, 5, 0xa0]).build(), "{frame:?}");
        }
        let tagged = host.assert_refused(&syn.clone().vlan(VLAN, 7), Reason::SynCookie);
        assert_eq!(tagged.frame, answer(&net, &[2, 4, 5, 0xa0]).vlan(VLAN, 7).build());
        // What says nothing of segments is told nothing.
        let outcome = host.assert_refused(&syn.tcp_options(&[]), Reason::SynCookie);
        assert_eq!(outcome.frame, answer(&net, &[]).build());
        // Other packets are the listener's in any case.
        host.assert_refused(&Frame::tcp(net.client, net.vip, ACK), Reason::Proxied);
    }
}

#[test]
fn no_segment_is_longer_than_a_link_of_ethernet_takes() {
    for (net, high) in [(Net::v4(), 0xb4), (Net::v6(), 0xa0)] {
        let host = host(net, Some(Cookie { mss: 8940, ..COOKIE }), None);
        let outcome = host.assert_refused(&Frame::syn(net.client, net.vip), Reason::SynCookie);
        assert_eq!(outcome.frame, answer(&net, &[2, 4, 5, high]).build());
    }
}

/// 1,234,567 ms, whose lower six bits are 7, are what the kernel's own timestamps say then.
#[test]
fn what_else_is_offered_comes_back_with_timestamps() {
    let stamp = |bits: u32| (1_234_560_u32 + bits - 64).to_be_bytes();
    let mss = [2, 4, 5, 0xa0];
    let peer = [0, 1, 2, 3];
    let scale = [1, 3, 3, 9];
    for net in Net::both() {
        let host = host(net, Some(COOKIE), Some(9));
        let check = |options: &[u8], expected: &[u8]| {
            let syn = Frame::syn(net.client, net.vip).tcp_options(options);
            let outcome = host.assert_refused(&syn, Reason::SynCookie);
            assert_eq!(outcome.xdp, Xdp::Transmit);
            assert_eq!(outcome.frame, answer(&net, expected).build(), "{options:02x?}");
        };
        // Linux: selective acknowledgements (bit 4), and windows times 2^7.
        let linux = [mss.to_vec(), vec![4, 2, 8, 10], stamp(16 + 7).to_vec(), peer.to_vec()];
        check(&SYN_OPTIONS, &[linux.concat(), scale.to_vec()].concat());
        // Apple's and BSD's order.
        let apple = [&[2, 4, 5, 0xb4, 1, 3, 3, 6, 1, 1, 8, 10][..], &peer, &[0; 4], &[4, 2, 0, 0]];
        let expected = [mss.to_vec(), vec![4, 2, 8, 10], stamp(16 + 6).to_vec(), peer.to_vec()];
        check(&apple.concat(), &[expected.concat(), scale.to_vec()].concat());
        // Timestamps alone; a shift too large.
        let bare = [&[1, 1, 8, 10][..], &peer, &[0; 4]].concat();
        let expected = [&[1, 1, 8, 10][..], &stamp(15), &peer].concat();
        check(&bare, &expected);
        let large = [&bare[..], &[1, 3, 3, 200]].concat();
        let expected = [&[1, 1, 8, 10][..], &stamp(14), &peer, &scale].concat();
        check(&large, &expected);
        // Windows: no timestamps, so nothing comes back.
        check(&[2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2], &mss);
    }
}

#[test]
fn a_timestamp_is_never_of_the_future() {
    let net = Net::v4();
    let host = host(net, Some(COOKIE), Some(9));
    for now_ms in (1_000_000..1_000_128).chain([64, 1 << 32, (1 << 32) + 65]) {
        host.tables.set_now_ns(now_ms * 1_000_000 + 999_999);
        let frame = host.assert_refused(&Frame::syn(net.client, net.vip), Reason::SynCookie).frame;
        let stamp = u32::from_be_bytes(frame[62..66].try_into().unwrap());
        assert_eq!(stamp & 0x3f, 16 + 7, "at {now_ms}");
        let age = (now_ms as u32).wrapping_sub(stamp);
        assert!(age < 128, "{age} ms old at {now_ms}");
    }
}

#[test]
fn options_in_other_places_are_left() {
    let of = |bytes: &[u8]| {
        let mut options = [0; MAX_TCP_OPTIONS];
        options[..bytes.len()].copy_from_slice(bytes);
        Offer::of(&options)
    };
    let nothing = Offer { mss: 0, scale: 15, selective: false, stamped: false, timestamp: 0 };
    assert_eq!(of(&[]), nothing);
    assert_eq!(of(&[0, 0, 0, 0, 2, 4, 5, 0xb4]), nothing, "after the end");
    assert_eq!(of(&[1, 2, 4, 5, 0xb4]), nothing);
    // Fast Open with a cookie of eight bytes (RFC 7413), one of which looks like something.
    let fast = [2, 4, 5, 0xb4, 34, 10, 9, 9, 1, 3, 3, 7];
    assert_eq!(of(&fast), Offer { mss: 1460, ..nothing });
    // A timestamp that looks like something.
    let stamps = [1, 1, 8, 10, 2, 4, 5, 0xb4, 1, 3, 3, 7, 1, 3, 3, 2];
    let timestamp = u32::from_ne_bytes([2, 4, 5, 0xb4]);
    assert_eq!(of(&stamps), Offer { stamped: true, timestamp, scale: 2, ..nothing });
}
