//! What `ballast alert` and `status` say of alerts: plain data.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Severity, channel::ChannelStatus};

/// How alerts stand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alerts {
    /// This node tells them; if not, the one that has the floating addresses does.
    pub speaks: bool,
    /// What is wrong now.
    pub firing: Vec<Firing>,
    /// Where they are told.
    pub channels: Vec<ChannelStatus>,
}

/// Something that is wrong now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firing {
    /// Which alert.
    pub alert: String,
    /// What it is about.
    pub subject: String,
    /// How grave it is.
    pub severity: Severity,
    /// For a person.
    pub text: String,
    /// Since when.
    pub since: Timestamp,
    /// It was told, and its end will be.
    pub told: bool,
}

/// What has become of a test message to a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// The channel.
    pub channel: String,
    /// Why it did not get through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
