//! Addresses: of nodes, floating ones, of services and backends.

use super::*;

#[test]
fn wrong_addresses() {
    for (address, message, help) in [
        (
            "app-01:80",
            "`address` has the name `app-01`, but names are not looked up",
            "write address",
        ),
        ("192.0.2.21", "`address` has no port", "such as \"192.0.2.21:80\""),
        ("2001:db8::21", "`address` has no port", "such as \"[2001:db8::21]:80\""),
        ("192.0.2.21:0", "`address` has port 0", "1 to 65535"),
        ("192.0.2.21:65536", "`address` has `65536` as its port", "1 to 65535"),
        ("192.0.2.21:http", "`address` has `http` as its port", "1 to 65535"),
        ("192.0.2.256:80", "`address` is no address: `192.0.2.256:80`", "\"192.0.2.21:8080\""),
        ("", "`address` is no address: ``", "\"192.0.2.21:8080\""),
        ("[::ffff:192.0.2.21]:80", "`address` has an IPv4 address in IPv6's form", "192.0.2.21"),
        ("[fe80::1%2]:80", "`address` names an interface after `%`", "without `%`"),
        ("0.0.0.0:80", "0.0.0.0 is the unspecified address", "own address"),
        ("224.0.0.18:80", "224.0.0.18 is a multicast address", "own address"),
        ("255.255.255.255:80", "255.255.255.255 is the broadcast address", "own address"),
        (
            "192.0.2.255:80",
            "192.0.2.255 is the broadcast address of a floating network",
            "own address",
        ),
    ] {
        mistake(&changed("\"192.0.2.21:8080\"", &format!("▶\"{address}\"")), message, help);
    }
    mistake(
        &changed("\"192.0.2.11\"", "▶\"lb-01.example.org\""),
        "`address` has the name `lb-01.example.org`, but names are not looked up",
        "such as 192.0.2.11",
    );
    mistake(
        &changed("\"192.0.2.11\"", "▶\"ff02::12\""),
        "ff02::12 is a multicast address",
        "on its interface",
    );
    warning(
        &changed("\"192.0.2.21:8080\"", "▶\"127.0.0.1:8080\""),
        "127.0.0.1 is a loopback address, which the kernel path cannot reach",
        "on the network",
    );
}

#[test]
fn wrong_floating_addresses() {
    for (address, message, help) in [
        ("192.0.2.7", "`addresses` has 192.0.2.7 without its prefix length", "\"192.0.2.7/24\""),
        (
            "192.0.2.7/33",
            "`addresses` has 192.0.2.7 with the prefix length `33`",
            "write 1 to 32, such as \"192.0.2.7/24\"",
        ),
        ("192.0.2.7/0", "`addresses` has 192.0.2.7 with the prefix length `0`", "1 to 32"),
        ("192.0.2.7/+9", "`addresses` has 192.0.2.7 with the prefix length `+9`", "1 to 32"),
        ("2001:db8::7/129", "`addresses` has 2001:db8::7 with the prefix length `129`", "1 to 128"),
        ("192.0.2.0/24", "192.0.2.0 is the address of the network itself", "a host can have"),
        ("192.0.2.255/24", "192.0.2.255 is the broadcast address of its network", "a host can"),
        ("::/64", ":: is the unspecified address", "a host can have"),
    ] {
        let marked = format!("[[floating]]\nvrid = 1\naddresses = [▶\"{address}\"]\n");
        mistake(&good_and(&marked), message, help);
    }
    mistake(
        &good_and("[[floating]]\nvrid = 1\naddresses = ▶[]\n"),
        "`addresses` is empty",
        "at least one",
    );
    // The prefix lengths that have neither network nor broadcast address.
    let text = good_and(
        "[[floating]]\nvrid = 1\naddresses = [\"198.51.100.0/31\", \"198.51.100.9/32\"]\n",
    );
    assert!(parse("test.toml", &text).is_ok());
}

/// The diagnostic points back at where the same thing stands first.
#[track_caller]
fn first_used_at(found: &Diagnostic, line: usize) {
    let labels: Vec<_> =
        found.labels.iter().map(|label| (label.place.line, label.text.as_str())).collect();
    assert_eq!(labels, [(line, "first used here")]);
}

