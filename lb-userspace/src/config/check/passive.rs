//! `[service.passive]`.

use std::time::Duration;

use toml::Spanned;

use super::{not_zero, whole};
use crate::config::{
    Passive, Protocol,
    raw::{self, Service},
    report::Findings,
};

const EJECT_PERCENT: u32 = 50;
const EJECT_TIME: Duration = Duration::from_secs(10);

/// An ejection ends by itself; one that lasts for hours is an operator's `disable`.
const LONGEST_EJECT_TIME: Duration = Duration::from_hours(1);

/// What applies to the service, or nothing if its connections are not watched.
pub(super) fn passive(
    service: &Spanned<Service>,
    protocol: Protocol,
    findings: &mut Findings,
) -> Option<Passive> {
    let section = &service.get_ref().passive;
    let raw = section.or(raw::Passive::default());
    if let Some(time) = raw.eject_time.get() {
        if time.get_ref().is_zero() {
            not_zero(time.span(), "eject_time", findings);
        } else if *time.get_ref() > LONGEST_EJECT_TIME {
            findings
                .error(time.span(), "`eject_time` is above 1h")
                .help("write \"1h\" or less; `ballast disable` takes a backend out for good");
        }
    }
    let enabled = raw.enabled.or(true);
    if !enabled {
        let spans =
            [(raw.eject_percent.span(), "eject_percent"), (raw.eject_time.span(), "eject_time")];
        for (span, key) in spans {
            if let Some(span) = span {
                findings
                    .warning(span, format!("`{key}` has no effect with `enabled = false`"))
                    .help(format!("remove `{key}`, or `enabled`"));
            }
        }
    }
    if protocol == Protocol::Udp
        && let Some(section) = section.get()
        && enabled
    {
        findings
            .warning(
                section.span(),
                "`[service.passive]` has no effect on a udp service: only of tcp connections can be \
                 seen whether they are answered",
            )
            .help("remove the section");
    }
    (enabled && protocol == Protocol::Tcp).then(|| Passive {
        eject_percent: whole(&raw.eject_percent, EJECT_PERCENT),
        eject_time: raw.eject_time.or(EJECT_TIME),
    })
}
