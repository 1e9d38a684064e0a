//! Counts of a proxied service.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::refuse::Refusal;

/// A count that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the workers count of a service.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) connections: Counter,
    pub(super) requests: Counter,
    pub(super) tunnels: Counter,
    pub(super) retries: Counter,
    pub(super) reopened: Counter,
    pub(super) budget_spent: Counter,
    pub(super) truncated: Counter,
    pub(super) gone: Counter,
    pub(super) slow_heads: Counter,
    pub(super) handshakes: Counter,
    pub(super) undelivered: Counter,
    pub(super) proxy_headers: Counter,
    pub(super) denied: Counter,
    pub(super) queued: Counter,
    pub(super) overloaded: Counter,
    still: AtomicU64,
    /// By the first digit of the status.
    answers: [Counter; 6],
    bad_gateway: Counter,
    gateway_timeout: Counter,
    refused: [Counter; Refusal::ALL.len()],
    /// By the number of the error.
    resets: [Counter; CODES.len()],
    sent_away: [Counter; CODES.len()],
    pub(super) cancelled: Counter,
    pub(super) stalled: Counter,
}

/// Names of HTTP/2's errors, by their number (RFC 9113, section 7); the last one is for others.
const CODES: [&str; 15] = [
    "no_error",
    "protocol_error",
    "internal_error",
    "flow_control_error",
    "settings_timeout",
    "stream_closed",
    "frame_size_error",
    "refused_stream",
    "cancel",
    "compression_error",
    "connect_error",
    "enhance_your_calm",
    "inadequate_security",
    "http_1_1_required",
    "other",
];

/// The count of an error.
fn of_code(counters: &[Counter; CODES.len()], code: u32) -> &Counter {
    &counters[(code as usize).min(CODES.len() - 1)]
}

/// A connection that is still, for as long as this lives.
#[derive(Debug)]
pub(super) struct Still<'a>(&'a AtomicU64);

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stats {
    /// A connection is still.
    pub(super) fn still(&self) -> Still<'_> {
        self.still.fetch_add(1, Ordering::Relaxed);
        Still(&self.still)
    }

    /// A client was answered.
    pub(super) fn answered(&self, status: StatusCode) {
        if let Some(counter) = self.answers.get(usize::from(status.as_u16() / 100)) {
            counter.add();
        }
    }

    /// The proxy answered that no backend did.
    pub(super) fn gave_up(&self, status: StatusCode) {
        if status == StatusCode::SERVICE_UNAVAILABLE {
            // It is counted as what it is.
        } else if status == StatusCode::GATEWAY_TIMEOUT {
            self.gateway_timeout.add();
        } else {
            self.bad_gateway.add();
        }
    }

    /// A request was refused.
    pub(super) fn refused(&self, refusal: Refusal) {
        self.refused[refusal as usize].add();
    }

    /// A stream of HTTP/2 was reset for this error.
    pub(super) fn reset(&self, code: u32) {
        of_code(&self.resets, code).add();
    }

    /// A connection of HTTP/2 is ended for this error.
    pub(super) fn sent_away(&self, code: u32) {
        of_code(&self.sent_away, code).add();
    }

    /// All of it.
    pub(super) fn status(&self, active: u32, open: u64) -> Status {
        let nonzero = |(name, count): (String, u64)| (count > 0).then_some((name, count));
        let answers = self.answers.iter().enumerate();
        let answers = answers.map(|(digit, count)| (format!("{digit}xx"), count.get()));
        let refused = Refusal::ALL.iter().zip(&self.refused);
        let refused = refused.map(|(refusal, count)| (refusal.label().to_owned(), count.get()));
        let codes = |counters: &[Counter; CODES.len()]| {
            let named = CODES.iter().zip(counters);
            let counts = named.map(|(name, count)| ((*name).to_owned(), count.get()));
            counts.filter_map(nonzero).collect()
        };
        Status {
            connections: self.connections.get(),
            open,
            still: self.still.load(Ordering::Relaxed),
            requests: self.requests.get(),
            active: active.into(),
            tunnels: self.tunnels.get(),
            retries: self.retries.get(),
            reopened: self.reopened.get(),
            budget_spent: self.budget_spent.get(),
            bad_gateway: self.bad_gateway.get(),
            gateway_timeout: self.gateway_timeout.get(),
            truncated: self.truncated.get(),
            gone: self.gone.get(),
            slow_heads: self.slow_heads.get(),
            handshakes: self.handshakes.get(),
            undelivered: self.undelivered.get(),
            proxy_headers: self.proxy_headers.get(),
            denied: self.denied.get(),
            queued: self.queued.get(),
            overloaded: self.overloaded.get(),
            answers: answers.filter_map(nonzero).collect(),
            refused: refused.filter_map(nonzero).collect(),
            resets: codes(&self.resets),
            sent_away: codes(&self.sent_away),
            cancelled: self.cancelled.get(),
            stalled: self.stalled.get(),
        }
    }
}

/// What `status` says of a service's proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Connections that clients have made.
    pub connections: u64,
    /// Those that are open.
    pub open: u64,
    /// Those of them that are still: no request has come for some seconds, and they hold no buffers.
    #[serde(default)]
    pub still: u64,
    /// Requests.
    pub requests: u64,
    /// Those that are under way.
    pub active: u64,
    /// Connections that were handed through after an upgrade.
    pub tunnels: u64,
    /// Attempts at another backend.
    pub retries: u64,
    /// Attempts on a new connection because a kept one had been closed.
    pub reopened: u64,
    /// Attempts that were not made because the retry budget was spent.
    pub budget_spent: u64,
    /// Requests that no backend answered.
    pub bad_gateway: u64,
    /// Requests that no backend answered in time.
    pub gateway_timeout: u64,
    /// Answers that the backend broke off.
    pub truncated: u64,
    /// Requests whose client went away before the answer.
    pub gone: u64,
    /// Connections on which a request's head did not come in time.
    pub slow_heads: u64,
    /// Connections that were not made secure.
    #[serde(default)]
    pub handshakes: u64,
    /// Requests that could be sent again because a reset proved that nobody has seen them.
    #[serde(default)]
    pub undelivered: u64,
    /// Connections of `accept_proxy` whose header of the PROXY protocol was none, or did not come in time.
    #[serde(default)]
    pub proxy_headers: u64,
    /// Connections whose header names a client that may not connect, or not so often.
    #[serde(default)]
    pub denied: u64,
    /// Requests that had to wait, as every backend had as many as it may.
    #[serde(default)]
    pub queued: u64,
    /// Those that waited for too long, or found too many waiting.
    #[serde(default)]
    pub overloaded: u64,
    /// Answers, by the class of their status.
    pub answers: BTreeMap<String, u64>,
    /// Requests that were refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Streams of HTTP/2 that the proxy reset, by the error that the client was told.
    #[serde(default)]
    pub resets: BTreeMap<String, u64>,
    /// Connections of HTTP/2 that were ended with a `GOAWAY`, by the error that the client was told.
    #[serde(default)]
    pub sent_away: BTreeMap<String, u64>,
    /// Streams of HTTP/2 that clients have reset.
    #[serde(default)]
    pub cancelled: u64,
    /// Answers in HTTP/2 that were given up as the client did not take them.
    #[serde(default)]
    pub stalled: u64,
}

/// What `status` says of a backend in a service's proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Requests that were sent to it.
    pub requests: u64,
    /// Requests that it has now.
    pub active: u64,
    /// Attempts that failed and spoke against it.
    pub failures: u64,
}
