//! What is said, in the form that each receiver takes. Pure.

use serde_json::{Value, json};

use super::{Notice, Severity, State, http::Post};

/// Longest text of a Telegram message, in UTF-16 units (Bot API, `sendMessage`: 4096).
const TELEGRAM_UNITS: usize = 4000;

/// Longest text of a Slack message, in characters; longer ones are cut by Slack.
const SLACK_CHARS: usize = 4000;

/// One notice, as a line.
#[must_use]
pub fn text(notice: &Notice) -> String {
    let Notice { text, cluster, severity, .. } = notice;
    match (notice.state, notice.until) {
        (State::Resolved, Some(until)) => {
            let lasted = until.duration_since(notice.since).as_secs().max(0);
            format!("RESOLVED after {lasted} s: {text} [{cluster}]")
        }
        (State::Resolved, None) => format!("RESOLVED: {text} [{cluster}]"),
        _ => format!("{}: {text} [{cluster}]", severity.word().to_uppercase()),
    }
}

fn lines(notices: &[Notice]) -> String {
    notices.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// As much of a text as fits, by the length that the receiver counts.
fn cut(text: String, most: usize, length: impl Fn(char) -> usize) -> String {
    let mut left = most;
    let end = text.char_indices().find(|(_, char)| match left.checked_sub(length(*char)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    match end {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// For a Telegram bot: <https://core.telegram.org/bots/api#sendmessage>. Plain text, so that nothing need
/// be escaped.
#[must_use]
pub fn telegram(api: &str, token: &str, chat: &str, notices: &[Notice]) -> Post {
    let text = cut(lines(notices), TELEGRAM_UNITS - 1, char::len_utf16);
    let body = json!({
        "chat_id": chat,
        "text": text,
        "link_preview_options": { "is_disabled": true },
    });
    let url = format!("{}/bot{token}/sendMessage", api.trim_end_matches('/'));
    Post { url, body: body.to_string(), token: None, key: None }
}

/// For a Slack incoming webhook: <https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>.
#[must_use]
pub fn slack(url: &str, notices: &[Notice]) -> Post {
    // Slack takes these three for its own marks.
    let text = lines(notices).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let body = json!({ "text": cut(text, SLACK_CHARS - 1, |_| 1) });
    Post { url: url.into(), body: body.to_string(), token: None, key: None }
}

/// For whatever takes the webhooks of Alertmanager, version 4:
/// <https://prometheus.io/docs/alerting/latest/configuration/#webhook_config>.
#[must_use]
pub fn webhook(url: &str, token: Option<&str>, channel: &str, notices: &[Notice]) -> Post {
    let cluster = notices.first().map_or("", |notice| notice.cluster.as_str());
    let over = notices.iter().all(|notice| notice.state == State::Resolved);
    let body = json!({
        "version": "4",
        "groupKey": format!("{{}}:{{cluster={cluster:?}}}"),
        "status": if over { "resolved" } else { "firing" },
        "receiver": channel,
        "groupLabels": { "cluster": cluster },
        "commonLabels": { "cluster": cluster },
        "commonAnnotations": {},
        "externalURL": "",
        "truncatedAlerts": 0,
        "alerts": notices.iter().map(alert).collect::<Vec<_>>(),
    });
    let key = notices.iter().map(key).collect::<Vec<_>>().join(",");
    Post { url: url.into(), body: body.to_string(), token: token.map(Into::into), key: Some(key) }
}

fn alert(notice: &Notice) -> Value {
    // The zero time of Go, which says that it is not over.
    let until = notice.until.map_or_else(|| "0001-01-01T00:00:00Z".into(), |it| it.to_string());
    json!({
        "status": word(notice),
        "labels": {
            "alertname": notice.alert,
            "cluster": notice.cluster,
            "instance": notice.node,
            "subject": notice.subject,
            "severity": notice.severity,
        },
        "annotations": {
            "summary": text(notice),
            "description": notice.text,
            "state": notice.state,
        },
        "startsAt": notice.since.to_string(),
        "endsAt": until,
        "generatorURL": "",
        "fingerprint": notice.fingerprint(),
    })
}

fn word(notice: &Notice) -> &'static str {
    if notice.state == State::Resolved { "resolved" } else { "firing" }
}

fn key(notice: &Notice) -> String {
    format!("{}-{}-{}", notice.fingerprint(), word(notice), notice.since.as_second())
}

/// A message that says that messages arrive.
#[must_use]
pub fn test(cluster: &str, node: &str, now: jiff::Timestamp) -> Notice {
    Notice {
        alert: "test".into(),
        subject: node.into(),
        severity: Severity::Info,
        state: State::Event,
        text: format!("alerts of ballast on {node} arrive here"),
        since: now,
        until: None,
        cluster: cluster.into(),
        node: node.into(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::alert) fn notice() -> Notice {
        Notice {
            alert: "primary_down".into(),
            subject: "appdb/pg-01".into(),
            severity: Severity::Critical,
            state: State::Firing,
            text: "pg-01 is DOWN".into(),
            since: "2026-01-02T03:04:05Z".parse().unwrap(),
            until: None,
            cluster: "edge".into(),
            node: "lb-01".into(),
        }
    }

    fn resolved() -> Notice {
        let until = "2026-01-02T03:04:46Z".parse().unwrap();
        Notice { state: State::Resolved, until: Some(until), ..notice() }
    }

    fn body(post: &Post) -> Value {
        serde_json::from_str(&post.body).unwrap()
    }

    #[test]
    fn a_line_says_how_grave_it_is_and_how_long_it_lasted() {
        assert_eq!(text(&notice()), "CRITICAL: pg-01 is DOWN [edge]");
        assert_eq!(text(&resolved()), "RESOLVED after 41 s: pg-01 is DOWN [edge]");
    }

    #[test]
    fn telegram_gets_plain_text_of_a_length_that_it_takes() {
        let post = telegram("https://api.telegram.org/", "1:abc", "-100", &[notice(), resolved()]);
        assert_eq!(post.url, "https://api.telegram.org/bot1:abc/sendMessage");
        assert_eq!(body(&post)["chat_id"], "-100");
        let said = body(&post)["text"].as_str().unwrap().to_owned();
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(!format!("{post:?}").contains("abc"), "the token is a secret");
        let long = Notice { text: "😀".repeat(5000), ..notice() };
        let said =
            body(&telegram("http://x", "t", "1", &[long]))["text"].as_str().unwrap().to_owned();
        assert!(said.encode_utf16().count() <= TELEGRAM_UNITS && said.ends_with('…'));
    }

    #[test]
    fn slack_gets_its_marks_escaped() {
        let notice = Notice { text: "<a> & b".into(), ..notice() };
        let post = slack("https://hooks.example.org/x", &[notice]);
        assert_eq!(body(&post)["text"], "CRITICAL: &lt;a&gt; &amp; b [edge]");
    }

    #[test]
    fn a_webhook_gets_what_alertmanager_sends() {
        let both = webhook("http://x", Some("t"), "ops", &[notice(), resolved()]);
        let json = body(&both);
        assert_eq!((&json["version"], &json["status"]), (&json!("4"), &json!("firing")));
        assert_eq!(json["alerts"][0]["labels"]["alertname"], "primary_down");
        assert_eq!(json["alerts"][0]["endsAt"], "0001-01-01T00:00:00Z");
        assert_eq!(json["alerts"][1]["endsAt"], "2026-01-02T03:04:46Z");
        assert_eq!(json["alerts"][0]["fingerprint"], json["alerts"][1]["fingerprint"]);
        assert_eq!(body(&webhook("http://x", None, "ops", &[resolved()]))["status"], "resolved");
    }

    #[test]
    fn the_fingerprint_is_of_the_thing_and_not_of_the_node() {
        let other = Notice { node: "lb-02".into(), text: "other".into(), ..notice() };
        assert_eq!(notice().fingerprint(), other.fingerprint());
        let other = Notice { subject: "appdb/pg-02".into(), ..notice() };
        assert_ne!(notice().fingerprint(), other.fingerprint());
    }
}
