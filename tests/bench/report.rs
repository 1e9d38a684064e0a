//! The figures as a table and as JSON.

use std::fmt;

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    cases::{Order, Scope},
    live::Live,
    machine::Machine,
    measure::{Figure, Rounds},
    requests::{self, Requests, Way},
};

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: Rounds,
    packets: Vec<Column>,
    /// Frames through the lab, if they were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) live: Option<Live>,
    /// Requests through the lab, if they were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests: Option<Requests>,
}

/// The figures of one scope and order.
#[derive(Debug, Serialize)]
struct Column {
    flows: u32,
    scattered: bool,
    one_by_one: bool,
    full_tables: bool,
    figures: Vec<Figure>,
}

impl Report {
    /// A report without figures.
    pub(crate) fn new(rounds: Rounds) -> anyhow::Result<Self> {
        Ok(Self {
            machine: Machine::read()?,
            rounds,
            packets: Vec::new(),
            live: None,
            requests: None,
        })
    }

    /// Adds the figures of a scope.
    pub(crate) fn add(&mut self, scope: Scope, order: Order, figures: Vec<Figure>) {
        self.packets.push(Column {
            flows: scope.connections,
            scattered: order != Order::InTurn,
            one_by_one: order == Order::OneByOne,
            full_tables: false,
            figures,
        });
    }

    /// Adds figures of new connections that find the flow tables full.
    pub(crate) fn add_full_tables(&mut self, figures: Vec<Figure>) {
        self.packets.push(Column {
            flows: 1,
            scattered: false,
            one_by_one: false,
            full_tables: true,
            figures,
        });
    }

    /// The report as JSON.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        serde_json::to_string_pretty(self).context("write JSON")
    }

    /// The figures above their bounds, each with its bound.
    pub(crate) fn exceeded(&self) -> Vec<String> {
        let mut exceeded = vec![];
        for column in &self.packets {
            let [flows, order] = column.heading();
            for Figure { name, exceeded: why, .. } in &column.figures {
                exceeded.extend(why.iter().map(|why| format!("{name}, {flows} {order}: {why}")));
            }
        }
        exceeded.extend(self.requests.as_ref().and_then(Requests::exceeded));
        exceeded
    }

    /// The figure of a case with so many flows; of many, scattered.
    pub(crate) fn scattered(&self, flows: u32, name: &str) -> Option<&Figure> {
        let mut columns = self.packets.iter().filter(|column| {
            column.flows == flows
                && column.scattered == (flows > 1)
                && !column.one_by_one
                && !column.full_tables
        });
        columns.find_map(|column| column.figure(name))
    }

    /// The first figure of a case.
    pub(crate) fn any(&self, name: &str) -> Option<&Figure> {
        self.packets.iter().find_map(|column| column.figure(name))
    }

    /// Names of all cases, in their order.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = vec![];
        for Figure { name, .. } in self.packets.iter().flat_map(|column| &column.figures) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }
}

impl Column {
    fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }

    fn heading(&self) -> [String; 2] {
        if self.full_tables {
            return ["full".to_owned(), "tables".to_owned()];
        }
        let flows = match self.flows {
            1 => "1 flow".to_owned(),
            1_000_000 => "1 M flows".to_owned(),
            many => format!("{} k flows", many / 1000),
        };
        let order = match (self.flows, self.scattered, self.one_by_one) {
            (1, ..) => "",
            (_, false, _) => "in turn",
            (_, _, false) => "scattered",
            (_, _, true) => "one by one",
        };
        [flows, order.to_owned()]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, kernel, jit } = &self.machine;
        let jit = if *jit { "on" } else { "off" };
        writeln!(f, "{cpu} · Linux {kernel} · JIT {jit} · median of {} rounds", self.rounds.count)?;
        writeln!(f)?;
        writeln!(f, "Nanoseconds for each packet, net of the trampoline; × its floor")?;
        for line in 0..2 {
            write!(f, "{:<32}", "")?;
            for column in &self.packets {
                write!(f, "{:>17}", column.heading()[line])?;
            }
            writeln!(f)?;
        }
        for name in self.names() {
            let transmit = name.starts_with("return");
            let gross = if transmit { " (gross)" } else { "" };
            write!(f, "{:<32}", format!("{name}{gross}"))?;
            for column in &self.packets {
                let cell = column.figure(name).map_or_else(String::new, |figure| {
                    let ns = if transmit { figure.gross_ns } else { figure.net_ns };
                    let times = figure.times_floor.map(|times| format!("{times:.2} ×"));
                    format!("{ns:.1} {:>6}", times.unwrap_or_default())
                });
                write!(f, "{cell:>17}")?;
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "Floors: parse, one look-up in the same table, rewrite, one counter; or parse,"
        )?;
        writeln!(f, "service, flow table or hash, backend, outer header, one counter.")?;
        writeln!(f, "One by one: scattered, and begun when the last packet is through.")?;
        writeln!(f, "New flows meet a full half-open table: each evicts another.")?;
        if let Some(live) = &self.live {
            write_live(f, live)?;
        }
        self.requests.as_ref().map_or(Ok(()), |requests| write_requests(f, requests))
    }
}

fn write_live(f: &mut fmt::Formatter<'_>, live: &Live) -> fmt::Result {
    writeln!(f)?;
    writeln!(
        f,
        "Frames over wires: client, switch, balancer, switch, app server, all on one core\n\
         a balancer that only writes MAC addresses {:.2} million/s; ballast, nat {:.2} million/s \
         ({:.0} ns more for each)",
        live.bounce_per_second / 1e6,
        live.nat_per_second / 1e6,
        live.nat_adds_ns,
    )
}

fn write_requests(f: &mut fmt::Formatter<'_>, requests: &Requests) -> fmt::Result {
    writeln!(f)?;
    writeln!(f, "Requests to one nginx on {} connections that stay open", requests::CONNECTIONS)?;
    write!(f, "{:<24}", "")?;
    for heading in ["requests/s", "CPU µs/request", "nginx µs/request", "p50 µs", "p99 µs"] {
        write!(f, "{heading:>18}")?;
    }
    writeln!(f)?;
    let own = [("direct", &requests.direct), ("ballast, nat", &requests.balanced)];
    for (name, way) in own.into_iter().chain(requests.rivals.iter().map(|(name, way)| (*name, way)))
    {
        let Way {
            requests_per_second,
            cpu_us_per_request,
            nginx_us_per_request,
            latency_p50_us,
            latency_p99_us,
        } = way;
        write!(f, "{name:<24}{requests_per_second:>18.0}{cpu_us_per_request:>18.1}")?;
        write!(f, "{nginx_us_per_request:>18.1}{latency_p50_us:>18.0}{latency_p99_us:>18.0}")?;
        writeln!(f)?;
    }
    let program = &requests.program;
    writeln!(
        f,
        "The XDP program: {:.0} ns for each of {:.1} packets, {:.2} µs for each request, {:.1} % of \
         nginx's CPU",
        program.ns_per_packet,
        program.packets_per_request,
        program.us_per_request,
        program.percent_of_nginx,
    )
}
