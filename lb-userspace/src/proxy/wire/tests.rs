use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{HeaderMap, Request, Uri, client::conn::http1, header::HeaderValue};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::*;

type Sent = BoxBody<Bytes, io::Error>;

/// Method, target, fields and body of a request, and what is sent.
type Asked<'a> = (&'a str, &'a str, &'a [(&'static str, &'static str)], fn() -> Sent, &'a str);

/// A backend that says what it is told to, once it has been sent something: each piece in a read of its
/// own. Then it ends, or is silent.
#[derive(Clone, Debug, Default)]
struct Script {
    pieces: VecDeque<Vec<u8>>,
    ends: bool,
    sent: Arc<Mutex<Vec<u8>>>,
    /// Bytes that it takes at once; 0 is any number.
    width: usize,
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.sent.lock().unwrap().is_empty() {
            return Poll::Pending;
        }
        let Some(mut piece) = self.pieces.pop_front() else {
            return if self.ends { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let rest = piece.split_off(piece.len().min(buf.remaining()));
        if !rest.is_empty() {
            self.pieces.push_front(rest);
        }
        buf.put_slice(&piece);
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Whoever waits for the answer finds it now.
        cx.waker().wake_by_ref();
        let taken = if self.width == 0 { bytes.len() } else { bytes.len().min(self.width) };
        self.sent.lock().unwrap().extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn head(method: &str, target: &str, fields: &[(&'static str, &'static str)]) -> Head {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let method = method.parse().unwrap();
    let mut parts = hyper::http::uri::Parts::default();
    parts.path_and_query = Some(target.parse().unwrap());
    Head { method, uri: Uri::from_parts(parts).unwrap(), headers, told: None, upgrade: false }
}

fn nothing() -> Sent {
    Full::default().map_err(io::Error::other).boxed()
}

/// A body of these frames, of which nobody knows how long it is.
fn frames(frames: Vec<Frame<Bytes>>) -> Sent {
    let frames = frames.into_iter().map(Ok);
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))
}

fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from(text))
}

fn trailers() -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("1"));
    trailers.insert("x-other", HeaderValue::from_static("2"));
    trailers.insert("content-length", HeaderValue::from_static("3"));
    Frame::trailers(trailers)
}

/// What came of a request.
#[expect(clippy::large_enum_variant, reason = "there are few of them")]
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// No head came.
    None,
    /// The body broke off.
    Broken(u16),
    Whole {
        status: u16,
        headers: HeaderMap,
        body: Vec<u8>,
        trailers: Option<HeaderMap>,
    },
}

