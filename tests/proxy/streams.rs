//! What is more than a request and an answer: interim answers, tunnels, pipelines, large bodies.

use anyhow::{Result, ensure};
use ballast::proxy::Status;
use xtask::wait;

use crate::{
    backends::Manner,
    client::{Connection, PATIENCE},
    fronts::{self, Service},
};

fn both(manner: Manner) -> Result<(Vec<Service>, Vec<std::net::SocketAddr>, impl Drop)> {
    struct Fronts(
        #[expect(dead_code, reason = "they end with it")] (ballast::proxy::Proxy, fronts::Nginx),
    );
    impl Drop for Fronts {
        fn drop(&mut self) {}
    }
    let services = vec![Service::start(manner)?];
    let (proxy, ours) = fronts::ballast(&services)?;
    let (nginx, theirs) = fronts::nginx(&services)?;
    Ok((services, vec![ours[0], theirs[0]], Fronts((proxy, nginx))))
}

#[test]
fn a_client_that_waits_is_told_to_go_on() -> Result<()> {
    let (services, targets, _fronts) = both(Manner::Good)?;
    for (target, row) in targets.into_iter().zip(["ours", "nginx"]) {
        let mut connection = Connection::open(target)?;
        let head = format!(
            "PUT /x HTTP/1.1\r\nHost: x\r\nX-Row: {row}\r\nContent-Length: 5\r\n\
             Expect: 100-continue\r\n\r\n"
        );
        connection.send(head.as_bytes());
        let interim = connection.head()?;
        ensure!(interim.status == 100, "{row}: {interim:?}");
        connection.send(b"hello");
        let answer = connection.answer("PUT")?;
        ensure!(answer.status == 200, "{row}: {answer:?}");
        let asked = services[0].first.asked(row);
        ensure!(asked[0].field("expect").is_empty(), "{row}: it is for the next server alone");
        ensure!(asked[0].body == b"hello", "{row}");
    }
    Ok(())
}

#[test]
fn a_tunnel_carries_what_is_sent() -> Result<()> {
    let (_services, targets, _fronts) = both(Manner::Echo)?;
    for target in targets {
        let mut connection = Connection::open(target)?;
        connection
            .send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
        let answer = connection.answer("GET")?;
        ensure!(answer.status == 101, "{answer:?}");
        ensure!(answer.field("upgrade") == ["echo"], "{answer:?}");
        // What would be refused as a request.
        for bytes in [b"\0\x01GET / HTTP/9\n\n\r\n\r\n".to_vec(), vec![7; 70_000]] {
            connection.send(&bytes);
            ensure!(connection.read(bytes.len())? == bytes, "other bytes came back");
        }
    }
    Ok(())
}

#[test]
fn many_tunnels_are_open_beside_requests() -> Result<()> {
    const TUNNELS: u64 = 500;
    let services = [Service::start(Manner::Echo)?, Service::start(Manner::Good)?];
    let (proxy, ours) = fronts::ballast(&services)?;
    let mut tunnels = Vec::new();
    for _ in 0..TUNNELS {
        let mut tunnel = Connection::open(ours[0])?;
        tunnel.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
        ensure!(tunnel.answer("GET")?.status == 101);
        tunnels.push(tunnel);
    }
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!((counts.tunnels, counts.open) == (TUNNELS, TUNNELS), "{counts:?}");
    let mut requests = Connection::open(ours[1])?;
    for (number, tunnel) in tunnels.iter_mut().enumerate() {
        requests.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        ensure!(requests.answer("GET")?.status == 200);
        // Some say more than goes through at once, and some nothing.
        let bytes = vec![number as u8; if number % 50 == 0 { 300_000 } else { number % 7 }];
        tunnel.send_beside(&bytes)?;
        ensure!(tunnel.read(bytes.len())? == bytes, "tunnel {number} gives other bytes back");
    }
    // One that is over is over on both sides.
    for mut tunnel in tunnels {
        tunnel.finish()?;
        ensure!(tunnel.is_at_end(), "a tunnel goes on after its end");
    }
    wait::until(PATIENCE, "the tunnels to end", || {
        let counts = proxy.status("s0").unwrap_or_default();
        Ok((counts.open == 0).then_some(()))
    })
}

