//! Requests that are meant to be misunderstood: refused with the right status, counted, and never seen
//! by a backend.

use anyhow::{Context as _, Result, ensure};

use crate::{
    backends::Manner,
    client::Connection,
    differences,
    fronts::{self, Service},
};

/// An attack: its name, its bytes, the status that it is refused with, and the reason that is counted.
fn attacks() -> Vec<(&'static str, Vec<u8>, u16, &'static str)> {
    let post = |lines: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nHost: x\r\nX-Row: attack\r\n{lines}\r\n\r\n{body}").into_bytes()
    };
    let get = |lines: &str| {
        format!("GET / HTTP/1.1\r\nHost: x\r\nX-Row: attack\r\n{lines}\r\n").into_bytes()
    };
    let chunked = |body: &str| post("Transfer-Encoding: chunked", body);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\nX-Row: attack\r\n\r\n";
    vec![
        (
            "CL.TE",
            post(
                "Content-Length: 6\r\nTransfer-Encoding: chunked",
                &format!("0\r\n\r\n{smuggled}"),
            ),
            400,
            "framing",
        ),
        (
            "TE.CL",
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 4",
                &format!("0\r\n\r\n{smuggled}"),
            ),
            400,
            "framing",
        ),
        ("two lengths", post("Content-Length: 0\r\nContent-Length: 5", "hello"), 400, "framing"),
        (
            "two equal lengths",
            post("Content-Length: 5\r\nContent-Length: 5", "hello"),
            400,
            "framing",
        ),
        ("list of lengths", post("Content-Length: 5, 5", "hello"), 400, "framing"),
        ("length with a sign", post("Content-Length: +5", "hello"), 400, "framing"),
        ("length in hex", post("Content-Length: 0x5", "hello"), 400, "framing"),
        ("length beyond numbers", post("Content-Length: 99999999999999999999", ""), 400, "framing"),
        ("unknown encoding", post("Transfer-Encoding: gzip", ""), 501, "encoding"),
        ("encoding in disguise", post("Transfer-Encoding: xchunked", ""), 501, "encoding"),
        (
            "encoding of HTTP/1.0",
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            400,
            "framing",
        ),
        ("name with a space", post("Content-Length : 5", "hello"), 400, "field"),
        ("name with parentheses", get("X(y): 1\r\n"), 400, "field"),
        ("field without a colon", get("nothing\r\n"), 400, "field"),
        ("folded line", get("X: 1\r\n folded\r\n"), 400, "field"),
        ("bare CR", get("X: 1\rContent-Length: 5\r\n"), 400, "field"),
        ("NUL in a value", get("X: a\0b\r\n"), 400, "field"),
        ("bare LF", b"GET / HTTP/1.1\nHost: x\n\n".to_vec(), 400, "line"),
        ("bare LF in fields", get("X: 1\nY: 2\r\n"), 400, "field"),
        ("no target", b"GET\r\n\r\n".to_vec(), 400, "line"),
        ("lower case version", b"GET / http/1.1\r\nHost: x\r\n\r\n".to_vec(), 400, "line"),
        ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: x\r\n\r\n".to_vec(), 505, "version"),
        ("HTTP/3.7", b"GET / HTTP/3.7\r\nHost: x\r\n\r\n".to_vec(), 505, "version"),
        ("no host", b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400, "host"),
        ("two hosts", get("Host: y\r\n"), 400, "host"),
        ("user in the host", b"GET / HTTP/1.1\r\nHost: u@x\r\n\r\n".to_vec(), 400, "host"),
        ("CONNECT", b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 405, "method"),
        ("TRACE", b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 405, "method"),
        ("chunk size with a space", chunked("5 \r\nhello\r\n0\r\n\r\n"), 400, "chunk"),
        ("chunk size with a sign", chunked("+5\r\nhello\r\n0\r\n\r\n"), 400, "chunk"),
        ("chunk size in C", chunked("0x5\r\nhello\r\n0\r\n\r\n"), 400, "chunk"),
        ("chunk size beyond numbers", chunked("fffffffffffffffff\r\n"), 400, "chunk"),
        ("bare LF after a chunk size", chunked("5\nhello\r\n0\r\n\r\n"), 400, "chunk"),
        ("bare LF in a chunk extension", chunked("5;a\nb\r\nhello\r\n0\r\n\r\n"), 400, "chunk"),
        ("chunk longer than it says", chunked("5\r\nhello!!\r\n0\r\n\r\n"), 400, "chunk"),
        (
            "length in a trailer",
            chunked("5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n"),
            400,
            "chunk",
        ),
        (
            "long target",
            format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000)).into(),
            414,
            "target_too_long",
        ),
        ("long field", get(&format!("X: {}\r\n", "x".repeat(70_000))), 431, "too_large"),
        ("200 fields", get(&"X: 1\r\n".repeat(200)), 431, "too_large"),
    ]
}

