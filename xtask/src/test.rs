//! `cargo xtask test`: everything that CI runs, in the order in which a mistake is found soonest.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{bpffs, build, interrupt, lab, setup, shell, tidy, vm, wait};

mod again;

/// A tier of tests; each needs more than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Tier {
    /// The source's form, and tests on the host
    Unit,
    /// Simulated failures: thousands of runs of the machines that decide
    Sim,
    /// Packets through the program in the kernel; needs root
    Kernel,
    /// The same on Debian 12's kernel, in a virtual machine that the first run fetches
    Vm,
    /// The proxy beside nginx; whole systems in network namespaces, which need root
    Netns,
    /// The dashboard; comes with a later version
    Browser,
}

/// What is run when no tier is named.
const ALL: [Tier; 5] = [Tier::Unit, Tier::Sim, Tier::Kernel, Tier::Vm, Tier::Netns];

/// Labs that stand at the same time: their servers share the machine's cores with the clients that
/// they must answer in time.
const NETNS_THREADS: &str = "--test-threads=1";

/// How long the lab of a test that was killed may take to be cleared away.
const CLEAR_LIMIT: Duration = Duration::from_secs(10);

/// Something that is run and timed.
struct Step {
    name: &'static str,
    run: fn() -> Result<()>,
}

const fn step(name: &'static str, run: fn() -> Result<()>) -> Step {
    Step { name, run }
}

impl Tier {
    fn steps(self) -> Result<&'static [Step]> {
        const UNIT: [Step; 4] = [
            step("tidy", tidy::tidy),
            step("format", || cargo(&["fmt", "--all", "--check"])),
            step("clippy", || {
                cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
            }),
            step("unit", || cargo(&["test"])),
        ];
        const SIM: [Step; 1] =
            [step("sim", || cargo(&["test", "--package", "lb-tests", "--test", "sim"]))];
        const KERNEL: [Step; 1] = [step("kernel", || {
            privileged()?;
            cargo(&["test", "--package", "lb-tests", "--lib", "--test", "kernel"])
        })];
        const VM: [Step; 1] = [step("vm", vm::test)];
        const NETNS: [Step; 2] = [
            step("proxy", || cargo(&["test", "--package", "lb-tests", "--test", "proxy"])),
            step("netns", netns),
        ];
        match self {
            Self::Unit => Ok(&UNIT),
            Self::Sim => Ok(&SIM),
            Self::Kernel => Ok(&KERNEL),
            Self::Vm => Ok(&VM),
            Self::Netns => Ok(&NETNS),
            Self::Browser => {
                bail!("the tests `browser` come with a later version, with the dashboard")
            }
        }
    }
}

/// Runs the tiers, or all; stops at the first step that fails. Prints how long each took.
pub fn test(tiers: &[Tier]) -> Result<()> {
    const PREPARE: [Step; 2] =
        [step("setup", setup::setup), step("build", || build::ballast().map(drop))];
    let tiers: BTreeSet<Tier> =
        if tiers.is_empty() { ALL.into() } else { tiers.iter().copied().collect() };
    let mut steps: Vec<&Step> = PREPARE.iter().collect();
    for tier in tiers {
        steps.extend(tier.steps()?);
    }
    // Labs of tests are taken down by the tests, and those of killed tests by their guards.
    interrupt::install()?;
    let mut done = Vec::new();
    let result = steps.iter().try_for_each(|step| {
        println!("==> {}", step.name);
        let begin = Instant::now();
        let result = (step.run)().and_then(|()| interrupt::check());
        done.push((step.name, begin.elapsed(), result.is_ok()));
        result.with_context(|| format!("step `{}`", step.name))
    });
    let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
    print!("\n{}", summary(&names, &done));
    result
}

/// A line for each step: how long it took, and what came of it.
fn summary(names: &[&str], done: &[(&str, Duration, bool)]) -> String {
    let mut text = String::new();
    for (at, name) in names.iter().enumerate() {
        let _ = match done.get(at) {
            Some((_, took, good)) => {
                let outcome = if *good { "ok" } else { "FAILED" };
                writeln!(text, "{name:<8} {:>7.1} s  {outcome}", took.as_secs_f64())
            }
            None => writeln!(text, "{name:<8} {:>9}  not run", ""),
        };
    }
    let total: Duration = done.iter().map(|(_, took, _)| *took).sum();
    text + &format!("{:<8} {:>7.1} s\n", "all", total.as_secs_f64())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    shell::run(build::cargo().args(arguments))
}

fn privileged() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("these tests load programs into the kernel: run them as root");
    }
    if !bpffs::is_mounted() {
        bail!("no BPF file system: `{}` mounts it", shell::display(&bpffs::mount_command()));
    }
    Ok(())
}

fn netns() -> Result<()> {
    privileged()?;
    let before = traces()?;
    let result = whole_systems("netns");
    // A test that leaves something behind has failed, too.
    let left = wait::until(CLEAR_LIMIT, "the labs of the tests to be gone", || {
        let left: Vec<String> = traces()?.difference(&before).cloned().collect();
        Ok(left.is_empty().then_some(()))
    });
    result?;
    left.with_context(|| {
        let left = traces().unwrap_or_default();
        let left: Vec<&String> = left.difference(&before).collect();
        format!("the tests left behind {left:?}")
    })
}

/// Runs a test program of whole systems, one test at a time, with a second try.
fn whole_systems(test: &str) -> Result<()> {
    let command = |arguments: &[&str]| {
        let mut command = build::cargo();
        command.args(["test", "--package", "lb-tests", "--test", test, "--", NETNS_THREADS]);
        command.args(arguments);
        command
    };
    let again = again::run(&mut command(&[]), |name| command(&["--exact", name]))?;
    for name in again {
        println!("NOTE: {name} failed, and passed at the second try");
    }
    Ok(())
}

/// Network namespaces, pins and labs of tests.
fn traces() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for folder in ["/run/netns", bpffs::MOUNT_POINT, lab::RUN_DIR] {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries {
            let path: PathBuf = entry.with_context(|| format!("read {folder}"))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(lab::TEST_PREFIX) {
                found.insert(path.display().to_string());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_of_later_versions_say_so() {
        let error = Tier::Browser.steps().err().expect("no steps");
        assert!(error.to_string().contains("later version"), "{error}");
    }

    #[test]
    fn the_summary_tells_what_was_not_run() {
        let done =
            [("tidy", Duration::from_millis(1500), true), ("unit", Duration::from_secs(2), false)];
        let text = summary(&["tidy", "unit", "netns"], &done);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "tidy         1.5 s  ok",
                "unit         2.0 s  FAILED",
                "netns               not run",
                "all          3.5 s",
            ]
        );
    }
}
