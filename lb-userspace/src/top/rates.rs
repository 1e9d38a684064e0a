//! What follows from two observations.

use std::{collections::HashMap, net::SocketAddr};

use super::{Observation, Sort};
use crate::control::{
    status::{Backend, NamedFlow, Service},
    verdict::Admin,
};

/// Rates of everything, by the difference of two observations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picture {
    /// Services.
    pub services: Vec<ServiceRow>,
    /// Backends of all services.
    pub backends: Vec<BackendRow>,
    /// Flows that move, the busiest first.
    pub flows: Vec<FlowRow>,
    /// Reasons, the busiest first.
    pub reasons: Vec<ReasonRow>,
}

/// A service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceRow {
    /// Its place in the configuration.
    pub place: usize,
    /// Name.
    pub name: String,
    /// Protocol and address.
    pub listen: String,
    /// New connections a second.
    pub connections: f64,
    /// Packets a second, both ways.
    pub packets: f64,
    /// Bits a second, both ways.
    pub bits: f64,
    /// Open connections.
    pub open: u64,
    /// Refused connections a second.
    pub refused: f64,
    /// Connections that were tried at another backend, a second.
    pub replayed: f64,
    /// No backend serves, or all must.
    pub alarm: bool,
}

/// A backend.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendRow {
    /// Its place in the configuration.
    pub place: usize,
    /// Name.
    pub name: String,
    /// Name of its service.
    pub service: String,
    /// `serves`, or why not in a word.
    pub state: &'static str,
    /// It gets new connections.
    pub serving: bool,
    /// New connections a second.
    pub connections: f64,
    /// Packets a second, both ways.
    pub packets: f64,
    /// Bits a second, both ways.
    pub bits: f64,
    /// Open connections.
    pub open: u64,
    /// What its verdict says.
    pub why: String,
}

/// A flow.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowRow {
    /// The client.
    pub client: SocketAddr,
    /// Name of the service, or the address.
    pub service: String,
    /// Name of the backend, or the address.
    pub backend: String,
    /// Packets a second, both ways.
    pub packets: f64,
    /// Bits a second, both ways.
    pub bits: f64,
    /// The figures are estimates.
    pub sampled: bool,
}

/// Packets that are not forwarded.
#[derive(Clone, Debug, PartialEq)]
pub struct ReasonRow {
    /// Why.
    pub label: String,
    /// A second.
    pub rate: f64,
    /// In all.
    pub total: u64,
}

/// How fast counters move.
struct Pace {
    seconds: Option<f64>,
}

impl Pace {
    /// Zero without an earlier figure. A counter that went back began anew.
    fn rate(&self, before: Option<u64>, now: u64) -> f64 {
        match (self.seconds, before) {
            (Some(seconds), Some(before)) => now.saturating_sub(before) as f64 / seconds,
            _ => 0.0,
        }
    }
}

impl Picture {
    /// What is there now, and how it differs from before.
    pub fn of(before: Option<&Observation>, now: &Observation) -> Self {
        let passed = before.map(|before| now.at.saturating_sub(before.at).as_secs_f64());
        let pace = Pace { seconds: passed.filter(|seconds| *seconds > 0.0) };
        let old: HashMap<&str, &Service> = before
            .iter()
            .flat_map(|before| &before.status.services)
            .map(|service| (service.name.as_str(), service))
            .collect();
        let mut picture = Self::default();
        for service in &now.status.services {
            let old = old.get(service.name.as_str()).copied();
            picture.service(&pace, old, service);
        }
        picture.flows(&pace, before.map_or(&[], |before| &before.flows), &now.flows);
        let reasons = now.status.reasons.iter().map(|(label, &total)| {
            // A reason that was not there had no packets.
            let before = before.map(|it| it.status.reasons.get(label).copied().unwrap_or(0));
            ReasonRow { label: label.clone(), rate: pace.rate(before, total), total }
        });
        picture.reasons = reasons.collect();
        picture.reasons.sort_by(|one, other| {
            other.rate.total_cmp(&one.rate).then_with(|| other.total.cmp(&one.total))
        });
        picture
    }

