//! What belongs to the contract but not to this version.

use super::*;

#[test]
fn what_is_not_in_this_version() {
    warning(
        &good_and("[cluster]\n▶secret_file = \"/etc/ballast/cluster.key\"\n"),
        "`secret_file` is not in this version yet: the nodes do not talk to each other; the key is \
         ignored",
        "keep the key",
    );
    warning(
        &changed("vrid = 51", "vrid = 51\n▶preempt = false"),
        "`preempt` is not in this version yet: addresses do not move between nodes; the key is \
         ignored",
        "keep the key",
    );
    warning(
        &good_and("[▶api]\nlisten = \"127.0.0.1:9180\"\n"),
        "`[api]` is not in this version yet: no metrics, dashboard or health page is served; the \
         section is ignored",
        "keep the section",
    );
    let found = warning(
        &good_and(
            "▶[[node]]\nname = \"lb-02\"\naddress = \"192.0.2.12\"\ninterface = \"eth0\"\npriority = 101\n",
        ),
        "VRRP is not in this version yet: only `lb-02` takes the floating addresses, and no other \
         node takes them over",
        "highest `priority`",
    );
    assert_eq!(found.labels[0].text, "priority 101");
}

#[test]
fn values_of_later_versions_are_checked() {
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

    let start = GOOD.matches('\n').count();
    for (section, line, message) in [
        ("[consensus]\netcd = [\"ftp://x\"]\n", 2, "`etcd` is not an http or https address"),
        (
            "[[alert]]\nkind = \"telegram\"\nchat_id = \"1\"\n",
            1,
            "an alert by telegram needs `token_file`",
        ),
        ("[api]\nlisten = \"127.0.0.1\"\n", 2, "`listen` has no port"),
    ] {
        assert_eq!(errors(&good_and(section)), [(start + line, message.to_owned())]);
    }
    let postgres = |lines: &str| {
        good_and(&format!(
            "[[postgres]]\n{lines}\nname = \"db\"\nuser = \"u\"\n\
             server = [{{ name = \"pg\", address = \"192.0.2.31:5432\" }}]\n"
        ))
    };
    for (line, message) in [
        ("read_write = \"192.0.2.101:5432\"", "no `[[floating]]` holds 192.0.2.101"),
        ("read_only = \"192.0.2.100:80\"", "two services listen on 192.0.2.100:80 (tcp)"),
        ("promotion = \"automatic\"", "a promotion without a person needs `[consensus]`"),
    ] {
        assert_eq!(errors(&postgres(line)), [(start + 2, message.to_owned())]);
    }
}
