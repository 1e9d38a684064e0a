//! What the backends of a configuration need that the balancer cannot do for them.

use std::fmt::Write as _;

use super::{Config, Encapsulation, Forwarding, Service};

/// Bytes that a tunnel adds: an outer IPv4 (RFC 791) or IPv6 header (RFC 8200), and the UDP header of
/// GUE, which in its variant 1 adds nothing of its own.
#[must_use]
pub fn tunnel_bytes(to_ipv4: bool, encapsulation: Encapsulation) -> u32 {
    let outer = if to_ipv4 { 20 } else { 40 };
    let udp = if encapsulation == Encapsulation::Gue { 8 } else { 0 };
    outer + udp
}

/// The commands to run on backends that answer the clients by themselves; empty if there are none.
#[must_use]
pub fn advice(config: &Config) -> String {
    let mut text = String::new();
    for service in config.services.iter().filter(|it| it.forward != Forwarding::Nat) {
        of_service(service, &mut text);
    }
    text
}

fn of_service(service: &Service, text: &mut String) {
    let (name, address) = (&service.name, service.listen.ip());
    // Writing to a `String` cannot fail.
    let _ =
        writeln!(text, "`{name}`: the backends answer the clients by themselves. On each of them:");
    if address.is_ipv4() {
        // First, so that nobody hears of the address there.
        text.push_str(
            "  sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2\n",
        );
        let _ = writeln!(text, "  ip address add {address}/32 dev lo");
    } else {
        let _ = writeln!(text, "  ip address add {address}/128 dev lo nodad");
    }
    if let Forwarding::Tunnel(encapsulation) = service.forward {
        text.push_str("  ballast decap --interface eth0\n");
        let bytes = service.backends.iter().map(|backend| backend.address.is_ipv4());
        let bytes = bytes.map(|v4| tunnel_bytes(v4, encapsulation)).max().unwrap_or(0);
        let _ = writeln!(
            text,
            "The way to them should carry packets {bytes} bytes longer than those of the clients; if \
             it does not,\nclients are told to send shorter ones."
        );
    }
}