/// Asks, and says what came of it and whether another request may follow.
async fn ask(script: Script, method: &str) -> (Outcome, bool) {
    let mut wire = Wire::new(script);
    wire.send(&head(method, "/", &[("host", "x")]), nothing());
    let Ok(answer) = poll_fn(|cx| wire.poll_answer(cx)).await else {
        assert!(!wire.is_ready() && wire.is_over());
        return (Outcome::None, false);
    };
    let (mut body, mut trailers) = (Vec::new(), None);
    let status = answer.status().as_u16();
    while let Some(frame) = poll_fn(|cx| wire.poll_body(cx)).await {
        let Ok(frame) = frame else {
            assert!(wire.is_over());
            return (Outcome::Broken(status), false);
        };
        match frame.into_data() {
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    assert!(wire.has_answered());
    let headers = answer.headers().clone();
    (Outcome::Whole { status, headers, body, trailers }, wire.is_ready())
}

/// The same, by hyper.
async fn ask_hyper(script: Script, method: &str) -> Outcome {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(64 << 10);
    let (mut sender, connection) = builder.handshake(TokioIo::new(script)).await.unwrap();
    let connection = tokio::spawn(connection.with_upgrades());
    let request = Request::builder().method(method).uri("/").header("host", "x");
    let answer = sender.send_request(request.body(nothing()).unwrap()).await;
    let outcome = match answer {
        Err(_) => Outcome::None,
        Ok(answer) => {
            let (parts, body) = answer.into_parts();
            let status = parts.status.as_u16();
            match body.collect().await {
                Err(_) => Outcome::Broken(status),
                Ok(body) => Outcome::Whole {
                    status,
                    headers: without_keep_alive(&parts.headers),
                    trailers: body.trailers().cloned(),
                    body: body.to_bytes().to_vec(),
                },
            }
        }
    };
    connection.abort();
    outcome
}

/// `Connection: keep-alive` is not handed on.
fn without_keep_alive(headers: &HeaderMap) -> HeaderMap {
    let fields = headers.iter().filter(|(name, value)| {
        *name != "connection" || !value.as_bytes().eq_ignore_ascii_case(b"keep-alive")
    });
    fields.fold(HeaderMap::new(), |mut map, (name, value)| {
        map.append(name, value.clone());
        map
    })
}

fn in_one(text: &[u8]) -> Script {
    Script { pieces: [text.to_vec()].into(), ends: true, ..Script::default() }
}

fn in_bytes(text: &[u8]) -> Script {
    let pieces = text.iter().map(|byte| vec![*byte]).collect();
    Script { pieces, ends: true, ..Script::default() }
}

/// What a backend says; what it is asked with; what the body is, if it is whole; whether the connection
/// may be used again, if it stays open.
const ANSWERS: &[(&str, &str, Option<&str>, bool)] = &[
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Some("hello"), true),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some(""), true),
    (
        "GET",
        "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        Some("hello"),
        true,
    ),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", Some("hello"), true),
    ("GET", "HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", Some("x"), true),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!", Some("hello"), false),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\nhello",
        Some("hello"),
        false,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
        Some(""),
        false,
    ),
    ("GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", Some("hello"), false),
    (
        "GET",
        "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\nhello",
        Some("hello"),
        true,
    ),
    ("GET", "HTTP/1.1 200 OK\r\n\r\nuntil the end", Some("until the end"), false),
    ("GET", "HTTP/1.0 200 OK\r\n\r\n", Some(""), false),
    ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Some(""), true),
    ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Some(""), true),
    ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", Some(""), true),
    ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Some(""), true),
    (
        "GET",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        Some("x"),
        true,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        Some("hello"),
        true,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n2;a=b\r\nhe\r\n3 \r\nllo\r\n000\r\n\r\n",
        Some("hello"),
        true,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n5\r\nhello\r\n0\r\nA: 1\r\nB: 2\r\n\r\n",
        Some("hello"),
        true,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nuntil the end",
        Some("until the end"),
        false,
    ),
    // No answer, or no whole one.
    ("GET", "", None, false),
    ("GET", "HTTP/1.1 200 O", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\nhello", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nhello", None, false),
    ("GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None, false),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        None,
        false,
    ),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        None,
        false,
    ),
    ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n;x\r\n\r\n", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", None, false),
    (
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\n\r\n",
        None,
        false,
    ),
    ("GET", "HTTP/1.1 200 OK\r\nName : x\r\nContent-Length: 0\r\n\r\n", None, false),
    ("GET", "HTTP/1.1 200 OK\r\nA: x\r\n folded\r\nContent-Length: 0\r\n\r\n", None, false),
    ("GET", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", None, false),
    ("GET", "HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n", None, false),
    ("GET", "hello\r\n\r\n", None, false),
];

