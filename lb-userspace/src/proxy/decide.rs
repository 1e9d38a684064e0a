//! What follows when an attempt at a backend has failed: nginx's `proxy_next_upstream`, with the
//! corrections that `docs/decisions/0020-proxy.md` names. Pure: facts in, a decision out.
//!
//! An attempt fails in one of the ways of [`Failure`]. Each belongs to a [`Class`], which the
//! configuration allows or does not. A request that may have reached a backend is repeated only if
//! that does no harm: its method is idempotent (RFC 9110, section 9.2.2; nginx counts all but POST,
//! PATCH and LOCK), it has an `Idempotency-Key`, or the configuration says `non_idempotent`.

use std::time::Duration;

use hyper::{Method, StatusCode};

/// What makes a failure a reason to try the next backend: a word of `next_upstream` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// No connection, or one that ended before a whole answer head.
    Error,
    /// Too long to connect, to send or to answer.
    Timeout,
    /// An answer head that cannot be understood.
    InvalidHeader,
    /// Status 500.
    Http500,
    /// Status 502.
    Http502,
    /// Status 503.
    Http503,
    /// Status 504.
    Http504,
    /// Status 403.
    Http403,
    /// Status 404.
    Http404,
    /// Status 429.
    Http429,
    /// Not a failure: requests that are not idempotent are repeated too.
    NonIdempotent,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Error,
        Self::Timeout,
        Self::InvalidHeader,
        Self::Http500,
        Self::Http502,
        Self::Http503,
        Self::Http504,
        Self::Http403,
        Self::Http404,
        Self::Http429,
        Self::NonIdempotent,
    ];

    /// The class of an answer with this status; `None` if it is an answer like any other.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Option<Self> {
        match status.as_u16() {
            500 => Some(Self::Http500),
            502 => Some(Self::Http502),
            503 => Some(Self::Http503),
            504 => Some(Self::Http504),
            403 => Some(Self::Http403),
            404 => Some(Self::Http404),
            429 => Some(Self::Http429),
            _ => None,
        }
    }
}

/// A set of classes: `next_upstream`. The empty one is nginx's `off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes(u16);

impl Classes {
    /// The set of these.
    #[must_use]
    pub fn of(classes: &[Class]) -> Self {
        Self(classes.iter().fold(0, |bits, class| bits | 1 << *class as u16))
    }

    /// Whether the class is one of them.
    #[must_use]
    pub fn has(self, class: Class) -> bool {
        self.0 & (1 << class as u16) != 0
    }
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The backend refused the connection.
    Refused,
    /// There is no way to the backend.
    Unreachable,
    /// This node could not even try: it has no file descriptor or no port left.
    Local,
    /// No connection in time.
    ConnectTimeout,
    /// The connection could not be made secure.
    Handshake,
    /// The connection ended while the request was written, or before a whole answer head.
    Closed,
    /// A write took too long.
    SendTimeout,
    /// The answer's head took too long, or the backend is known to be gone.
    ReadTimeout,
    /// The answer's head cannot be understood, or is too long.
    InvalidHeader,
    /// The answer has a status that has a class.
    Status(Class),
    /// `next_upstream_timeout` is over.
    Deadline,
    /// The answer ended in the middle of its body.
    Truncated,
}

impl Failure {
    /// The word in `next_upstream` that it falls under.
    fn class(self) -> Option<Class> {
        match self {
            Self::Refused | Self::Unreachable | Self::Local | Self::Handshake | Self::Closed => {
                Some(Class::Error)
            }
            Self::ConnectTimeout | Self::SendTimeout | Self::ReadTimeout => Some(Class::Timeout),
            Self::InvalidHeader => Some(Class::InvalidHeader),
            Self::Status(class) => Some(class),
            Self::Deadline | Self::Truncated => None,
        }
    }

