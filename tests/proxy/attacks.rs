//! What clients of HTTP/2 do that mean harm, and what becomes of each.

use ballast::proxy::Status;

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, PUSH_PROMISE, RST_STREAM,
    SETTINGS, WHOLE, WINDOW_UPDATE, field, fields, frame, get, length,
};

/// Errors (RFC 9113, section 7).
pub(crate) const PROTOCOL: u32 = 1;
pub(crate) const FLOW_CONTROL: u32 = 3;
pub(crate) const STREAM_CLOSED: u32 = 5;
pub(crate) const FRAME_SIZE: u32 = 6;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const CALM: u32 = 11;

/// More frames in vain than a client has credit for, however slow the machine is that sends them.
const FLOOD: usize = 20_000;

/// What becomes of an attack.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    /// The stream 1 is answered with this status, and the connection goes on.
    Status(u16),
    /// The stream 1 is reset, and the connection goes on.
    Reset(u32),
    /// The connection ends with this error.
    Away(u32),
    /// Nothing: it does no harm.
    Nothing,
}

/// How it is counted, in `status`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counted {
    Resets(&'static str),
    Away(&'static str),
    Refused(&'static str),
    Not,
}

impl Counted {
    /// How often; nothing if not at all.
    pub(crate) fn of(self, counts: &Status) -> Option<u64> {
        match self {
            Self::Resets(error) => counts.resets.get(error).copied(),
            Self::Away(error) => counts.sent_away.get(error).copied(),
            Self::Refused(reason) => counts.refused.get(reason).copied(),
            Self::Not => {
                let all = [&counts.resets, &counts.sent_away, &counts.refused];
                all.iter().all(|it| it.is_empty()).then_some(1)
            }
        }
    }
}

/// An attack, after the preface and empty settings.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) due: Due,
    pub(crate) counted: Counted,
    /// A backend may see requests of it: they are as they should be.
    pub(crate) is_seen: bool,
}

fn attack(name: &'static str, bytes: Vec<u8>, due: Due, counted: Counted) -> Attack {
    Attack { name, bytes, due, counted, is_seen: false }
}

/// The same frames again and again.
fn flood(name: &'static str, bytes: &[u8], counted: Counted) -> Attack {
    attack(name, bytes.repeat(FLOOD), Due::Away(CALM), counted)
}

/// The head of a request that nobody objects to.
pub(crate) fn plain() -> Vec<u8> {
    fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")])
}

/// A request in one frame, of these fields and no others.
fn request(all: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, WHOLE, 1, &fields(all))
}

/// A request that is as it should be but for this.
fn with(more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, WHOLE, 1, &get(more))
}

