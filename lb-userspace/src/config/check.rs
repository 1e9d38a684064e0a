//! From what the file says to a configuration that can be used, or to everything that is wrong.
//!
//! Each check looks at values that could be read; one that could not has been reported already and
//! is passed over. So no mistake hides another one and none is named twice.

use std::{collections::BTreeMap, net::SocketAddr, ops::Range, path::PathBuf, time::Duration};

use super::{
    Cluster, Config, Dataplane, Paths, Protocol,
    raw::{self, File},
    read::Field,
    report::Findings,
    units,
    value::{AbsolutePath, Whole},
};

mod alert;
mod anycast;
mod forward;
mod guard;
mod health;
mod network;
mod passive;
mod postgres;
mod proxy;
mod room;
pub(super) mod secret;
mod service;
mod upstream;
mod vrrp;

/// Checks everything that does not need the file system. If `findings` has errors afterwards, the
/// result is incomplete and of no use.
pub(super) fn check(file: &File, findings: &mut Findings) -> Config {
    let nodes = network::nodes(file, findings);
    let (floating, mut held) = network::floating(file, &nodes, findings);
    let anycast = anycast::anycast(file, &mut held, findings);
    let mut listeners = Listeners::default();
    let mut services = service::services(file, &held, &mut listeners, findings);
    let databases = postgres::databases(file, &held, &mut listeners, &mut services, findings);
    anycast::check_services(file, &anycast, findings);
    let config = Config {
        cluster: cluster(&file.cluster),
        nodes,
        floating,
        anycast,
        services,
        databases,
        alerts: alert::alerts(file, findings),
        dataplane: dataplane(&file.dataplane, findings),
        paths: paths(&file.paths, findings),
    };
    room::check(file, &config, findings);
    config
}

/// Where each listen address is used first.
type Listeners = Seen<(SocketAddr, Protocol)>;

/// Where each value is used first.
#[derive(Debug)]
struct Seen<K>(BTreeMap<K, Range<usize>>);

impl<K> Default for Seen<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Seen<K> {
    /// Notes a use; says where an earlier one stands.
    fn note(&mut self, value: K, span: Range<usize>) -> Option<Range<usize>> {
        if let Some(first) = self.0.get(&value) {
            return Some(first.clone());
        }
        self.0.insert(value, span);
        None
    }

    /// Notes a use, and reports it if it is not the first.
    fn once(
        &mut self,
        value: K,
        span: Range<usize>,
        message: impl FnOnce() -> String,
        help: &str,
        findings: &mut Findings,
    ) {
        if let Some(first) = self.note(value, span.clone()) {
            findings.error(span, message()).help(help).label(first, "first used here");
        }
    }
}

/// UDP port of the channel between nodes.
const DEFAULT_PEER_PORT: u16 = 9181;

pub(super) fn cluster(raw: &Field<raw::Cluster>) -> Cluster {
    let raw = raw.or(raw::Cluster::default());
    Cluster {
        name: raw.name.value().map_or_else(|| "ballast".to_owned(), |name| name.0.clone()),
        secret_file: raw.secret_file.value().map(|path| path.0.clone()),
        peer_port: whole(&raw.peer_port, DEFAULT_PEER_PORT.into()) as u16,
    }
}

fn dataplane(raw: &Field<raw::Dataplane>, findings: &mut Findings) -> Dataplane {
    let raw = raw.or(raw::Dataplane::default());
    let default = Dataplane::default();
    // RFC 5382 REQ-5 and RFC 4787 REQ-5: what a translator must not fall below.
    let mut timeout = |field: &Field<Duration>, key: &str, floor: Duration, rfc: &str| {
        if let Some(timeout) = field.get() {
            if timeout.get_ref().is_zero() {
                not_zero(timeout.span(), key, findings);
            } else if *timeout.get_ref() < floor {
                let floor = units::show(floor);
                findings
                    .warning(timeout.span(), format!("`{key}` is below {floor}, the floor of {rfc}"))
                    .help(format!(
                        "quiet connections will be cut; write \"{floor}\" or more, or leave `{key}` out"
                    ));
            }
        }
        field.or(floor)
    };
    Dataplane {
        max_flows: whole(&raw.max_flows, default.max_flows),
        max_half_open: whole(&raw.max_half_open, default.max_half_open),
        max_services: raw.max_services.value().map(|number| number.0),
        max_backends: raw.max_backends.value().map(|number| number.0),
        max_slots: raw.max_slots.value().map(|number| number.0),
        tcp_idle_timeout: timeout(
            &raw.tcp_idle_timeout,
            "tcp_idle_timeout",
            default.tcp_idle_timeout,
            "RFC 5382",
        ),
        tcp_closing_timeout: timeout(
            &raw.tcp_closing_timeout,
            "tcp_closing_timeout",
            default.tcp_closing_timeout,
            "RFC 5382",
        ),
        udp_idle_timeout: timeout(
            &raw.udp_idle_timeout,
            "udp_idle_timeout",
            default.udp_idle_timeout,
            "RFC 4787",
        ),
    }
}

/// `sun_path` of `sockaddr_un` holds 108 bytes, the closing zero included.
const SOCKET_PATH_BYTES: usize = 107;

fn paths(raw: &Field<raw::Paths>, findings: &mut Findings) -> Paths {
    let raw = raw.or(raw::Paths::default());
    let default = Paths::default();
    if let Some(socket) = raw.socket.get()
        && socket.get_ref().0.as_os_str().len() > SOCKET_PATH_BYTES
    {
        findings
            .error(socket.span(), format!("`socket` is longer than {SOCKET_PATH_BYTES} bytes"))
            .help("Linux allows no more for a Unix socket; write a shorter path");
    }
    let path = |field: &Field<AbsolutePath>, default: PathBuf| {
        field.value().map_or(default, |path| path.0.clone())
    };
    Paths {
        socket: path(&raw.socket, default.socket),
        state: path(&raw.state, default.state),
        pins: path(&raw.pins, default.pins),
    }
}

/// The number, or what holds without it.
fn whole<const MIN: u32, const MAX: u32>(field: &Field<Whole<MIN, MAX>>, default: u32) -> u32 {
    field.value().map_or(default, |number| number.0)
}

/// Reports a duration of zero where there must be some time.
fn not_zero(span: Range<usize>, key: &str, findings: &mut Findings) {
    findings
        .error(span, format!("`{key}` is zero"))
        .help(format!("write a time above zero, or leave `{key}` out for the default"));
}
