//! `path` and `[service.proxy]`.

use std::time::Duration;

use super::*;
use crate::{
    config::{BackendTls, Certificate, Probe, Proxy, ProxyHeader, Upstream},
    proxy::decide::{Class, Classes, Rules},
};

/// [`GOOD`] with more keys of its service, and a section of it.
fn with(keys: &str, section: &str) -> String {
    let text = changed("name = \"web\"", &format!("name = \"web\"\n{keys}"));
    format!("{text}[service.proxy]\n{section}\n")
}

fn proxy(section: &str) -> Proxy {
    let text = with("path = \"proxy\"", section);
    let loaded = parse("test.toml", &text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.warnings, []);
    loaded.config.services[0].proxy.as_deref().expect("a proxy").clone()
}

#[test]
fn what_holds_without_a_word() {
    let text = changed("name = \"web\"", "name = \"web\"\npath = \"proxy\"");
    let loaded = parse("test.toml", &text).unwrap_or_else(|error| panic!("{error}"));
    let usual = Proxy {
        auto: false,
        connect_timeout: Duration::from_secs(5),
        send_timeout: Duration::from_secs(30),
        read_timeout: Duration::from_secs(30),
        client_timeout: Duration::from_mins(1),
        keepalive: 32,
        max_requests: 0,
        queue: 1000,
        queue_timeout: Duration::from_secs(5),
        least_time: false,
        next_upstream: Rules {
            classes: Classes::of(&[Class::Error, Class::Timeout]),
            tries: 0,
            timeout: Duration::ZERO,
        },
        retry_per_mille: 200,
        body_buffer: 1 << 20,
        access_log: None,
        certificates: Vec::new(),
        accept_proxy: Vec::new(),
        upstream: Upstream { max_streams: 100, ..Upstream::default() },
    };
    assert_eq!(loaded.config.services[0].proxy.as_deref(), Some(&usual));
    assert_eq!(proxy(""), usual);
    let text = changed("name = \"web\"", "name = \"web\"\npath = \"auto\"");
    let auto = parse("test.toml", &text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(auto.warnings, []);
    let lifted = Proxy { auto: true, ..usual };
    assert_eq!(auto.config.services[0].proxy.as_deref(), Some(&lifted));
    let kernel = parse("test.toml", GOOD).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(kernel.config.services[0].proxy, None);
}

#[test]
fn nginx_words() {
    let listed = proxy(
        "next_upstream = [\"http_503\", \"non_idempotent\", \"invalid_header\"]\n\
         next_upstream_tries = 2\nnext_upstream_timeout = \"3s\"\nretry_budget = \"5%\"\n\
         body_buffer = \"64KiB\"\naccess_log = \"/var/log/web.log\"\nkeepalive = 0",
    );
    let classes = [Class::Http503, Class::NonIdempotent, Class::InvalidHeader];
    let rules = Rules { classes: Classes::of(&classes), tries: 2, timeout: Duration::from_secs(3) };
    assert_eq!(listed.next_upstream, rules);
    assert_eq!((listed.retry_per_mille, listed.body_buffer, listed.keepalive), (50, 65_536, 0));
    assert_eq!(listed.access_log.as_deref(), Some("/var/log/web.log".as_ref()));
    let limited = proxy("max_requests = 8\nqueue = 20\nqueue_timeout = \"2s\"\nleast_time = true");
    assert_eq!((limited.max_requests, limited.queue, limited.least_time), (8, 20, true));
    assert_eq!(limited.queue_timeout, Duration::from_secs(2));
    let off = proxy("next_upstream = [\"off\"]");
    assert_eq!(off.next_upstream.classes, Classes::default());
}

#[test]
fn mistakes() {
    for (section, message) in [
        ("read_timeout = \"0s\"", "`read_timeout` is zero"),
        ("next_upstream = [\"off\", \"error\"]", "`next_upstream` has \"off\" beside other words"),
        ("body_buffer = \"2GiB\"", "`body_buffer` is above 1GiB"),
    ] {
        let text = with("path = \"proxy\"", section);
        let line = text.matches('\n').count();
        assert_eq!(errors(&text), [(line, message.to_owned())]);
    }
    warning(
        &format!("{GOOD}▶[service.proxy]\nkeepalive = 8\n"),
        "`[service.proxy]` has no effect with `path = \"kernel\"`",
        "`path = \"proxy\"`",
    );
    warning(
        &with("path = \"proxy\"", "queue = ▶8"),
        "`queue` has no effect without `max_requests`",
        "say how many",
    );
    mistake(
        &with("path = \"auto\"", "▶[[service.proxy.certificate]]\nchain = \"/a\"\nkey = \"/b\""),
        "a certificate needs `path = \"proxy\"`",
        "`path = \"proxy\"`",
    );
    let path = |lines: &str| changed("name = \"web\"", &format!("name = \"web\"\n{lines}"));
    mistake(
        &path("path = ▶\"proxy\"\nforward = \"tunnel\"").replace("21:8080", "21:80"),
        "`path = \"proxy\"` needs `forward = \"nat\"`",
        "`path = \"kernel\"`",
    );
    let udp = path("path = \"proxy\"\nprotocol = \"udp\"");
    let message = "`path = \"proxy\"` needs `protocol = \"tcp\"`";
    assert_eq!(errors(&udp), [(13, message.to_owned())]);
}

#[test]
fn how_backends_are_spoken_to() {
    let told = proxy("accept_proxy = [\"198.51.100.0/24\", \"2001:db8::5\"]\nsend_proxy = \"v1\"");
    let networks: Vec<_> =
        told.accept_proxy.iter().map(|(ip, bits)| format!("{ip}/{bits}")).collect();
    assert_eq!(networks, ["198.51.100.0/24", "2001:db8::5/128"]);
    assert_eq!(told.upstream.send_proxy, Some(ProxyHeader::V1));
    assert!(told.is_only() && !proxy("send_proxy = \"off\"").is_only());
    let two = proxy("http_version = \"2\"\nmax_streams = 7");
    assert!(two.is_only() && two.upstream.http2 && two.upstream.max_streams == 7);
    let tls = proxy(
        "scheme = \"https\"\n[service.proxy.backend_tls]\nserver_name = \"a.example\"\n\
         ca_file = \"/a.pem\"\ncertificate = \"/b.pem\"\nkey = \"/b.key\"",
    );
    let wanted = BackendTls {
        name: Some("a.example".into()),
        ca_file: Some("/a.pem".into()),
        verify: true,
        certificate: Some(Certificate { chain: "/b.pem".into(), key: "/b.key".into() }),
    };
    assert_eq!(tls.upstream.tls, Some(wanted));
    let bare = proxy("scheme = \"https\"").upstream.tls.expect("TLS");
    assert!(bare.verify && bare.ca_file.is_none() && bare.name.is_none());
}

#[test]
fn probes_speak_as_the_proxy_does() {
    let health = "[service.health]\nprobe = \"https\"\n";
    let text = with("path = \"proxy\"", "scheme = \"https\"\nhttp_version = \"2\"") + health;
    let loaded = parse("test.toml", &text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.warnings, []);
    let service = &loaded.config.services[0];
    let Probe::Https(probe) = &service.health.probe else { panic!("{:?}", service.health) };
    assert_eq!(Some(&probe.upstream), service.proxy.as_deref().map(|proxy| &proxy.upstream));
    for (section, probe, right) in
        [("scheme = \"https\"", "http", "https"), ("keepalive = 1", "https", "http")]
    {
        let health = format!("[service.health]\nprobe = ▶\"{probe}\"\n");
        let text = with("path = \"proxy\"", section) + &health;
        let message =
            format!("`probe = \"{probe}\"` asks backends in another way than the proxy does");
        warning(&text, &message, &format!("write `probe = \"{right}\"`"));
    }
}

#[test]
fn mistakes_about_backends() {
    for (section, message) in [
        ("max_streams = ▶8", "`max_streams` has no effect without `http_version = \"2\"`"),
        (
            "▶[service.proxy.backend_tls]\nverify = true",
            "`[service.proxy.backend_tls]` has no effect without TLS",
        ),
        (
            "scheme = \"https\"\n[service.proxy.backend_tls]\nverify = ▶false",
            "the certificates of the backends are not verified",
        ),
    ] {
        warning(&with("path = \"proxy\"", section), message, "write");
    }
    for (section, message) in [
        (
            "[service.proxy.backend_tls]\ncertificate = ▶\"/a.pem\"",
            "`certificate` of `[service.proxy.backend_tls]` needs `key`",
        ),
        (
            "[service.proxy.backend_tls]\nkey = ▶\"/a.key\"",
            "`key` of `[service.proxy.backend_tls]` needs `certificate`",
        ),
    ] {
        let section = format!("scheme = \"https\"\n{section}");
        mistake(&with("path = \"proxy\"", &section), message, "the certificate and of its key");
    }
    let blind =
        "scheme = \"https\"\n[service.proxy.backend_tls]\nca_file = \"/a.pem\"\nverify = false";
    let message = "`ca_file` has no effect with `verify = false`";
    assert!(errors(&with("path = \"proxy\"", blind)).iter().any(|(_, said)| said == message));
    for (section, what) in [
        ("accept_proxy = ▶[\"192.0.2.5\"]", "`accept_proxy`"),
        ("send_proxy = ▶\"v2\"", "`send_proxy`"),
        ("scheme = ▶\"https\"", "`scheme = \"https\"`"),
        ("http_version = ▶\"2\"", "`http_version = \"2\"`"),
    ] {
        let message = format!("{what} needs `path = \"proxy\"`");
        mistake(&with("path = \"auto\"", section), &message, "`path = \"proxy\"`");
    }
    mistake(
        &with("path = \"proxy\"", "accept_proxy = [▶\"192.0.2.5/24\"]"),
        "`accept_proxy` has 192.0.2.5/24, which is no network",
        "192.0.2.0/24",
    );
}
