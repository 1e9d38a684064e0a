//! HTTP/2 in the clear from clients that begin with it ("prior knowledge", RFC 9113, section 3.3).

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use hyper::{Request, body::Bytes};
use tokio::{runtime, time::timeout};

use crate::{
    backends::Manner,
    client::{Connection, PATIENCE},
    fronts::{self, Service},
};

/// How such a client begins, and the shortest frame of settings after it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What curl is told: body, version of HTTP and status in one line.
fn curl(target: SocketAddr, words: &[&str]) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "60", "-w", " %{http_version} %{http_code}"]);
    command.args(words).arg(format!("http://{target}/x"));
    let output = command.output().context("run curl")?;
    ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn clients_may_begin_with_http_2() -> Result<()> {
    let services = [Service::start(Manner::Refuse)?];
    let (proxy, listens) = fronts::ballast(&services)?;
    let target = listens[0];
    for (version, word) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        for method in ["GET", "PUT", "DELETE"] {
            let told = curl(target, &[version, "-X", method, "-H", "X-Row: prior"])?;
            ensure!(told == format!("second {method} /x HTTP/1.1 {word} 200"), "{told}");
        }
        let told = curl(target, &[version, "-X", "POST", "-d", "hello"])?;
        ensure!(told == format!("second POST /x HTTP/1.1 {word} 200"), "{told}");
    }
    let backend = services[0].second.as_ref().context("it has a second")?;
    for asked in backend.asked("prior") {
        ensure!(asked.field("x-forwarded-proto") == ["http"], "{:?}", asked.fields);
        ensure!(asked.field("host") == [target.to_string()], "{:?}", asked.fields);
    }
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!(counts.answers["2xx"] == 8 && counts.refused.is_empty(), "{counts:?}");
    Ok(())
}

/// The first bytes may come one by one.
#[test]
fn it_is_known_by_its_first_bytes_however_they_come() -> Result<()> {
    let services = [Service::start(Manner::Refuse)?];
    let (_proxy, listens) = fronts::ballast(&services)?;
    for cut in [1, 3, 17, 18, 19, 24, PREFACE.len() - 1] {
        let mut client = TcpStream::connect(listens[0]).context("connect")?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.set_nodelay(true)?;
        client.write_all(&PREFACE[..cut])?;
        // What was sent has been read once the next request of another client is answered.
        curl(listens[0], &[])?;
        client.write_all(&PREFACE[cut..])?;
        let mut frame = [0; 9];
        client.read_exact(&mut frame).with_context(|| format!("cut at {cut}"))?;
        ensure!(frame[3] == 4, "cut at {cut}: no settings but {frame:?}");
    }
    Ok(())
}

/// Only a connection's first bytes may say so, and all of them must.
#[test]
fn what_is_not_quite_so_is_refused() -> Result<()> {
    let services = [Service::start(Manner::Refuse)?];
    let (proxy, listens) = fronts::ballast(&services)?;
    let mut client = Connection::open(listens[0])?;
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    ensure!(client.answer("GET")?.status == 200);
    client.send(PREFACE);
    ensure!(client.answer("GET")?.status == 505, "after a request");
    for other in [&b"PRI * HTTP/2.0\r\nHost: a\r\n\r\n"[..], b"PRI /x HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut client = Connection::open(listens[0])?;
        client.send(other);
        ensure!(client.answer("GET")?.status == 505, "{}", String::from_utf8_lossy(other));
    }
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!(counts.refused.values().sum::<u64>() == 3, "{counts:?}");
    Ok(())
}

/// Many at once on one connection, each with its own answer.
#[test]
fn many_requests_share_a_connection() -> Result<()> {
    let services = [Service::start(Manner::Refuse)?];
    let (_proxy, listens) = fronts::ballast(&services)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let test = async {
        let tcp = tokio::net::TcpStream::connect(listens[0]).await.context("connect")?;
        let (sender, connection) = h2::client::handshake(tcp).await?;
        tokio::spawn(connection);
        let mut sender = sender.ready().await?;
        let ask = || Request::get(format!("http://{}/x", listens[0])).body(());
        let answers = (0..50).map(|_| Ok(sender.send_request(ask()?, true)?.0));
        for answer in answers.collect::<Result<Vec<_>>>()? {
            let answer = answer.await?;
            ensure!(answer.status() == 200, "{answer:?}");
            let body: Bytes = answer.into_body().data().await.context("there is no body")??;
            ensure!(body.starts_with(b"second"), "{body:?}");
        }
        Ok(())
    };
    runtime.block_on(async { timeout(PATIENCE, test).await.context("it takes too long")? })
}