#[test]
fn pipelined_requests_are_answered_in_order() -> Result<()> {
    let (_services, targets, _fronts) = both(Manner::Chunks)?;
    for target in targets {
        let mut connection = Connection::open(target)?;
        let mut bytes = Vec::new();
        for number in 0..20 {
            let head = format!("PUT /{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
            bytes.extend_from_slice(head.as_bytes());
        }
        connection.send(&bytes);
        for number in 0..20 {
            let answer = connection.answer("PUT")?;
            ensure!(answer.body.contains(&format!("/{number} ")), "{number}: {answer:?}");
        }
    }
    Ok(())
}

#[test]
fn a_body_beyond_the_buffer_is_sent_once() -> Result<()> {
    let keys = "body_buffer = \"64KiB\"";
    let services = [
        Service::start(Manner::Close)?.keys(keys),
        Service::start(Manner::Refuse)?.keys(keys),
        Service::start(Manner::Good)?.keys(keys),
    ];
    let (_proxy, ours) = fronts::ballast(&services)?;
    let body = "x".repeat(1 << 20);
    for ((service, target), (status, second)) in
        services.iter().zip(ours).zip([(502, 0), (200, 1), (200, 0)])
    {
        let mut connection = Connection::open(target)?;
        let head = format!(
            "PUT /x HTTP/1.1\r\nHost: x\r\nX-Row: large\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        connection.send(head.as_bytes());
        connection.send(body.as_bytes());
        let answer = connection.answer("PUT")?;
        ensure!(answer.status == status, "{answer:?}");
        let asked = service.second.as_ref().map_or(0, |second| second.asked("large").len());
        ensure!(asked == second, "the second was asked {asked} times");
    }
    Ok(())
}

#[test]
fn the_backend_learns_who_asks() -> Result<()> {
    let services = [Service::start(Manner::Good)?];
    let (_proxy, ours) = fronts::ballast(&services)?;
    let mut connection = Connection::open(ours[0])?;
    connection.send(
        b"GET http://example.org/x?y HTTP/1.1\r\nHost: other\r\nX-Row: who\r\nTE: trailers\r\n\
          Connection: X-Private\r\nX-Private: 1\r\nX-Forwarded-For: 198.51.100.1\r\n\
          Keep-Alive: 9\r\n\r\n",
    );
    ensure!(connection.answer("GET")?.status == 200);
    let asked = &services[0].first.asked("who")[0];
    ensure!(asked.line == "GET /x?y HTTP/1.1", "{}", asked.line);
    for (name, values) in [
        ("host", &["example.org"][..]),
        ("x-forwarded-for", &["198.51.100.1, 127.0.0.1"]),
        ("x-forwarded-host", &["example.org"]),
        ("x-forwarded-proto", &["http"]),
        ("forwarded", &["for=127.0.0.1;host=\"example.org\";proto=http"]),
        ("connection", &[]),
        ("x-private", &[]),
        ("te", &[]),
        ("keep-alive", &[]),
    ] {
        ensure!(asked.field(name) == values, "{name}: {:?}", asked.field(name));
    }
    ensure!(asked.field("x-request-id")[0].len() == 32, "{asked:?}");
    Ok(())
}

#[test]
fn a_deadline_ends_also_an_attempt_that_runs() -> Result<()> {
    let keys = "next_upstream_timeout = \"200ms\"";
    let services = [Service::before(Manner::Silent, None)?.keys(keys)];
    let (proxy, ours) = fronts::ballast(&services)?;
    let mut connection = Connection::open(ours[0])?;
    connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = connection.answer("GET")?;
    ensure!(answer.status == 504, "{answer:?}");
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!(counts.gateway_timeout == 1, "{counts:?}");
    Ok(())
}

#[test]
fn slow_clients_are_not_waited_for() -> Result<()> {
    let keys = "client_timeout = \"500ms\"";
    let services = [Service::start(Manner::Good)?.keys(keys)];
    let (proxy, ours) = fronts::ballast(&services)?;
    let mut head = Connection::open(ours[0])?;
    head.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ");
    let mut body = Connection::open(ours[0])?;
    body.send(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel");
    ensure!(head.is_at_end(), "an unfinished head is waited for");
    let answer = body.answer("PUT")?;
    ensure!(answer.status == 408, "{answer:?}");
    let mut idle = Connection::open(ours[0])?;
    ensure!(idle.is_at_end(), "a silent connection is waited for");
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!(counts.slow_heads == 1, "{counts:?}");
    ensure!(counts.refused.get("slow_body") == Some(&1), "{counts:?}");
    Ok(())
}

#[test]
fn a_still_connection_is_served_again() -> Result<()> {
    let services = [Service::start(Manner::Good)?];
    let (proxy, ours) = fronts::ballast(&services)?;
    let is_so = |what: &str, is_so: &dyn Fn(&Status) -> bool| {
        wait::until(PATIENCE, what, || {
            Ok(is_so(&proxy.status("s0").unwrap_or_default()).then_some(()))
        })
    };
    let mut connection = Connection::open(ours[0])?;
    is_so("a connection without a request to be still", &|counts| counts.still == 1)?;
    for round in 0..2 {
        // Two at once, the second in two parts.
        connection.send(b"GET /x HTTP/1.1\r\nHost: x\r\nX-Row: still\r\n\r\nGET /x HTT");
        ensure!(connection.answer("GET")?.status == 200, "round {round}");
        ensure!(proxy.status("s0").unwrap_or_default().still == 0, "amid a head it is not still");
        connection.send(b"P/1.1\r\nHost: x\r\nX-Row: still\r\n\r\n");
        ensure!(connection.answer("GET")?.status == 200, "round {round}");
        is_so("a connection without a request to be still", &|counts| counts.still == 1)?;
    }
    ensure!(services[0].first.asked("still").len() == 4);
    drop(connection);
    is_so("the end of the connection", &|counts| (counts.still, counts.open) == (0, 0))
}

#[test]
fn kept_connections_are_used_again() -> Result<()> {
    let services = [Service::start(Manner::Good)?];
    let (proxy, ours) = fronts::ballast(&services)?;
    let mut connection = Connection::open(ours[0])?;
    for _ in 0..50 {
        connection.send(b"GET /x HTTP/1.1\r\nHost: x\r\nX-Row: kept\r\n\r\n");
        ensure!(connection.answer("GET")?.status == 200);
    }
    ensure!(services[0].first.asked("kept").len() == 50);
    ensure!(services[0].first.connections() == 1, "{}", services[0].first.connections());
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!((counts.connections, counts.requests) == (1, 50), "{counts:?}");
    Ok(())
}
