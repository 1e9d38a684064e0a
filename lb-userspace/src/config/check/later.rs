//! What belongs to the contract but not to this version: its values are checked all the same, so
//! that the file is right when the version comes.

use std::{ops::Range, time::Duration};

use toml::Spanned;

use super::whole;
use crate::config::{
    raw::{File, Floating},
    report::Findings,
    units,
    value::word::AlertKind,
};

pub(super) fn check(file: &File, findings: &mut Findings) {
    for floating in file.floating.items() {
        vrrp(floating.get_ref(), findings);
    }
    if let Some(consensus) = file.consensus.value()
        && let Some(etcd) = consensus.etcd.get()
        && etcd.get_ref().is_empty()
    {
        findings
            .error(etcd.span(), "`etcd` is empty")
            .help("write the members' addresses, such as \"http://192.0.2.11:2379\"");
    }
    for alert in file.alert.items() {
        let (span, alert) = (alert.span(), alert.get_ref());
        if alert.kind.value() == Some(&AlertKind::Telegram) {
            if alert.token_file.is_absent() {
                telegram(span.clone(), "token_file", "/etc/ballast/telegram.token", findings);
            }
            if alert.chat_id.is_absent() {
                telegram(span, "chat_id", "-100123", findings);
            }
        }
    }
}

fn telegram(span: Range<usize>, key: &str, example: &str, findings: &mut Findings) {
    findings
        .error(span, format!("an alert by telegram needs `{key}`"))
        .help(format!("add `{key} = \"{example}\"`"));
}

/// Field widths of RFC 9568 §5.2.7 (12 bits of centiseconds) and RFC 3768 §5.3.7 (8 bits of
/// seconds).
const V3_SHORTEST: Duration = Duration::from_millis(10);
const V3_LONGEST: Duration = Duration::from_millis(40_950);
const V2_LONGEST_SECONDS: u64 = 255;

/// Bytes of the authentication data of VRRP version 2 (RFC 2338 §5.3.10).
const V2_PASSWORD_BYTES: usize = 8;

fn vrrp(floating: &Floating, findings: &mut Findings) {
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
    if let (Some(delay), Some(false)) = (floating.preempt_delay.get(), floating.preempt.value()) {
        findings
            .warning(delay.span(), "`preempt_delay` has no effect with `preempt = false`")
            .help("remove one of the two");
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
