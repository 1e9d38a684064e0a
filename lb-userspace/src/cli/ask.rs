//! The commands that ask the daemon.

use std::{fmt::Write as _, path::Path, process::ExitCode};

use anyhow::Context as _;

use super::{
    check::plural,
    output::{age, bytes, columns, print, print_bytes},
    status,
};
use crate::{
    admin::client::{Call, Error},
    control::{
        reset::Resets,
        status::{NamedFlow, Status},
        task::{Reloaded, Wished},
        verdict::Admin,
    },
    events::Event,
    vrrp::router::Released,
};

/// `ballast status`.
pub(super) fn status(
    socket: &Path,
    service: Option<&str>,
    all: bool,
    json: bool,
) -> anyhow::Result<()> {
    let call = Call::get(&["status"]).with("service", service);
    let text = block_on(call.with("all", all.then_some("true")).text(socket))?;
    if json {
        return Ok(print(&format!("{text}\n"))?);
    }
    let status: Status = serde_json::from_str(&text).context("understand the daemon's answer")?;
    Ok(print(&status::render(&status))?)
}

/// `ballast reload`.
pub(super) fn reload(socket: &Path) -> anyhow::Result<ExitCode> {
    match block_on(Call::post(&["reload"]).json::<Reloaded>(socket)) {
        Ok(reloaded) => {
            eprint!("{}", reloaded.warnings);
            let services = plural(reloaded.services, "service");
            let backends = plural(reloaded.backends, "backend");
            print(&format!("in force: {services}, {backends}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if let Some(Error::Refused(problem)) = error.downcast_ref::<Error>()
                && let Some(text) = &problem.text
            {
                eprintln!("{}", text.trim_end());
                eprintln!("refused; nothing has changed");
                return Ok(ExitCode::FAILURE);
            }
            Err(error)
        }
    }
}

/// `ballast drain`, `enable`, `disable` and `weight`.
pub(super) fn wish(
    socket: &Path,
    call: Call,
    service: Option<&str>,
    json: bool,
) -> anyhow::Result<()> {
    let call = call.with("service", service);
    let text = block_on(call.text(socket))?;
    if json {
        return Ok(print(&format!("{text}\n"))?);
    }
    let wished: Vec<Wished> =
        serde_json::from_str(&text).context("understand the daemon's answer")?;
    let mut out = String::new();
    for Wished { service, backend, admin, weight } in &wished {
        let what = match admin {
            Admin::Enabled => "serves if it is fit",
            Admin::Draining => "gets no new connections; open ones go on for drain_timeout",
            Admin::Disabled => "gets no new connections; open ones are reset",
        };
        // Writing to a `String` cannot fail.
        let _ = writeln!(out, "{backend} of {service}: {what}; weight {weight}");
    }
    if let [first, _, ..] = &wished[..] {
        let services = plural(wished.len(), "service");
        let backend = &first.backend;
        let _ = writeln!(
            out,
            "{backend} is in {services}, and all of them are meant; --service picks one"
        );
    }
    Ok(print(&out)?)
}

/// `ballast reset`.
pub(super) fn reset(socket: &Path, call: Call, backend: &str, json: bool) -> anyhow::Result<()> {
    let text = block_on(call.text(socket))?;
    if json {
        return Ok(print(&format!("{text}\n"))?);
    }
    let Resets { ended, to_clients, to_backends, untold } =
        serde_json::from_str(&text).context("understand the daemon's answer")?;
    let connections = plural(ended as usize, "connection");
    let mut out = format!(
        "{connections} to {backend} ended; resets sent to {} and to the backend for {to_backends}\n",
        plural(to_clients as usize, "client"),
    );
    if untold > 0 {
        // Writing to a `String` cannot fail.
        let _ = writeln!(out, "{untold} of them could not be told; their next packet ends them");
    }
    Ok(print(&out)?)
}

/// `ballast release`: fails if this node still has addresses.
pub(super) fn release(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let text = block_on(Call::post(&["release"]).text(socket))?;
    let released: Vec<Released> =
        serde_json::from_str(&text).context("understand the daemon's answer")?;
    let mut out = String::new();
    if json {
        out = format!("{text}\n");
    } else {
        for Released { vrid, outcome, .. } in &released {
            // Writing to a `String` cannot fail.
            let _ = writeln!(out, "vrid {vrid}: {outcome}");
        }
    }
    print(&out)?;
    let kept = released.iter().any(|released| released.kept);
    Ok(if kept { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// `ballast flows`.
pub(super) fn flows(
    socket: &Path,
    service: Option<&str>,
    limit: u64,
    json: bool,
) -> anyhow::Result<()> {
    let call = Call::get(&["flows"]).with("service", service);
    let call = call.with("limit", Some(&limit.to_string()));
    if json {
        // As it comes: there may be millions.
        let mut printed = Ok(());
        block_on(call.pieces(socket, |piece| {
            printed = print_bytes(piece);
            printed.is_ok()
        }))?;
        printed?;
        return Ok(print("\n")?);
    }
    let text = block_on(call.text(socket))?;
    let flows: Vec<NamedFlow> =
        serde_json::from_str(&text).context("understand the daemon's answer")?;
    let head = ["PROTO", "CLIENT", "SERVICE", "BACKEND", "AS", "PHASE", "IDLE", "TO", "FROM"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(flows.iter().map(
        |NamedFlow { service, backend_name, flow, packets_per_second, .. }| {
            vec![
                match flow.protocol {
                    6 => "tcp".to_owned(),
                    17 => "udp".to_owned(),
                    other => other.to_string(),
                },
                flow.client.to_string(),
                format!("{} {}", service.as_deref().unwrap_or("(removed)"), flow.listen),
                format!("{} {}", backend_name.as_deref().unwrap_or("(removed)"), flow.backend),
                flow.nat.to_string(),
                match packets_per_second {
                    Some(rate) => format!("{}, about {rate}/s", flow.phase),
                    None => flow.phase.clone(),
                },
                age(flow.idle_ms / 1000),
                bytes(flow.forward_bytes),
                bytes(flow.return_bytes),
            ]
        },
    ));
    let mut out = columns(&rows, 0);
    if flows.len() as u64 == limit {
        let _ = writeln!(out, "the first {limit}; --limit shows more");
    }
    Ok(print(&out)?)
}

/// `ballast events`.
pub(super) fn events(socket: &Path, follow: bool, json: bool) -> anyhow::Result<()> {
    let call = Call::get(&["events"]).with("follow", follow.then_some("true"));
    let mut failure = None;
    block_on(call.lines(socket, |line| {
        let shown = if json { Ok(format!("{line}\n")) } else { event(line) };
        let printed = shown.and_then(|text| Ok(print(&text)?));
        printed.map_err(|error| failure = Some(error)).is_ok()
    }))?;
    failure.map_or(Ok(()), Err)
}

fn event(line: &str) -> anyhow::Result<String> {
    let event: Event = serde_json::from_str(line).context("understand the daemon's answer")?;
    let about = match (&event.service, &event.backend) {
        (Some(service), Some(backend)) => format!("[{service}/{backend}] "),
        (Some(name), None) | (None, Some(name)) => format!("[{name}] "),
        (None, None) => String::new(),
    };
    let mark = if event.kind.is_grave() { "! " } else { "" };
    let cause = event.cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
    Ok(format!("{:.3}  {mark}{about}{}{cause}\n", event.time, event.message))
}

pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Error>>) -> anyhow::Result<T> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("start the runtime")?;
    Ok(runtime.block_on(future)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Kind, Note, Timeline};

    #[test]
    fn an_event_is_a_line_with_its_cause() {
        let timeline = Timeline::new(None);
        let note = Note::new(Kind::Health, "app-01 is down").service("web").backend("app-01");
        timeline.add(note.because("connection refused"));
        let json = serde_json::to_string(&timeline.recent()[0]).unwrap();
        let line = event(&json).unwrap();
        assert!(line.ends_with("Z  [web/app-01] app-01 is down (connection refused)\n"), "{line}");
    }
}
