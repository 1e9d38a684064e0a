//! What has to be done, given what is there.

use std::fmt;

use anyhow::{Result, bail};

use super::{BPF_LINKER_VERSION, LLVM_PREFIX, TOOLCHAIN, survey::Facts};
use crate::{bpffs, shell};

/// A program that the lab or the tests run, and the Debian package that has it.
pub(super) struct Tool {
    /// The program, or a path of it where it is in nobody's `PATH`.
    pub(super) program: &'static str,
    /// The package.
    pub(super) package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// What the lab, the tests and the benchmarks run.
pub(super) const TOOLS: [Tool; 18] = [
    // A linker for Rust, and a C compiler for the cryptography that `https` probes use.
    tool("cc", "gcc"),
    tool("bird", "bird2"),
    tool("bpftool", "bpftool"),
    tool("curl", "curl"),
    tool("etcd", "etcd-server"),
    tool("ethtool", "ethtool"),
    tool("haproxy", "haproxy"),
    tool("ip", "iproute2"),
    tool("keepalived", "keepalived"),
    tool("nft", "nftables"),
    tool("nginx", "nginx"),
    tool("nsenter", "util-linux"),
    tool("pgrep", "procps"),
    tool("setpriv", "util-linux"),
    tool("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
    tool("/usr/lib/postgresql/15/bin/pg_basebackup", "postgresql-client-15"),
    tool("vagrant", "vagrant"),
    tool("wrk", "wrk"),
];

/// Packages without a program to look for.
pub(super) const LIBRARIES: [&str; 1] = ["libc6-dev"];

/// Debian's compiler for BPF, and the LLVM that bpf-linker is built with.
pub(super) const COMPILER: [&str; 4] =
    ["cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev", "rustc-web"];

/// With what the kernel program is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Toolchain {
    /// Debian's rustc-web, by rustup's name `bpf`.
    Debian,
    /// The nightly toolchain with its own sources of `core`.
    Nightly,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "Debian's rustc-web, as rustup's `bpf`",
            Self::Nightly => "nightly with rust-src",
        })
    }
}

/// One thing to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Install Debian packages.
    Packages(Vec<&'static str>),
    /// Build bpf-linker.
    BpfLinker,
    /// Give Debian's compiler a name for rustup.
    LinkToolchain,
    /// Add parts of the Rust toolchain.
    Components(Vec<&'static str>),
    /// Mount the BPF file system.
    MountBpffs,
}

impl Step {
    /// What it does, for the progress line.
    pub(super) fn description(&self) -> String {
        match self {
            Self::Packages(packages) => format!("install {}", packages.join(" ")),
            Self::BpfLinker => format!("build bpf-linker {BPF_LINKER_VERSION} (about a minute)"),
            Self::LinkToolchain => {
                format!("make Debian's compiler rustup's toolchain `{TOOLCHAIN}`")
            }
            Self::Components(names) => format!("add {} to the Rust toolchain", names.join(" and ")),
            Self::MountBpffs => format!("mount the BPF file system at {}", bpffs::MOUNT_POINT),
        }
    }

    /// The commands that do the same.
    pub(super) fn commands(&self) -> Vec<String> {
        match self {
            Self::Packages(packages) => vec![
                "apt-get update".into(),
                format!("apt-get install --no-install-recommends {}", packages.join(" ")),
            ],
            Self::BpfLinker => vec![format!(
                "env LLVM_PREFIX={LLVM_PREFIX} cargo install bpf-linker \
                 --version {BPF_LINKER_VERSION} --locked --no-default-features --features llvm-22"
            )],
            Self::LinkToolchain => vec![format!("rustup toolchain link {TOOLCHAIN} /usr")],
            Self::Components(names) => vec![format!("rustup component add {}", names.join(" "))],
            Self::MountBpffs => vec![shell::display(&bpffs::mount_command())],
        }
    }

    /// Whether it changes the system, and not only the user's own files.
    pub(super) fn needs_root(&self) -> bool {
        matches!(self, Self::Packages(_) | Self::MountBpffs)
    }
}

/// What has to be done, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// With what the kernel program will be compiled.
    pub(super) toolchain: Toolchain,
    /// Nothing, if all is there.
    pub(super) steps: Vec<Step>,
}

impl Plan {
    /// Decides; an error says what the user has to do by hand.
    pub(super) fn new(facts: &Facts) -> Result<Self> {
        if !facts.rustup {
            bail!("rustup is missing: https://rustup.rs says how to install it");
        }
        // The build script prefers the toolchain `bpf` where it is.
        let nightly = facts.nightly_with_source && facts.bpf_linker && !facts.bpf_toolchain;
        let toolchain = if nightly { Toolchain::Nightly } else { Toolchain::Debian };
        if !facts.debian_12 {
            foreign(facts)?;
        }

        let mut steps = Vec::new();
        let mut packages: Vec<&'static str> = if facts.debian_12 {
            let libraries = LIBRARIES.into_iter().filter(|name| !facts.packages.contains(*name));
            libraries.chain(facts.missing_tools.iter().map(|tool| tool.package)).collect()
        } else {
            Vec::new()
        };
        if toolchain == Toolchain::Debian && facts.debian_12 {
            packages.extend(COMPILER.into_iter().filter(|name| !facts.packages.contains(*name)));
        }
        packages.sort_unstable();
        packages.dedup();
        if !packages.is_empty() {
            steps.push(Step::Packages(packages));
        }
        if !facts.missing_components.is_empty() {
            steps.push(Step::Components(facts.missing_components.clone()));
        }
        if !facts.bpf_linker {
            steps.push(Step::BpfLinker);
        }
        if toolchain == Toolchain::Debian && !facts.bpf_toolchain {
            steps.push(Step::LinkToolchain);
        }
        if !facts.bpffs {
            steps.push(Step::MountBpffs);
        }
        Ok(Self { toolchain, steps })
    }
}