#[test]
fn what_is_meant_to_be_misunderstood_is_refused() -> Result<()> {
    for (name, bytes, status, reason) in attacks() {
        // Its own, so that the counts are this one's.
        let services = [Service::start(Manner::Good)?];
        let (proxy, ours) = fronts::ballast(&services)?;
        let mut connection = Connection::open(ours[0])?;
        connection.send(&bytes);
        let answer = connection.answer("POST").with_context(|| name.to_owned())?;
        ensure!(answer.status == status, "{name} is answered {answer:?}");
        ensure!(connection.is_at_end(), "{name}: the connection goes on");
        let counts = proxy.status("s0").context("read the counts")?;
        let counted = counts.refused.get(reason).copied().unwrap_or(0);
        ensure!(counted == 1, "{name} is not counted as {reason}: {:?}", counts.refused);
        let asked = services[0].first.asked("attack");
        // The head of a body that turns out to be wrong may have been handed on, its end never.
        ensure!(asked.is_empty(), "{name} reached a backend: {asked:?}");
    }
    Ok(())
}

#[test]
fn nginx_refuses_the_same_but_for_what_is_named() -> Result<()> {
    let services = [Service::start(Manner::Good)?];
    let (_nginx, theirs) = fronts::nginx(&services)?;
    let mut wrong = Vec::new();
    for (name, bytes, status, _) in attacks() {
        let mut connection = Connection::open(theirs[0])?;
        connection.send(&bytes);
        // Some of it nginx waits for more of.
        connection.finish().ok();
        let nginx = connection.answer("POST").with_context(|| name.to_owned())?.status;
        let named = differences::STRICTER.iter().find(|(attack, ..)| *attack == name);
        match named {
            None => {
                let alike = nginx == status || (nginx / 100 == 4 && status / 100 == 4);
                if !alike {
                    wrong.push(format!("{name}: {status} here, {nginx} from nginx"));
                }
            }
            Some((_, here, why)) => {
                ensure!(*here == status, "{name}: the list says {here}: {why}");
                if nginx == status {
                    wrong.push(format!("{name}: there is no difference any more: {why}"));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn what_came_before_an_attack_is_answered() -> Result<()> {
    let services = [Service::start(Manner::Good)?];
    let (_proxy, ours) = fronts::ballast(&services)?;
    let mut connection = Connection::open(ours[0])?;
    connection.send(
        b"GET /one HTTP/1.1\r\nHost: x\r\n\r\nGET /two HTTP/1.1\r\nHost: x\r\n\r\n\
          GET /three HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n\
          GET /four HTTP/1.1\r\nHost: x\r\n\r\n",
    );
    for path in ["/one", "/two"] {
        let answer = connection.answer("GET")?;
        ensure!(answer.status == 200 && answer.body.contains(path), "{answer:?}");
    }
    let answer = connection.answer("GET")?;
    ensure!(answer.status == 400, "{answer:?}");
    ensure!(connection.is_at_end(), "what follows an attack is answered too");
    Ok(())
}
