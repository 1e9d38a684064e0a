//! Debian's package manager.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// Asked by every package that would start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Tells one of ours from the administrator's.
const MARK: &str = "# Written by `cargo xtask setup` for the time of an installation.";

/// Services that their packages start, and that the lab runs in namespaces of its own instead.
const SERVICES: [(&str, &str); 3] =
    [("etcd-server", "etcd"), ("nginx", "nginx"), ("postgresql-15", "postgresql")];

/// Seconds to wait for another package manager.
const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=120";

/// Installs packages, and what they depend on, and removes none.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    if let Err(error) = apt_get(&["update"]) {
        // Often only some other source is broken. If it matters, installing says so.
        eprintln!("setup: warning: {error:#}");
    }
    let policy = NoServices::begin()?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    arguments.extend(packages);
    let result = apt_get(&arguments);
    drop(policy);
    result?;
    for (_, service) in SERVICES.iter().filter(|(package, _)| packages.contains(package)) {
        keep_from_booting(service);
    }
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", LOCK_TIMEOUT, "-o", "Dpkg::Use-Pty=0"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child =
        command.spawn().with_context(|| format!("start `{}`", shell::display(&command)))?;
    let mut errors = String::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            eprintln!("{line}");
            errors += &line;
            errors.push('\n');
        }
    }
    let status = child.wait().context("wait for apt-get")?;
    if status.success() {
        return Ok(());
    }
    let cure = cure(&errors).map(|cure| format!(": {cure}")).unwrap_or_default();
    bail!("`{}` ended with {status}{cure}", shell::display(&command))
}

/// What to do about what apt-get complains of.
fn cure(errors: &str) -> Option<&'static str> {
    const CURES: [(&str, &str); 9] = [
        ("Could not get lock", "another package manager is at work; try again when it is done"),
        (
            "Unable to acquire the dpkg",
            "another package manager is at work; try again when it is done",
        ),
        ("dpkg was interrupted", "run `dpkg --configure -a` and try again"),
        ("fix-broken install", "run `apt-get --fix-broken install` and try again"),
        ("held broken packages", "a package is held back: `apt-mark showhold` lists them"),
        (
            "remove is disabled",
            "something installed conflicts, often Debian's own cargo and rustc (rustup replaces \
             them): `apt-get remove cargo rustc` and try again",
        ),
        ("No space left", "the disk is full"),
        (
            "Unable to locate package",
            "the package sources lack `bookworm` or `bookworm-security`, or could not be read: \
             look into /etc/apt/sources.list and /etc/apt/sources.list.d",
        ),
        ("Failed to fetch", "the mirror cannot be reached: look to the network or a proxy"),
    ];
    CURES.iter().find(|(sign, _)| errors.contains(sign)).map(|(_, cure)| *cure)
}

/// While it lives, installed packages start no services.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> Result<Self> {
        let policy = Path::new(POLICY);
        // One with our mark is left of a setup that was killed.
        if policy.exists() && !fs::read_to_string(policy).is_ok_and(|text| text.contains(MARK)) {
            return Ok(Self { ours: false });
        }
        // 101 means: not allowed.
        fs::write(policy, format!("#!/bin/sh\n{MARK}\nexit 101\n"))
            .with_context(|| format!("write {POLICY}"))?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {POLICY} executable"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!(
                "setup: warning: remove {POLICY} by hand, it keeps services from starting: {error}"
            );
        }
    }
}

/// The lab brings its own servers; the system's need not take ports 80 and 5432 at every boot.
fn keep_from_booting(service: &str) {
    if !Path::new("/run/systemd/system").exists() {
        return;
    }
    println!("setup: disable the new service {service}; `systemctl enable {service}` undoes it");
    if let Err(error) = shell::output(Command::new("systemctl").args(["disable", "--now", service]))
    {
        eprintln!("setup: warning: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_package_manager_is_told_from_a_broken_one() {
        let locked = "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 42";
        assert!(cure(locked).unwrap().contains("another package manager"));
        let broken = "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to …";
        assert!(cure(broken).unwrap().contains("dpkg --configure -a"));
        let conflict = "E: Packages need to be removed but remove is disabled.";
        assert!(cure(conflict).unwrap().contains("apt-get remove cargo rustc"));
        assert_eq!(cure("E: something new"), None);
    }
}
