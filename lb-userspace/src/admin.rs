//! The Unix socket that the command line talks to: HTTP/1.1, JSON in the answers.
//!
//! | request | answer |
//! |---|---|
//! | `GET /status?service=&all=true` | [`crate::control::status::Status`]; of very many backends, only with `all` or `service` |
//! | `GET /flows?service=&limit=` | an array of [`crate::control::status::NamedFlow`] |
//! | `GET /events?follow=true` | an [`crate::events::Event`] a line; with `follow`, without end |
//! | `GET /trace?from=&to=&host=&service=&backend=&reason=&one_in=&count=&seconds=&bytes=` | a [`crate::trace::Line`] a line, until the count or the time is reached |
//! | `POST /reload` | [`Reloaded`](crate::control::task::Reloaded); 422 with [`Problem`] if refused |
//! | `POST /backends/NAME/{drain,enable,disable}?service=` | an array of [`Wished`](crate::control::task::Wished) |
//! | `POST /backends/NAME/weight/N?service=` | the same; `default` for the configured weight |
//! | `POST /backends/NAME/reset?service=&flows=&rate=` | [`Resets`](crate::control::reset::Resets), when all are ended |
//! | `GET /postgres` | an array of [`Database`](crate::postgres::status::Database) |
//! | `GET /postgres/plan?db=&server=` | [`Plan`](crate::postgres::failover::Plan): what a promotion would do |
//! | `GET /postgres/rejoin/SERVER?db=&clone=` | [`Rejoin`](crate::admin::postgres::Rejoin): the commands for its host |
//! | `POST /postgres/promote?db=&server=&may_lose=&absent=&force=` | [`Done`](crate::admin::Done), when it is done; 409 if it is refused |
//! | `POST /postgres/switchover?db=&server=&absent=&wait_ms=&cut=&dry_run=` | the same |
//! | `POST /postgres/{fence,unfence}/SERVER?db=&force=` | the same |
//! | `POST /postgres/{approve,veto}/TOKEN?db=` | the same |
//! | `GET /alerts` | [`Alerts`](crate::alert::status::Alerts) |
//! | `POST /alerts/test?channel=` | an array of [`Tested`](crate::alert::status::Tested) |
//! | `POST /release` | an array of [`Released`](crate::vrrp::router::Released), when it is done; 409 without a second node |
//!
//! Any error has a [`Problem`] as its body. Only root may open the socket.

