//! The PROXY protocol: who a client is, told by another before this proxy, and told to backends.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ballast::{
    config::{HttpProbe, ProxyHeader, Upstream},
    health::{Deadline, Observation, http},
};
use xtask::wait;

use crate::{
    backends::Manner,
    client::{Answer, Connection, PATIENCE},
    fronts::{self, Service},
    peers,
    tls::Folder,
};

/// Everybody here must say who is behind them.
const TRUSTED: &str = "accept_proxy = [\"127.0.0.0/8\"]";

/// A header of version 2 (`proxy-protocol.txt`, section 2.2).
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut head = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    head.extend([command, family]);
    head.extend((rest.len() as u16).to_be_bytes());
    head.extend(rest);
    head
}

/// 198.51.100.7:12345 to 192.0.2.100:80, and what follows.
fn ends(more: &[u8]) -> Vec<u8> {
    [&[198, 51, 100, 7, 192, 0, 2, 100, 0x30, 0x39, 0, 80][..], more].concat()
}

/// Asks on a connection that begins with these bytes.
fn ask(target: SocketAddr, header: &[u8], row: &str) -> Result<Answer> {
    let mut connection = Connection::open(target)?;
    connection.send(header);
    connection.send(format!("GET /x HTTP/1.1\r\nHost: a\r\nX-Row: {row}\r\n\r\n").as_bytes());
    connection.answer("GET")
}

