//! `[[anycast]]`: addresses that every node serves at the same time, and what services on them must be.
//!
//! Whichever node the router picks for a packet must send it to the same backend as the others would, and
//! the answer must not need that node: so the choice is by hash, and the backends answer by themselves.

use std::net::IpAddr;

use super::{forward, network::Held};
use crate::config::{
    raw::File,
    read::List,
    report::Findings,
    value::{
        address::{Address, unfit},
        word::Route,
    },
};

/// The addresses, which `held` knows afterwards too.
pub(super) fn anycast(file: &File, held: &mut Held, findings: &mut Findings) -> Vec<IpAddr> {
    if file.anycast.is_wrong() || file.anycast.value().is_some_and(List::has_wrong) {
        held.miss();
    }
    let mut all = Vec::new();
    for block in file.anycast.items() {
        let addresses = &block.get_ref().addresses;
        match addresses.get() {
            None => held.miss(),
            Some(list) if list.get_ref().is_empty() => {
                findings
                    .error(list.span(), "`addresses` is empty")
                    .help("write at least one, such as \"198.51.100.80\"");
            }
            Some(list) if list.get_ref().has_wrong() => held.miss(),
            Some(_) => {}
        }
        for address in addresses.items() {
            let (span, &Address(ip)) = (address.span(), address.get_ref());
            if let Some(why) = unfit(ip) {
                findings
                    .error(span.clone(), format!("{ip} is {why}"))
                    .help("write an address that a host can have");
            }
            if let Some(place) = held.place(ip) {
                findings
                    .error(span, format!("{ip} stands twice"))
                    .help("an address is either floating, on one node, or anycast, on all of them")
                    .label(place, "here too");
                continue;
            }
            held.add_address(ip, span);
            all.push(ip);
        }
    }
    all
}

/// Reports services that cannot be served by all nodes at the same time.
pub(super) fn check_services(file: &File, anycast: &[IpAddr], findings: &mut Findings) {
    for postgres in file.postgres.items() {
        let postgres = postgres.get_ref();
        for listen in [&postgres.read_write, &postgres.read_only] {
            if let Some(listen) = listen.get()
                && anycast.contains(&listen.get_ref().0.ip())
            {
                findings.error(listen.span(), "a database cannot be on an anycast address").help(
                    "write a floating address: one node at a time decides who may be written to",
                );
            }
        }
    }
    for service in file.service.items() {
        let service = service.get_ref();
        let Some(listen) = service.listen.get() else { continue };
        if !anycast.contains(&listen.get_ref().0.ip()) {
            continue;
        }
        if !forward::is_steered(service) && !service.forward.is_wrong() {
            let span = service.forward.span().unwrap_or_else(|| listen.span());
            findings
                .error(span, "on an anycast address, backends must answer the clients by themselves")
                .help(
                    "write `forward = \"direct\"` or `\"tunnel\"`: with `nat`, the answers would have to \
                     find the node that the request came by",
                );
        }
        if !matches!(service.path.or(Route::Kernel), Route::Kernel) {
            let span = service.path.span().unwrap_or_else(|| listen.span());
            findings.error(span, "on an anycast address, `path` must be \"kernel\"").help(
                "a connection of the proxy is one node's own, and the router may pick another",
            );
        }
    }
}
