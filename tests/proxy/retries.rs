//! The table: each kind of request, with each kind of failure of the first backend.

use std::thread;

use anyhow::{Context as _, Result, ensure};

use crate::{
    backends::Manner,
    client::{Answer, Connection},
    differences,
    fronts::{self, Service},
};

/// Ways in which the first backend fails, or answers.
const FAILURES: &[(&str, Manner)] = &[
    ("good", Manner::Good),
    ("refuse", Manner::Refuse),
    ("close at once", Manner::CloseAtOnce),
    ("close", Manner::Close),
    ("reset", Manner::Reset),
    ("part of a head", Manner::PartOfHead),
    ("silent", Manner::Silent),
    ("garbage", Manner::Garbage),
    ("long head", Manner::LongHead),
    ("500", Manner::Status(500)),
    ("502", Manner::Status(502)),
    ("503", Manner::Status(503)),
    ("504", Manner::Status(504)),
    ("403", Manner::Status(403)),
    ("404", Manner::Status(404)),
    ("429", Manner::Status(429)),
    ("half a body", Manner::HalfBody),
    ("half a chunk", Manner::HalfChunk),
    ("chunks", Manner::Chunks),
    ("until close", Manner::UntilClose),
    ("both lengths", Manner::BothLengths),
    ("two lengths", Manner::TwoLengths),
    ("interim", Manner::Interim),
    ("no content", Manner::NoContent),
    ("stale", Manner::Stale),
];

/// A kind of request.
struct Kind {
    name: &'static str,
    method: &'static str,
    version: &'static str,
    fields: &'static str,
    body: Body,
}

enum Body {
    None,
    Length(usize),
    Chunks,
}

const fn kind(name: &'static str, method: &'static str, body: Body) -> Kind {
    Kind { name, method, version: "1.1", fields: "", body }
}

const KINDS: &[Kind] = &[
    kind("GET", "GET", Body::None),
    kind("HEAD", "HEAD", Body::None),
    kind("OPTIONS", "OPTIONS", Body::None),
    kind("DELETE", "DELETE", Body::None),
    kind("PUT", "PUT", Body::Length(11)),
    kind("PUT chunked", "PUT", Body::Chunks),
    kind("PUT large", "PUT", Body::Length(300_000)),
    kind("POST", "POST", Body::Length(11)),
    kind("POST chunked", "POST", Body::Chunks),
    kind("POST without a body", "POST", Body::Length(0)),
    kind("PATCH", "PATCH", Body::Length(11)),
    kind("LOCK", "LOCK", Body::None),
    Kind { version: "1.0", ..kind("GET 1.0", "GET", Body::None) },
    Kind {
        fields: "Idempotency-Key: \"k\"\r\n",
        ..kind("POST with a key", "POST", Body::Length(11))
    },
];

impl Kind {
    fn bytes(&self, row: &str) -> Vec<u8> {
        let Self { method, version, fields, .. } = self;
        let head = format!("{method} /x HTTP/{version}\r\nHost: test\r\nX-Row: {row}\r\n{fields}");
        let mut bytes = head.into_bytes();
        match self.body {
            Body::None => bytes.extend_from_slice(b"\r\n"),
            Body::Length(length) => {
                bytes.extend_from_slice(format!("Content-Length: {length}\r\n\r\n").as_bytes());
                bytes.extend_from_slice(&self.sent_body());
            }
            Body::Chunks => {
                bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                bytes.extend_from_slice(b"6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n");
            }
        }
        bytes
    }

    fn sent_body(&self) -> Vec<u8> {
        match self.body {
            Body::None => Vec::new(),
            Body::Chunks => b"hello world".to_vec(),
            Body::Length(length) => (0..length).map(|at| b'a' + (at % 23) as u8).collect(),
        }
    }
}

/// What came of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    status: u16,
    /// The backend that answered, as the body says; empty if it does not.
    by: String,
    whole: bool,
    /// Requests that reached each backend.
    asked: (usize, usize),
}

