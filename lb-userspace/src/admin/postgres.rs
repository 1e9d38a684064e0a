//! Requests about databases.

use std::{collections::BTreeSet, time::Duration};

use hyper::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::{Body, Done, Target, json, problem, unknown};
use crate::postgres::{
    databases::{Databases, Error},
    failover::Command,
    handover::{Handover, WAIT},
    rejoin::Remote,
};

pub(super) async fn answer(
    method: &Method,
    what: &[&str],
    target: &Target,
    databases: &Databases,
) -> Response<Body> {
    let db = target.get("db");
    let server = target.get("server").map(str::to_owned);
    match (method, what) {
        (&Method::GET, []) => json(StatusCode::OK, &databases.status()),
        (&Method::GET, ["plan"]) => match databases.plan(db, server).await {
            Ok(plan) => json(StatusCode::OK, &plan),
            Err(error) => refuse(&error),
        },
        (&Method::GET, ["rejoin", server]) => {
            let clone = !matches!(target.get("clone"), None | Some("" | "false"));
            match databases.rejoin(db, server, clone) {
                Ok((message, remote)) => json(StatusCode::OK, &Rejoin { message, remote }),
                Err(error) => refuse(&error),
            }
        }
        (&Method::POST, ["switchover"]) => match handover(target, server) {
            Ok(handover) => done(databases.switchover(db, handover).await),
            Err(wrong) => problem(StatusCode::BAD_REQUEST, &wrong),
        },
        (&Method::POST, what) => match command(what, target, server) {
            Some(Ok(command)) => done(databases.command(db, command).await),
            Some(Err(wrong)) => problem(StatusCode::BAD_REQUEST, &wrong),
            None => unknown(target),
        },
        _ => unknown(target),
    }
}

/// The body of an answer that says how a server becomes a standby.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejoin {
    /// The commands, for a person.
    pub message: String,
    /// What does it, if that is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
}

/// How the operator wants to hand over.
fn handover(target: &Target, server: Option<String>) -> Result<Handover, String> {
    let wait = match target.get("wait_ms").map(str::parse) {
        None => WAIT,
        Some(Ok(millis)) => Duration::from_millis(millis),
        Some(Err(_)) => return Err("wait_ms is no number of milliseconds".into()),
    };
    let is = |key: &str| !matches!(target.get(key), None | Some("" | "false"));
    let (cut, rehearse) = (is("cut"), is("dry_run"));
    Ok(Handover { server, absent: absent(target), wait, cut, rehearse })
}

fn absent(target: &Target) -> BTreeSet<String> {
    let absent = target.get("absent").unwrap_or_default();
    absent.split(',').filter(|it| !it.is_empty()).map(str::to_owned).collect()
}

/// What the operator commands.
fn command(
    what: &[&str],
    target: &Target,
    server: Option<String>,
) -> Option<Result<Command, String>> {
    let absent = absent(target);
    let force = !matches!(target.get("force"), None | Some("" | "false"));
    Some(Ok(match what {
        ["promote"] => {
            let Ok(may_lose) = target.get("may_lose").map(str::parse).transpose() else {
                return Some(Err("may_lose is no number of bytes".into()));
            };
            Command::Promote { server, may_lose, absent, force }
        }
        ["degrade"] => Command::Degrade { absent, force },
        ["restore"] => Command::Restore,
        ["fence", server] => Command::Fence((*server).to_owned()),
        ["unfence", server] => Command::Unfence { server: (*server).to_owned(), force },
        ["approve", token] => Command::Approve((*token).to_owned()),
        ["veto", token] => Command::Veto((*token).to_owned()),
        _ => return None,
    }))
}

fn done(result: Result<String, Error>) -> Response<Body> {
    match result {
        Ok(message) => json(StatusCode::OK, &Done { message }),
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &Error) -> Response<Body> {
    let status = match error {
        Error::Unknown(_) => StatusCode::NOT_FOUND,
        Error::Refused(_) => StatusCode::CONFLICT,
    };
    problem(status, &error.to_string())
}
