//! `[[alert]]`: each kind needs keys of its own, and takes no others.

use std::{ops::Range, path::PathBuf};

use super::Seen;
use crate::{
    alert::Severity,
    config::{
        Alert, Receiver,
        raw::{self, File},
        read::Field,
        report::Findings,
        value::{AbsolutePath, word::AlertKind},
    },
};

/// Where bots are asked to send.
const TELEGRAM: &str = "https://api.telegram.org";

/// Where the system's log listens.
const SYSLOG: &str = "/dev/log";

pub(super) fn alerts(file: &File, findings: &mut Findings) -> Vec<Alert> {
    let mut names = Seen::default();
    let mut alerts = Vec::new();
    for raw in file.alert.items() {
        let (span, alert) = (raw.span(), raw.get_ref());
        let Some(kind) = alert.kind.get() else { continue };
        let (place, kind) = (kind.span(), *kind.get_ref());
        foreign(alert, kind, findings);
        let receiver = receiver(alert, kind, &span, findings);
        let (name, at) = match alert.name.get() {
            Some(name) => (name.get_ref().0.clone(), name.span()),
            None => (word(kind).to_owned(), place),
        };
        names.once(
            name.clone(),
            at,
            || format!("two alerts have the name `{name}`"),
            "give each `[[alert]]` a `name` of its own; without one it has that of its kind",
            findings,
        );
        let least = alert.level.or(Severity::Info);
        alerts.extend(receiver.map(|receiver| Alert { name, receiver, least }));
    }
    alerts
}

fn word(kind: AlertKind) -> &'static str {
    match kind {
        AlertKind::Telegram => "telegram",
        AlertKind::Slack => "slack",
        AlertKind::Webhook => "webhook",
        AlertKind::Syslog => "syslog",
    }
}

/// Keys that mean nothing to this kind.
fn foreign(alert: &raw::Alert, kind: AlertKind, findings: &mut Findings) {
    use AlertKind::{Slack, Syslog, Telegram, Webhook};
    let span = |key: &str| match key {
        "token_file" => alert.token_file.get().map(toml::Spanned::span),
        "chat_id" => alert.chat_id.get().map(toml::Spanned::span),
        "url" => alert.url.get().map(toml::Spanned::span),
        "url_file" => alert.url_file.get().map(toml::Spanned::span),
        "ca_file" => alert.ca_file.get().map(toml::Spanned::span),
        _ => alert.socket.get().map(toml::Spanned::span),
    };
    let keys: [(&str, &[AlertKind]); 6] = [
        ("token_file", &[Telegram, Webhook]),
        ("chat_id", &[Telegram]),
        ("url", &[Telegram, Webhook]),
        ("url_file", &[Slack, Webhook]),
        ("ca_file", &[Telegram, Slack, Webhook]),
        ("socket", &[Syslog]),
    ];
    for (key, kinds) in keys {
        if let Some(span) = span(key).filter(|_| !kinds.contains(&kind)) {
            findings
                .error(span, format!("`{key}` means nothing to an alert by {}", word(kind)))
                .help("leave it out");
        }
    }
}

fn receiver(
    alert: &raw::Alert,
    kind: AlertKind,
    span: &Range<usize>,
    findings: &mut Findings,
) -> Option<Receiver> {
    let mut need = |absent: bool, key: &str, example: &str| {
        if absent {
            findings
                .error(span.clone(), format!("an alert by {} needs `{key}`", word(kind)))
                .help(format!("add `{key} = \"{example}\"`"));
        }
    };
    let path = |field: &Field<AbsolutePath>| field.value().map(|path| path.0.clone());
    let url = alert.url.value().map(|url| url.0.clone());
    let ca_file = path(&alert.ca_file);
    match kind {
        AlertKind::Telegram => {
            need(alert.token_file.is_absent(), "token_file", "/etc/ballast/telegram.token");
            need(alert.chat_id.is_absent(), "chat_id", "-100123");
            Some(Receiver::Telegram {
                api: url.unwrap_or_else(|| TELEGRAM.into()),
                token_file: path(&alert.token_file)?,
                chat_id: alert.chat_id.value()?.0.clone(),
                ca_file,
            })
        }
        AlertKind::Slack => {
            need(alert.url_file.is_absent(), "url_file", "/etc/ballast/slack.url");
            Some(Receiver::Slack { url_file: path(&alert.url_file)?, ca_file })
        }
        AlertKind::Webhook => {
            let absent = alert.url.is_absent() && alert.url_file.is_absent();
            need(absent, "url", "https://alerts.example.org/hook");
            if let (Some(_), Some(both)) = (alert.url.get(), alert.url_file.get()) {
                findings
                    .error(both.span(), "an alert has both `url` and `url_file`")
                    .help("leave one of them out");
            }
            let url_file = path(&alert.url_file);
            let token_file = path(&alert.token_file);
            Some(Receiver::Webhook { url, url_file, token_file, ca_file })
        }
        AlertKind::Syslog => Some(Receiver::Syslog {
            socket: path(&alert.socket).unwrap_or_else(|| PathBuf::from(SYSLOG)),
        }),
    }
}