/// Another distribution: everything that a package manager would bring must be there.
fn foreign(facts: &Facts) -> Result<()> {
    let mut missing: Vec<String> = facts
        .missing_tools
        .iter()
        .map(|tool| format!("  {} (Debian's package {})", tool.program, tool.package))
        .collect();
    if !facts.bpf_toolchain && !facts.nightly_with_source {
        missing.push(
            "  a Rust compiler for BPF: \
             `rustup toolchain install nightly --profile minimal --component rust-src`"
                .into(),
        );
    }
    if !facts.bpf_linker {
        missing.push(
            "  bpf-linker, for the LLVM of that compiler (`rustc +nightly -vV` says which): \
             for LLVM 22 and newer `cargo install bpf-linker`"
                .into(),
        );
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "setup installs packages on Debian 12 only, and this is {}. These are missing; install \
         them and try again:\n{}",
        facts.distribution,
        missing.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Debian 12 on which setup has run.
    fn complete() -> Facts {
        Facts {
            root: true,
            debian_12: true,
            distribution: "Debian GNU/Linux 12".into(),
            rustup: true,
            packages: COMPILER.into_iter().chain(LIBRARIES).map(String::from).collect(),
            missing_tools: Vec::new(),
            missing_components: Vec::new(),
            nightly_with_source: false,
            bpf_linker: true,
            bpf_toolchain: true,
            bpffs: true,
        }
    }

    /// A Debian 12 with rustup and nothing else.
    fn bare() -> Facts {
        Facts {
            packages: std::collections::HashSet::new(),
            missing_tools: TOOLS.iter().collect(),
            missing_components: vec!["clippy", "rustfmt"],
            bpf_linker: false,
            bpf_toolchain: false,
            bpffs: false,
            ..complete()
        }
    }

    #[test]
    fn nothing_is_done_twice() {
        let plan = Plan::new(&complete()).unwrap();
        assert_eq!(plan, Plan { toolchain: Toolchain::Debian, steps: Vec::new() });
    }

    #[test]
    fn a_bare_machine_gets_everything_in_an_order_that_works() {
        let plan = Plan::new(&bare()).unwrap();
        let Step::Packages(packages) = &plan.steps[0] else { panic!("{plan:?}") };
        for package in ["bpftool", "gcc", "libc6-dev", "llvm-22-dev", "nginx", "postgresql-15"] {
            assert!(packages.contains(&package), "{package}: {packages:?}");
        }
        assert_eq!(packages.iter().filter(|name| **name == "util-linux").count(), 1);
        assert_eq!(
            plan.steps[1..],
            [
                Step::Components(vec!["clippy", "rustfmt"]),
                Step::BpfLinker,
                Step::LinkToolchain,
                Step::MountBpffs
            ]
        );
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        let mut facts = complete();
        facts.packages.remove("rustc-web");
        facts.missing_tools = TOOLS.iter().filter(|tool| tool.program == "wrk").collect();
        let plan = Plan::new(&facts).unwrap();
        assert_eq!(plan.steps, [Step::Packages(vec!["rustc-web", "wrk"])]);
    }

    #[test]
    fn nightly_with_source_and_linker_replaces_debians_compiler() {
        let facts = Facts { nightly_with_source: true, bpf_linker: true, ..bare() };
        let plan = Plan::new(&facts).unwrap();
        assert_eq!(plan.toolchain, Toolchain::Nightly);
        let Step::Packages(packages) = &plan.steps[0] else { panic!("{plan:?}") };
        assert!(!packages.iter().any(|name| COMPILER.contains(name)), "{packages:?}");
        assert!(!plan.steps.contains(&Step::BpfLinker));
        assert!(!plan.steps.contains(&Step::LinkToolchain));
    }

    #[test]
    fn another_distribution_is_told_what_is_missing() {
        let facts = Facts { debian_12: false, distribution: "Fedora Linux 42".into(), ..bare() };
        let text = Plan::new(&facts).unwrap_err().to_string();
        for word in ["Fedora Linux 42", "bpftool", "rust-src", "cargo install bpf-linker"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn another_distribution_with_everything_is_fine() {
        let facts = Facts {
            debian_12: false,
            nightly_with_source: true,
            bpf_toolchain: false,
            packages: std::collections::HashSet::new(),
            ..complete()
        };
        let plan = Plan::new(&facts).unwrap();
        assert_eq!(plan, Plan { toolchain: Toolchain::Nightly, steps: Vec::new() });
    }

    #[test]
    fn without_rustup_there_is_only_advice() {
        let facts = Facts { rustup: false, ..complete() };
        assert!(Plan::new(&facts).unwrap_err().to_string().contains("rustup.rs"));
    }

    #[test]
    fn commands_are_those_that_a_person_can_paste() {
        let plan = Plan::new(&bare()).unwrap();
        let text = super::super::commands(&plan, true);
        assert!(text.contains("  sudo apt-get update\n"), "{text}");
        assert!(text.contains("\n  rustup toolchain link bpf /usr\n"), "{text}");
        assert!(text.contains("  sudo mount -t bpf bpf /sys/fs/bpf\n"), "{text}");
    }
}
