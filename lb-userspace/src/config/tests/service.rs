//! Services and their health.

use std::fmt::Write as _;

use super::*;
use crate::config::{Probe, Replay};

#[test]
fn health_keys_of_another_probe() {
    for (key, value, needs) in [
        ("path", "\"/\"", "`path` needs `probe = \"http\"` or `\"https\"`"),
        ("host", "\"example.org\"", "`host` needs `probe = \"http\"` or `\"https\"`"),
        ("expect", "200", "`expect` needs `probe = \"http\"` or `\"https\"`"),
        ("command", "[\"/bin/true\"]", "`command` needs `probe = \"command\"`"),
    ] {
        let found = mistake(
            &good_and(&format!("[service.health]\nprobe = \"tcp\"\n{key} = ▶{value}\n")),
            needs,
            &format!("or remove `{key}`"),
        );
        assert_eq!(found.labels[0].text, "the probe");
        mistake(
            &good_and(&format!("[service.health]\n{key} = ▶{value}\n")),
            needs,
            "in this section",
        );
    }
}

#[test]
fn health_values() {
    let health = |lines: &str| good_and(&format!("[service.health]\n{lines}\n"));
    for (value, message) in [
        ("\"2xx\"", "`expect` has `2xx`, which is no status code"),
        ("99", "`expect` has `99`, which is no status code"),
        ("600", "`expect` has `600`, which is no status code"),
        ("\"200-\"", "`expect` has `200-`, which is no status code"),
        ("\"200,\"", "`expect` has ``, which is no status code"),
        ("\"399-200\"", "`expect` has the range `399-200`, which ends before it begins"),
        ("[]", "`expect` is empty"),
        ("true", "`expect` must be status codes, but is true or false"),
    ] {
        mistake(
            &health(&format!("probe = \"http\"\nexpect = ▶{value}")),
            message,
            "status codes from 100 to 599",
        );
    }
    mistake(
        &health("probe = \"http\"\npath = ▶\"health\""),
        "`path` is not the path of a request",
        "\"/health?full=1\"",
    );
    mistake(
        &health("probe = \"http\"\npath = ▶\"/a b\""),
        "`path` is not the path of a request",
        "%XX",
    );
    mistake(
        &health("probe = \"http\"\nhost = ▶\"a\\r\\nb\""),
        "`host` is not a host name",
        "www.example.org",
    );
    mistake(
        &health("probe = ▶\"command\""),
        "`probe = \"command\"` needs `command`",
        "add the program with its arguments",
    );
    mistake(
        &health("probe = \"command\"\ncommand = ▶[]"),
        "`command` is empty",
        "write the program",
    );
    mistake(
        &health("probe = \"command\"\ncommand = [▶\"check\", \"-q\"]"),
        "the program of `command` has no absolute path",
        "no shell",
    );
    mistake(
        &health("probe = \"command\"\ncommand = ▶\"/bin/true\""),
        "`command` must be a list, but is a string",
        "write `command = [",
    );
    mistake(
        &health("probe = \"postgres\"\npath = ▶\"/\""),
        "`path` needs `probe = \"http\"` or `\"https\"`",
        "or remove `path`",
    );
}

#[test]
fn the_probe_of_postgres_needs_nothing_more() {
    let text = good_and("[service.health]\nprobe = \"postgres\"\n");
    let loaded = parse("test.toml", &text).expect("no mistake");
    assert_eq!(loaded.config.services[0].health.probe, Probe::Postgres);
    assert_eq!(loaded.warnings, []);
}