/// Asks, and looks what the backends saw.
fn ask(
    service: &Service,
    kind: &Kind,
    row: &str,
    front: std::net::SocketAddr,
    first: Manner,
) -> Result<Outcome> {
    let stale = first == Manner::Stale;
    let mut connection = Connection::open(front)?;
    if matches!(first, Manner::Garbage | Manner::Interim) {
        connection = connection.impatient()?;
    }
    if stale {
        // The first request leaves a connection behind, which the backend closes at the second.
        connection.send(b"GET /prime HTTP/1.1\r\nHost: test\r\n\r\n");
        let primed = connection.answer("GET")?;
        ensure!(primed.status == 200, "{primed:?}");
    }
    connection.send(&kind.bytes(row));
    let answer = connection.answer(kind.method)?;
    let Answer { status, ref body, whole, .. } = answer;
    let by = body.split(' ').next().filter(|name| ["first", "second"].contains(name));
    let by = by.unwrap_or_default().to_owned();
    let asked = [Some(&service.first), service.second.as_ref()]
        .map(|backend| backend.map_or(Vec::new(), |backend| backend.asked(row)));
    for request in asked.iter().flatten() {
        ensure!(request.body == kind.sent_body(), "a body arrived changed: {row}");
        ensure!(request.line == format!("{} /x HTTP/1.1", kind.method), "{}", request.line);
    }
    Ok(Outcome { status, by, whole, asked: (asked[0].len(), asked[1].len()) })
}

#[test]
fn each_request_with_each_failure_ends_as_with_nginx() -> Result<()> {
    let services: Vec<Service> =
        FAILURES.iter().map(|(_, manner)| Service::start(*manner)).collect::<Result<_>>()?;
    let (_proxy, ours) = fronts::ballast(&services)?;
    let (_nginx, theirs) = fronts::nginx(&services)?;
    let row = |(at, kind): (usize, &Kind)| -> Result<()> {
        let ((failure, manner), service) = (FAILURES[at], &services[at]);
        let name = format!("{failure}, {}", kind.name);
        let asked = |whose: &str, front| {
            let row = format!("{whose} {name}");
            ask(service, kind, &row, front, manner).with_context(|| format!("{name}, {whose}"))
        };
        compare(failure, kind.name, &asked("ours", ours[at])?, &asked("nginx", theirs[at])?)
            .with_context(|| name.clone())
    };
    let failed: Vec<String> = thread::scope(|scope| {
        let mut works = Vec::new();
        for (at, (_, manner)) in FAILURES.iter().enumerate() {
            // Where each row waits for a timeout they wait together; else one has the kept connections
            // to itself.
            let together = if *manner == Manner::Silent { 1 } else { KINDS.len() };
            for kinds in KINDS.chunks(together) {
                let row = &row;
                works.push(scope.spawn(move || {
                    let rows = kinds.iter().filter_map(|kind| row((at, kind)).err());
                    rows.map(|error| format!("{error:#}")).collect::<Vec<_>>()
                }));
            }
        }
        works.into_iter().flat_map(|work| work.join().expect("a row panicked")).collect()
    });
    let rows = FAILURES.len() * KINDS.len();
    ensure!(failed.is_empty(), "{} of {rows} rows:\n{}", failed.len(), failed.join("\n"));
    println!("{rows} rows are as with nginx, or differ as named");
    Ok(())
}

fn compare(failure: &str, kind: &str, ours: &Outcome, nginx: &Outcome) -> Result<()> {
    match differences::of(failure, kind) {
        None => ensure!(ours == nginx, "{ours:?}, but nginx: {nginx:?}"),
        Some(difference) => {
            let wanted = (difference.status, difference.asked);
            // What nginx does, unless it was slower itself.
            if difference.sometimes && ours.status == 502 {
                return Ok(());
            }
            ensure!((ours.status, ours.asked) == wanted, "{ours:?}: {}", difference.why);
            let differs = difference.sometimes || ours != nginx;
            ensure!(differs, "there is no difference any more: {}", difference.why);
        }
    }
    Ok(())
}