    fn service(&mut self, pace: &Pace, old: Option<&Service>, service: &Service) {
        let first = self.backends.len();
        for backend in &service.backends {
            let old = old.and_then(|old| {
                let known =
                    |it: &&Backend| it.name == backend.name && it.address == backend.address;
                old.backends.iter().find(known)
            });
            let packets = |it: &Backend| it.forward_packets + it.return_packets;
            let bytes = |it: &Backend| it.forward_bytes + it.return_bytes;
            self.backends.push(BackendRow {
                place: self.backends.len(),
                name: backend.name.clone(),
                service: service.name.clone(),
                state: state(backend),
                serving: backend.serving,
                connections: pace.rate(old.map(|it| it.connections), backend.connections),
                packets: pace.rate(old.map(packets), packets(backend)),
                bits: 8.0 * pace.rate(old.map(bytes), bytes(backend)),
                open: backend.active,
                why: why(backend),
            });
        }
        let backends = &self.backends[first..];
        self.services.push(ServiceRow {
            place: self.services.len(),
            name: service.name.clone(),
            listen: format!("{} {}", service.protocol, service.listen),
            connections: pace.rate(old.map(|it| it.connections), service.connections),
            packets: backends.iter().map(|row| row.packets).sum(),
            bits: backends.iter().map(|row| row.bits).sum(),
            open: backends.iter().map(|row| row.open).sum(),
            refused: pace.rate(old.map(|it| it.refused), service.refused),
            replayed: pace.rate(old.map(|it| it.replayed), service.replayed),
            alarm: service.panic || service.serving_count == 0,
        });
    }

    fn flows(&mut self, pace: &Pace, old: &[NamedFlow], flows: &[NamedFlow]) {
        let key = |it: &NamedFlow| (it.flow.protocol, it.flow.client, it.flow.listen, it.flow.nat);
        let packets = |it: &NamedFlow| it.flow.forward_packets + it.flow.return_packets;
        let bytes = |it: &NamedFlow| it.flow.forward_bytes + it.flow.return_bytes;
        let old: HashMap<_, _> = old.iter().map(|flow| (key(flow), flow)).collect();
        let rows = flows.iter().map(|named| {
            // A flow that was not there has sent all that it has since then.
            let old = old.get(&key(named)).copied();
            let before = |figure: &dyn Fn(&NamedFlow) -> u64| Some(old.map_or(0, figure));
            let (packet_rate, byte_rate) = match named.packets_per_second {
                // The samples of a second say less than the daemon's estimate over many.
                Some(rate) => {
                    let each = bytes(named) as f64 / packets(named).max(1) as f64;
                    (rate as f64, rate as f64 * each)
                }
                None => (
                    pace.rate(before(&packets), packets(named)),
                    pace.rate(before(&bytes), bytes(named)),
                ),
            };
            let flow = &named.flow;
            FlowRow {
                client: flow.client,
                service: named.service.clone().unwrap_or_else(|| flow.listen.to_string()),
                backend: named.backend_name.clone().unwrap_or_else(|| flow.backend.to_string()),
                packets: packet_rate,
                bits: 8.0 * byte_rate,
                sampled: named.sampled,
            }
        });
        self.flows = rows.filter(|row| row.packets > 0.0).collect();
        self.flows.sort_by(|one, other| {
            other.bits.total_cmp(&one.bits).then_with(|| one.client.cmp(&other.client))
        });
    }

    /// Orders services and backends.
    pub fn sort(&mut self, by: Sort) {
        self.services.sort_by(|one, other| {
            let order = match by {
                Sort::Config => std::cmp::Ordering::Equal,
                Sort::Packets => other.packets.total_cmp(&one.packets),
                Sort::Connections => other.connections.total_cmp(&one.connections),
                Sort::Open => other.open.cmp(&one.open),
            };
            order.then_with(|| one.place.cmp(&other.place))
        });
        self.backends.sort_by(|one, other| {
            let order = match by {
                Sort::Config => std::cmp::Ordering::Equal,
                Sort::Packets => other.packets.total_cmp(&one.packets),
                Sort::Connections => other.connections.total_cmp(&one.connections),
                Sort::Open => other.open.cmp(&one.open),
            };
            order.then_with(|| one.place.cmp(&other.place))
        });
    }
}

fn state(backend: &Backend) -> &'static str {
    match (backend.admin, backend.serving) {
        (Admin::Draining, _) => "draining",
        (Admin::Disabled, _) => "disabled",
        (Admin::Enabled, true) => "serves",
        (Admin::Enabled, false) if backend.backup => "rests",
        (Admin::Enabled, false) => "out",
    }
}

fn why(backend: &Backend) -> String {
    let reasons: Vec<_> = backend.verdict.iter().filter(|why| *why != "fit").cloned().collect();
    if reasons.is_empty() { backend.reason.clone() } else { reasons.join("; ") }
}