#[test]
fn health_times() {
    let health = |lines: &str| good_and(&format!("[service.health]\n{lines}\n"));
    mistake(&health("timeout = ▶\"0s\""), "`timeout` is zero", "leave `timeout` out");
    mistake(&health("interval = ▶\"0ms\""), "`interval` is zero", "leave `interval` out");
    mistake(
        &health("interval = ▶\"9ms\"\ntimeout = \"1ms\""),
        "`interval` is below 10ms",
        "\"10ms\" or more",
    );
    let found = mistake(
        &health("interval = \"2s\"\ntimeout = ▶\"2s\""),
        "`timeout` is 2s, not less than `interval`, 2s",
        "a `timeout` below `interval`",
    );
    assert_eq!(found.labels[0].text, "the interval");
    mistake(
        &health("timeout = ▶\"1m\""),
        "`timeout` is 1m, not less than `interval`, 1s by default",
        "a `timeout` below `interval`",
    );
    mistake(
        &health("interval = ▶\"500ms\""),
        "`interval` is 500ms, not more than `timeout`, 500ms by default",
        "a `timeout` below `interval`",
    );
    warning(
        &health("probe = \"none\"\ninterval = ▶\"2s\""),
        "`interval` has no effect with `probe = \"none\"`",
        "choose a probe",
    );
}

#[test]
fn udp_without_a_true_probe() {
    let udp =
        |health: &str| changed("name = \"web\"", "name = \"web\"\nprotocol = \"udp\"") + health;
    warning(
        &udp("").replace("[[service]]", "▶[[service]]"),
        "this udp service has no probe: a udp backend without one is never found dead",
        "`probe = \"none\"` says that this is meant",
    );
    warning(
        &udp("[service.health]\nprobe = ▶\"tcp\"\n"),
        "a probe by tcp of a udp service connects to the same port, and says nothing of udp",
        "tcp too",
    );
    for probe in ["none", "http"] {
        let text = udp(&format!("[service.health]\nprobe = \"{probe}\"\n"));
        assert_eq!(parse("test.toml", &text).expect("no mistake").warnings, []);
    }
}

#[test]
fn no_service() {
    let text = GOOD.split("[[service]]").next().unwrap();
    warning(text, "no `[[service]]`: nothing is forwarded", "add a `[[service]]`");
}

#[test]
fn more_than_the_file_gives_room_for() {
    let second = changed("[[service]]", "[[service]]\nbalance = \"maglev\"") + SECOND_BACKEND;
    let with = |keys: &str| format!("{second}\n[dataplane]\n{keys}\n");
    mistake(
        &with("max_backends = ▶1"),
        "`max_backends` is 1, but this file needs 2 backends",
        "write 2 or more, or leave `max_backends` out",
    );
    let third = with("max_services = ▶1")
        + "[[service]]\nname = \"api\"\nlisten = \"192.0.2.100:81\"\n\
           backend = [{ name = \"a\", address = \"192.0.2.23:80\" }]\n";
    mistake(&third, "`max_services` is 1, but this file needs 2 services", "write 2 or more");
    let mut wide = String::new();
    for n in 1..=200 {
        let _ =
            write!(wide, "[[service.backend]]\nname = \"b{n}\"\naddress = \"192.0.2.30:{n}\"\n");
    }
    mistake(
        &format!("{second}{wide}[dataplane]\nmax_slots = ▶1024\n"),
        "`max_slots` is 1024, but this file needs 2446 slots",
        "write 2446 or more",
    );
    assert!(parse("test.toml", &with("max_backends = 2\nmax_services = 1")).is_ok());
}

#[test]
fn very_many_probes() {
    let text = changed(
        "address = \"192.0.2.21:8080\"",
        "address = \"192.0.2.21:8080\"\n[service.health]\ninterval = \"10ms\"\ntimeout = \"5ms\"",
    );
    let (head, service) = text.split_once("[[service]]").unwrap();
    let mut more = String::new();
    for n in 100..220 {
        let service = service.replace("\"web\"", &format!("\"web{n}\""));
        let _ = write!(more, "[[service]]{}", service.replace(":80\"", &format!(":{n}\"")));
    }
    warning(
        &format!("{head}▶{more}"),
        "12000 probes a second from each node",
        "a longer `interval`",
    );
}