/// Requests whose heads are wrong: malformed (RFC 9113, section 8.1.1), so their streams are reset, and the
/// connection goes on; or refused as those of HTTP/1 are.
pub(crate) fn heads() -> Vec<Attack> {
    let reset =
        |name, bytes| attack(name, bytes, Due::Reset(PROTOCOL), Counted::Resets("protocol_error"));
    let refused = |name, bytes, status, reason| {
        attack(name, bytes, Due::Status(status), Counted::Refused(reason))
    };
    let (method, scheme, path, host, row) = (
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "x"),
        ("x-row", "attack"),
    );
    let long = "x".repeat(20_000);
    let many: Vec<_> = (0..200).map(|_| ("x", "1")).collect();
    vec![
        reset("no :method", request(&[scheme, path, host, row])),
        reset("no :scheme", request(&[method, path, host, row])),
        reset("empty :path", request(&[method, scheme, (":path", ""), host, row])),
        reset("two :method", request(&[method, method, scheme, path, host, row])),
        reset("two :path", request(&[method, scheme, path, (":path", "/b"), host, row])),
        reset("two :authority", request(&[method, scheme, path, host, (":authority", "y"), row])),
        reset("pseudo-header after a field", request(&[method, scheme, host, row, path])),
        reset(":status of a request", request(&[method, scheme, path, (":status", "200"), row])),
        reset(":protocol", with(&[(":protocol", "websocket")])),
        reset(":path without a slash", request(&[method, scheme, (":path", "a"), row])),
        reset("connection", with(&[("connection", "keep-alive")])),
        reset("keep-alive", with(&[("keep-alive", "timeout=5")])),
        reset("proxy-connection", with(&[("proxy-connection", "close")])),
        reset("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        reset("upgrade", with(&[("upgrade", "h2c")])),
        reset("te other than trailers", with(&[("te", "gzip")])),
        reset("a length that is none", with(&[("content-length", "five")])),
        reset("a length without a body", with(&[("content-length", "5")])),
        reset("two lengths", with(&[("content-length", "0"), ("content-length", "5")])),
        reset("a body longer than it says", {
            let head = frame(HEADERS, END_HEADERS, 1, &get(&[("content-length", "2")]));
            [head, frame(DATA, END_STREAM, 1, b"hello")].concat()
        }),
        reset("a stream that depends on itself", {
            let head = [&[0, 0, 0, 1, 16][..], &get(&[])].concat();
            frame(HEADERS, WHOLE | 0x20, 1, &head)
        }),
        reset(":path with a space", request(&[method, scheme, (":path", "/a b"), host, row])),
        reset(":path with a line", {
            request(&[method, scheme, (":path", "/ HTTP/1.1\r\nx: y"), host, row])
        }),
        refused("no :path", request(&[method, scheme, row]), 400, "target"),
        refused("another host", with(&[("host", "y")]), 400, "host"),
        refused("two hosts", with(&[("host", "x"), ("host", "x")]), 400, "host"),
        refused(
            "user in the host",
            request(&[method, scheme, path, (":authority", "u@x"), row]),
            400,
            "target",
        ),
        refused(
            "another scheme",
            request(&[method, (":scheme", "ftp"), path, host, row]),
            400,
            "target",
        ),
        refused("CONNECT", request(&[(":method", "CONNECT"), host, row]), 405, "method"),
        refused("TRACE", request(&[(":method", "TRACE"), scheme, path, host, row]), 405, "method"),
        refused(
            "long target",
            {
                let path = format!("/{long}");
                let mut head = fields(&[method, scheme, (":path", &path), host, row]);
                let rest = head.split_off(10_000);
                [frame(HEADERS, END_STREAM, 1, &head), frame(CONTINUATION, END_HEADERS, 1, &rest)]
                    .concat()
            },
            414,
            "target_too_long",
        ),
        refused("200 fields", with(&many), 431, "too_large"),
    ]
}

/// What is wrong with a connection, or bounded on it.
pub(crate) fn connections() -> Vec<Attack> {
    let away =
        |name, bytes, code, counted| attack(name, bytes, Due::Away(code), Counted::Away(counted));
    let protocol = |name, bytes| away(name, bytes, PROTOCOL, "protocol_error");
    let open = frame(HEADERS, END_HEADERS, 1, &get(&[]));
    let window = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let begun = |more: &[u8]| [open.as_slice(), more].concat();
    // 4 KiB in the table, and then two bytes for it each time: 60 times the list that may be.
    let bomb = {
        let mut head = get(&[]);
        head.push(0x40);
        length(&mut head, 1, 7, 0);
        head.push(b'b');
        length(&mut head, 3_900, 7, 0);
        head.extend(vec![b'x'; 3_900]);
        head.extend(vec![0xbe; 1000]);
        frame(HEADERS, WHOLE, 1, &head)
    };
    vec![
        protocol("a window of nothing, of the connection", window(0, 0)),
        protocol("a window of nothing, of a stream", begun(&window(1, 0))),
        away(
            "a window beyond numbers",
            window(0, u32::MAX >> 1),
            FLOW_CONTROL,
            "flow_control_error",
        ),
        protocol("settings of a stream", frame(SETTINGS, 0, 1, &[])),
        protocol("settings of an odd length", frame(SETTINGS, 0, 0, &[0; 5])),
        protocol("windows beyond numbers by settings", {
            frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])
        }),
        protocol("a push", begun(&frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]))),
        protocol("an even stream", frame(HEADERS, WHOLE, 2, &get(&[]))),
        protocol("an older stream", {
            [frame(HEADERS, WHOLE, 5, &get(&[])), frame(HEADERS, WHOLE, 3, &get(&[]))].concat()
        }),
        protocol("data of no stream", frame(DATA, END_STREAM, 1, b"hello")),
        protocol("data of stream 0", frame(DATA, END_STREAM, 0, b"hello")),
        protocol("a reset of no stream", frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())),
        protocol("a head that is never whole", {
            [frame(HEADERS, END_STREAM, 1, &get(&[])), frame(PING, 0, 0, &[0; 8])].concat()
        }),
        protocol("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &get(&[]))),
        protocol("more padding than there is", frame(DATA, 8, 0, &[9, 0])),
        // h2 sees no more in them than in fields that cannot be decoded.
        protocol("unknown pseudo-header", {
            request(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":x", "1")])
        }),
        protocol("upper-case name", with(&[("X-Upper", "1")])),
        protocol("a line in a value", with(&[("x", "1\r\ny: 2")])),
        protocol("an index that is none", frame(HEADERS, WHOLE, 1, &[0xff, 0x7f])),
        away(
            "a frame that is too long",
            frame(PING, 0, 0, &[0; 20_000]),
            FRAME_SIZE,
            "frame_size_error",
        ),
        away("an HPACK bomb", bomb, CALM, "enhance_your_calm"),
        away(
            "a continuation flood",
            {
                let head = frame(HEADERS, END_STREAM, 1, &get(&[]));
                [head, frame(CONTINUATION, 0, 1, &field("x", "1")).repeat(FLOOD)].concat()
            },
            CALM,
            "enhance_your_calm",
        ),
        away(
            "empty continuations",
            {
                let head = frame(HEADERS, END_STREAM, 1, &get(&[]));
                [head, frame(CONTINUATION, 0, 1, &[]).repeat(FLOOD)].concat()
            },
            CALM,
            "enhance_your_calm",
        ),
    ]
}

