//! Who may connect, and how often.

use std::net::IpAddr;

use super::*;
use crate::config::Guard;

/// [`GOOD`] with more keys of its service.
fn with(lines: &str) -> String {
    changed("listen = \"192.0.2.100:80\"\n", &format!("listen = \"192.0.2.100:80\"\n{lines}\n"))
}

fn guard(lines: &str) -> Guard {
    let loaded = parse("test.toml", &with(lines)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.warnings, []);
    loaded.config.services[0].guard.clone()
}

#[test]
fn lists_are_of_the_services_family() {
    let network = |text: &str| {
        let (address, length) = text.split_once('/').unwrap();
        (address.parse::<IpAddr>().unwrap(), length.parse::<u8>().unwrap())
    };
    let allow = guard(
        r#"allow = ["198.51.100.0/24", "2001:db8::/32"]
        deny = ["198.51.100.9", "2001:db8::9"]"#,
    );
    let sources = vec![(network("198.51.100.0/24"), true), (network("198.51.100.9/32"), false)];
    assert_eq!(allow, Guard { sources, others: false, rate: None });
    let deny = guard("deny = [\"10.0.0.0/8\"]");
    let sources = vec![(network("10.0.0.0/8"), false)];
    assert_eq!(deny, Guard { sources, others: true, rate: None });
    assert!(guard("").is_open());
    assert!(guard("deny = [\"2001:db8::/32\"]").is_open());
    assert_eq!(guard("allow = [\"0.0.0.0/0\"]").sources[0].0.1, 0);
}

#[test]
fn mistakes_in_lists() {
    for (value, message, help) in [
        (
            "▶\"198.51.100.7/24\"",
            "`deny` has 198.51.100.7/24, which is no network",
            "198.51.100.0/24",
        ),
        ("▶\"198.51.100.0/33\"", "`deny` has 198.51.100.0 with the prefix length `33`", "0 to 32"),
        ("▶\"2001:db8::/\"", "`deny` has 2001:db8:: with the prefix length ``", "0 to 128"),
        ("▶\"example\"", "`deny` is not an IP address", "192.0.2.11"),
        ("▶5", "`deny` must be a network, but is a whole number", ""),
    ] {
        let (text, place) = unmark(&with(&format!("deny = [{value}]")));
        let rejected = parse("test.toml", &text).expect_err("a mistake");
        let found = only(&rejected.diagnostics);
        let at = found.place.as_ref().map(|place| (place.line, place.column));
        assert_eq!(at, place, "{value}");
        if !help.is_empty() && !value.contains("example") {
            assert_eq!(found.message, message);
            assert!(found.help.as_deref().unwrap().contains(help), "{:?}", found.help);
        }
    }
    mistake(&with("allow = ▶[]"), "`allow` is empty: nobody could connect", "leave `allow` out");
    mistake(
        &with("allow = ▶[\"2001:db8::/32\"]"),
        "`allow` has no IPv4 network, but the service listens on IPv4",
        "nobody could connect",
    );
    let found = mistake(
        &with("allow = [\"10.0.0.0/8\"]\ndeny = [▶\"10.0.0.0/8\"]"),
        "10.0.0.0/8 is allowed and denied",
        "the smaller decides",
    );
    assert_eq!(found.labels[0].text, "allowed here");
    warning(
        &with("deny = [\"10.0.0.0/8\", ▶\"10.0.0.0/8\"]"),
        "`deny` has 10.0.0.0/8 twice",
        "remove one",
    );
}

#[test]
fn rates() {
    assert_eq!(guard("source_rate = 100").rate, Some((100, 100)));
    assert_eq!(guard("source_rate = 100\nsource_burst = 5").rate, Some((100, 5)));
    assert_eq!(guard("source_rate = 1\nsource_burst = 1").rate, Some((1, 1)));
    mistake(&with("source_burst = ▶5"), "`source_burst` needs `source_rate`", "source_rate = 100");
    mistake(
        &with("source_rate = 1001\nsource_burst = ▶10"),
        "`source_burst` is below 11, what 1001 a second need",
        "write 11 or more",
    );
    mistake(&with("source_rate = ▶0"), "`source_rate` is 0, which is out of range", "1 to 1000000");
}