use std::{convert::Infallible, fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::Context as _;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{
    net::UnixListener,
    sync::{broadcast::error::RecvError, mpsc},
};

use crate::{
    alert::task::Handle as Alerts,
    config::report::Diagnostic,
    control::{
        reset,
        status::View,
        task::{Change, FlowsError, Handle, ResetError, WishError},
        verdict::Admin,
    },
    events::{Event, Timeline},
    postgres::databases::Databases,
};

mod alert;
pub mod client;
pub mod postgres;
mod target;
mod trace;

use target::Target;

/// Connections listed when nobody says how many.
pub const DEFAULT_FLOW_LIMIT: usize = 1000;

/// Highest weight.
const MAX_WEIGHT: u32 = 256;

/// The body of an answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, in one line.
    pub error: String,
    /// What is wrong with a configuration, as a person reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The mistakes in a configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

/// The body of an answer that says what was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What, for a person.
    pub message: String,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The listening socket.
#[derive(Debug)]
pub struct Server(UnixListener);

impl Server {
    /// Listens at `path`, where nothing may be. Nobody but the daemon's own user may connect.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let listener =
            UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("keep others out of {}", path.display()))?;
        Ok(Self(listener))
    }

    /// Serves until it is aborted.
    pub async fn run(self, handle: Handle, databases: Databases, alerts: Option<Alerts>) {
        loop {
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // No file descriptors left, for example: that may pass.
                    tracing::warn!(%error, "accept a connection to the admin socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let shared = (handle.clone(), databases.clone(), alerts.clone());
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let (handle, databases, alerts) = shared.clone();
                    async move {
                        let alerts = alerts.as_ref();
                        Ok::<_, Infallible>(answer(request, &handle, &databases, alerts).await)
                    }
                });
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                if let Err(error) = served.await {
                    tracing::debug!(%error, "serve the admin socket");
                }
            });
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    handle: &Handle,
    databases: &Databases,
    alerts: Option<&Alerts>,
) -> Response<Body> {
    let target = match Target::parse(request.uri()) {
        Ok(target) => target,
        Err(wrong) => return problem(StatusCode::BAD_REQUEST, &wrong),
    };
    let path: Vec<&str> = target.path.iter().map(String::as_str).collect();
    let method = request.method();
    match (method, &path[..]) {
        (&Method::GET, ["status"]) => status(&target, handle, databases, alerts).await,
        (method, ["postgres", what @ ..]) => {
            postgres::answer(method, what, &target, databases).await
        }
        (&Method::GET, ["alerts"]) => json(StatusCode::OK, &alerts.map(Alerts::status)),
        (&Method::POST, ["alerts", "test"]) => alert::test(&target, alerts).await,
        (&Method::GET, ["flows"]) => flows(&target, handle).await,
        (&Method::GET, ["events"]) => match target.get("follow") {
            None | Some("" | "false") => lines(&handle.timeline().recent()),
            Some(_) => followed(handle.timeline()),
        },
        (&Method::GET, ["trace"]) => trace::trace(&target, handle).await,
        (&Method::POST, ["reload"]) => match handle.reload().await {
            Ok(Ok(reloaded)) => json(StatusCode::OK, &reloaded),
            Ok(Err(refused)) => {
                let text = Some(refused.text);
                let diagnostics = refused.diagnostics;
                let problem = Problem { error: refused.message, text, diagnostics };
                json(StatusCode::UNPROCESSABLE_ENTITY, &problem)
            }
            Err(error) => failed(&error),
        },
        (&Method::POST, ["release"]) => match handle.release().await {
            Ok(Some(released)) => json(StatusCode::OK, &released),
            Ok(None) => problem(
                StatusCode::CONFLICT,
                "this node does not share its floating addresses with another, so there is nobody \
                 to release them to; `ballast detach` takes them away",
            ),
            Err(error) => failed(&error),
        },
        (&Method::POST, ["backends", name, "reset"]) => reset(name, &target, handle).await,
        (&Method::POST, ["backends", name, what @ ..]) => match change(what) {
            Some(Ok(change)) => wish(name, &target, change, handle).await,
            Some(Err(wrong)) => problem(StatusCode::BAD_REQUEST, &wrong),
            None => unknown(&target),
        },
        (
            _,
            [
                "status" | "alerts" | "flows" | "events" | "trace" | "reload" | "release"
                | "backends",
                ..,
            ],
        ) => problem(StatusCode::METHOD_NOT_ALLOWED, &format!("{method} is not for this")),
        _ => unknown(&target),
    }
}

/// What `drain`, `weight/3` and the like ask for.
fn change(what: &[&str]) -> Option<Result<Change, String>> {
    let change = match what {
        ["drain"] => Change::Admin(Admin::Draining),
        ["enable"] => Change::Admin(Admin::Enabled),
        ["disable"] => Change::Admin(Admin::Disabled),
        ["weight", "default"] => Change::Weight(None),
        ["weight", weight] => {
            return Some(match weight.parse() {
                Ok(weight) if (1..=MAX_WEIGHT).contains(&weight) => {
                    Ok(Change::Weight(Some(weight)))
                }
                _ => Err(format!(
                    "{weight} is no weight: give a number from 1 to {MAX_WEIGHT}, or `default`"
                )),
            });
        }
        _ => return None,
    };
    Some(Ok(change))
}

async fn wish(name: &str, target: &Target, change: Change, handle: &Handle) -> Response<Body> {
    let service = target.get("service").map(str::to_owned);
    match handle.wish(name.to_owned(), service, change).await {
        Ok(Ok(wished)) => json(StatusCode::OK, &wished),
        Ok(Err(error @ WishError::Unknown(_))) => {
            problem(StatusCode::NOT_FOUND, &error.to_string())
        }
        Ok(Err(error @ WishError::NotKept { .. })) => {
            problem(StatusCode::INSUFFICIENT_STORAGE, &error.to_string())
        }
        Err(error) => failed(&error),
    }
}

async fn status(
    target: &Target,
    handle: &Handle,
    databases: &Databases,
    alerts: Option<&Alerts>,
) -> Response<Body> {
    let service = target.get("service").map(str::to_owned);
    let all = !matches!(target.get("all"), None | Some("" | "false"));
    let asked = service.clone();
    match handle.status(View { service, all }).await {
        Ok(mut status) => match asked {
            None => {
                status.postgres = databases.status();
                alert::show(&mut status, alerts);
                json(StatusCode::OK, &status)
            }
            Some(name) if status.services.is_empty() => {
                problem(StatusCode::NOT_FOUND, &format!("no service is called {name}"))
            }
            _ => json(StatusCode::OK, &status),
        },
        Err(error) => failed(&error),
    }
}

