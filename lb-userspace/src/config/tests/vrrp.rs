//! `[[floating]]` and VRRP.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use super::*;
use crate::{
    scratch::Directory,
    vrrp::packet::{ChecksumForm, Version},
};

const SECOND_NODE: &str =
    "[[node]]\nname = \"lb-02\"\naddress = \"192.0.2.12\"\ninterface = \"eth0\"\npriority = 90\n";

#[test]
fn values_that_vrrp_cannot_say() {
    for (lines, message) in [
        ("interval = \"9ms\"", "`interval` is 9ms, which is out of range for VRRP version 3"),
        ("interval = \"41s\"", "`interval` is 41s, which is out of range for VRRP version 3"),
        ("interval = \"15ms\"", "`interval` is 15ms, but VRRP counts in steps of 10ms"),
        ("password = \"hunter2\"", "VRRP version 3 has no password"),
        ("version = 4", "`version` is 4, which is out of range"),
        ("checksum = \"rfc5798\"", "`checksum` cannot be \"rfc5798\""),
        ("unicast = 1", "`unicast` must be true or false, but is a whole number"),
    ] {
        let text = changed("vrid = 51", &format!("vrid = 51\n{lines}"));
        assert_eq!(errors(&text), [(9, message.to_owned())]);
    }
    let v2 = |lines: &str| {
        changed("vrid = 51", &format!("vrid = 51\nversion = 2\n{lines}"))
            .replace(", \"2001:db8::100/64\"", "")
    };
    assert_eq!(
        errors(&v2("interval = \"1500ms\"")),
        [(10, "`interval` is 1s500ms, which VRRP version 2 cannot say".to_owned())]
    );
    assert!(parse("test.toml", &v2("interval = \"255s\"\npassword = \"x\"")).is_ok());
    let text = changed("vrid = 51", "vrid = 51\nversion = 2");
    assert_eq!(errors(&text), [(10, "VRRP version 2 has no IPv6".to_owned())]);
    for interval in ["10ms", "40.95s"] {
        let text = changed("vrid = 51", &format!("vrid = 51\ninterval = \"{interval}\""));
        assert!(parse("test.toml", &text).is_ok(), "{interval}");
    }
}

#[test]
fn what_is_left_open_has_a_value() {
    let config = parse("test.toml", &good_and(SECOND_NODE)).unwrap().config;
    assert!(config.is_shared());
    let floating = &config.floating[0];
    assert_eq!((floating.version, floating.interval), (Version::V3, Duration::from_secs(1)));
    assert!(!floating.preempt && !floating.unicast && floating.password.is_none());
    assert_eq!(floating.checksum, ChecksumForm::PseudoHeader);
    assert_eq!(floating.is_v4(), Some(true));
    let text = changed("vrid = 51", "vrid = 51\nchecksum = \"rfc9568\"\npreempt = true")
        .replace("\"192.0.2.100/24\", ", "")
        .replace("192.0.2.100:80", "[2001:db8::100]:80")
        .replace("192.0.2.21:8080", "[2001:db8::21]:8080");
    let config = parse("test.toml", &text).unwrap().config;
    let floating = &config.floating[0];
    assert_eq!((floating.checksum, floating.preempt), (ChecksumForm::Message, true));
    assert_eq!(floating.is_v4(), Some(false));
    assert!(!config.is_shared());
}

#[test]
fn what_contradicts_itself() {
    warning(
        &changed("vrid = 51", "vrid = 51\npreempt_delay = ▶\"5s\""),
        "`preempt_delay` has no effect without `preempt = true`",
        "add `preempt = true`",
    );
    let equal =
        SECOND_NODE.replace("priority = 90", "priority = 100").replace("[[node]]", "▶[[node]]");
    let directory = Directory::new("vrrp-key");
    let key = directory.path().join("key");
    fs::write(&key, "0123456789abcdef").unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let cluster = format!("[cluster]\nsecret_file = {key:?}\n");
    let found = warning(
        &good_and(&format!("{equal}{cluster}")),
        "`lb-01` and `lb-02` have the same priority",
        "higher `priority`",
    );
    assert_eq!(found.labels[0].text, "priority 100");
    warning(
        &good_and(&SECOND_NODE.replace("[[node]]", "▶[[node]]")),
        "there are several nodes, and no key by which they know each other",
        "openssl rand -hex 32",
    );
    let v6 = SECOND_NODE.replace("192.0.2.12", "2001:db8::12");
    mistake(
        &format!("{v6}{}{cluster}", changed("[[floating]]", "▶[[floating]]\nunicast = true")),
        "`unicast` sends these adverts over IPv4, but the address of node `lb-02` is 2001:db8::12",
        "the nodes' IPv4 addresses",
    );
}
