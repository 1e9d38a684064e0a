//! `path` and `[service.proxy]`.

use std::{sync::Arc, time::Duration};

use toml::Spanned;

use super::{forward, not_zero, upstream, whole};
use crate::{
    config::{
        Certificate, Protocol, Proxy,
        raw::{self, Service},
        report::Findings,
        value::word::{NextUpstream, Route},
    },
    proxy::decide::{Class, Classes, Rules},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CLIENT_TIMEOUT: Duration = Duration::from_mins(1);
const KEEPALIVE: u32 = 32;
const QUEUE: u32 = 1000;
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PER_MILLE: u32 = 200;
const BODY_BUFFER: u64 = 1 << 20;

/// A body that is kept stands in memory.
const MOST_BODY_BUFFER: u64 = 1 << 30;

/// The proxy of a service, if it has one.
pub(super) fn proxy(
    service: &Service,
    protocol: Protocol,
    findings: &mut Findings,
) -> Option<Arc<Proxy>> {
    let route = service.path.or(Route::Kernel);
    check_path(service, protocol, findings);
    if let Some(section) = service.proxy.get()
        && route == Route::Kernel
        && !service.path.is_wrong()
    {
        findings
            .warning(section.span(), "`[service.proxy]` has no effect with `path = \"kernel\"`")
            .help("write `path = \"proxy\"`, or remove the section");
    }
    let raw = service.proxy.or(raw::Proxy::default());
    let auto = route == Route::Auto;
    if auto && let Some(certificate) = raw.certificate.items().next() {
        findings.error(certificate.span(), "a certificate needs `path = \"proxy\"`").help(
            "write `path = \"proxy\"`: with \"auto\" the kernel forwards packets as they are",
        );
    }
    if auto {
        upstream::needs_proxy(&raw, findings);
    }
    upstream::check_probe(&raw, service, findings);
    let checked = Proxy { auto, ..check(&raw, findings) };
    (route != Route::Kernel).then(|| Arc::new(checked))
}

fn check(raw: &raw::Proxy, findings: &mut Findings) -> Proxy {
    for (field, key) in [
        (&raw.connect_timeout, "connect_timeout"),
        (&raw.send_timeout, "send_timeout"),
        (&raw.read_timeout, "read_timeout"),
        (&raw.client_timeout, "client_timeout"),
        (&raw.queue_timeout, "queue_timeout"),
    ] {
        if let Some(timeout) = field.get()
            && timeout.get_ref().is_zero()
        {
            not_zero(timeout.span(), key, findings);
        }
    }
    if let Some(queue) = raw.queue.get()
        && raw.max_requests.value().is_none_or(|most| most.0 == 0)
    {
        findings
            .warning(queue.span(), "`queue` has no effect without `max_requests`")
            .help("say how many requests a backend may have at once, or remove it");
    }
    let words: Vec<_> = raw.next_upstream.items().collect();
    if words.len() > 1
        && let Some(off) = words.iter().find(|word| *word.get_ref() == NextUpstream::Off)
    {
        findings
            .error(off.span(), "`next_upstream` has \"off\" beside other words")
            .help("write \"off\" alone, or the cases in which the next backend is tried");
    }
    if let Some(bytes) = raw.body_buffer.get()
        && bytes.get_ref().0 > MOST_BODY_BUFFER
    {
        findings
            .error(bytes.span(), "`body_buffer` is above 1GiB")
            .help("write \"1GiB\" or less: what is kept of a request stands in memory");
    }
    Proxy {
        auto: false,
        connect_timeout: raw.connect_timeout.or(CONNECT_TIMEOUT),
        send_timeout: raw.send_timeout.or(SEND_TIMEOUT),
        read_timeout: raw.read_timeout.or(READ_TIMEOUT),
        client_timeout: raw.client_timeout.or(CLIENT_TIMEOUT),
        keepalive: whole(&raw.keepalive, KEEPALIVE),
        max_requests: whole(&raw.max_requests, 0),
        queue: whole(&raw.queue, QUEUE),
        queue_timeout: raw.queue_timeout.or(QUEUE_TIMEOUT),
        least_time: raw.least_time.or(false),
        next_upstream: Rules {
            classes: classes(raw, &words),
            tries: whole(&raw.next_upstream_tries, 0),
            timeout: raw.next_upstream_timeout.or(Duration::ZERO),
        },
        retry_per_mille: raw.retry_budget.value().map_or(RETRY_PER_MILLE, |share| share.0),
        body_buffer: raw.body_buffer.value().map_or(BODY_BUFFER, |bytes| bytes.0),
        access_log: raw.access_log.value().map(|path| path.0.clone()),
        certificates: certificates(raw),
        accept_proxy: raw
            .accept_proxy
            .items()
            .map(|source| (source.get_ref().address, source.get_ref().length))
            .collect(),
        upstream: upstream::upstream(raw, findings),
    }
}

fn certificates(raw: &raw::Proxy) -> Vec<Certificate> {
    let certificates = raw.certificate.items().filter_map(|certificate| {
        let raw::Certificate { chain, key } = certificate.get_ref();
        Some(Certificate { chain: chain.value()?.0.clone(), key: key.value()?.0.clone() })
    });
    certificates.collect()
}

/// `next_upstream`; what nginx does without it if it is not there.
fn classes(raw: &raw::Proxy, words: &[&Spanned<NextUpstream>]) -> Classes {
    if raw.next_upstream.is_absent() {
        return Classes::of(&[Class::Error, Class::Timeout]);
    }
    let classes = words.iter().filter_map(|word| class(*word.get_ref()));
    Classes::of(&classes.collect::<Vec<_>>())
}

fn class(word: NextUpstream) -> Option<Class> {
    match word {
        NextUpstream::Error => Some(Class::Error),
        NextUpstream::Timeout => Some(Class::Timeout),
        NextUpstream::InvalidHeader => Some(Class::InvalidHeader),
        NextUpstream::Http500 => Some(Class::Http500),
        NextUpstream::Http502 => Some(Class::Http502),
        NextUpstream::Http503 => Some(Class::Http503),
        NextUpstream::Http504 => Some(Class::Http504),
        NextUpstream::Http403 => Some(Class::Http403),
        NextUpstream::Http404 => Some(Class::Http404),
        NextUpstream::Http429 => Some(Class::Http429),
        NextUpstream::NonIdempotent => Some(Class::NonIdempotent),
        NextUpstream::Off => None,
    }
}

/// `path`: what it asks of the rest.
fn check_path(service: &Service, protocol: Protocol, findings: &mut Findings) {
    let Some(path) = service.path.get() else { return };
    let word = match path.get_ref() {
        Route::Kernel => return,
        Route::Auto => "auto",
        Route::Proxy => "proxy",
    };
    if forward::is_steered(service) {
        findings.error(path.span(), format!("`path = \"{word}\"` needs `forward = \"nat\"`")).help(
            "write `path = \"kernel\"`: the backends answer the clients by themselves, so no \
                 request can be retried",
        );
    } else if protocol == Protocol::Udp && !service.protocol.is_wrong() {
        findings
            .error(path.span(), format!("`path = \"{word}\"` needs `protocol = \"tcp\"`"))
            .help("write `path = \"kernel\"`: the proxy speaks HTTP over TCP");
    }
}
