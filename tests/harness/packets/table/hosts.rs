//! Rows of frames that a switch brings to a node although they are for another.

use lb_common::reason::Reason;
use lb_ebpf::{
    fake::{
        Frame,
        frame::VLAN,
        setup::{CLIENT_MAC, OUR_MAC},
    },
    packet::tcp_flags::{ACK, FIN, RST},
};

use super::{Case, Steps as _, Talk};

/// What a node does with them that knows its own addresses.
pub(super) fn rows(talk: &Talk) -> Vec<Case> {
    // The last two bytes are what the filter asks for.
    const THEIRS: [u8; 6] = [2, 0, 0, 0, 1, 0xb];
    const GROUP: [u8; 6] = [3, 0, 0, 0, 1, 0xb];
    let net = &talk.net;
    let single = net.single().with_macs(&[[2, 9, 9, 9, 9, 9], OUR_MAC]);
    let alone = |name: &str| Case::new(name, single.clone());
    let foreign = |frame: Frame| frame.link(CLIENT_MAC, THEIRS);
    let data = talk.up(ACK).payload(b"data");
    vec![
        alone("another host's frame begins nothing")
            .passes(&foreign(talk.syn()), Reason::OtherHost)
            .passes(&foreign(talk.syn().vlan(VLAN, 7)), Reason::OtherHost)
            .passes(&foreign(talk.question()), Reason::OtherHost)
            .passes(&foreign(talk.up(ACK)), Reason::OtherHost)
            .then(talk, &[talk.syn()]),
        alone("another host's frame is of no connection that is known here")
            .then(talk, &[talk.syn()])
            .also(talk, &[talk.syn_ack()])
            .then(talk, &[talk.up(ACK), data.clone()])
            .passes(&foreign(data.clone()), Reason::OtherHost)
            .passes(&foreign(talk.up(FIN | ACK)), Reason::OtherHost)
            .passes(&foreign(talk.up(RST)), Reason::OtherHost)
            .then(talk, std::slice::from_ref(&data)),
        alone("a frame for a group is for this host too")
            .then(talk, &[talk.syn().link(CLIENT_MAC, GROUP)]),
        talk.single("without a MAC address that is known, every frame is ours")
            .then(talk, &[talk.syn().link(CLIENT_MAC, THEIRS)]),
    ]
}
