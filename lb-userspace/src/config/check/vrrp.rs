//! What a `[[floating]]` says of VRRP.

use std::{net::IpAddr, ops::Range, time::Duration};

use toml::Spanned;

use super::whole;
use crate::{
    config::{Floating as Checked, Node, raw::Floating, report::Findings, units, value::word},
    vrrp::packet::{ChecksumForm, Version},
};

/// RFC 9568 §5.2.7: 100 centiseconds. RFC 3768 §5.3.7: 1 second.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Field widths of RFC 9568 §5.2.7 (12 bits of centiseconds) and RFC 3768 §5.3.7 (8 bits of
/// seconds).
const V3_SHORTEST: Duration = Duration::from_millis(10);
const V3_LONGEST: Duration = Duration::from_millis(40_950);
const V2_LONGEST_SECONDS: u64 = 255;

/// Bytes of the authentication data of VRRP version 2 (RFC 2338 §5.3.10).
const V2_PASSWORD_BYTES: usize = 8;

/// Checks what a `[[floating]]` says of VRRP.
pub(super) fn check(floating: &Floating, findings: &mut Findings) {
    if floating.version.is_wrong() {
        return;
    }
    let version = whole(&floating.version, 3);
    if let Some(interval) = floating.interval.get() {
        check_interval(interval, version, findings);
    }
    if let Some(password) = floating.password.get() {
        if version != 2 {
            let finding = findings.error(password.span(), "VRRP version 3 has no password");
            finding.help("remove `password`, or write `version = 2` to speak to old peers");
            if let Some(span) = floating.version.span() {
                finding.label(span, "the version");
            }
        } else if password.get_ref().len > V2_PASSWORD_BYTES {
            findings
                .warning(
                    password.span(),
                    format!("VRRP version 2 carries only {V2_PASSWORD_BYTES} bytes of a password"),
                )
                .help("the rest is cut off, as the peers do; write a shorter one to be clear");
        }
    }
    if version == 2 {
        for prefix in floating.addresses.items().filter(|p| p.get_ref().address.is_ipv6()) {
            let finding = findings.error(prefix.span(), "VRRP version 2 has no IPv6");
            finding.help("write `version = 3`, or move the address to a `[[floating]]` of its own");
            if let Some(span) = floating.version.span() {
                finding.label(span, "the version");
            }
        }
    }
    if let (Some(delay), false) = (floating.preempt_delay.get(), floating.preempt.or(false)) {
        findings
            .warning(delay.span(), "`preempt_delay` has no effect without `preempt = true`")
            .help("add `preempt = true`, or remove `preempt_delay`");
    }
}

fn check_interval(interval: &Spanned<Duration>, version: u32, findings: &mut Findings) {
    let (span, interval) = (interval.span(), *interval.get_ref());
    let shown = units::show(interval);
    if version == 2 {
        let whole = interval.subsec_nanos() == 0;
        if !whole || !(1..=V2_LONGEST_SECONDS).contains(&interval.as_secs()) {
            findings
                .error(span, format!("`interval` is {shown}, which VRRP version 2 cannot say"))
                .help("write whole seconds, \"1s\" to \"255s\", or `version = 3`");
        }
    } else if !(V3_SHORTEST..=V3_LONGEST).contains(&interval) {
        findings
            .error(span, format!("`interval` is {shown}, which is out of range for VRRP version 3"))
            .help("write \"10ms\" to \"40.95s\"");
    } else if interval.as_nanos() % V3_SHORTEST.as_nanos() != 0 {
        findings
            .error(span, format!("`interval` is {shown}, but VRRP counts in steps of 10ms"))
            .help("write a multiple of 10ms");
    }
}

/// A `[[floating]]` with everything that it leaves open filled in.
pub(super) fn floating(raw: &Floating, vrid: u8, addresses: Vec<(IpAddr, u8)>) -> Checked {
    let version = if whole(&raw.version, 3) == 2 { Version::V2 } else { Version::V3 };
    let checksum = match raw.checksum.value() {
        Some(word::Checksum::Rfc9568) => ChecksumForm::Message,
        Some(word::Checksum::PseudoHeader) | None => ChecksumForm::PseudoHeader,
    };
    Checked {
        vrid,
        addresses,
        version,
        interval: raw.interval.or(DEFAULT_INTERVAL),
        password: raw.password.value().map(|password| password.password),
        preempt: raw.preempt.or(false),
        preempt_delay: raw.preempt_delay.or(Duration::ZERO),
        unicast: raw.unicast.or(false),
        checksum,
    }
}

/// Between several nodes: by unicast, adverts go from node address to node address.
pub(super) fn check_families(
    floating: &[(Range<usize>, Checked)],
    nodes: &[Node],
    findings: &mut Findings,
) {
    if nodes.len() < 2 {
        return;
    }
    for (place, floating) in floating.iter().filter(|(_, floating)| floating.unicast) {
        let Some(is_v4) = floating.is_v4() else { continue };
        let Some(node) = nodes.iter().find(|node| node.address.is_ipv4() != is_v4) else {
            continue;
        };
        let family = if is_v4 { "IPv4" } else { "IPv6" };
        findings
            .error(
                place.clone(),
                format!(
                    "`unicast` sends these adverts over {family}, but the address of node `{}` is {}",
                    node.name, node.address
                ),
            )
            .help(format!("write the nodes' {family} addresses, or leave `unicast` out"));
    }
}
