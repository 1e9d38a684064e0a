//! `[service.health]`.

use std::{ops::Range, time::Duration};

use toml::Spanned;

use super::{not_zero, whole};
use crate::config::{
    Health, HttpProbe, Probe, Protocol, Upstream,
    raw::{self, Service},
    report::Findings,
    units,
    value::word::Probe as Word,
};

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_millis(500);
const RISE: u32 = 2;
const FALL: u32 = 3;
const EXPECT: (u16, u16) = (200, 399);

/// Probing more often than this costs the backend more than it tells.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

pub(super) fn health(
    service: &Spanned<Service>,
    protocol: Protocol,
    findings: &mut Findings,
) -> Health {
    let raw = service.get_ref().health.or(raw::Health::default());
    let word = raw.probe.or(match protocol {
        Protocol::Tcp => Word::Tcp,
        Protocol::Udp => Word::None,
    });
    if !raw.probe.is_wrong() {
        if !service.get_ref().protocol.is_wrong() && !service.get_ref().health.is_wrong() {
            warn_of_udp(service, &raw, word, protocol, findings);
        }
        check_keys(&raw, word, findings);
    }
    check_times(&raw, findings);
    let command = check_command(&raw, findings);
    let http = || HttpProbe {
        path: raw.path.value().map_or_else(|| "/".to_owned(), |path| path.0.clone()),
        host: raw.host.value().map(|host| host.0.clone()),
        expect: raw.expect.value().map_or_else(|| vec![EXPECT], |expect| expect.0.clone()),
        upstream: Upstream::default(),
    };
    Health {
        probe: match word {
            Word::None => Probe::None,
            Word::Postgres => Probe::Postgres,
            Word::Tcp => Probe::Tcp,
            Word::Http => Probe::Http(http()),
            Word::Https => Probe::Https(http()),
            Word::Command => Probe::Command(command),
        },
        interval: raw.interval.or(INTERVAL),
        timeout: raw.timeout.or(TIMEOUT),
        rise: whole(&raw.rise, RISE),
        fall: whole(&raw.fall, FALL),
    }
}

fn warn_of_udp(
    service: &Spanned<Service>,
    raw: &raw::Health,
    word: Word,
    protocol: Protocol,
    findings: &mut Findings,
) {
    if protocol != Protocol::Udp {
        return;
    }
    if raw.probe.is_absent() {
        findings
            .warning(
                service.span(),
                "this udp service has no probe: a udp backend without one is never found dead",
            )
            .help(
                "add a `[service.health]` with `probe = \"command\"`, \"http\" or \"tcp\"; \
                 `probe = \"none\"` says that this is meant",
            );
    }
    if matches!(word, Word::Tcp | Word::Postgres)
        && let Some(span) = raw.probe.span()
    {
        findings
            .warning(
                span,
                "a probe by tcp of a udp service connects to the same port, and says nothing of udp",
            )
            .help("make sure that the backends listen there with tcp too, or use a `command`");
    }
}

/// Keys that belong to another probe.
fn check_keys(raw: &raw::Health, word: Word, findings: &mut Findings) {
    let probe = raw.probe.span();
    let mut misplaced = |span: Option<Range<usize>>, key: &str, wanted: &str| {
        if let Some(span) = span {
            let finding = findings.error(span, format!("`{key}` needs {wanted}"));
            finding.help(format!("write {wanted} in this section, or remove `{key}`"));
            match &probe {
                Some(probe) => finding.label(probe.clone(), "the probe"),
                None => finding,
            };
        }
    };
    if !matches!(word, Word::Http | Word::Https) {
        let wanted = "`probe = \"http\"` or `\"https\"`";
        misplaced(raw.path.span(), "path", wanted);
        misplaced(raw.host.span(), "host", wanted);
        misplaced(raw.expect.span(), "expect", wanted);
    }
    if word != Word::Command {
        misplaced(raw.command.span(), "command", "`probe = \"command\"`");
    } else if raw.command.is_absent()
        && let Some(probe) = probe.clone()
    {
        findings.error(probe, "`probe = \"command\"` needs `command`").help(
            "add the program with its arguments: `command = [\"/usr/lib/ballast/check\", \"-q\"]`",
        );
    }
    if word == Word::None && !raw.probe.is_absent() {
        let spans = [
            (raw.interval.span(), "interval"),
            (raw.timeout.span(), "timeout"),
            (raw.rise.span(), "rise"),
            (raw.fall.span(), "fall"),
        ];
        for (span, key) in spans {
            if let Some(span) = span {
                findings
                    .warning(span, format!("`{key}` has no effect with `probe = \"none\"`"))
                    .help(format!("remove `{key}`, or choose a probe"));
            }
        }
    }
}

fn check_times(raw: &raw::Health, findings: &mut Findings) {
    for (field, key) in [(&raw.interval, "interval"), (&raw.timeout, "timeout")] {
        if let Some(time) = field.get()
            && time.get_ref().is_zero()
        {
            not_zero(time.span(), key, findings);
            return;
        }
    }
    if let Some(interval) = raw.interval.get()
        && *interval.get_ref() < SHORTEST_INTERVAL
    {
        findings
            .error(interval.span(), "`interval` is below 10ms")
            .help("write \"10ms\" or more: probes would be a burden for the backend");
        return;
    }
    if raw.interval.is_wrong() || raw.timeout.is_wrong() {
        return;
    }
    let interval = raw.interval.or(INTERVAL);
    let timeout = raw.timeout.or(TIMEOUT);
    if timeout < interval {
        return;
    }
    let (interval, timeout) = (units::show(interval), units::show(timeout));
    match (raw.timeout.span(), raw.interval.span()) {
        (Some(span), Some(other)) => findings
            .error(span, format!("`timeout` is {timeout}, not less than `interval`, {interval}"))
            .label(other, "the interval"),
        (Some(span), None) => findings.error(
            span,
            format!("`timeout` is {timeout}, not less than `interval`, {interval} by default"),
        ),
        (None, Some(span)) => findings.error(
            span,
            format!("`interval` is {interval}, not more than `timeout`, {timeout} by default"),
        ),
        // The defaults are right.
        (None, None) => return,
    }
    .help("a probe must be over before the next one: write a `timeout` below `interval`");
}

fn check_command(raw: &raw::Health, findings: &mut Findings) -> Vec<String> {
    let Some(command) = raw.command.get() else { return Vec::new() };
    if command.get_ref().is_empty() {
        findings
            .error(command.span(), "`command` is empty")
            .help("write the program with its arguments: `[\"/usr/lib/ballast/check\", \"-q\"]`");
    }
    let words: Vec<_> = raw.command.items().collect();
    if let Some(program) = words.first()
        && !command.get_ref().has_wrong()
        && !program.get_ref().0.starts_with('/')
    {
        findings
            .error(program.span(), "the program of `command` has no absolute path")
            .help("write the whole path, from `/` on: no shell and no PATH is used");
    }
    words.into_iter().map(|word| word.get_ref().0.clone()).collect()
}
