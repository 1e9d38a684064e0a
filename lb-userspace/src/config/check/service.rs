//! `[[service]]` and `[[service.backend]]`.

use std::{net::SocketAddr, time::Duration};

use toml::Spanned;

use super::{
    Listeners, Seen, forward, guard, health, network::Held, passive, proxy, upstream, whole,
};
use crate::config::{
    Backend, OnDown, Protocol, Replay, Service,
    raw::{self, File},
    read::List,
    report::Findings,
    value::{
        Name,
        address::{Endpoint, unfit},
        word::Route,
    },
};

const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

const REPLAY_TRIES: u32 = 3;

const REPLAY_PER_MILLE: u32 = 200;

pub(super) fn services(
    file: &File,
    held: &Held,
    listeners: &mut Listeners,
    findings: &mut Findings,
) -> Vec<Service> {
    let mut names = Seen::default();
    let mut services = Vec::new();
    let mut prefixes = 0;
    let none = file.service.is_absent() || file.service.value().is_some_and(List::is_empty);
    if none && file.postgres.is_absent() {
        findings
            .warning_of_file("no `[[service]]`: nothing is forwarded")
            .help("add a `[[service]]` with `name`, `listen` and a `[[service.backend]]`");
    }
    for raw in file.service.items() {
        let service = raw.get_ref();
        if let Some(name) = service.name.get() {
            names.once(
                name.get_ref().clone(),
                name.span(),
                || format!("two services have the name `{}`", name.get_ref().0),
                "give each service a name of its own",
                findings,
            );
        }
        let protocol = service.protocol.or(Protocol::Tcp);
        if let Some(listen) = service.listen.get() {
            let address = listen.get_ref().0;
            held.check_listen(address, listen.span(), "listen", findings);
            if !service.protocol.is_wrong() {
                note_listener(address, protocol, listen, listeners, findings);
            }
        }
        let proxy = proxy::proxy(service, protocol, findings);
        let forward = forward::check(service, findings);
        let checked = check_backends(raw, held, findings);
        let mut health = health::health(raw, protocol, findings);
        upstream::equip(&mut health, proxy.as_deref());
        let guard = guard::guard(service, &mut prefixes, findings);
        let passive = passive::passive(raw, protocol, findings);
        if let (Some(name), Some(listen)) = (service.name.value(), service.listen.value()) {
            services.push(Service {
                name: name.0.clone(),
                listen: listen.0,
                protocol,
                forward,
                balance: service.balance.or(forward::balance(forward)),
                on_down: service.on_down.or(OnDown::Reset),
                drain_timeout: service.drain_timeout.or(DRAIN_TIMEOUT),
                slow_start: service.slow_start.or(Duration::ZERO),
                replay: replay(service, protocol, findings),
                backends: checked,
                health,
                guard,
                passive,
                proxy,
            });
        }
    }
    services
}

/// Reports a second service on the same address, port and protocol.
pub(super) fn note_listener(
    address: SocketAddr,
    protocol: Protocol,
    listen: &Spanned<Endpoint>,
    listeners: &mut Listeners,
    findings: &mut Findings,
) {
    let word = if protocol == Protocol::Tcp { "tcp" } else { "udp" };
    listeners.once(
        (address, protocol),
        listen.span(),
        || format!("two services listen on {address} ({word})"),
        "give each its own port, address or protocol, or make them one service",
        findings,
    );
}