#[tokio::test]
async fn an_answer_ends_where_it_says_however_it_comes() {
    for &(method, answer, body, again) in ANSWERS {
        let bytes = answer.as_bytes();
        let (outcome, _) = ask(in_one(bytes), method).await;
        assert_eq!(ask(in_bytes(bytes), method).await.0, outcome, "byte by byte: {answer:?}");
        // hyper stands as a witness.
        assert_eq!(ask_hyper(in_one(bytes), method).await, outcome, "hyper: {answer:?}");
        let got = match &outcome {
            Outcome::Whole { body, .. } => Some(str::from_utf8(body).unwrap()),
            Outcome::None | Outcome::Broken(_) => None,
        };
        assert_eq!(got, body, "{answer:?}: {outcome:?}");
        let by_end = body == Some("until the end") || answer.ends_with("1.0 200 OK\r\n\r\n");
        if body.is_some() && !by_end {
            let open = Script { ends: false, ..in_one(bytes) };
            assert_eq!(ask(open, method).await, (outcome, again), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn what_is_too_long_is_no_answer() {
    let long = "x".repeat(64 << 10);
    let many = "A: x\r\n".repeat(101);
    let most = "A: x\r\n".repeat(99);
    for (answer, is_one) in [
        (format!("HTTP/1.1 200 OK\r\nA: {long}\r\nContent-Length: 0\r\n\r\n"), false),
        (format!("HTTP/1.1 200 OK\r\nA: {long}{long}"), false),
        (format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n"), false),
        (format!("HTTP/1.1 200 OK\r\n{most}Content-Length: 0\r\n\r\n"), true),
    ] {
        let outcome = ask(in_one(answer.as_bytes()), "GET").await.0;
        assert_eq!(outcome != Outcome::None, is_one, "{} bytes", answer.len());
    }
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extended = format!("1;{}\r\nx\r\n", "y".repeat(1000)).repeat(20);
    for body in [
        format!("1;{long}"),
        format!("{extended}0\r\n\r\n"),
        format!("0\r\nA: {long}\r\n\r\n"),
        format!("0\r\n{many}\r\n"),
    ] {
        let outcome = ask(in_one(format!("{chunked}{body}").as_bytes()), "GET").await.0;
        assert_eq!(outcome, Outcome::Broken(200), "{} bytes", body.len());
    }
}

#[tokio::test]
async fn a_change_of_protocol_keeps_what_came_with_it() {
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nearly";
    let mut wire = Wire::new(in_one(answer));
    wire.send(&head("GET", "/", &[("host", "x")]), nothing());
    let answer = poll_fn(|cx| wire.poll_answer(cx)).await.unwrap();
    assert_eq!(answer.status(), 101);
    assert!(wire.has_answered() && !wire.is_ready());
    assert_eq!(wire.into_parts().1, "early");
}

#[tokio::test]
async fn one_connection_has_many_requests_and_none_that_it_cannot_have() {
    let one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx".to_vec();
    let mut wire = Wire::new(Script::default());
    assert!(wire.is_ready());
    let script = Script { pieces: [one].into(), ends: true, ..Script::default() };
    wire.io = Box::new(script.clone());
    wire.send(&head("GET", "/", &[("host", "x")]), nothing());
    assert!(!wire.is_ready() && !wire.is_over());
    poll_fn(|cx| wire.poll_answer(cx)).await.unwrap();
    assert_eq!(wire.left().exact(), Some(1));
    assert!(poll_fn(|cx| wire.poll_body(cx)).await.is_some());
    // The answer is whole, and the backend has ended the connection meanwhile.
    assert!(wire.has_answered() && wire.is_free());
    assert!(!wire.is_ready() && wire.is_over());
}

#[tokio::test]
async fn an_end_before_the_request_is_known_to_be_one() {
    let sent = Arc::new(Mutex::new(b"of the request before".to_vec()));
    let mut wire = Wire::new(Script { ends: true, sent: Arc::clone(&sent), ..Script::default() });
    wire.send(&head("POST", "/", &[("host", "x")]), nothing());
    let broken = poll_fn(|cx| wire.poll_answer(cx)).await.unwrap_err();
    assert_eq!(broken, Broken { why: Why::Closed, written: false });
    assert_eq!(*sent.lock().unwrap(), b"of the request before");
}

#[tokio::test]
async fn a_request_says_its_length_once() {
    let announce = ("trailer", "X-Sum, content-length");
    let requests: &[Asked<'_>] = &[
        (
            "GET",
            "/a?b",
            &[("host", "x"), ("te", "trailers")],
            nothing,
            "GET /a?b HTTP/1.1\r\nhost: x\r\n\r\n",
        ),
        ("OPTIONS", "*", &[], nothing, "OPTIONS * HTTP/1.1\r\n\r\n"),
        ("GET", "?b", &[], nothing, "GET /?b HTTP/1.1\r\n\r\n"),
        (
            "POST",
            "/",
            &[("content-length", "0")],
            nothing,
            "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "POST",
            "/",
            &[("content-length", "7")],
            nothing,
            "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "POST",
            "/",
            &[("content-length", "9"), ("transfer-encoding", "x")],
            || Full::from("hello").map_err(io::Error::other).boxed(),
            "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello",
        ),
        (
            "PUT",
            "/",
            &[("host", "x")],
            || frames(vec![data("hello"), data(""), data(" there")]),
            "PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
             5\r\nhello\r\n6\r\n there\r\n0\r\n\r\n",
        ),
        (
            "PUT",
            "/",
            &[("content-length", "5")],
            || frames(vec![]),
            "PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "GET",
            "/",
            &[announce],
            || frames(vec![data("x"), trailers()]),
            "GET / HTTP/1.1\r\ntrailer: X-Sum, content-length\r\ntransfer-encoding: chunked\r\n\r\n\
             1\r\nx\r\n0\r\nx-sum: 1\r\n\r\n",
        ),
        (
            "GET",
            "/",
            &[],
            || frames(vec![data("x"), trailers()]),
            "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        ),
    ];
    for (method, target, fields, body, expected) in requests {
        for width in [0, 1, 7] {
            let sent = Arc::<Mutex<Vec<u8>>>::default();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec();
            let pieces = [answer].into();
            let script = Script { pieces, ends: false, sent: Arc::clone(&sent), width };
            let mut wire = Wire::new(script);
            wire.send(&head(method, target, fields), body());
            poll_fn(|cx| wire.poll_answer(cx)).await.unwrap();
            assert!(poll_fn(|cx| wire.poll_ready(cx)).await, "{expected:?}");
            assert_eq!(str::from_utf8(&sent.lock().unwrap()).unwrap(), *expected, "{width}");
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_ended() {
    let broken = || Err(io::Error::other("the client is gone"));
    let body = StreamBody::new(futures_util::stream::iter([Ok(data("hello")), broken()]));
    let script = Script { ends: true, ..Script::default() };
    let sent = Arc::clone(&script.sent);
    let mut wire = Wire::new(script);
    wire.send(&head("PUT", "/", &[("host", "x")]), BodyExt::boxed(body));
    let broken = poll_fn(|cx| wire.poll_answer(cx)).await.unwrap_err();
    assert_eq!(broken, Broken { why: Why::Closed, written: true });
    assert!(wire.is_over());
    assert!(!sent.lock().unwrap().ends_with(b"0\r\n\r\n"));
}

/// Answers as backends give them, with something wrong here and there.
fn answers() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        8 => prop::sample::select(vec![
            "HTTP/1.1 200 OK\r\n", "HTTP/1.0 200 OK\r\n", "HTTP/1.1 204 \r\n", "HTTP/1.1 100 C\r\n\r\n",
            "Content-Length: 5\r\n", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n",
            "Connection: close\r\n", "Connection: keep-alive\r\n", "A: b\r\n", "\r\n", "hello", "0\r\n",
            "5\r\n", "3;x=y\r\n", "0\r\n\r\n", "5\r\nhello\r\n", "T: 1\r\n", "\n", " ", ":", ",", "a",
        ]).prop_map(|part| part.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    let known = prop::sample::select(ANSWERS.iter().map(|it| it.1.as_bytes()).collect::<Vec<_>>());
    let changed =
        (known, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(known, at, byte)| {
            let mut known = known.to_vec();
            if !known.is_empty() {
                let at = at.index(known.len());
                known[at] = byte;
            }
            known
        });
    prop_oneof![prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat()), changed]
}

/// Whether it is understood as hyper does, or refused for what hyper should refuse as well: a line of a chunked
/// body's frame that ends with a bare line feed.
fn is_as_hyper_or_stricter(bytes: &[u8], ours: &Outcome, theirs: &Outcome) -> bool {
    let bare = bytes.windows(2).any(|pair| pair[0] != b'\r' && pair[1] == b'\n');
    ours == theirs || bare && matches!(ours, Outcome::Broken(_))
}

/// Each byte of each known answer in turn is another one of those that mean something.
#[tokio::test]
async fn a_changed_byte_is_understood_as_hyper_does() {
    const OTHERS: &[u8] = b"\r\n \t:,;=\"059ax\0\x7f\xff";
    for (_, known, ..) in ANSWERS {
        for at in 0..known.len() {
            for other in OTHERS {
                let mut bytes = known.as_bytes().to_vec();
                bytes[at] = *other;
                let (ours, _) = ask(in_one(&bytes), "GET").await;
                let theirs = ask_hyper(in_one(&bytes), "GET").await;
                let said = bytes.escape_ascii();
                assert!(
                    is_as_hyper_or_stricter(&bytes, &ours, &theirs),
                    "{said}: {ours:?}, {theirs:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever comes, in whatever pieces, is understood in one way, and as hyper does.
    #[test]
    fn an_answer_is_understood_as_hyper_does(
        bytes in answers(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        method in prop::sample::select(vec!["GET", "HEAD"]),
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let mut from = 0;
        let pieces = cuts.iter().map(|&cut| bytes[std::mem::replace(&mut from, cut)..cut].to_vec());
        let pieces: VecDeque<_> = pieces.filter(|piece| !piece.is_empty()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (outcome, _) = ask(in_one(&bytes), method).await;
            let cut = Script { pieces, ends: true, ..Script::default() };
            prop_assert_eq!(&ask(cut, method).await.0, &outcome);
            let theirs = ask_hyper(in_one(&bytes), method).await;
            prop_assert!(is_as_hyper_or_stricter(&bytes, &outcome, &theirs), "{outcome:?}, {theirs:?}");
            Ok(())
        })?;
    }
}
