//! `status`: what the task knows, and the counters that are read after it has gone on.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_common::reason::Reason;

use super::{Rates, Task};
use crate::{
    clock,
    config::{Forwarding, tunnel_bytes},
    control::{
        kernel::Kernel,
        plan::{Proxied, service_key},
        state::{Record, ServiceState},
        status::{
            Anycast, Backend, Floating, MANY_BACKENDS, Passive, PassiveState, Retiring, Service,
            Slots, Status, View, balance_word, forward_words, protocol_word,
        },
        verdict::{Admin, WEIGHT_SCALE},
    },
    dataplane::{AttachMode, Counters, Info, cookies},
    health::passive::Stand,
    net::Mac,
    vrrp::router::{InstanceStatus, Overview},
};

/// Bytes of the longest IP packets that most clients send.
const ETHERNET_MTU: u32 = 1500;

/// What the task knows. The counters are zeros still, and the kernel's side is empty.
#[derive(Debug)]
pub(super) struct Snapshot {
    status: Status,
    /// By service that is shown, in order: its index, and the identifiers of its backends in order,
    /// as far as they are shown.
    numbers: Vec<(Option<u32>, Vec<Option<u32>>)>,
    rates: Arc<Rates>,
}

impl Task {
    pub(super) fn index(&self, service: &ServiceState) -> Option<u32> {
        let key = service_key(service.config.listen, service.config.protocol);
        self.planner.service_index(&key)
    }

    /// The index of a service, and the identifiers of its backends if they are `listed`.
    fn numbers(&self, service: &ServiceState, listed: bool) -> (Option<u32>, Vec<Option<u32>>) {
        let index = self.index(service);
        let id = |address: SocketAddr| self.planner.id(index?, address);
        let records = service.records.iter().filter(|_| listed);
        (index, records.map(|record| id(record.config.address)).collect())
    }

    pub(super) fn snapshot(&self, view: &View, vrrp: Option<Overview>) -> Snapshot {
        let shown = |service: &&ServiceState| {
            view.service.as_ref().is_none_or(|name| *name == service.config.name)
        };
        let shown: Vec<_> = self.state.services().iter().filter(shown).collect();
        let backends: usize = shown.iter().map(|service| service.records.len()).sum();
        let listed = view.all || view.service.is_some() || backends <= MANY_BACKENDS;
        let now = clock::monotonic();
        let wall = clock::wall();
        let Overview { instances: vrrp, problems } = vrrp.unwrap_or_default();
        let retiring = self.planner.retiring().map(|retiring| Retiring {
            id: retiring.id,
            address: retiring.address,
            seconds_left: retiring.until.map(|until| until.saturating_sub(now).as_secs()),
        });
        let status = Status {
            node: self.node.clone(),
            cluster: self.config.cluster.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started: self.started,
            uptime_seconds: wall.duration_since(self.started).as_secs().max(0) as u64,
            config_loaded: self.config_loaded,
            floating: self.floating(&vrrp),
            anycast: self.anycast(),
            vrrp,
            peers: self.peers.board().peers,
            dataplane: Info::default(),
            flows: self.flows,
            services: shown.iter().map(|service| self.service(service, listed)).collect(),
            retiring: retiring.take(if listed { usize::MAX } else { MANY_BACKENDS }).collect(),
            postgres: Vec::new(),
            alerts: None,
            files: self.proxy.files(),
            reasons: BTreeMap::new(),
            warnings: problems.into_iter().chain(self.current_warnings()).collect(),
        };
        let numbers = shown.iter().map(|service| self.numbers(service, listed)).collect();
        Snapshot { status, numbers, rates: Arc::clone(&self.rates) }
    }

    fn current_warnings(&self) -> Vec<String> {
        let mut warnings: Vec<_> = self.faults.messages().collect();
        warnings.extend(self.kernel_news.messages(clock::monotonic()));
        warnings.extend(self.flood.message().map(str::to_owned));
        warnings.extend(self.cookies.message().map(str::to_owned));
        if self.state.services().iter().any(|it| !matches!(it.proxied(), Proxied::None)) {
            warnings.extend(cookies::warning().map(str::to_owned));
        }
        warnings.extend(self.timeline.trouble());
        let panics = self.state.services().iter().filter(|service| service.panic);
        warnings.extend(panics.map(|service| {
            format!("{}: no backend is fit, so all that are enabled serve", service.config.name)
        }));
        warnings.extend(self.state.services().iter().filter_map(|it| self.short_tunnel(it)));
        warnings.extend(self.warnings.iter().cloned());
        if !*self.settled.borrow() {
            warnings.push("ballast has just started: not all backends have been probed".into());
        }
        warnings
    }

