//! Where the proxy does not do as nginx 1.22 does, all of it, with the reason.

/// A difference: in which cases, what comes of them here, and why.
pub(crate) struct Difference {
    /// Failure and request, as in the table's rows: `*` stands for any.
    pub(crate) cases: &'static [(&'static str, &'static str)],
    /// Status that the client is given.
    pub(crate) status: u16,
    /// Requests that reach the first backend, and the second.
    pub(crate) asked: (usize, usize),
    /// It is so only if one side is faster than the other; otherwise it is as with nginx.
    pub(crate) sometimes: bool,
    pub(crate) why: &'static str,
}

/// All of them.
pub(crate) const DIFFERENCES: &[Difference] = &[
    Difference {
        cases: &[
            ("stale", "GET"),
            ("stale", "HEAD"),
            ("stale", "OPTIONS"),
            ("stale", "DELETE"),
            ("stale", "PUT"),
            ("stale", "PUT chunked"),
            ("stale", "PUT large"),
            ("stale", "GET 1.0"),
            ("stale", "POST with a key"),
        ],
        status: 200,
        asked: (1, 0),
        sometimes: false,
        why: "a kept connection that was closed is no failure of the backend: it is asked again on a \
              new one, not given up for another",
    },
    Difference {
        cases: &[
            ("close", "POST with a key"),
            ("reset", "POST with a key"),
            ("part of a head", "POST with a key"),
            ("silent", "POST with a key"),
        ],
        status: 200,
        asked: (1, 1),
        sometimes: false,
        why: "`Idempotency-Key` says that the backend knows a request again",
    },
    Difference {
        cases: &[
            ("close at once", "POST"),
            ("close at once", "POST chunked"),
            ("close at once", "POST without a body"),
            ("close at once", "PATCH"),
            ("close at once", "LOCK"),
            ("close at once", "POST with a key"),
        ],
        status: 200,
        asked: (0, 1),
        sometimes: true,
        why: "nothing of the request had been written when the backend ended the connection, so that \
              it cannot have it; nginx counts it as sent from the moment that it wants to write",
    },
    Difference {
        cases: &[("garbage", "*")],
        status: 502,
        asked: (1, 0),
        sometimes: false,
        why: "nginx takes what is no head for an answer of HTTP/0.9 and passes it on",
    },
    Difference {
        cases: &[("two lengths", "*")],
        status: 502,
        asked: (1, 0),
        sometimes: false,
        why: "an answer with two lengths is read in two ways by who comes after; nginx passes it on",
    },
    Difference {
        cases: &[("interim", "*")],
        status: 200,
        asked: (1, 0),
        sometimes: false,
        why: "nginx 1.22 takes an interim answer (103) for the final one",
    },
];

/// The difference for a row, if there is one.
pub(crate) fn of(failure: &str, request: &str) -> Option<&'static Difference> {
    DIFFERENCES.iter().find(|difference| {
        difference
            .cases
            .iter()
            .any(|(of, with)| *of == failure && (*with == "*" || *with == request))
    })
}

/// Attacks that are refused here and not by nginx, with the status here.
pub(crate) const STRICTER: &[(&str, u16, &str)] = &[
    ("bare LF", 400, "a line that ends with LF alone is another line to others"),
    ("bare LF in fields", 400, "as above"),
    ("HTTP/1.2", 505, "there is no such version"),
    ("chunk size with a space", 400, "RFC 9112 knows no space there"),
    ("bare LF after a chunk size", 400, "as for lines"),
    ("length in a trailer", 400, "RFC 9110, section 6.5.1 forbids it"),
    ("name with parentheses", 400, "no token (RFC 9110, section 5.6.2); nginx drops the field"),
    ("field without a colon", 400, "no field; nginx drops it"),
    ("user in the host", 400, "no host"),
    ("200 fields", 431, "too many; nginx has no such limit"),
    ("CONNECT", 405, "the method, not the request line, is what is refused"),
];
