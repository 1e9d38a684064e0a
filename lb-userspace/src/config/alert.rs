//! `[[alert]]`: where alerts are told.

use std::path::PathBuf;

use crate::alert::Severity;

/// `[[alert]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// Name, unique: the kind, if the file names none.
    pub name: String,
    /// Who is told.
    pub receiver: Receiver,
    /// What is less grave is not told.
    pub least: Severity,
}

/// Who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// A chat, by a bot.
    Telegram {
        /// Address of the Bot API.
        api: String,
        /// File with the bot's token.
        token_file: PathBuf,
        /// The chat.
        chat_id: String,
        /// Certificates in place of the system's.
        ca_file: Option<PathBuf>,
    },
    /// An incoming webhook of Slack, or of what takes the same.
    Slack {
        /// File with its address, which is a secret.
        url_file: PathBuf,
        /// Certificates in place of the system's.
        ca_file: Option<PathBuf>,
    },
    /// Whatever takes the webhooks of Alertmanager.
    Webhook {
        /// Its address.
        url: Option<String>,
        /// File with its address, if that is a secret.
        url_file: Option<PathBuf>,
        /// File with a bearer token.
        token_file: Option<PathBuf>,
        /// Certificates in place of the system's.
        ca_file: Option<PathBuf>,
    },
    /// The system's log.
    Syslog {
        /// Its Unix socket.
        socket: PathBuf,
    },
}

impl Receiver {
    /// The word for it in the file.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Telegram { .. } => "telegram",
            Self::Slack { .. } => "slack",
            Self::Webhook { .. } => "webhook",
            Self::Syslog { .. } => "syslog",
        }
    }
}
