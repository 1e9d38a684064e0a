//! Alerts: what a person must know, told to where they look, once, and once more when it is over.
//!
//! ```text
//!  status of the node, of its databases ──▶ condition ──▶ desk ──▶ channel ──▶ Telegram, Slack,
//!  faults on the timeline ─────────────────────────────────┘        (one each)  webhook, syslog
//! ```
//!
//! [`condition`] says what is wrong now. [`desk`] says what of that is news: it waits out what passes by
//! itself, repeats what lasts, and is silent about what comes and goes. Both are pure. [`task`] runs them
//! once a second. A [`channel`] has a queue and a task of its own, so that one that does not answer holds up
//! nothing: no change of a primary and no address ever waits for an alert.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub mod channel;
pub mod condition;
pub mod desk;
pub mod http;
pub mod message;
pub mod status;
pub mod syslog;
pub mod task;

/// How grave it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look at it.
    Warning,
    /// Somebody must act now.
    Critical,
}

impl Severity {
    /// The word for it, in lower case.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What a notice says of its alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is so.
    Firing,
    /// It is so no longer.
    Resolved,
    /// It has happened, and does not end.
    Event,
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Which alert: a word such as `primary_down`.
    pub alert: String,
    /// What it is about, such as `appdb/pg-01`.
    pub subject: String,
    /// How grave it is.
    pub severity: Severity,
    /// What is said of it.
    pub state: State,
    /// One or two sentences for a person.
    pub text: String,
    /// Since when it is so.
    pub since: Timestamp,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The cluster.
    pub cluster: String,
    /// The node that says it.
    pub node: String,
}

impl Notice {
    /// The same for the same alert about the same thing in the same cluster, whichever node says it: 16
    /// hexadecimal digits (FNV-1a, <https://www.rfc-editor.org/rfc/rfc9923>).
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for part in [&self.cluster, &self.alert, &self.subject] {
            for byte in part.bytes().chain([0]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        format!("{hash:016x}")
    }
}