#[test]
fn passive_values() {
    let passive = |lines: &str| good_and(&format!("[service.passive]\n{lines}\n"));
    mistake(&passive("eject_time = ▶\"0s\""), "`eject_time` is zero", "leave `eject_time` out");
    mistake(&passive("eject_time = ▶\"61m\""), "`eject_time` is above 1h", "`ballast disable`");
    for wrong in ["0", "101", "-5"] {
        mistake(
            &passive(&format!("eject_percent = ▶{wrong}")),
            &format!("`eject_percent` is {wrong}, which is out of range"),
            "write 1 to 100",
        );
    }
    mistake(
        &passive("enabled = ▶\"no\""),
        "`enabled` must be true or false, but is a string",
        "true",
    );
    warning(
        &passive("enabled = false\neject_time = ▶\"5s\""),
        "`eject_time` has no effect with `enabled = false`",
        "remove `eject_time`",
    );
    let udp = changed("name = \"web\"", "name = \"web\"\nprotocol = \"udp\"");
    warning(
        &(udp + "[service.health]\nprobe = \"none\"\n▶[service.passive]\neject_percent = 10\n"),
        "`[service.passive]` has no effect on a udp service: only of tcp connections can be seen \
         whether they are answered",
        "remove the section",
    );
}

#[test]
fn connections_of_tcp_services_are_watched() {
    let passive =
        |text: &str| parse("test.toml", text).expect("no mistake").config.services[0].passive;
    let usual = crate::config::Passive {
        eject_percent: 50,
        eject_time: std::time::Duration::from_secs(10),
    };
    assert_eq!(passive(GOOD), Some(usual));
    assert_eq!(passive(&good_and("[service.passive]\nenabled = false\n")), None);
    let changed =
        passive(&good_and("[service.passive]\neject_percent = 10\neject_time = \"1m\"\n"));
    let wanted =
        crate::config::Passive { eject_percent: 10, eject_time: std::time::Duration::from_mins(1) };
    assert_eq!(changed, Some(wanted));
    let udp = GOOD.replace("name = \"web\"", "name = \"web\"\nprotocol = \"udp\"");
    assert_eq!(passive(&udp), None);
}

#[test]
fn replays() {
    let service = |lines: &str| GOOD.replace("listen =", &format!("{lines}\nlisten ="));
    let config = parse("test.toml", GOOD).unwrap_or_else(|rejected| panic!("{rejected}")).config;
    assert_eq!(config.services[0].replay, Replay { tries: 3, per_mille: 200 });
    for (text, per_mille) in [("20%", 200), ("0.1%", 1), ("100%", 1000), (" 12.5 % ", 125)] {
        let text = service(&format!("replay_tries = 0\nreplay_budget = \"{text}\""));
        let config = parse("test.toml", &text).unwrap_or_else(|rejected| panic!("{rejected}"));
        assert_eq!(config.config.services[0].replay, Replay { tries: 0, per_mille });
    }
    mistake(&service("replay_tries = ▶5"), "`replay_tries` is 5, which is out of range", "0 to 4");
    for wrong in ["", "20", "%", "0%", "0.05%", "101%", "-1%", "1.%", "a%"] {
        mistake(
            &service(&format!("replay_budget = ▶\"{wrong}\"")),
            "`replay_budget` is not a share",
            "from \"0.1%\" to \"100%\"",
        );
    }
    mistake(&service("replay_budget = ▶20"), "`replay_budget` has no `%`", "\"100%\"");
    for key in ["replay_tries = ▶2", "replay_budget = ▶\"20%\""] {
        let udp = service(&format!("protocol = \"udp\"\n{key}"));
        let key = key.split(' ').next().unwrap_or_default();
        mistake(
            &format!("{udp}[service.health]\nprobe = \"none\"\n"),
            &format!("`{key}` is of no use with `protocol = \"udp\"`"),
            "does not tell whether it was refused",
        );
    }
}
