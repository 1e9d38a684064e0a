//! Keys that take one word out of a few.

use std::time::Duration;

use lb_common::service::Balance;
use toml::{Spanned, de::DeValue};

use crate::{
    alert::Severity,
    config::{
        Durability, Encapsulation, OnDown, Promotion, Protocol,
        read::{Read, distance, string},
        report::Findings,
        units,
    },
};

/// One word out of a few.
pub(in crate::config) trait Word: Copy + 'static {
    /// The words and what they stand for.
    const WORDS: &'static [(&'static str, Self)];

    /// How many at the end of `WORDS` do not work in this version, so that none is advised.
    const LATER: usize = 0;
}

impl<T: Word> Read for T {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let text = string(value, key, "a word", findings)?;
        let found = T::WORDS.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let offered = &T::WORDS[..T::WORDS.len() - T::LATER];
            let words: Vec<_> = offered.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            let near = offered
                .iter()
                .map(|(word, _)| (distance(text, word), word))
                .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
                .min();
            let near = near.map_or(String::new(), |(_, word)| format!("did you mean \"{word}\"? "));
            findings
                .error(value.span(), format!("`{key}` cannot be \"{}\"", text.escape_debug()))
                .help(format!("{near}it may be {}", either(&words)));
        }
        found.map(|(_, meaning)| *meaning)
    }
}

/// `a`, `a or b`, `a, b or c`.
fn either(words: &[String]) -> String {
    match words {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

impl Word for Protocol {
    const WORDS: &'static [(&'static str, Self)] = &[("tcp", Self::Tcp), ("udp", Self::Udp)];
}

impl Word for OnDown {
    const WORDS: &'static [(&'static str, Self)] = &[("reset", Self::Reset), ("keep", Self::Keep)];
}

impl Word for Encapsulation {
    const WORDS: &'static [(&'static str, Self)] = &[("ipip", Self::Ipip), ("gue", Self::Gue)];
}

impl Word for Balance {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("least_conn", Self::LeastConn),
        ("maglev", Self::Maglev),
        ("round_robin", Self::RoundRobin),
        ("random", Self::Random),
    ];
}

/// Declares an enum with a word for each variant, those of later versions last.
macro_rules! word {
    ($(#[$meta:meta])* $name:ident, $later:literal later {
        $($variant:ident = $word:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(in crate::config) enum $name {
            $(
                #[doc = concat!("`\"", $word, "\"`.")]
                $variant,
            )*
        }

        impl Word for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant),)*];
            const LATER: usize = $later;
        }
    };
}

word! {
    /// `path` of a service.
    Route, 0 later { Kernel = "kernel", Auto = "auto", Proxy = "proxy", }
}

word! {
    /// `forward` of a service.
    Forward, 0 later { Nat = "nat", Direct = "direct", Tunnel = "tunnel", }
}

word! {
    /// `probe` of a service.
    Probe, 0 later {
        Tcp = "tcp",
        Http = "http",
        Https = "https",
        Postgres = "postgres",
        Command = "command",
        None = "none",
    }
}

word! {
    /// `checksum` of a VRRP instance: what stands under the sum of an IPv4 advert of version 3.
    Checksum, 0 later { PseudoHeader = "pseudo_header", Rfc9568 = "rfc9568", }
}

impl Word for Promotion {
    const WORDS: &'static [(&'static str, Self)] =
        &[("manual", Self::Manual), ("veto", Self::Veto(VETO)), ("automatic", Self::Automatic)];
}

/// How long a person has to say no, if the file does not say it.
const VETO: Duration = Duration::from_secs(30);

/// `promotion` of a database: one of the words of [`Promotion`], or `veto` and a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) struct Promoted(pub(in crate::config) Promotion);

impl Read for Promoted {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let text = value.get_ref().as_str();
        let Some(time) = text.and_then(|text| text.strip_prefix("veto ")) else {
            return Promotion::read(value, key, findings).map(Self);
        };
        match units::duration(time.trim()) {
            Ok(time) => Some(Self(Promotion::Veto(time))),
            Err(error) => {
                findings
                    .error(value.span(), format!("the time of `{key}` {error}"))
                    .help("write the time that a person has to say no, such as \"veto 30s\"");
                None
            }
        }
    }
}

impl Word for Durability {
    const WORDS: &'static [(&'static str, Self)] =
        &[("strict", Self::Strict), ("available", Self::Available(MISSING))];
}

/// How long synchronous standbys may be missing, if the file does not say it.
const MISSING: Duration = Duration::from_secs(10);

/// `durability` of a database: one of the words of [`Durability`], or `available` and a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) struct Durable(pub(in crate::config) Durability);

impl Read for Durable {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let text = value.get_ref().as_str();
        let Some(time) = text.and_then(|text| text.strip_prefix("available ")) else {
            return Durability::read(value, key, findings).map(Self);
        };
        match units::duration(time.trim()) {
            Ok(time) => Some(Self(Durability::Available(time))),
            Err(error) => {
                findings
                    .error(value.span(), format!("the time of `{key}` {error}"))
                    .help("write how long standbys may be missing, such as \"available 10s\"");
                None
            }
        }
    }
}

word! {
    /// `read_only_fallback` of a database.
    ReadFallback, 0 later { Primary = "primary", None = "none", }
}

word! {
    /// `kind` of an alert.
    AlertKind, 0 later { Telegram = "telegram", Slack = "slack", Webhook = "webhook", Syslog = "syslog", }
}

impl Word for Severity {
    const WORDS: &'static [(&'static str, Self)] =
        &[("info", Self::Info), ("warning", Self::Warning), ("critical", Self::Critical)];
}

word! {
    /// `next_upstream` of the proxy: nginx's words.
    NextUpstream, 0 later {
        Error = "error",
        Timeout = "timeout",
        InvalidHeader = "invalid_header",
        Http500 = "http_500",
        Http502 = "http_502",
        Http503 = "http_503",
        Http504 = "http_504",
        Http403 = "http_403",
        Http404 = "http_404",
        Http429 = "http_429",
        NonIdempotent = "non_idempotent",
        Off = "off",
    }
}

word! {
    /// `scheme` of the proxy: what backends speak.
    Scheme, 0 later { Http = "http", Https = "https", }
}

word! {
    /// `http_version` of the proxy, towards backends.
    HttpVersion, 0 later { One = "1.1", Two = "2", }
}

word! {
    /// `send_proxy` of the proxy.
    SendProxy, 0 later { Off = "off", V1 = "v1", V2 = "v2", }
}
