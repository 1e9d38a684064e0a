//! Records of the kernel with names for their numbers.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use jiff::Timestamp;
use lb_common::{
    reason::Reason,
    service::ServiceKey,
    trace::{FROM_BACKEND, NONE, Stage, TO_BACKEND, TraceFilter, TraceRecord, filter},
};

use super::{Direction, Frame, Packet, Prefix, ReasonWanted, Request};

/// Names for the numbers of the kernel's tables.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Services by index, with the key that packets to them have.
    pub services: BTreeMap<u32, (String, ServiceKey)>,
    /// Backends by identifier.
    pub backends: BTreeMap<u32, String>,
    /// Index of the service by identifier of the backend.
    pub service_of: BTreeMap<u32, u32>,
    /// Interfaces by index.
    pub interfaces: BTreeMap<u32, String>,
}

/// A request names what is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No service has that name.
    #[error("no service is called {name}; there are: {known}")]
    Service {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// No backend has that name.
    #[error("no backend is called {name}; there are: {known}")]
    Backend {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Several services have a backend of that name.
    #[error(
        "{name} is a backend of several services: name one of them with --service ({services})"
    )]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// The services.
        services: String,
    },
}

impl Names {
    /// What the kernel is to record.
    pub fn filter(&self, request: &Request) -> Result<TraceFilter, Unknown> {
        let words = |prefix: Option<Prefix>| prefix.map_or(([0; 16], [0; 16]), Prefix::words);
        let (from, from_mask) = words(request.from);
        let (to, to_mask) = words(request.to);
        let (host, host_mask) = words(request.host);
        let one_in = request.one_in;
        let mut wanted = TraceFilter {
            from,
            from_mask,
            to,
            to_mask,
            host,
            host_mask,
            one_in,
            flags: filter::ACTIVE,
            ..TraceFilter::ZERO
        };
        let mut service = None;
        if let Some(name) = &request.service {
            let found = self.services.iter().find(|(_, (known, _))| known == name);
            let (index, (_, key)) = found.ok_or_else(|| {
                let known: Vec<_> = self.services.values().map(|(name, _)| name.as_str()).collect();
                Unknown::Service { name: name.clone(), known: known.join(", ") }
            })?;
            service = Some(*index);
            wanted.flags |= filter::SERVICE;
            wanted.service = *index;
            wanted.listen = key.address;
            wanted.listen_port = key.port.to_be_bytes();
            wanted.listen_protocol = key.protocol;
        }
        if let Some(name) = &request.backend {
            wanted.flags |= filter::BACKEND;
            wanted.backend = self.backend(name, service)?;
        }
        match request.reason {
            Some(ReasonWanted::This(reason)) => {
                wanted.flags |= filter::REASON;
                wanted.reason = reason as u32;
            }
            Some(ReasonWanted::Any) => wanted.flags |= filter::REFUSED,
            None => {}
        }
        Ok(wanted)
    }

    /// The backend of that name, in one service if it is given.
    fn backend(&self, name: &str, service: Option<u32>) -> Result<u32, Unknown> {
        let of_service =
            |id: &u32| service.is_none() || self.service_of.get(id).copied() == service;
        let mut known = Vec::new();
        let mut found = Vec::new();
        for (id, called) in self.backends.iter().filter(|(id, _)| of_service(id)) {
            if called == name {
                found.push(*id);
            } else if !known.contains(&called.as_str()) {
                known.push(called);
            }
        }
        match found[..] {
            [id] => Ok(id),
            [] => Err(Unknown::Backend { name: name.to_owned(), known: known.join(", ") }),
            _ => {
                let services = found.iter().filter_map(|id| self.service_name(*id));
                let services = services.collect::<Vec<_>>().join(", ");
                Err(Unknown::Ambiguous { name: name.to_owned(), services })
            }
        }
    }

