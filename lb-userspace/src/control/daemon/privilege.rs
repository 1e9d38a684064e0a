//! What the kernel must allow.

use std::fs;

use anyhow::{Context as _, bail};

/// Number in `linux/capability.h`, name, and whether `CAP_SYS_ADMIN` stands for it.
const NEEDED: [(u32, &str, bool); 4] = [
    (12, "CAP_NET_ADMIN", false),
    (13, "CAP_NET_RAW", false),
    (38, "CAP_PERFMON", true),
    (39, "CAP_BPF", true),
];

const SYS_ADMIN: u32 = 21;

/// An error that names the capabilities that are missing.
pub(super) fn check() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective = effective(&status).context("find CapEff in /proc/self/status")?;
    let missing = missing(effective);
    if !missing.is_empty() {
        bail!(
            "this needs root, or the capabilities that are missing here: {}. Run it with sudo",
            missing.join(", ")
        );
    }
    Ok(())
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(effective: u64) -> Vec<&'static str> {
    let has = |number: u32| effective & 1 << number != 0;
    NEEDED
        .iter()
        .filter(|(number, _, by_admin)| !(has(*number) || *by_admin && has(SYS_ADMIN)))
        .map(|(_, name, _)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let status = "Name:\tballast\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n";
        assert_eq!(missing(effective(status).unwrap()), [""; 0]);
        assert_eq!(missing(0), ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_BPF"]);
        assert_eq!(missing(1 << SYS_ADMIN), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
        assert_eq!(effective("Name:\tballast\n"), None);
    }
}
