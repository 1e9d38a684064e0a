//! `GET /trace`: packets as they come, until the reader has enough or goes away.

use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Response, StatusCode,
    body::{Bytes, Frame},
};
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

use super::{Body, NDJSON, Target, failed, problem, respond, to_json};
use crate::{
    clock,
    control::task::{Handle, TraceError},
    trace::{
        Line, Request,
        hub::{BeginError, Trace},
        show::Names,
    },
};

/// A trace that nobody limits is watched for lost records so often.
const GLANCE: Duration = Duration::from_secs(1);

pub(super) async fn trace(target: &Target, handle: &Handle) -> Response<Body> {
    let (request, limits) = match understand(target) {
        Ok(understood) => understood,
        Err(wrong) => return problem(StatusCode::BAD_REQUEST, &wrong),
    };
    let (names, trace) = match handle.trace(&request).await {
        Ok(begun) => begun,
        Err(TraceError::Unknown(error)) => {
            return problem(StatusCode::NOT_FOUND, &error.to_string());
        }
        Err(TraceError::Begin(error @ BeginError::Full)) => {
            return problem(StatusCode::CONFLICT, &error.to_string());
        }
        Err(TraceError::Begin(BeginError::Failed(error)) | TraceError::Failed(error)) => {
            return failed(&error);
        }
    };
    let reader = Reader {
        trace,
        names,
        since: clock::wall() - clock::monotonic(),
        bytes: limits.bytes,
        left: limits.count,
        end: limits.seconds.map(|seconds| clock::timer() + Duration::from_secs(seconds)),
        told_lost: 0,
        began: false,
    };
    let frames = stream::unfold(reader, |mut reader| async move {
        let mut bytes = to_json(&reader.next().await?);
        bytes.push(b'\n');
        Some((Ok(Frame::data(Bytes::from(bytes))), reader))
    });
    respond(StatusCode::OK, NDJSON, StreamBody::new(frames).boxed_unsync())
}

/// When a trace has had enough.
struct Limits {
    count: Option<u64>,
    seconds: Option<u64>,
    bytes: bool,
}

fn understand(target: &Target) -> Result<(Request, Limits), String> {
    fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
        target: &Target,
        key: &str,
    ) -> Result<Option<T>, String> {
        let value = target.get(key);
        value.map(|text| text.parse().map_err(|wrong| format!("{key}: {wrong}"))).transpose()
    }
    let request = Request {
        from: parsed(target, "from")?,
        to: parsed(target, "to")?,
        host: parsed(target, "host")?,
        service: target.get("service").map(str::to_owned),
        backend: target.get("backend").map(str::to_owned),
        reason: parsed(target, "reason")?,
        one_in: parsed(target, "one_in")?.unwrap_or(1),
    };
    let limits = Limits {
        count: parsed(target, "count")?,
        seconds: parsed(target, "seconds")?,
        bytes: target.get("bytes") == Some("true"),
    };
    Ok((request, limits))
}

/// What the stream of lines is made from.
struct Reader {
    trace: Trace,
    names: Names,
    /// Wall-clock time at which the monotonic clock was zero.
    since: Timestamp,
    bytes: bool,
    /// Packets still to be shown.
    left: Option<u64>,
    end: Option<Instant>,
    /// Lost records that the reader has been told of.
    told_lost: u64,
    began: bool,
}

impl Reader {
    /// The next line; `None` ends the stream, and with it the trace.
    async fn next(&mut self) -> Option<Line> {
        if !self.began {
            self.began = true;
            return Some(Line::Began);
        }
        loop {
            let lost = self.trace.lost();
            if lost > self.told_lost {
                self.told_lost = lost;
                return Some(Line::Lost(lost));
            }
            // Asked before the records, of which there may be more than can ever be shown.
            if self.left == Some(0) || self.end.is_some_and(|end| end <= clock::timer()) {
                return None;
            }
            let glance = clock::timer() + GLANCE;
            tokio::select! {
                record = self.trace.next() => {
                    let record = record?;
                    self.left = self.left.map(|left| left - 1);
                    let packet = self.names.packet(&record, self.since, self.bytes);
                    return Some(Line::Packet(Box::new(packet)));
                }
                () = sleep_until(self.end.map_or(glance, |end| end.min(glance))) => {}
            }
        }
    }
}
