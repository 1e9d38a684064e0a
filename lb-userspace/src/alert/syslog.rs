//! The system's log: RFC 5424 messages over its Unix socket.

use std::path::Path;

use jiff::Timestamp;
use tokio::net::UnixDatagram;

use super::{Notice, Severity, State, message};

/// Facility `daemon` (RFC 5424, 6.2.1).
const DAEMON: u8 = 3;

/// What is absent in a message (RFC 5424, 6: NILVALUE).
const NIL: &str = "-";

/// Longest names of host and message (RFC 5424, 6.2.4 and 6.2.7).
const MAX_HOST: usize = 255;
const MAX_MESSAGE_ID: usize = 32;

/// Bytes of a message that every receiver ought to take (RFC 5424, 6.1).
const MAX_BYTES: usize = 2048;

/// Gives it to the log.
pub async fn send(socket: &Path, notice: &Notice, now: Timestamp, pid: u32) -> Result<(), String> {
    let line = line(notice, now, pid);
    let wrong = |error: std::io::Error| format!("write to {}: {error}", socket.display());
    let from = UnixDatagram::unbound().map_err(wrong)?;
    from.send_to(line.as_bytes(), socket).await.map_err(wrong)?;
    Ok(())
}

/// The message.
#[must_use]
pub fn line(notice: &Notice, now: Timestamp, pid: u32) -> String {
    // RFC 5424, 6.2.1: critical is 2, warning 4, notice 5, informational 6.
    let severity = match (notice.state, notice.severity) {
        (State::Resolved, _) => 5,
        (_, Severity::Critical) => 2,
        (_, Severity::Warning) => 4,
        (_, Severity::Info) => 6,
    };
    let priority = DAEMON * 8 + severity;
    let (host, id) = (ascii(&notice.node, MAX_HOST), ascii(&notice.alert, MAX_MESSAGE_ID));
    let text = message::text(notice).replace(char::is_control, " ");
    let mut line = format!("<{priority}>1 {now:.6} {host} ballast {pid} {id} {NIL} {text}");
    let end = (0..=MAX_BYTES.min(line.len())).rev().find(|&at| line.is_char_boundary(at));
    line.truncate(end.unwrap_or(0));
    line
}

/// Printable ASCII without spaces, as a header's fields must be.
fn ascii(text: &str, most: usize) -> String {
    let text: String =
        text.chars().map(|it| if it.is_ascii_graphic() { it } else { '?' }).take(most).collect();
    if text.is_empty() { NIL.into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::message::tests::notice;

    #[test]
    fn the_header_is_that_of_the_rfc() {
        let now: Timestamp = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        let line = line(&notice(), now, 42);
        assert_eq!(
            line,
            "<26>1 2026-01-02T03:04:05.678901Z lb-01 ballast 42 primary_down - CRITICAL: pg-01 is \
             DOWN [edge]"
        );
        let resolved = Notice { state: State::Resolved, ..notice() };
        assert!(super::line(&resolved, now, 42).starts_with("<29>1 "));
    }

    #[test]
    fn whatever_the_text_is_it_stays_one_short_line() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let notice = Notice {
            text: "ä\n".repeat(4000),
            alert: "a b\u{7}".into(),
            node: String::new(),
            ..notice()
        };
        let line = line(&notice, now, 1);
        assert!(line.len() <= MAX_BYTES && !line.contains('\n'));
        assert!(line.contains(" - ballast 1 a?b? - "), "{line}");
    }

    #[tokio::test]
    async fn it_arrives_whole() {
        let scratch = crate::scratch::Directory::new("syslog");
        let path = scratch.path().join("log");
        let log = UnixDatagram::bind(&path).unwrap();
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        send(&path, &notice(), now, 7).await.unwrap();
        let mut bytes = vec![0; 4096];
        let count = log.recv(&mut bytes).await.unwrap();
        assert!(bytes[..count].starts_with(b"<26>1 2026-01-02T03:04:05.000000Z lb-01 ballast 7 "));
        let wrong = send(&scratch.path().join("none"), &notice(), now, 7).await.unwrap_err();
        assert!(wrong.contains("none"), "{wrong}");
    }
}