    /// Says so if a client's packets of the usual size do not go through a service's tunnels.
    fn short_tunnel(&self, service: &ServiceState) -> Option<String> {
        let Forwarding::Tunnel(encapsulation) = service.config.forward else { return None };
        let tunnels = service.records.iter().filter_map(|record| {
            let address = record.config.address.ip();
            let mtu = self.state.next_hops().get(&address).map(|hop| hop.mtu)?;
            Some((mtu.saturating_sub(tunnel_bytes(address.is_ipv4(), encapsulation)), record))
        });
        let (most, record) = tunnels.min_by_key(|(most, _)| *most)?;
        (most < ETHERNET_MTU).then(|| {
            format!(
                "{}: packets to {} may have {most} bytes at most; clients are told to send shorter \
                 ones. Raise the MTU of the way there by {}, or let the backends ask for less (`ip \
                 route ... advmss`)",
                service.config.name,
                record.config.name,
                ETHERNET_MTU - most,
            )
        })
    }

    fn anycast(&self) -> Vec<Anycast> {
        let all = self.anycast.list();
        all.map(|(address, held, problem)| Anycast { address, held, problem }).collect()
    }

    fn floating(&self, vrrp: &[InstanceStatus]) -> Vec<Floating> {
        let entry = |vrid: u8, address: IpAddr, prefix: u8| {
            let instance = vrrp.iter().find(|instance| instance.vrid == vrid);
            let alone = || (!self.config.is_shared()).then(|| self.node.clone());
            let holder = instance.and_then(|instance| instance.active.clone()).or_else(alone);
            let known = self.addresses.get(address);
            let conflict = known.and_then(|known| known.conflict.as_ref());
            let conflict = conflict.map(|mac| format!("claimed by another host, {mac}"));
            Floating {
                vrid,
                address: format!("{address}/{prefix}"),
                holder: holder.unwrap_or_default(),
                role: instance.map(|instance| instance.role.clone()),
                held: known.is_some_and(|known| known.held),
                problem: conflict.or_else(|| known.and_then(|known| known.problem.clone())),
            }
        };
        let blocks = self.config.floating.iter();
        blocks
            .flat_map(|block| {
                let addresses = block.addresses.iter();
                addresses.map(|&(address, prefix)| entry(block.vrid, address, prefix))
            })
            .collect()
    }

    fn service(&self, service: &ServiceState, listed: bool) -> Service {
        let serving = service.records.iter().filter(|record| record.verdict.serving).count();
        let records = service.records.iter().filter(|_| listed);
        let (forward, encapsulation) = forward_words(service.config.forward);
        let key = service_key(service.config.listen, service.config.protocol);
        let slots = self.planner.disturbed(&key);
        Service {
            name: service.config.name.clone(),
            listen: service.config.listen,
            protocol: protocol_word(service.config.protocol).into(),
            path: path_word(service).into(),
            proxied: matches!(service.proxied(), Proxied::New | Proxied::Only),
            forward: forward.into(),
            encapsulation: encapsulation.map(Into::into),
            slots: slots.map(|(disturbed, total)| Slots { total, disturbed }),
            balance: balance_word(service.config.balance).into(),
            panic: service.panic,
            on_backups: service.on_backups,
            connections: 0,
            refused: 0,
            replayed: 0,
            not_replayed: 0,
            connections_per_second: 0.0,
            serving_count: serving,
            backend_count: service.records.len(),
            proxy: self.proxy.status(&service.config.name),
            backends: records.map(|record| self.backend(service, record)).collect(),
        }
    }

    fn backend(&self, service: &ServiceState, record: &Record) -> Backend {
        let hop = self.state.next_hops().get(&record.config.address.ip());
        let since = clock::monotonic().saturating_sub(record.since);
        let full = record.weight() * WEIGHT_SCALE;
        Backend {
            name: record.config.name.clone(),
            address: record.config.address,
            health: record.health,
            serving: record.verdict.serving,
            draining: record.wish.admin == Admin::Draining,
            backup: record.config.backup,
            admin: record.wish.admin,
            reason: record.reason.clone(),
            verdict: record.verdict.reasons.iter().map(ToString::to_string).collect(),
            passive: service.config.passive.map(|_| passive(record, clock::monotonic())),
            since: clock::wall() - since,
            weight: record.weight(),
            weight_percent: record.verdict.weight * 100 / full,
            next_hop: hop.and_then(|hop| hop.mac).map(|mac| Mac(mac).to_string()),
            connections: 0,
            answered: 0,
            active: 0,
            forward_packets: 0,
            forward_bytes: 0,
            return_packets: 0,
            return_bytes: 0,
            connections_per_second: 0.0,
            forward_bytes_per_second: 0.0,
            return_bytes_per_second: 0.0,
            proxy: self.proxy.backend_status(&service.config.name, record.config.address),
        }
    }
}

