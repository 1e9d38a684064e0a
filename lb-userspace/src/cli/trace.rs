//! `ballast trace`: packets as they come.

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, builder::RangedU64ValueParser};

use super::{check::plural, output::print};
use crate::{
    admin::client::Call,
    trace::{
        Frame, Line, Packet, Prefix, ReasonWanted,
        capture::{Capture, verdict},
    },
};

/// Examples of the command.
pub(super) const HELP: &str = "\
All that is given must match. Without any, every packet that comes to the balancer is shown. While a
trace runs, the balancer forwards with a program that is somewhat slower; connections live on.

Examples:
  ballast trace --service web --host 203.0.113.9       both directions of one client
  ballast trace --reason any                           what is not forwarded, and why
  ballast trace --service web --one-in 1000 --count 20
  ballast trace --seconds 10 --pcapng web.pcapng       for wireshark: each packet before and after";

/// What to show.
#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    /// Only packets from this address or network, as they come
    #[arg(long, value_name = "CIDR")]
    from: Option<String>,
    /// Only packets to this address or network, as they come
    #[arg(long, value_name = "CIDR")]
    to: Option<String>,
    /// Only packets from or to this address or network, as they come or as they leave
    #[arg(long, value_name = "CIDR")]
    host: Option<String>,
    /// Only packets of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only packets to and from this backend
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only packets that are not forwarded for this reason, as `status` names it, or for `any`
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// End after so many packets
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(1..=86_400))]
    seconds: Option<u64>,
    /// Show one packet in so many of those that match
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    one_in: u32,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
    /// Write the packets to a file instead
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pcapng: Option<PathBuf>,
}

impl TraceArgs {
    /// The request, checked here, so that a mistake is told without a daemon.
    fn call(&self) -> anyhow::Result<Call> {
        for (option, text) in [("--from", &self.from), ("--to", &self.to), ("--host", &self.host)] {
            if let Some(text) = text {
                text.parse::<Prefix>().with_context(|| format!("understand {option}"))?;
            }
        }
        if let Some(reason) = &self.reason {
            reason.parse::<ReasonWanted>().context("understand --reason")?;
        }
        let [count, seconds] = [self.count, self.seconds].map(|it| it.map(|it| it.to_string()));
        Ok(Call::get(&["trace"])
            .with("from", self.from.as_deref())
            .with("to", self.to.as_deref())
            .with("host", self.host.as_deref())
            .with("service", self.service.as_deref())
            .with("backend", self.backend.as_deref())
            .with("reason", self.reason.as_deref())
            .with("one_in", Some(&self.one_in.to_string()))
            .with("count", count.as_deref())
            .with("seconds", seconds.as_deref())
            .with("bytes", self.pcapng.as_ref().map(|_| "true")))
    }
}

/// `ballast trace`.
pub(super) fn trace(socket: &Path, args: &TraceArgs) -> anyhow::Result<()> {
    let call = args.call()?;
    let mut shown = Shown { json: args.json, capture: None, packets: 0, lost: 0 };
    if let Some(path) = &args.pcapng {
        let create = || anyhow::Ok(Capture::new(BufWriter::new(File::create(path)?))?);
        shown.capture = Some(create().with_context(|| format!("write {}", path.display()))?);
    }
    let mut failure = None;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let lines = call
            .lines(socket, |line| shown.line(line).map_err(|error| failure = Some(error)).is_ok());
        tokio::select! {
            ended = lines => ended.map_err(anyhow::Error::from),
            // What there is so far is good; the daemon sees that we are gone.
            interrupted = tokio::signal::ctrl_c() => interrupted.context("wait for Ctrl-C"),
        }
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    if let (Some(capture), Some(path)) = (&mut shown.capture, &args.pcapng) {
        capture.flush().with_context(|| format!("write {}", path.display()))?;
        print(&format!("{}: {}\n", path.display(), plural(shown.packets, "packet")))?;
    }
    if shown.lost > 0 {
        eprintln!(
            "{} more could not be shown: they came too fast. --one-in thins them out",
            plural(shown.lost as usize, "packet")
        );
    }
    Ok(())
}

