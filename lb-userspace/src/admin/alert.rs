//! Requests about alerts.

use hyper::{Response, StatusCode};

use super::{Alerts, Body, Target, json, problem};
use crate::control::status::Status;

/// Sends a test message, and answers when each channel has said something, or has not.
pub(super) async fn test(target: &Target, alerts: Option<&Alerts>) -> Response<Body> {
    let asked = target.get("channel").map(str::to_owned);
    let Some(alerts) = alerts else {
        return problem(StatusCode::NOT_FOUND, "this daemon tells no alerts");
    };
    let known: Vec<_> = alerts.status().channels.into_iter().map(|it| it.name).collect();
    if known.is_empty() {
        return problem(StatusCode::NOT_FOUND, "the configuration has no [[alert]]");
    }
    if let Some(name) = &asked
        && !known.contains(name)
    {
        let message = format!("no alert is called {name}; there are: {}", known.join(", "));
        return problem(StatusCode::NOT_FOUND, &message);
    }
    json(StatusCode::OK, &alerts.test(asked).await)
}

/// Puts alerts, and what is wrong with them, into the state of the node.
pub(super) fn show(status: &mut Status, alerts: Option<&Alerts>) {
    let Some(alerts) = alerts.map(Alerts::status).filter(|it| !it.channels.is_empty()) else {
        return;
    };
    let failing = alerts.channels.iter().filter_map(|channel| {
        let why = channel.failing.as_ref()?;
        Some(format!("alerts do not get through to {}: {why}", channel.name))
    });
    status.warnings.extend(failing);
    status.alerts = Some(alerts);
}