#[test]
fn a_header_tells_the_client() -> Result<()> {
    let folder = Folder::new()?;
    let log = folder.path().join("access.log");
    let services = [Service::before(Manner::Good, None)?];
    let lines = format!("{TRUSTED}\naccess_log = \"{}\"", log.display());
    let (proxy, _, listens) = fronts::ballast_with(&services, &lines)?;
    let target = listens[0];
    for (row, header, client) in [
        ("v1", b"PROXY TCP4 198.51.100.7 192.0.2.100 12345 80\r\n".to_vec(), "198.51.100.7"),
        ("v1-6", b"PROXY TCP6 2001:db8::7 2001:db8::8 12345 80\r\n".to_vec(), "2001:db8::7"),
        ("unknown", b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        ("v2", binary(0x21, 0x11, &ends(b"")), "198.51.100.7"),
        ("v2-tlv", binary(0x21, 0x11, &ends(b"\x02\x00\x03abc\xee\x00\x01x")), "198.51.100.7"),
        ("v2-long", binary(0x21, 0x11, &ends(&[4; 3000])), "198.51.100.7"),
        ("local", binary(0x20, 0x00, b""), "127.0.0.1"),
        ("unspec", binary(0x21, 0x00, b""), "127.0.0.1"),
    ] {
        let answer = ask(target, &header, row)?;
        ensure!(answer.status == 200, "{row}: {answer:?}");
        let asked = &services[0].first.asked(row)[0];
        ensure!(asked.field("x-forwarded-for") == [client], "{row}: {:?}", asked.fields);
    }
    // A header that comes byte by byte, and the request with its last byte.
    let mut slow = Connection::open(target)?;
    let bytes = b"PROXY TCP4 198.51.100.8 192.0.2.100 12345 80\r\n";
    bytes[..bytes.len() - 1].iter().for_each(|byte| slow.send(&[*byte]));
    slow.send(b"\nGET /x HTTP/1.1\r\nHost: a\r\nX-Row: slow\r\n\r\n");
    ensure!(slow.answer("GET")?.status == 200);
    // The header is the connection's: what follows it are requests.
    slow.send(b"GET /y HTTP/1.1\r\nHost: a\r\nX-Row: slow\r\n\r\n");
    ensure!(slow.answer("GET")?.status == 200);
    let asked = services[0].first.asked("slow");
    ensure!(asked.len() == 2);
    ensure!(asked.iter().all(|asked| asked.field("x-forwarded-for") == ["198.51.100.8"]));
    wait::until(PATIENCE, "the access log", || {
        let text = fs::read_to_string(&log)?;
        let clients = ["198.51.100.7 ", "2001:db8::7 ", "198.51.100.8 "];
        Ok(clients.iter().all(|it| text.lines().any(|line| line.starts_with(it))).then_some(()))
    })?;
    ensure!(proxy.status("s0").is_some_and(|status| status.proxy_headers == 0));
    Ok(())
}

#[test]
fn what_is_no_header_is_refused() -> Result<()> {
    let services = [
        Service::before(Manner::Good, None)?.keys(TRUSTED),
        Service::before(Manner::Good, None)?.keys("accept_proxy = [\"198.51.100.0/24\"]"),
        Service::before(Manner::Good, None)?
            .keys("accept_proxy = [\"127.0.0.1\"]\nclient_timeout = \"1s\""),
    ];
    let (proxy, listens) = fronts::ballast(&services)?;
    let headers = |service: &str| proxy.status(service).unwrap_or_default().proxy_headers;
    let bad = [
        Vec::new(),
        b"PROXY TCP4 198.51.100.7 192.0.2.100 12345\r\n".to_vec(),
        b"PROXY TCP4 2001:db8::7 192.0.2.100 12345 80\r\n".to_vec(),
        format!("PROXY TCP4 {}\r\n", "1".repeat(200)).into_bytes(),
        binary(0x31, 0x11, &ends(b"")),
        binary(0x22, 0x11, &ends(b"")),
        binary(0x21, 0x11, b"short"),
        binary(0x21, 0x11, &[0; 5000]),
    ];
    for header in &bad {
        let answer = ask(listens[0], header, "bad")?;
        ensure!(answer.status == 0, "{}: {answer:?}", header.escape_ascii());
    }
    ensure!(headers("s0") == bad.len() as u64, "{} are counted", headers("s0"));
    ensure!(services[0].first.asked("bad").is_empty());

    // Who is not trusted is believed nothing, and what looks like a header is no request.
    let answer = ask(listens[1], b"", "stranger")?;
    ensure!(answer.status == 200, "{answer:?}");
    let asked = &services[1].first.asked("stranger")[0];
    ensure!(asked.field("x-forwarded-for") == ["127.0.0.1"], "{:?}", asked.fields);
    let answer = ask(listens[1], b"PROXY TCP4 198.51.100.7 192.0.2.1 1 80\r\n", "liar")?;
    ensure!((400..=505).contains(&answer.status), "{answer:?}");
    ensure!(services[1].first.asked("liar").is_empty() && headers("s1") == 0);

    // One that is never whole.
    let mut never = Connection::open(listens[2])?;
    never.send(b"PROXY TCP4 198.51.100.7 ");
    ensure!(never.is_at_end(), "it is waited for");
    ensure!(headers("s2") == 1);
    Ok(())
}

#[test]
fn lists_and_rates_are_for_the_client_that_is_told() -> Result<()> {
    let service = Service::before(Manner::Good, None)?.keys(TRUSTED);
    let lines = "deny = [\"198.51.100.66\"]\nsource_rate = 1\nsource_burst = 1";
    let services = [Service { lines, ..service }];
    let (proxy, listens) = fronts::ballast(&services)?;
    let from = |client: &str, row: &str| {
        let header = format!("PROXY TCP4 {client} 192.0.2.100 12345 80\r\n");
        ask(listens[0], header.as_bytes(), row)
    };
    ensure!(from("198.51.100.66", "denied")?.status == 0);
    ensure!(services[0].first.asked("denied").is_empty());
    ensure!(from("198.51.100.67", "other")?.status == 200);
    let denied = || proxy.status("s0").unwrap_or_default().denied;
    ensure!(denied() == 1);
    // One connection a second, however slow this machine is.
    let refused = (0..100).any(|_| from("198.51.100.68", "rate").is_ok_and(|it| it.status == 0));
    ensure!(refused && denied() > 1, "nobody is too fast");
    Ok(())
}

#[test]
fn another_proxy_tells_the_client() -> Result<()> {
    let folder = Folder::new()?;
    let lines = folder.certify("a.example")?;
    let services = [
        Service::before(Manner::Good, None)?.keys(TRUSTED),
        Service::before(Manner::Good, None)?.keys(TRUSTED),
    ];
    let (_proxy, _, listens) = fronts::ballast_with(&services, &lines)?;
    let client = "127.0.0.77";
    for how in ["send-proxy", "send-proxy-v2"] {
        let (_haproxy, front) = peers::haproxy(listens[0], how)?;
        let mut command = Command::new("curl");
        command.args(["-sS", "-f", "-m", "60", "--interface", client, "-H"]);
        command.arg(format!("X-Row: {how}")).arg(format!("http://{front}/x"));
        let output = command.output().context("run curl")?;
        ensure!(output.status.success(), "{how}: {}", String::from_utf8_lossy(&output.stderr));
        let asked = &services[0].first.asked(how)[0];
        ensure!(asked.field("x-forwarded-for") == [client], "{how}: {:?}", asked.fields);
    }
    // The header comes before TLS.
    let target = listens[1];
    for version in ["--http1.1", "--http2"] {
        let mut command = Command::new("curl");
        command.args(["-sS", "-f", "-m", "60", "--interface", client, "--haproxy-protocol"]);
        command.arg(version).arg("--cacert").arg(folder.chain("a.example")).arg("--resolve");
        command.arg(format!("a.example:{}:{}", target.port(), target.ip()));
        command.arg("-H").arg(format!("X-Row: {version}"));
        command.arg(format!("https://a.example:{}/x", target.port()));
        let output = command.output().context("run curl")?;
        ensure!(output.status.success(), "{version}: {}", String::from_utf8_lossy(&output.stderr));
        let asked = &services[1].first.asked(version)[0];
        ensure!(asked.field("x-forwarded-for") == [client], "{version}: {:?}", asked.fields);
        ensure!(asked.field("x-forwarded-proto") == ["https"], "{version}: {:?}", asked.fields);
    }
    Ok(())
}

/// What nginx says of a request: the client, the client's target, and the number of the connection.
const TOLD: &str = "$proxy_protocol_addr:$proxy_protocol_port \
                    $proxy_protocol_server_addr:$proxy_protocol_server_port $connection";

#[test]
fn backends_are_told_the_client() -> Result<()> {
    let (_nginx, backends) = peers::nginx(&[("proxy_protocol", String::new())], TOLD)?;
    let service = || Service::of(crate::backends::Backend::at(backends[0]), None);
    let services = [
        service().keys("send_proxy = \"v1\""),
        service().keys("send_proxy = \"v2\""),
        service().keys("send_proxy = \"v2\"\naccept_proxy = [\"127.0.0.0/8\"]"),
    ];
    let (_proxy, listens) = fronts::ballast(&services)?;
    for target in &listens[..2] {
        let mut clients = [Connection::open(*target)?, Connection::open(*target)?];
        let mut told = [Vec::new(), Vec::new()];
        // In turns: a kept connection must not be another client's.
        for _ in 0..3 {
            for (client, told) in clients.iter_mut().zip(&mut told) {
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                let answer = client.answer("GET")?;
                ensure!(answer.status == 200, "{answer:?}");
                told.push(answer.body);
            }
        }
        for (client, told) in clients.iter().zip(&told) {
            let ends = format!("{} {target} ", client.local_address()?);
            ensure!(told.iter().all(|told| told.starts_with(&ends)), "{ends}: {told:?}");
            ensure!(told.iter().all(|it| *it == told[0]), "not one connection: {told:?}");
        }
        ensure!(told[0][0] != told[1][0], "{told:?}");
    }
    // What is told is handed on.
    let answer = ask(listens[2], b"PROXY TCP6 2001:db8::7 2001:db8::8 12345 80\r\n", "")?;
    ensure!(answer.body.starts_with("2001:db8::7:12345 2001:db8::8:80 "), "{answer:?}");
    Ok(())
}

#[test]
fn probes_say_that_nobody_is_behind_them() -> Result<()> {
    let (nginx, backends) = peers::nginx(&[("proxy_protocol", String::new())], "well")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let probe = |send_proxy| HttpProbe {
        path: "/".into(),
        host: None,
        expect: vec![(200, 200)],
        upstream: Upstream { send_proxy, ..Upstream::default() },
    };
    let asked = |send_proxy| {
        let probe = probe(send_proxy);
        runtime.block_on(async {
            http::probe(backends[0], &probe, &Deadline::after(Duration::from_mins(1))).await
        })
    };
    for version in [ProxyHeader::V1, ProxyHeader::V2] {
        let observation = asked(Some(version));
        ensure!(observation == Observation::Pass("HTTP 200".into()), "{observation:?}");
    }
    ensure!(matches!(asked(None), Observation::Fail(_)), "nginx takes what has no header");
    ensure!(nginx.log().contains("broken header"), "{}", nginx.log());
    Ok(())
}