/// Words of `next_upstream`, the failure that they are about, and whether a GET goes on.
const WORDS: &[(&str, Manner, bool)] = &[
    ("off", Manner::Refuse, false),
    ("off", Manner::Close, false),
    ("error", Manner::Close, true),
    ("error", Manner::Silent, false),
    ("timeout", Manner::Silent, true),
    ("timeout", Manner::Close, false),
    ("error http_500", Manner::Status(500), true),
    ("error http_502", Manner::Status(502), true),
    ("error http_503", Manner::Status(503), true),
    ("error http_504", Manner::Status(504), true),
    ("error http_403", Manner::Status(403), true),
    ("error http_404", Manner::Status(404), true),
    ("error http_429", Manner::Status(429), true),
    ("error http_429", Manner::Status(503), false),
    ("invalid_header", Manner::LongHead, true),
    ("error", Manner::LongHead, false),
    ("error non_idempotent", Manner::Close, true),
    ("http_503 non_idempotent", Manner::Status(503), true),
];

#[test]
fn the_words_mean_what_they_mean_to_nginx() -> Result<()> {
    let services: Vec<Service> = WORDS
        .iter()
        .map(|(words, manner, _)| Ok(Service::start(*manner)?.on(words)))
        .collect::<Result<_>>()?;
    let (_proxy, ours) = fronts::ballast(&services)?;
    let (_nginx, theirs) = fronts::nginx(&services)?;
    thread::scope(|scope| {
        let works: Vec<_> = WORDS
            .iter()
            .zip(&services)
            .zip(ours.iter().zip(&theirs))
            .map(|(((words, manner, goes_on), service), (ours, theirs))| {
                scope.spawn(move || -> Result<()> {
                    for (kind, is_post) in [(&KINDS[0], false), (&KINDS[7], true)] {
                        let name = format!("{words}, {manner:?}, {}", kind.name);
                        let row = |whose: &str| format!("{whose} {name}");
                        let ours = ask(service, kind, &row("ours"), *ours, *manner)?;
                        let nginx = ask(service, kind, &row("nginx"), *theirs, *manner)?;
                        ensure!(ours == nginx, "{name}: {ours:?}, but nginx: {nginx:?}");
                        let moved = ours.by == "second";
                        let wanted = *goes_on && (!is_post || words.contains("non_idempotent"));
                        ensure!(moved == wanted, "{name}: {ours:?}");
                    }
                    Ok(())
                })
            })
            .collect();
        works.into_iter().try_for_each(|work| work.join().expect("a row panicked"))
    })
}

#[test]
fn without_another_backend_the_failure_is_told() -> Result<()> {
    let alone = [Manner::Refuse, Manner::Close, Manner::Silent, Manner::Status(503), Manner::Stale];
    let services: Vec<Service> = alone
        .iter()
        .map(|manner| Ok(Service::before(*manner, None)?.on("error timeout http_503")))
        .collect::<Result<_>>()?;
    let (_proxy, ours) = fronts::ballast(&services)?;
    let (_nginx, theirs) = fronts::nginx(&services)?;
    for (((manner, service), ours), theirs) in alone.iter().zip(&services).zip(ours).zip(theirs) {
        let ours = ask(service, &KINDS[0], "ours", ours, *manner)?;
        let nginx = ask(service, &KINDS[0], "nginx", theirs, *manner)?;
        ensure!(ours == nginx, "{manner:?}: {ours:?}, but nginx: {nginx:?}");
        let status = match manner {
            Manner::Silent => 504,
            Manner::Status(status) => *status,
            Manner::Stale => 200,
            _ => 502,
        };
        ensure!(ours.status == status, "{manner:?}: {ours:?}");
    }
    Ok(())
}