/// `replay_tries` and `replay_budget`.
fn replay(service: &raw::Service, protocol: Protocol, findings: &mut Findings) -> Replay {
    let budget = service.replay_budget.get().map(|share| (share.span(), "replay_budget"));
    let tries = service.replay_tries.get().map(|tries| (tries.span(), "replay_tries"));
    if let Some((span, key)) = tries.or(budget) {
        if protocol == Protocol::Udp && !service.protocol.is_wrong() {
            findings
                .error(span, format!("`{key}` is of no use with `protocol = \"udp\"`"))
                .help(format!("remove `{key}`: a datagram does not tell whether it was refused"));
        } else if forward::is_steered(service) {
            findings.error(span, format!("`{key}` needs `forward = \"nat\"`")).help(format!(
                "remove `{key}`: what these backends refuse does not pass the balancer"
            ));
        }
    }
    let replays = protocol == Protocol::Tcp && !forward::is_steered(service);
    let tries = if replays { whole(&service.replay_tries, REPLAY_TRIES) } else { 0 };
    let per_mille = service.replay_budget.value().map_or(REPLAY_PER_MILLE, |share| share.0);
    Replay { tries, per_mille }
}

/// Checks the backends of one service.
fn check_backends(
    service: &Spanned<raw::Service>,
    held: &Held,
    findings: &mut Findings,
) -> Vec<Backend> {
    let list = &service.get_ref().backend;
    if let Some(backends) = list.get()
        && backends.get_ref().is_empty()
    {
        findings
            .error(backends.span(), "`backend` is empty")
            .help("add a `[[service.backend]]` with `name` and `address`");
    }
    let mut names: Seen<Name> = Seen::default();
    let mut addresses = Seen::default();
    let mut checked = Vec::new();
    for raw in list.items() {
        let backend = raw.get_ref();
        if let Some(name) = backend.name.get() {
            names.once(
                name.get_ref().clone(),
                name.span(),
                || format!("two backends of this service have the name `{}`", name.get_ref().0),
                "give each backend of a service a name of its own",
                findings,
            );
        }
        if let Some(address) = backend.address.get() {
            let endpoint = address.get_ref().0;
            addresses.once(
                endpoint,
                address.span(),
                || format!("two backends of this service have the address {endpoint}"),
                "remove one; `weight` gives a backend a larger share",
                findings,
            );
            check_address(address, service.get_ref(), held, findings);
        }
        if let (Some(name), Some(address)) = (backend.name.value(), backend.address.value()) {
            checked.push(Backend {
                name: name.0.clone(),
                address: address.0,
                weight: whole(&backend.weight, 1),
                backup: backend.backup.or(false),
            });
        }
    }
    checked
}

/// Reports a backend's address that no packet could be sent to.
fn check_address(
    address: &Spanned<Endpoint>,
    service: &raw::Service,
    held: &Held,
    findings: &mut Findings,
) {
    let ip = address.get_ref().0.ip();
    let span = address.span();
    if let Some(why) = unfit(ip) {
        findings.error(span, format!("{ip} is {why}")).help("write the backend's own address");
        return;
    }
    if forward::is_steered(service) {
        forward::check_port(address, service, findings);
    } else if let Some(listen) = service.listen.get()
        && listen.get_ref().0.is_ipv4() != ip.is_ipv4()
    {
        let family = |v4| if v4 { "IPv4" } else { "IPv6" };
        let (theirs, ours) = (family(ip.is_ipv4()), family(!ip.is_ipv4()));
        findings
            .error(span.clone(), format!("{ip} is {theirs}, but the service listens on {ours}"))
            .help(format!("write the backend's {ours} address, or add a service for {theirs}"))
            .label(listen.span(), format!("the service listens on {ours}"));
    }
    if let Some(place) = held.place(ip) {
        findings
            .error(span, format!("the backend's address {ip} is a floating address"))
            .help("write the backend's own address: packets to this one come back to the balancer")
            .label(place, "the floating address");
    } else if let Some(place) = held.broadcast(ip) {
        findings
            .error(span, format!("{ip} is the broadcast address of a floating network"))
            .help("write the backend's own address")
            .label(place, "the network");
    } else if ip.is_loopback() && service.path.or(Route::Kernel) != Route::Proxy {
        findings
            .warning(
                span,
                format!("{ip} is a loopback address, which the kernel path cannot reach"),
            )
            .help("write an address that the backend has on the network");
    }
}
