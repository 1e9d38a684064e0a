//! `ballast alert`.

use std::{fmt::Write as _, path::Path, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::Subcommand;

use super::{
    ask::block_on,
    output::{columns, print},
};
use crate::{
    admin::client::Call,
    alert::status::{Alerts, Tested},
};

#[derive(Debug, Subcommand)]
pub(super) enum AlertCommand {
    /// Show what is wrong now, and how the channels stand
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send a test message to every channel, and say what has become of it
    #[command(
        after_help = "Examples:\n  ballast alert test\n  ballast alert test --channel telegram\n\n\
                            Exit code 1 if one did not get through."
    )]
    Test {
        /// Only to this channel: the `name` of an [[alert]], or its kind
        #[arg(long, value_name = "NAME")]
        channel: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub(super) fn run(socket: &Path, command: AlertCommand) -> anyhow::Result<ExitCode> {
    match command {
        AlertCommand::Status { json } => {
            let text = block_on(Call::get(&["alerts"]).text(socket))?;
            if json {
                print(&format!("{text}\n"))?;
                return Ok(ExitCode::SUCCESS);
            }
            let alerts: Option<Alerts> =
                serde_json::from_str(&text).context("understand the daemon's answer")?;
            let Some(alerts) = alerts.filter(|it| !it.channels.is_empty()) else {
                bail!("the configuration has no [[alert]]");
            };
            print(&render(&alerts))?;
            Ok(ExitCode::SUCCESS)
        }
        AlertCommand::Test { channel, json } => {
            let call = Call::post(&["alerts", "test"]).with("channel", channel.as_deref());
            let text = block_on(call.text(socket))?;
            let tested: Vec<Tested> =
                serde_json::from_str(&text).context("understand the daemon's answer")?;
            if json {
                print(&format!("{text}\n"))?;
            } else {
                let lines = tested.iter().map(|Tested { channel, error }| match error {
                    None => format!("{channel}: it has got through\n"),
                    Some(why) => format!("{channel}: NOT SENT: {why}\n"),
                });
                print(&lines.collect::<String>())?;
            }
            let failed = tested.iter().any(|it| it.error.is_some());
            Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
    }
}

/// How alerts stand, for people.
fn render(alerts: &Alerts) -> String {
    let mut out = String::new();
    // Writing to a `String` cannot fail.
    for it in &alerts.firing {
        let told = if it.told { "" } else { " (not told)" };
        let word = it.severity.word().to_uppercase();
        let _ = writeln!(out, "{word} since {}: {}{told}", it.since.strftime("%F %T UTC"), it.text);
    }
    if alerts.firing.is_empty() {
        out.push_str("nothing is wrong\n");
    }
    if !alerts.speaks {
        out.push_str(
            "another node has the floating addresses and tells; this one tells its syslog\n",
        );
    }
    let head = ["CHANNEL", "KIND", "SENT", "WAIT", "DROPPED", "STATE"].map(str::to_owned);
    let rows = alerts.channels.iter().map(|it| {
        let state = it.failing.as_ref().map_or_else(|| "ok".into(), |why| format!("FAILS: {why}"));
        vec![
            it.name.clone(),
            it.kind.clone(),
            it.sent.to_string(),
            it.queued.to_string(),
            it.dropped.to_string(),
            state,
        ]
    });
    let rows: Vec<_> = std::iter::once(head.to_vec()).chain(rows).collect();
    out.push_str(&columns(&rows, 2));
    out
}