/// Where the packets go.
struct Shown {
    json: bool,
    capture: Option<Capture<BufWriter<File>>>,
    packets: usize,
    lost: u64,
}

impl Shown {
    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        match serde_json::from_str(line).context("understand the daemon's answer")? {
            Line::Began => eprintln!("tracing; Ctrl-C ends it"),
            Line::Lost(lost) => self.lost = lost,
            Line::Packet(packet) => {
                self.packets += 1;
                if let Some(capture) = &mut self.capture {
                    capture.packet(&packet).context("write the file")?;
                } else if self.json {
                    let json = serde_json::to_string(&packet).context("write JSON")?;
                    print(&format!("{json}\n"))?;
                } else {
                    print(&packet_line(&packet))?;
                }
            }
        }
        Ok(())
    }
}

/// A packet for people.
fn packet_line(packet: &Packet) -> String {
    let protocol = packet.before.protocol.as_deref().unwrap_or("no IP");
    let flags = match packet.before.flags.as_str() {
        "" => String::new(),
        flags => format!(" {flags}"),
    };
    let after = match &packet.after {
        Some(after) if same_way(after, &packet.before) => " => the same".to_owned(),
        Some(after) => format!(" => {}", ends(after)),
        None => String::new(),
    };
    format!(
        "{:.6}  {}  {}{after}  {protocol}{flags} {} B  {}\n",
        packet.time,
        packet.interface,
        ends(&packet.before),
        packet.before.length,
        verdict(packet),
    )
}

fn same_way(one: &Frame, other: &Frame) -> bool {
    (one.source, one.destination) == (other.source, other.destination)
}

fn ends(frame: &Frame) -> String {
    let end = |socket: Option<std::net::SocketAddr>| match socket {
        Some(socket) if socket.port() == 0 => socket.ip().to_string(),
        Some(socket) => socket.to_string(),
        None => "?".to_owned(),
    };
    format!("{} > {}", end(frame.source), end(frame.destination))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Direction;

    fn packet() -> Packet {
        let frame = |source: &str, destination: &str| Frame {
            protocol: Some("tcp".into()),
            source: Some(source.parse().unwrap()),
            destination: Some(destination.parse().unwrap()),
            flags: "SYN".into(),
            length: 74,
            bytes: String::new(),
        };
        Packet {
            time: "2026-01-02T03:04:05.678901234Z".parse().unwrap(),
            cpu: 1,
            interface: "eth0".into(),
            stage: "connect".into(),
            action: "transmit".into(),
            reason: None,
            forwarded: Some(Direction::To),
            service: Some("web".into()),
            backend: Some("app-01".into()),
            before: frame("192.0.2.9:40000", "192.0.2.100:80"),
            after: Some(frame("192.0.2.100:40000", "192.0.2.21:8080")),
        }
    }

    #[test]
    fn a_packet_is_a_line() {
        assert_eq!(
            packet_line(&packet()),
            "2026-01-02T03:04:05.678901Z  eth0  192.0.2.9:40000 > 192.0.2.100:80 => \
             192.0.2.100:40000 > 192.0.2.21:8080  tcp SYN 74 B  connect: forwarded to app-01 (web)\n"
        );
        let refused = Packet {
            action: "drop".into(),
            reason: Some("no_neighbour".into()),
            forwarded: None,
            after: None,
            ..packet()
        };
        assert_eq!(
            packet_line(&refused),
            "2026-01-02T03:04:05.678901Z  eth0  192.0.2.9:40000 > 192.0.2.100:80  tcp SYN 74 B  \
             connect: dropped, no_neighbour, app-01 (web)\n"
        );
    }

    #[test]
    fn what_is_wrong_is_told_before_the_daemon_is_asked() {
        let args = |from: &str, reason: &str| TraceArgs {
            from: Some(from.into()),
            to: None,
            host: None,
            service: None,
            backend: None,
            reason: Some(reason.into()),
            count: None,
            seconds: None,
            one_in: 1,
            json: false,
            pcapng: None,
        };
        assert!(args("192.0.2.0/24", "no_flow").call().is_ok());
        assert!(args("192.0.2.0/24", "bad").call().is_err());
        assert!(args("192.0.2.0.0", "any").call().is_err());
    }
}
