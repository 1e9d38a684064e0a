//! Single values.

use super::*;

#[test]
fn wrong_types() {
    mistake(
        &good_and("[cluster]\nname = ▶5\n"),
        "`name` must be a name, but is a whole number",
        "double quotes",
    );
    mistake(
        &changed("vrid = 51", "vrid = ▶\"51\""),
        "`vrid` must be a whole number, but is a string",
        "write a number from 1 to 255, without quotes",
    );
    mistake(
        &good_and("backup = ▶\"no\"\n"),
        "`backup` must be true or false, but is a string",
        "without quotes",
    );
    mistake(
        &changed("[\"192.0.2.100/24\", \"2001:db8::100/64\"]", "▶\"192.0.2.100/24\""),
        "`addresses` must be a list, but is a string",
        "write `addresses = [ … ]`",
    );
    mistake(
        &changed("[[node]]", "▶[node]"),
        "`node` may stand several times",
        "write its header as `[[node]]`",
    );
    mistake(
        &good_and("▶[[dataplane]]\nmax_flows = 4096\n"),
        "`dataplane` stands once",
        "write its header as `[dataplane]`",
    );
    mistake(
        &format!("paths = ▶7\n{GOOD}"),
        "`paths` must be a section, but is a whole number",
        "write it under a header `[paths]`",
    );
}

#[test]
fn wrong_units() {
    for (value, message) in [
        ("100", "`interval` has no unit"),
        ("1.5", "`interval` has no unit"),
        ("\"100\"", "`interval` has no unit after `100`"),
        ("\"1 sec\"", "`interval` has the unknown unit `sec`"),
        ("\"\"", "`interval` is empty"),
        (
            "\"4m2h\"",
            "`interval` has `h` in the wrong place: the largest unit stands first, and each once",
        ),
        ("\"-1s\"", "`interval` needs a number before `-1s`"),
        ("true", "`interval` must be a duration, but is true or false"),
    ] {
        mistake(
            &good_and(&format!("[service.health]\ninterval = ▶{value}\n")),
            message,
            "such as \"100ms\", \"1s\" or \"2h4m\"",
        );
    }
    let postgres = "[[postgres]]\nname = \"db\"\nuser = \"u\"\nmax_lag = ▶\"16mib\"\n\
                    [[postgres.server]]\nname = \"pg\"\naddress = \"192.0.2.31:5432\"\n";
    let (text, place) = unmark(&good_and(postgres));
    let rejected = parse("test.toml", &text).unwrap_err();
    let found = rejected.diagnostics.iter().find(|d| d.severity == Severity::Error).unwrap();
    compare(found, place, "`max_lag` has the unknown unit `mib`", "\"16MiB\"");
}

#[test]
fn numbers_out_of_range() {
    for (text, key, value, range) in [
        (changed("vrid = 51", "vrid = ▶0"), "vrid", "0", "write 1 to 255"),
        (changed("vrid = 51", "vrid = ▶256"), "vrid", "256", "write 1 to 255"),
        (changed("vrid = 51", "vrid = ▶-1"), "vrid", "-1", "write 1 to 255"),
        (
            changed("vrid = 51", "vrid = ▶0xffff_ffff_ffff_ffff_ffff_ffff_ffff_ffff_ffff"),
            "vrid",
            "0xffffffffffffffffffffffffffffffffffff",
            "write 1 to 255",
        ),
        (
            changed("interface = \"eth0\"", "interface = \"eth0\"\npriority = ▶255"),
            "priority",
            "255",
            "write 1 to 254",
        ),
        (good_and("weight = ▶257\n"), "weight", "257", "write 1 to 256"),
        (good_and("[service.health]\nrise = ▶0\n"), "rise", "0", "write 1 to 1000"),
        (good_and("[service.health]\nfall = ▶0\n"), "fall", "0", "write 1 to 1000"),
        (good_and("[dataplane]\nmax_flows = ▶1023\n"), "max_flows", "1023", "1024 to 16777216"),
        (
            good_and("[dataplane]\nmax_half_open = ▶16777217\n"),
            "max_half_open",
            "16777217",
            "1024 to 16777216",
        ),
    ] {
        mistake(&text, &format!("`{key}` is {value}, which is out of range"), range);
    }
}

#[test]
fn wrong_words() {
    let text = changed("name = \"web\"", "name = \"web\"\nbalance = ▶\"leastconn\"");
    mistake(
        &text,
        "`balance` cannot be \"leastconn\"",
        "did you mean \"least_conn\"? it may be \"least_conn\", \"maglev\", \"round_robin\" or \"random\"",
    );
    mistake(
        &good_and("[service.health]\nprobe = ▶\"htttp\"\n"),
        "`probe` cannot be \"htttp\"",
        "did you mean \"http\"? it may be \"tcp\", \"http\", \"https\", \"postgres\", \"command\" or \"none\"",
    );
    let text = changed("name = \"web\"", "name = \"web\"\nprotocol = ▶\"sctp\"");
    mistake(&text, "`protocol` cannot be \"sctp\"", "it may be \"tcp\" or \"udp\"");
}

#[test]
fn wrong_names_and_paths() {
    mistake(&changed("\"lb-01\"", "▶\"lb 01\""), "`name` is not a name", "1 to 64 letters");
    mistake(&changed("\"lb-01\"", "▶\"\""), "`name` is empty", "1 to 64 letters");
    mistake(
        &changed("\"eth0\"", "▶\"a-very-long-name\""),
        "`interface` is not the name of an interface",
        "at most 15 bytes",
    );
    mistake(
        &good_and("[paths]\nsocket = ▶\"ballast.sock\"\n"),
        "`socket` is not an absolute path",
        "from `/` on",
    );
    let long = format!("[paths]\nsocket = ▶\"/{}\"\n", "a".repeat(107));
    mistake(&good_and(&long), "`socket` is longer than 107 bytes", "shorter path");
}

#[test]
fn timeouts_below_the_floor() {
    for (key, value, floor, rfc) in [
        ("tcp_idle_timeout", "2h3m59s", "2h4m", "RFC 5382"),
        ("tcp_closing_timeout", "1m", "4m", "RFC 5382"),
        ("udp_idle_timeout", "30s", "2m", "RFC 4787"),
    ] {
        warning(
            &good_and(&format!("[dataplane]\n{key} = ▶\"{value}\"\n")),
            &format!("`{key}` is below {floor}, the floor of {rfc}"),
            "quiet connections will be cut",
        );
        mistake(
            &good_and(&format!("[dataplane]\n{key} = ▶\"0s\"\n")),
            &format!("`{key}` is zero"),
            "leave",
        );
    }
}
