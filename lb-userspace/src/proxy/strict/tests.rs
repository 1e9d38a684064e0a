use proptest::prelude::*;

use super::*;

/// What goes on of the bytes, given in these pieces, and how it ended.
fn pass(pieces: &[&[u8]]) -> (Vec<u8>, Result<(), Refusal>) {
    let mut strict = Strict::default();
    let mut out = Vec::new();
    for piece in pieces {
        let held = !strict.held().is_empty();
        let Fed { passed, refusal } = strict.feed(piece);
        if held {
            out.extend(strict.held().drain(..passed));
        } else {
            out.extend_from_slice(&piece[..passed]);
        }
        if let Some(refusal) = refusal {
            return (out, Err(refusal));
        }
    }
    (out, Ok(()))
}

#[test]
fn it_is_known_where_nothing_has_begun() {
    for (text, between) in [
        ("", true),
        ("G", false),
        (GET, true),
        ("GET /a HTTP/1.1\r\nHost: x\r\n\r\nG", false),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhell", false),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", true),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", false),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true),
    ] {
        let mut strict = Strict::default();
        assert_eq!(strict.feed(text.as_bytes()).refusal, None);
        assert_eq!(strict.is_between(), between, "{text:?}");
    }
}

fn refusal(bytes: &[u8]) -> Option<Refusal> {
    pass(&[bytes]).1.err()
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn what_is_right_goes_on_unchanged() {
    for good in [
        GET,
        "\r\nGET / HTTP/1.0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0a;x=\"y\"\r\nhellohello\r\n0\r\nT: 1\r\n\r\n",
        "GET /\u{e4} HTTP/1.1\r\nHost: x\r\nCookie:\t a=\u{e4}; b \r\nX:\r\n\r\n",
        "BREW http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let twice = format!("{good}{GET}");
        let (out, end) = pass(&[twice.as_bytes()]);
        assert_eq!((out, end), (twice.clone().into_bytes(), Ok(())), "{good:?}");
        // Byte by byte too.
        let bytes: Vec<&[u8]> = twice.as_bytes().chunks(1).collect();
        assert_eq!(pass(&bytes), (twice.into_bytes(), Ok(())), "{good:?}");
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let head = |lines: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n");
    let chunked = |body: &str| format!("{}{body}", head("Transfer-Encoding: chunked"));
    for (bytes, expected) in [
        (head("Content-Length: 5\r\nTransfer-Encoding: chunked"), Refusal::Framing),
        (head("Transfer-Encoding: chunked\r\nContent-Length: 5"), Refusal::Framing),
        (head("Content-Length: 5\r\nContent-Length: 5"), Refusal::Framing),
        (head("Content-Length: 5\r\nContent-Length: 6"), Refusal::Framing),
        (head("Content-Length: 5, 5"), Refusal::Framing),
        (head("Content-Length: +5"), Refusal::Framing),
        (head("Content-Length: -5"), Refusal::Framing),
        (head("Content-Length: 0x5"), Refusal::Framing),
        (head("Content-Length: 5 5"), Refusal::Framing),
        (head("Content-Length:"), Refusal::Framing),
        (head("Content-Length: 99999999999999999999"), Refusal::Framing),
        (head("Content-Length: 18446744073709551615"), Refusal::Framing),
        (head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Refusal::Framing),
        (head("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"), Refusal::Framing),
        (head("Transfer-Encoding: gzip, chunked"), Refusal::Encoding),
        (head("Transfer-Encoding: identity"), Refusal::Encoding),
        (head("Transfer-Encoding: xchunked"), Refusal::Encoding),
        (head("Transfer-Encoding: \"chunked\""), Refusal::Encoding),
        (head("Transfer-Encoding: chunked, chunked"), Refusal::Encoding),
        (head("Transfer-Encoding:\u{b}chunked"), Refusal::Field),
        (head("Transfer-Encoding : chunked"), Refusal::Field),
        (head("Content-Length : 5"), Refusal::Field),
        (head(" Content-Length: 5"), Refusal::Field),
        (head("X: 1\r\n folded"), Refusal::Field),
        (head("X: 1\r\n\tfolded: 1"), Refusal::Field),
        (head("X: 1\rContent-Length: 5"), Refusal::Field),
        (head("X: 1\nContent-Length: 5"), Refusal::Field),
        (head("X: a\0b"), Refusal::Field),
        (head("X: a\u{7f}b"), Refusal::Field),
        (head("no colon"), Refusal::Field),
        (head(": no name"), Refusal::Field),
        (head("X\0: 1"), Refusal::Field),
        (head("X(y): 1"), Refusal::Field),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), Refusal::Framing),
        ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n".into(), Refusal::Line),
        ("GET / HTTP/1.1 \r\nHost: x\r\n\r\n".into(), Refusal::Line),
        (" GET / HTTP/1.1\r\nHost: x\r\n\r\n".into(), Refusal::Line),
        ("GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n".into(), Refusal::Line),
        ("GET /\r\n\r\n".into(), Refusal::Line),
        ("GET / http/1.1\r\nHost: x\r\n\r\n".into(), Refusal::Line),
        ("GET / HTTP/1.10\r\nHost: x\r\n\r\n".into(), Refusal::Line),
        ("G@T / HTTP/1.1\r\nHost: x\r\n\r\n".into(), Refusal::Line),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n".into(), Refusal::Line),
        ("GET / HTTP/1.1\nHost: x\n\n".into(), Refusal::Line),
        ("GET / HTTP/1.1\nHost: x\r\n\r\n".into(), Refusal::Line),
        ("GET / HTTP/1.2\r\nHost: x\r\n\r\n".into(), Refusal::Version),
        ("GET / HTTP/3.7\r\nHost: x\r\n\r\n".into(), Refusal::Version),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), Refusal::Version),
        (chunked("5 \r\nhello\r\n"), Refusal::Chunk),
        (chunked(" 5\r\nhello\r\n"), Refusal::Chunk),
        (chunked("0x5\r\nhello\r\n"), Refusal::Chunk),
        (chunked("+5\r\nhello\r\n"), Refusal::Chunk),
        (chunked("5\nhello\r\n"), Refusal::Chunk),
        (chunked("5\rhello\r\n"), Refusal::Chunk),
        (chunked("5;x\ny\r\nhello\r\n"), Refusal::Chunk),
        (chunked("5\r\nhello!\r\n"), Refusal::Chunk),
        (chunked("5\r\nhello\n0\r\n\r\n"), Refusal::Chunk),
        (chunked("\r\nhello\r\n"), Refusal::Chunk),
        (chunked("ffffffffffffffff1\r\nhello\r\n"), Refusal::Chunk),
        (chunked(&format!("5;{}\r\n", "x".repeat(300))), Refusal::Chunk),
        (chunked("0\r\nContent-Length: 5\r\n\r\n"), Refusal::Chunk),
        (chunked("0\r\nX: 1\r\n folded\r\n\r\n"), Refusal::Chunk),
        (chunked("0\r\nX: 1\n\r\n"), Refusal::Chunk),
        (chunked(&format!("0\r\nX: {}\r\n\r\n", "x".repeat(9000))), Refusal::Chunk),
    ] {
        assert_eq!(refusal(bytes.as_bytes()), Some(expected), "{bytes:?}");
        let pieces: Vec<&[u8]> = bytes.as_bytes().chunks(1).collect();
        assert!(pass(&pieces).1.is_err(), "byte by byte: {bytes:?}");
    }
}