async fn reset(name: &str, target: &Target, handle: &Handle) -> Response<Body> {
    let client = match target.get("flows").map(str::parse::<reset::Client>).transpose() {
        Ok(client) => client,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let rate = match target.get("rate").map(str::parse) {
        None => reset::DEFAULT_RATE,
        Some(Ok(rate)) if rate > 0 => rate,
        Some(_) => return problem(StatusCode::BAD_REQUEST, "rate is not a number above zero"),
    };
    match handle.reset(name, target.get("service"), client, rate).await {
        Ok(resets) => json(StatusCode::OK, &resets),
        Err(error @ ResetError::Unknown(_)) => problem(StatusCode::NOT_FOUND, &error.to_string()),
        Err(ResetError::Failed(error)) => failed(&error),
    }
}

async fn flows(target: &Target, handle: &Handle) -> Response<Body> {
    let limit = match target.get("limit").map(str::parse) {
        None => DEFAULT_FLOW_LIMIT,
        Some(Ok(limit)) => limit,
        Some(Err(_)) => return problem(StatusCode::BAD_REQUEST, "limit is not a number"),
    };
    let mut batches = match handle.flows(target.get("service").map(str::to_owned), limit).await {
        Ok(batches) => batches,
        Err(error @ FlowsError::Unknown { .. }) => {
            return problem(StatusCode::NOT_FOUND, &error.to_string());
        }
        Err(FlowsError::Failed(error)) => return failed(&error),
    };
    // The first is waited for, while there is still a status to say what is wrong.
    match batches.recv().await {
        Some(Ok(first)) => respond(StatusCode::OK, JSON, array(first, batches)),
        Some(Err(error)) => failed(&error),
        None => problem(StatusCode::INTERNAL_SERVER_ERROR, "the flow tables cannot be read"),
    }
}

/// A JSON array that is written while its elements are still read.
fn array<T: Serialize + Send + 'static>(
    first: Vec<T>,
    rest: mpsc::Receiver<anyhow::Result<Vec<T>>>,
) -> Body {
    struct State<T> {
        batch: Option<Vec<T>>,
        rest: mpsc::Receiver<anyhow::Result<Vec<T>>>,
        separator: u8,
    }
    let start = State { batch: Some(first), rest, separator: b'[' };
    let frames = stream::unfold(start, |mut state| async move {
        let mut bytes = Vec::new();
        for element in state.batch.take()? {
            bytes.push(state.separator);
            bytes.extend(to_json(&element));
            state.separator = b',';
        }
        match state.rest.recv().await {
            Some(Ok(batch)) => state.batch = Some(batch),
            // The array stays open, so that nobody takes it for the whole.
            Some(Err(error)) => tracing::warn!(%error, "list connections"),
            None if state.separator == b'[' => bytes.extend(b"[]"),
            None => bytes.push(b']'),
        }
        Some((Ok(Frame::data(Bytes::from(bytes))), state))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Past events and then the new ones, for as long as somebody reads.
fn followed(timeline: &Timeline) -> Response<Body> {
    let (past, rest) = timeline.follow();
    let past: Vec<u8> = past.iter().flat_map(line).collect();
    let start = (Some(past), rest);
    let frames = stream::unfold(start, |(past, mut rest)| async move {
        let bytes = match past {
            Some(past) => past,
            None => loop {
                match rest.recv().await {
                    Ok(event) => break line(&event),
                    // The reader was slow. The numbers of the events show the gap.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            },
        };
        Some((Ok(Frame::data(Bytes::from(bytes))), (None, rest)))
    });
    respond(StatusCode::OK, NDJSON, StreamBody::new(frames).boxed_unsync())
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

fn lines(events: &[Event]) -> Response<Body> {
    let bytes: Vec<u8> = events.iter().flat_map(line).collect();
    respond(StatusCode::OK, NDJSON, Full::new(Bytes::from(bytes)).boxed_unsync())
}

fn line(event: &Event) -> Vec<u8> {
    let mut line = to_json(event);
    line.push(b'\n');
    line
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    respond(status, JSON, Full::new(Bytes::from(to_json(value))).boxed_unsync())
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Numbers, strings, lists and maps with strings as keys: all of that is JSON.
    serde_json::to_vec(value).expect("the answer is JSON")
}

fn problem(status: StatusCode, error: &str) -> Response<Body> {
    json(status, &Problem { error: error.to_owned(), text: None, diagnostics: Vec::new() })
}

fn failed(error: &anyhow::Error) -> Response<Body> {
    problem(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}"))
}

fn unknown(target: &Target) -> Response<Body> {
    let path = target.path.join("/");
    problem(StatusCode::NOT_FOUND, &format!("this ballast knows no /{path}"))
}

fn respond(status: StatusCode, content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
