//! Rows of connections whose backend fails before it has answered.

use lb_common::{reason::Reason, service::Balance};
use lb_ebpf::{
    fake::{
        Error, Frame, Net, Setup,
        frame::{SYN_OPTIONS, VLAN, VLAN_OUTER},
        setup::backend,
    },
    family::protocol,
    packet::tcp_flags::{ACK, FIN, RST, SYN},
};

use super::{Case, Talk};

/// Two backends in turn, so that there is one other.
fn setup(net: &Net, tries: u32) -> Setup {
    Setup::default()
        .vip(net.vip.ip())
        .backend(1, backend(net.backends[0]))
        .backend(2, backend(net.backends[1]))
        .service(net.vip, protocol::TCP, Balance::RoundRobin, &[1, 2])
        .replays(tries, 200)
}

/// A backend's segment, to the client's own port.
fn from(net: &Net, id: u32, flags: u8) -> Frame {
    let src = net.backends[id as usize - 1];
    net.sent_by_backend(Frame::tcp(src, net.nat(net.client.port()), flags), id)
}

/// A SYN as a backend gets it that was not the first to be tried.
fn anew(net: &Net, syn: &Frame, id: u32) -> Frame {
    Frame { trailer: vec![], ..net.at_backend(syn, id, net.client.port()).label(0) }
}

pub(super) fn rows(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let port = net.client.port();
    let syn = talk.syn().numbers(u32::MAX, 0).traffic_class(0x28).window(1000);
    let refusal = |id| from(net, id, RST | ACK).numbers(0, 0);
    let begun = |name: &str, syn: &Frame, tries| {
        Case::new(format!("replay: {name}"), setup(net, tries)).forwards(
            syn,
            &net.at_backend(syn, 1, port),
            1,
        )
    };
    // One connection in other clothes.
    let dressed = |name: &str, syn: &Frame, dress: &dyn Fn(Frame) -> Frame| {
        let syn = dress(syn.clone());
        let seen = Frame { ip_options: vec![], ..anew(net, &syn, 2) };
        begun(name, &syn, 3).forwards(&dress(refusal(1)), &seen, 2)
    };
    let plain = dressed("a refusal becomes the SYN to the next", &syn, &|frame| frame);
    let syn_ack = net.sent_by_backend(Frame::syn_ack(net.backends[1], net.nat(port)), 2);
    let data = talk.up(ACK).payload(b"question");
    let answer = from(net, 2, ACK).payload(b"answer");
    let late = from(net, 1, SYN | ACK).numbers(7, 0);
    let router = net.other_client(7, 0).ip();
    let unreachable = |quoted| {
        let about = net.at_backend(&syn, 1, port);
        Frame::icmp_error(router, Error::PortUnreachable, &about, quoted)
    };
    let least = if net.vip.is_ipv4() { 28 } else { 48 };
    let to_client = |frame: &Frame| net.at_client(frame, net.client);
    let away = setup(net, 3).change(2, |backend| backend.ifindex = 77);
    let early = syn.clone().payload(b"early");
    let mut rows = vec![
        plain
            .clone()
            .returns(&syn_ack, &to_client(&syn_ack), 2)
            .forwards(&data, &net.at_backend(&data, 2, port), 2)
            .returns(&answer, &to_client(&answer), 2)
            .drops(&refusal(1), Reason::LateAnswer)
            .resets(&late, &Talk::reset(&late, RST, 0, 0), Reason::LateAnswer),
        dressed("ECN's bits", &Frame::tcp(net.client, net.vip, SYN | 0xc0), &|frame| {
            if frame.src == net.client { frame.numbers(u32::MAX, 0) } else { frame }
        }),
        dressed("no options", &syn.clone().tcp_options(&[]), &|frame| frame),
        dressed("all options", &syn.clone().tcp_options(&[SYN_OPTIONS, SYN_OPTIONS].concat()), {
            &|frame| frame
        }),
        dressed("in a VLAN", &syn, &|frame| frame.vlan(VLAN, 7)),
        dressed("in two VLANs", &syn, &|frame| frame.vlan(VLAN_OUTER, 7).vlan(VLAN, 8)),
        dressed("a padded refusal", &syn, &|frame| frame.trailer(&[0; 6])),
        begun("a refusal with a reason, longer than the SYN", &syn, 3).forwards(
            &refusal(1).payload(&[b'x'; 200]),
            &anew(net, &syn, 2),
            2,
        ),
        begun("unreachable, with all of the SYN", &syn, 3).forwards(
            &unreachable(1000),
            &anew(net, &syn, 2),
            2,
        ),
        begun("unreachable, with the least that is quoted", &syn, 3)
            .forwards(&unreachable(least), &anew(net, &syn, 2), 2)
            .drops(&unreachable(least), Reason::LateAnswer),
        begun("the last refusal is passed on", &syn, 3)
            .forwards(&refusal(1), &anew(net, &syn, 2), 2)
            .returns(&refusal(2), &to_client(&refusal(2)), 2)
            .drops(&talk.up(RST), Reason::NoFlow),
        begun("switched off", &syn, 0).returns(&refusal(1), &to_client(&refusal(1)), 1),
        begun("not with data", &early, 3).returns(&refusal(1), &to_client(&refusal(1)), 1),
        begun("not after the answer", &syn, 3)
            .returns(&from(net, 1, SYN | ACK), &to_client(&from(net, 1, SYN | ACK)), 1)
            .returns(&refusal(1), &to_client(&refusal(1)), 1),
        begun("a reset of something else is passed on", &syn, 3).returns(
            &refusal(1).numbers(0, 9),
            &to_client(&refusal(1).numbers(0, 9)),
            1,
        ),
        Case::new("replay: out by another interface", away)
            .forwards(&syn, &net.at_backend(&syn, 1, port), 1)
            .redirects(&refusal(1), &anew(net, &syn, 2), 2),
        begun("the client's end of it goes to the next", &syn, 3)
            .forwards(&refusal(1), &anew(net, &syn, 2), 2)
            .forwards(&talk.up(RST), &net.at_backend(&talk.up(RST), 2, port), 2)
            .passes(&syn_ack, Reason::NoService)
            .drops(&from(net, 1, FIN | RST), Reason::LateAnswer),
    ];
    if net.vip.is_ipv4() {
        rows.push(dressed("IP options are left behind", &syn, &|frame| frame.ip_options(&[1; 12])));
    }
    rows
}