    fn service_name(&self, backend: u32) -> Option<&str> {
        let (name, _) = self.services.get(self.service_of.get(&backend)?)?;
        Some(name)
    }

    /// The record as people read it. `since` is the wall-clock time at which the monotonic clock was
    /// zero; the frames' bytes go along if `bytes` says so.
    pub fn packet(&self, record: &TraceRecord, since: Timestamp, bytes: bool) -> Packet {
        let before = frame(
            [record.before_src, record.before_dst],
            record.before_ports,
            [record.before_protocol, record.before_flags],
            record.before_len,
            bytes.then_some(&record.before[..]),
        );
        let action = match record.action {
            1 => "drop",
            2 => "pass",
            3 => "transmit",
            4 => "redirect",
            _ => "unknown",
        };
        let after = matches!(action, "transmit" | "redirect").then(|| {
            frame(
                [record.after_src, record.after_dst],
                record.after_ports,
                [record.after_protocol, record.after_flags],
                record.after_len,
                bytes.then_some(&record.after[..]),
            )
        });
        let interface = self.interfaces.get(&record.ifindex);
        let stage = Stage::ALL.get(record.stage as usize);
        Packet {
            time: since + std::time::Duration::from_nanos(record.time_ns),
            cpu: record.cpu,
            interface: interface.cloned().unwrap_or_else(|| format!("number {}", record.ifindex)),
            stage: stage.map_or("unknown", |stage| stage.label()).to_owned(),
            action: action.to_owned(),
            reason: Reason::ALL.get(record.reason as usize).map(|it| it.label().to_owned()),
            forwarded: match record.direction {
                TO_BACKEND => Some(Direction::To),
                FROM_BACKEND => Some(Direction::From),
                _ => None,
            },
            service: self.service(record),
            backend: (record.backend != NONE).then(|| {
                let name = self.backends.get(&record.backend);
                name.cloned().unwrap_or_else(|| format!("number {}", record.backend))
            }),
            before,
            after,
        }
    }

    /// The service of the packet: its backend's, or the one that it came to.
    fn service(&self, record: &TraceRecord) -> Option<String> {
        let [_, _, a, b] = record.before_ports;
        let key = ServiceKey {
            address: record.before_dst,
            port: u16::from_be_bytes([a, b]),
            protocol: record.before_protocol,
            reserved: 0,
        };
        let by_key = || self.services.values().find(|(_, known)| *known == key);
        let found = self.services.get(&record.service).or_else(by_key);
        found.map(|(name, _)| name.clone())
    }
}

fn frame(
    [src, dst]: [[u8; 16]; 2],
    ports: [u8; 4],
    [protocol, flags]: [u8; 2],
    length: u32,
    bytes: Option<&[u8]>,
) -> Frame {
    let [a, b, c, d] = ports;
    let is_ip = src != [0; 16] || dst != [0; 16];
    let socket = |address: [u8; 16], port| {
        let address = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
        is_ip.then(|| SocketAddr::new(address, u16::from_be_bytes(port)))
    };
    Frame {
        protocol: is_ip.then(|| protocol_name(protocol)),
        source: socket(src, [a, b]),
        destination: socket(dst, [c, d]),
        flags: flag_names(flags),
        length,
        bytes: bytes.map(|bytes| hexadecimal(bytes, length)).unwrap_or_default(),
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        4 => "ipip".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        41 => "ipv6".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// The control bits of TCP that are set (RFC 9293, section 3.1), the telling ones first.
fn flag_names(flags: u8) -> String {
    let bits = [
        (2, "SYN"),
        (1, "FIN"),
        (4, "RST"),
        (8, "PSH"),
        (16, "ACK"),
        (32, "URG"),
        (64, "ECE"),
        (128, "CWR"),
    ];
    let set: Vec<_> =
        bits.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    set.join(" ")
}

fn hexadecimal(bytes: &[u8], length: u32) -> String {
    bytes.iter().take(length as usize).fold(String::new(), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
