//! Services whose backends answer the clients by themselves.

use lb_common::service::Balance;

use super::*;
use crate::config::{Encapsulation, Forwarding, advice};

/// [`GOOD`] with more lines in its service, and backends that listen on the service's port.
fn steered(lines: &str) -> String {
    changed("name = \"web\"", &format!("name = \"web\"\n{lines}"))
        .replace("192.0.2.21:8080", "192.0.2.21:80")
}

#[test]
fn ways_to_the_backends() {
    for (lines, forward, balance) in [
        ("", Forwarding::Nat, Balance::LeastConn),
        ("forward = \"nat\"", Forwarding::Nat, Balance::LeastConn),
        ("forward = \"direct\"", Forwarding::Direct, Balance::Maglev),
        ("forward = \"direct\"\nbalance = \"maglev\"", Forwarding::Direct, Balance::Maglev),
        ("forward = \"tunnel\"", Forwarding::Tunnel(Encapsulation::Ipip), Balance::Maglev),
        (
            "forward = \"tunnel\"\nencapsulation = \"ipip\"",
            Forwarding::Tunnel(Encapsulation::Ipip),
            Balance::Maglev,
        ),
        (
            "forward = \"tunnel\"\nencapsulation = \"gue\"",
            Forwarding::Tunnel(Encapsulation::Gue),
            Balance::Maglev,
        ),
    ] {
        let loaded = parse("test.toml", &steered(lines)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(loaded.warnings, [], "{lines}");
        let service = &loaded.config.services[0];
        assert_eq!((service.forward, service.balance), (forward, balance), "{lines}");
    }
}

#[test]
fn what_does_not_go_together() {
    for word in ["direct", "tunnel"] {
        for balance in ["least_conn", "round_robin", "random"] {
            mistake(
                &steered(&format!("forward = \"{word}\"\nbalance = ▶\"{balance}\"")),
                &format!("`forward = \"{word}\"` needs `balance = \"maglev\"`"),
                "remove `balance`: replies do not pass the balancer",
            );
        }
        mistake(
            &steered(&format!("forward = \"{word}\"\npath = ▶\"auto\"")),
            "`path = \"auto\"` needs `forward = \"nat\"`",
            "`path = \"kernel\"`",
        );
        let found = mistake(
            &steered(&format!("forward = \"{word}\""))
                .replace("\"192.0.2.21:80\"", "▶\"192.0.2.21:8080\""),
            &format!(
                "the backend's port is 8080, but with `forward = \"{word}\"` packets keep port 80"
            ),
            "write \"192.0.2.21:80\"",
        );
        assert_eq!(found.labels[0].text, "the port that clients use");
    }
    let found = mistake(
        &steered("forward = \"direct\"\nencapsulation = ▶\"gue\""),
        "`encapsulation` needs `forward = \"tunnel\"`",
        "or remove `encapsulation`",
    );
    assert_eq!(found.labels[0].text, "packets go to the backends without a tunnel");
    mistake(
        &steered("encapsulation = ▶\"gue\""),
        "`encapsulation` needs `forward = \"tunnel\"`",
        "write `forward = \"tunnel\"`",
    );
    mistake(
        &steered("forward = \"tunnel\"\nencapsulation = ▶\"vxlan\""),
        "`encapsulation` cannot be \"vxlan\"",
        "\"ipip\" or \"gue\"",
    );
    mistake(
        &steered("forward = ▶\"dsr\""),
        "`forward` cannot be \"dsr\"",
        "\"nat\", \"direct\" or \"tunnel\"",
    );
}

#[test]
fn families_may_differ_if_nothing_is_translated() {
    for word in ["direct", "tunnel"] {
        let text =
            steered(&format!("forward = \"{word}\"")).replace("192.0.2.21:80", "[2001:db8::21]:80");
        assert!(parse("test.toml", &text).is_ok(), "{word}");
    }
}

#[test]
fn advice_says_what_the_backends_need() {
    let advice = |lines: &str, listen: &str| {
        let text = steered(lines).replace("192.0.2.100:80", listen);
        advice(&parse("test.toml", &text).unwrap_or_else(|e| panic!("{e}")).config)
    };
    assert_eq!(advice("", "192.0.2.100:80"), "");
    let direct = advice("forward = \"direct\"", "192.0.2.100:80");
    for line in [
        "`web`: the backends answer the clients by themselves. On each of them:",
        "  sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2",
        "  ip address add 192.0.2.100/32 dev lo",
    ] {
        assert!(direct.lines().any(|it| it == line), "{line:?} is not in:\n{direct}");
    }
    assert!(!direct.contains("decap"));
    let tunnel = advice("forward = \"tunnel\"", "[2001:db8::100]:80");
    assert!(tunnel.contains("\n  ip address add 2001:db8::100/128 dev lo nodad\n"), "{tunnel}");
    assert!(tunnel.contains("\n  ballast decap --interface eth0\n"), "{tunnel}");
    assert!(!tunnel.contains("arp_ignore"), "IPv6 has no ARP");
    assert!(tunnel.contains("20 bytes longer"), "{tunnel}");
}