    /// What the client is told if nobody answers it.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::ConnectTimeout | Self::SendTimeout | Self::ReadTimeout | Self::Deadline => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Refused
            | Self::Unreachable
            | Self::Local
            | Self::Handshake
            | Self::Closed
            | Self::InvalidHeader
            | Self::Status(_)
            | Self::Truncated => StatusCode::BAD_GATEWAY,
        }
    }

    /// A word for logs.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Local => "not_tried",
            Self::ConnectTimeout => "connect_timeout",
            Self::Handshake => "handshake",
            Self::Closed => "closed",
            Self::SendTimeout => "send_timeout",
            Self::ReadTimeout => "read_timeout",
            Self::InvalidHeader => "invalid_header",
            Self::Status(_) => "status",
            Self::Deadline => "deadline",
            Self::Truncated => "truncated",
        }
    }

    /// Whether it speaks against the backend. A missing page does not, and a deadline of ours does
    /// not either.
    fn charges(self) -> bool {
        match self {
            Self::Status(class) => !matches!(class, Class::Http403 | Class::Http404),
            Self::Local | Self::Deadline | Self::Truncated => false,
            _ => true,
        }
    }
}

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `next_upstream`.
    pub classes: Classes,
    /// `next_upstream_tries`: most attempts, the first included; 0 for as many as there are backends.
    pub tries: u32,
    /// `next_upstream_timeout`; zero for none.
    pub timeout: Duration,
}

/// What is known when an attempt has failed.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and all combine")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How it failed.
    pub failure: Failure,
    /// The request was about to be written to an established connection: the backend may have it.
    pub sent: bool,
    /// The connection was one that had been kept, and has never answered this request: it may have
    /// been closed by the backend before.
    pub reused: bool,
    /// The request may be sent twice without harm: see [`is_repeatable`].
    pub repeatable: bool,
    /// Its body, as far as it has been sent, is kept, so that it can be sent again.
    pub kept: bool,
    /// The client has been given an answer's head.
    pub begun: bool,
    /// Attempts that count, this one included.
    pub attempts: u32,
    /// There is a backend that this request has not been tried at.
    pub others: bool,
    /// Time since the first attempt began.
    pub elapsed: Duration,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try another backend.
    Other {
        /// The retry adds load, so it needs a share of the budget. One whose request has been sent to
        /// nobody does not.
        from_budget: bool,
    },
    /// Try the same backend on a new connection. It does not count as a try.
    Again,
    /// Give the client the backend's own answer.
    Pass,
    /// Answer with this status.
    Answer(StatusCode),
    /// End the client's connection: part of an answer has been passed on.
    Cut,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub next: Next,
    /// The failure speaks against the backend.
    pub charge: bool,
}

/// Whether a request may reach a backend twice: by its method, or because it carries a key by which
/// the backend knows it again (draft-ietf-httpapi-idempotency-key-header).
#[must_use]
pub fn is_repeatable(method: &Method, has_key: bool) -> bool {
    has_key || !(method == Method::POST || method == Method::PATCH || method.as_str() == "LOCK")
}

/// Decides.
#[must_use]
pub fn decide(rules: Rules, facts: &Facts) -> Decision {
    let Facts { failure, sent, reused, .. } = *facts;
    if facts.begun {
        return Decision { next: Next::Cut, charge: false };
    }
    // Whoever keeps a connection must be ready to find it closed: that is nobody's fault.
    let stale = reused && failure == Failure::Closed;
    let Some(class) = failure.class() else {
        return Decision { next: Next::Answer(failure.status()), charge: false };
    };
    let listed = rules.classes.has(class);
    // A status is an answer; it is held against the backend where the configuration calls it a failure.
    let is_status = matches!(failure, Failure::Status(_));
    let charge = failure.charges() && !stale && (listed || !is_status);
    let harmless = !sent || facts.repeatable || rules.classes.has(Class::NonIdempotent);
    let in_time = rules.timeout.is_zero() || facts.elapsed < rules.timeout;
    let may = listed && harmless && (facts.kept || !sent) && in_time;
    let next = if may && stale {
        Next::Again
    } else if may && facts.others && (rules.tries == 0 || facts.attempts < rules.tries) {
        Next::Other { from_budget: sent }
    } else if is_status {
        Next::Pass
    } else {
        Next::Answer(failure.status())
    };
    Decision { next, charge }
}

#[cfg(test)]
mod tests;