/// The word for who hands on a service's connections.
fn path_word(service: &ServiceState) -> &'static str {
    match &service.config.proxy {
        None => "kernel",
        Some(proxy) if proxy.auto => "auto",
        Some(_) => "proxy",
    }
}

fn passive(record: &Record, now: Duration) -> Passive {
    let track = &record.track;
    let mut ejected_for = None;
    let (state, reason) = match track.stand() {
        Stand::Ejected(ejection) => {
            ejected_for = Some(ejection.until.saturating_sub(now).as_secs());
            (PassiveState::Ejected, Some(ejection.evidence.to_string()))
        }
        Stand::Failing(failing) => (PassiveState::Failing, Some(failing.to_string())),
        Stand::Fit if track.share_percent() < 100 => (PassiveState::Slow, None),
        Stand::Fit if track.is_busy(now) => (PassiveState::Fit, None),
        Stand::Fit => (PassiveState::Quiet, None),
    };
    Passive {
        state,
        reason,
        ejected_for,
        handshake_p50_us: track.handshake_p50_us(),
        handshake_p99_us: track.handshake_p99_us(),
        patience_ms: Some(track.patience_ms()).filter(|millis| *millis > 0),
    }
}

impl Snapshot {
    /// Reads the kernel's side, which blocks, and answers with the whole.
    pub(super) fn complete(mut self, kernel: &Arc<dyn Kernel>) -> anyhow::Result<Status> {
        let services: Vec<_> = self.numbers.iter().filter_map(|(index, _)| *index).collect();
        let ids = self.numbers.iter().flat_map(|(_, ids)| ids.iter().flatten());
        let counters = kernel.counters(&services, &ids.copied().collect::<Vec<_>>())?;
        self.count(&counters);
        self.status.reasons = Reason::ALL
            .iter()
            .zip(&counters.reasons)
            .filter(|(_, count)| **count > 0)
            .map(|(reason, count)| (reason.label().to_owned(), *count))
            .collect();
        self.status.dataplane = kernel.info()?;
        self.status.warnings.extend(self.status.dataplane.notes.iter().cloned());
        let attachments = self.status.dataplane.attachments.iter();
        let generic = attachments.filter(|attachment| attachment.mode == AttachMode::Generic);
        self.status.warnings.extend(generic.map(|attachment| {
            format!(
                "the program runs on {} in generic mode, which is slower: its driver has no XDP",
                attachment.interface
            )
        }));
        Ok(self.status)
    }

    fn count(&mut self, counters: &Counters) {
        let services: BTreeMap<_, _> = counters.services.iter().copied().collect();
        let backends: BTreeMap<_, _> =
            counters.backends.iter().map(|(id, stats, active)| (*id, (*stats, *active))).collect();
        for (service, (index, ids)) in self.status.services.iter_mut().zip(&self.numbers) {
            if let Some(stats) = index.and_then(|index| services.get(&index)) {
                service.connections = stats.connections;
                service.refused = stats.refused;
                service.replayed = stats.replayed;
                service.not_replayed = stats.not_replayed;
            }
            let rate = index.and_then(|index| self.rates.services.get(&index));
            service.connections_per_second = rate.copied().unwrap_or(0.0);
            for (backend, id) in service.backends.iter_mut().zip(ids) {
                let Some(id) = id else { continue };
                if let Some((stats, active)) = backends.get(id) {
                    backend.connections = stats.connections;
                    backend.answered = stats.answered;
                    backend.active = *active;
                    backend.forward_packets = stats.forward_packets;
                    backend.forward_bytes = stats.forward_bytes;
                    backend.return_packets = stats.return_packets;
                    backend.return_bytes = stats.return_bytes;
                }
                if let Some(&[connections, forward, back]) = self.rates.by_backend.get(id) {
                    backend.connections_per_second = connections;
                    backend.forward_bytes_per_second = forward;
                    backend.return_bytes_per_second = back;
                }
            }
        }
    }
}