#[test]
fn floods_are_refused() {
    let many = "X: 1\r\n".repeat(head::HEADERS);
    assert_eq!(refusal(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()), None);
    let more = format!("GET / HTTP/1.1\r\n{many}X: 1\r\n\r\n");
    assert_eq!(refusal(more.as_bytes()), Some(Refusal::TooLarge));
    let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD_BYTES));
    assert_eq!(refusal(long.as_bytes()), Some(Refusal::TooLarge), "before it has ended");
    let target = format!("GET /{}", "x".repeat(20_000));
    assert_eq!(refusal(target.as_bytes()), Some(Refusal::TargetTooLong), "before it has ended");
    let whole = format!("{target} HTTP/1.1\r\n\r\n");
    assert_eq!(refusal(whole.as_bytes()), Some(Refusal::TargetTooLong));
}

#[test]
fn nothing_of_a_bad_head_goes_on() {
    let bytes = format!("{GET}POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx");
    for size in [1, 7, 1000] {
        let pieces: Vec<&[u8]> = bytes.as_bytes().chunks(size).collect();
        let (out, end) = pass(&pieces);
        assert_eq!(end, Err(Refusal::Framing));
        assert_eq!(out, GET.as_bytes(), "in pieces of {size}");
    }
}

/// Pieces of requests, right and wrong, so that their combinations come close to both.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("GET / HTTP/1.1\r\n".to_owned()),
        Just("POST /x HTTP/1.0\r\n".to_owned()),
        Just("Host: x\r\n".to_owned()),
        Just("Content-Length: 3\r\n".to_owned()),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("3\r\nabc\r\n".to_owned()),
        Just("0\r\n".to_owned()),
        Just("abc".to_owned()),
        Just("\n".to_owned()),
        Just("\r".to_owned()),
        "[ -~]{0,4}",
        any::<char>().prop_map(String::from),
    ]
}

proptest! {
    /// How the bytes are cut into pieces makes no difference to what goes on, and nothing goes on that
    /// was not sent.
    #[test]
    fn pieces_make_no_difference(
        fragments in proptest::collection::vec(fragment(), 0..24),
        cuts in proptest::collection::vec(1..40_usize, 1..12),
    ) {
        let bytes = fragments.concat().into_bytes();
        let (whole, end) = pass(&[&bytes]);
        let mut rest = &bytes[..];
        let mut pieces = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, left) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = left;
        }
        let (out, cut_end) = pass(&pieces);
        prop_assert_eq!(end.is_err(), cut_end.is_err());
        prop_assert!(bytes.starts_with(&out));
        if end.is_ok() {
            prop_assert_eq!(out, whole);
        }
    }
}