#[test]
fn duplicates() {
    let node = "[[node]]\nname = \"lb-01\"\naddress = \"192.0.2.12\"\ninterface = \"eth0\"\n";
    let rejected = parse("test.toml", &good_and(node)).unwrap_err();
    let messages: Vec<_> = rejected.diagnostics.iter().map(|d| (d.severity, &*d.message)).collect();
    assert!(messages.contains(&(Severity::Error, "two nodes have the name `lb-01`")));
    let of = |text: &str| rejected.diagnostics.iter().find(|d| d.message.contains(text)).unwrap();
    first_used_at(of("the name"), 3);

    let node = "[[node]]\nname = \"lb-02\"\naddress = \"192.0.2.11\"\ninterface = \"eth0\"\n";
    let rejected = parse("test.toml", &good_and(node)).unwrap_err();
    let of = |text: &str| rejected.diagnostics.iter().find(|d| d.message.contains(text)).unwrap();
    first_used_at(of("two nodes have the address 192.0.2.11"), 4);

    let found = mistake(
        &good_and("[[floating]]\nvrid = ▶51\naddresses = [\"192.0.2.101/24\"]\n"),
        "two `[[floating]]` have the vrid 51",
        "a vrid of its own",
    );
    first_used_at(&found, 8);
    let found = mistake(
        &good_and("[[floating]]\nvrid = 52\naddresses = [▶\"192.0.2.100/25\"]\n"),
        "the floating address 192.0.2.100 stands twice",
        "remove one",
    );
    first_used_at(&found, 9);
    let service = |name: &str, listen: &str| {
        format!(
            "[[service]]\nname = {name}\nlisten = {listen}\n[[service.backend]]\n\
             name = \"app-01\"\naddress = \"192.0.2.21:8080\"\n"
        )
    };
    let found = mistake(
        &good_and(&service("▶\"web\"", "\"192.0.2.100:81\"")),
        "two services have the name `web`",
        "a name of its own",
    );
    first_used_at(&found, 12);
    let found = mistake(
        &good_and(&service("\"web2\"", "▶\"192.0.2.100:80\"")),
        "two services listen on 192.0.2.100:80 (tcp)",
        "its own port",
    );
    first_used_at(&found, 13);
    let found = mistake(
        &good_and(&SECOND_BACKEND.replace("\"app-02\"", "▶\"app-01\"")),
        "two backends of this service have the name `app-01`",
        "a name of its own",
    );
    first_used_at(&found, 15);
    let found = mistake(
        &good_and(&SECOND_BACKEND.replace("\"192.0.2.22:8080\"", "▶\"192.0.2.21:8080\"")),
        "two backends of this service have the address 192.0.2.21:8080",
        "remove one",
    );
    first_used_at(&found, 16);
    // The same port of another protocol, and the same backend in another service, are fine.
    let other = service("\"web-quic\"", "\"192.0.2.100:80\"\nprotocol = \"udp\"");
    let text = good_and(&format!("{other}[service.health]\nprobe = \"none\"\n"));
    assert_eq!(parse("test.toml", &text).expect("no mistake").warnings, []);
}

#[test]
fn addresses_that_contradict() {
    let label = |found: &Diagnostic, line, text: &str| {
        assert_eq!(found.labels.len(), 1);
        assert_eq!((found.labels[0].place.line, found.labels[0].text.as_str()), (line, text));
    };
    mistake(
        &changed("\"192.0.2.100:80\"", "▶\"192.0.2.101:80\""),
        "no `[[floating]]` holds 192.0.2.101",
        "add \"192.0.2.101/24\" to the `addresses`",
    );
    mistake(
        &changed("\"192.0.2.100:80\"", "▶\"0.0.0.0:80\""),
        "no `[[floating]]` holds 0.0.0.0",
        "one of the floating addresses",
    );
    let found = mistake(
        &changed("\"192.0.2.21:8080\"", "▶\"[2001:db8::21]:8080\""),
        "2001:db8::21 is IPv6, but the service listens on IPv4",
        "write the backend's IPv4 address",
    );
    label(&found, 13, "the service listens on IPv4");
    let found = mistake(
        &changed("\"192.0.2.21:8080\"", "▶\"192.0.2.100:8080\""),
        "the backend's address 192.0.2.100 is a floating address",
        "own address",
    );
    label(&found, 9, "the floating address");
    let found = mistake(
        &changed("[\"192.0.2.100/24\"", "[\"192.0.2.100/24\", ▶\"192.0.2.11/24\""),
        "the floating address 192.0.2.11 is also a node's own address",
        "no host has",
    );
    label(&found, 4, "the node's address");
}

#[test]
fn no_node() {
    let text = GOOD.split("[[floating]]").collect::<Vec<_>>()[1];
    mistake(
        &format!("▶[[floating]]{text}"),
        "no `[[node]]` that could hold this floating address",
        "add a `[[node]]`",
    );
    let rejected = parse("test.toml", "").unwrap_err();
    assert_eq!(rejected.diagnostics[0].message, "no `[[node]]`");
    assert_eq!(rejected.diagnostics[0].place, None);
}

#[test]
fn a_bad_prefix_length_does_not_make_services_homeless() {
    mistake(
        &changed("\"192.0.2.100/24\"", "▶\"192.0.2.100/240\""),
        "`addresses` has 192.0.2.100 with the prefix length `240`",
        "1 to 32",
    );
    mistake(
        &changed("\"192.0.2.100/24\"", "▶\"192.0.2.1000/24\""),
        "`addresses` is no address: `192.0.2.1000`",
        "such as 192.0.2.11",
    );
}
