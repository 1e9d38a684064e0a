//! Whether all that the file names fits into the kernel's tables, and can be probed.

use std::time::Duration;

use lb_common::limits::{MOST_BACKENDS, MOST_SERVICES, MOST_SLOTS};
use toml::Spanned;

use crate::config::{
    Config, Probe,
    raw::{self, File},
    read::Field,
    report::Findings,
    sizes,
    value::Whole,
};

/// More probes a second than this are a load of their own, on the node and on the network.
const MANY_PROBES: f64 = 10_000.0;

pub(super) fn check(file: &File, config: &Config, findings: &mut Findings) {
    let raw = file.dataplane.or(raw::Dataplane::default());
    let needs = sizes::needs(config);
    let services = file.service.items().count() as u32;
    let backends = file.service.items().flat_map(|service| service.get_ref().backend.items());
    let backends = backends.count() as u32;
    fits("max_services", "services", services.into(), &raw.max_services, MOST_SERVICES, findings);
    fits("max_backends", "backends", backends.into(), &raw.max_backends, MOST_BACKENDS, findings);
    // Tables are replaced while they are in use, so each must fit twice.
    fits("max_slots", "slots", 2 * needs.slots, &raw.max_slots, MOST_SLOTS, findings);
    warn_of_many_probes(file, config, findings);
}

/// Reports more than there is room for: what the file says, or what there can be at most.
fn fits<const MIN: u32, const MAX: u32>(
    key: &str,
    what: &str,
    need: u64,
    room: &Field<Whole<MIN, MAX>>,
    most: u32,
    findings: &mut Findings,
) {
    if let Some(room) = room.get() {
        let has = room.get_ref().0;
        if need > u64::from(has) {
            let message = format!("`{key}` is {has}, but this file needs {need} {what}");
            let help =
                format!("write {need} or more, or leave `{key}` out: it then follows the need");
            findings.error(room.span(), message).help(help);
        }
    } else if need > u64::from(most) {
        findings
            .error_of_file(format!("this file needs {need} {what}; there can be {most}"))
            .help("divide the services among several pairs of nodes");
    }
}

fn warn_of_many_probes(file: &File, config: &Config, findings: &mut Findings) {
    let probed = config.services.iter().filter(|service| service.health.probe != Probe::None);
    let rate = |interval: Duration, backends: usize| backends as f64 / interval.as_secs_f64();
    let rates = probed.map(|service| rate(service.health.interval, service.backends.len()));
    let rate: f64 = rates.filter(|rate| rate.is_finite()).sum();
    if rate <= MANY_PROBES {
        return;
    }
    let message = format!("{rate:.0} probes a second from each node");
    let help = "they wait for each other then, and find a dead backend later: write a longer \
                `interval`, or `probe = \"none\"` where something else watches the backends";
    match file.service.items().next().map(Spanned::span) {
        Some(span) => findings.warning(span, message).help(help),
        None => findings.warning_of_file(message).help(help),
    };
}
