//! `allow`, `deny`, `source_rate` and `source_burst`: who may connect to a service, and how often.

use std::collections::BTreeMap;

use lb_common::limits::{MAX_SOURCES, MOST_SERVICES};

use super::whole;
use crate::config::{Guard, raw, report::Findings, value::source::Source};

/// Most networks in the lists of all services.
const MAX_PREFIXES: u32 = 100_000;

// While a reload is under way, the old lists stand beside the new ones; and each has an entry for all
// others. Each service may have a floating address of its own.
const _: () = assert!(2 * (MAX_PREFIXES + MOST_SERVICES) + MOST_SERVICES < MAX_SOURCES);

/// Ticks of the kernel program's clock in a second, at least (`CONFIG_HZ`).
const TICKS: u32 = 100;

/// Checks one service; `total` counts the networks of all.
pub(super) fn guard(service: &raw::Service, total: &mut u32, findings: &mut Findings) -> Guard {
    let mut seen = BTreeMap::new();
    for (list, key, allowed) in [(&service.allow, "allow", true), (&service.deny, "deny", false)] {
        for source in list.items() {
            *total += 1;
            if *total == MAX_PREFIXES + 1 {
                findings
                    .error(source.span(), format!("more than {MAX_PREFIXES} networks in all lists"))
                    .help("this one and those after it do not fit into the kernel's table");
            }
            let Source { address, length } = *source.get_ref();
            let Some((first, was_allowed)) = seen.get(&(address, length)).cloned() else {
                seen.insert((address, length), (source.span(), allowed));
                continue;
            };
            if was_allowed == allowed {
                findings
                    .warning(source.span(), format!("`{key}` has {address}/{length} twice"))
                    .help("remove one")
                    .label(first, "first here");
            } else {
                findings
                    .error(source.span(), format!("{address}/{length} is allowed and denied"))
                    .help("remove one; of two different networks, the smaller decides")
                    .label(first, "allowed here");
            }
        }
    }
    if let Some(allow) = service.allow.get()
        && allow.get_ref().is_empty()
    {
        findings
            .error(allow.span(), "`allow` is empty: nobody could connect")
            .help("write the networks that may connect, or leave `allow` out for all");
    }
    let is_v4 = service.listen.value().map(|listen| listen.0.is_ipv4());
    // Clients that a header tells may be of another family than those before this node.
    let is_told = service.proxy.value().is_some_and(|proxy| !proxy.accept_proxy.is_absent());
    let of_family =
        |address: std::net::IpAddr| is_told || is_v4.is_none_or(|v4| v4 == address.is_ipv4());
    let sources: Vec<_> = seen
        .into_iter()
        .filter(|((address, _), _)| of_family(*address))
        .map(|(network, (_, allowed))| (network, allowed))
        .collect();
    if let (Some(allow), Some(v4)) = (service.allow.get(), is_v4)
        && allow.get_ref().iter().next().is_some()
        && !allow.get_ref().has_wrong()
        && sources.iter().all(|(_, allowed)| !allowed)
    {
        let family = if v4 { "IPv4" } else { "IPv6" };
        findings
            .error(
                allow.span(),
                format!("`allow` has no {family} network, but the service listens on {family}"),
            )
            .help(format!("nobody could connect; add {family} networks, or leave `allow` out"));
    }
    let others = service.allow.is_absent();
    Guard { sources, others, rate: rate(service, findings) }
}

fn rate(service: &raw::Service, findings: &mut Findings) -> Option<(u32, u32)> {
    let Some(rate) = service.source_rate.get() else {
        if let Some(burst) = service.source_burst.get()
            && !service.source_rate.is_wrong()
        {
            findings.error(burst.span(), "`source_burst` needs `source_rate`").help(
                "add `source_rate = 100`, the new connections that a source may begin in a second",
            );
        }
        return None;
    };
    let rate = rate.get_ref().0;
    let burst = whole(&service.source_burst, rate);
    let least = rate.div_ceil(TICKS);
    if let Some(place) = service.source_burst.get()
        && burst < least
    {
        findings
            .error(place.span(), format!("`source_burst` is below {least}, what {rate} a second need"))
            .help(format!(
                "the kernel's clock moves {TICKS} times a second, and what comes in between comes at \
                 once; write {least} or more"
            ));
    }
    Some((rate, burst))
}