/// What is harmless once, and is sent again and again.
pub(crate) fn floods() -> Vec<Attack> {
    let calm = Counted::Away("enhance_your_calm");
    let open = frame(HEADERS, END_HEADERS, 1, &get(&[]));
    // Each stream is opened and then not wanted any more.
    let streams = |then: &dyn Fn(u32) -> Vec<u8>| -> Vec<u8> {
        let flags = END_HEADERS;
        let one =
            |at: u32| [frame(HEADERS, flags, 2 * at + 1, &get(&[])), then(2 * at + 1)].concat();
        (0..2000).flat_map(one).collect()
    };
    let seen = |attack| Attack { is_seen: true, ..attack };
    vec![
        flood("pings", &frame(PING, 0, 0, &[0; 8]), calm),
        flood("settings", &frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]), calm),
        flood("priorities", &frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]), calm),
        flood("frames that nobody knows", &frame(99, 0, 0, &[]), calm),
        flood("windows a byte wider", &frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()), calm),
        seen(attack(
            "empty data",
            [open, frame(DATA, 0, 1, &[]).repeat(FLOOD)].concat(),
            Due::Away(CALM),
            calm,
        )),
        // CVE-2023-44487.
        seen(attack(
            "rapid reset",
            streams(&|stream| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())),
            Due::Away(CALM),
            calm,
        )),
        // CVE-2025-8671: the proxy is made to reset them.
        seen(attack(
            "windows that make streams be reset",
            streams(&|stream| frame(WINDOW_UPDATE, 0, stream, &(u32::MAX >> 1).to_be_bytes())),
            Due::Away(CALM),
            calm,
        )),
        attack(
            "heads that make streams be reset",
            (0..FLOOD as u32)
                .flat_map(|at| frame(HEADERS, WHOLE, 2 * at + 1, &fields(&[("x", "1")])))
                .collect(),
            Due::Away(CALM),
            calm,
        ),
    ]
}

/// What looks odd and is allowed.
pub(crate) fn harmless() -> Vec<Attack> {
    let nothing = |name, bytes| attack(name, bytes, Due::Nothing, Counted::Not);
    vec![
        nothing("a frame that nobody knows", frame(99, 0xff, 7, b"hello")),
        nothing("priorities of streams that are not there", {
            frame(PRIORITY, 0, 7, &[0, 0, 0, 3, 16]).repeat(100)
        }),
        nothing("a hundred pings", frame(PING, 0, 0, &[0; 8]).repeat(100)),
        nothing("a reserved bit", frame(PING, 0, 1 << 31, &[0; 8])),
    ]
}
