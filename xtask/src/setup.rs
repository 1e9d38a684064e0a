//! `cargo xtask setup`: what building and testing need, found or installed.
//!
//! `survey` looks at the machine, `plan` decides what is missing (and is pure), `apt` speaks to the
//! package manager. A second run looks at a few files, finds nothing to do and says nothing.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{bpffs, build, interrupt, shell};

mod apt;
mod plan;
mod survey;

use self::{
    plan::{Plan, Step},
    survey::Facts,
};

/// Version of bpf-linker that is installed; it links the bitcode of Debian's compiler.
const BPF_LINKER_VERSION: &str = "0.13.0";

/// Where Debian's LLVM 22 is.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Name that Debian's compiler, which has `core` for BPF, is given for rustup. The daemon's build
/// script asks for it.
const TOOLCHAIN: &str = "bpf";

/// Installs what is missing.
pub fn setup() -> Result<()> {
    let facts = Facts::gather();
    let plan = Plan::new(&facts)?;
    if plan.steps.is_empty() {
        return Ok(());
    }
    if !facts.root && plan.steps.iter().any(Step::needs_root) {
        bail!(
            "some of what ballast needs is missing, and installing it needs root. Run this, and \
             then `cargo xtask setup` again:\n\n{}",
            commands(&plan, true)
        );
    }
    println!("setup: BPF toolchain: {}", plan.toolchain);
    interrupt::install()?;
    for step in &plan.steps {
        println!("setup: {}", step.description());
        run(step).with_context(|| step.description())?;
        interrupt::check()?;
    }
    let left = Plan::new(&Facts::gather())?;
    if !left.steps.is_empty() {
        bail!("everything went well, and yet this is still missing:\n\n{}", commands(&left, false));
    }
    println!("setup: done");
    Ok(())
}

/// Installs the packages of these programs of [`plan::TOOLS`], as far as the programs are not there: for a
/// machine that runs ballast or a server, and builds nothing.
pub fn install_programs(programs: &[&str]) -> Result<()> {
    let mut packages: Vec<_> = plan::TOOLS
        .iter()
        .filter(|tool| programs.contains(&tool.program) && !survey::is_there(tool))
        .map(|tool| tool.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    println!("setup: install {}", packages.join(" "));
    apt::install(&packages)
}

/// Whether a program is one that [`install_programs`] can install.
#[cfg(test)]
pub(crate) fn knows(program: &str) -> bool {
    plan::TOOLS.iter().any(|tool| tool.program == program)
}

/// Prints what [`setup`] would do.
pub fn dry_run() -> Result<()> {
    let facts = Facts::gather();
    let plan = Plan::new(&facts)?;
    println!("BPF toolchain: {}", plan.toolchain);
    if plan.steps.is_empty() {
        println!("nothing is missing");
    } else {
        print!("{}", commands(&plan, !facts.root));
    }
    Ok(())
}

/// What a person would type to the same end.
fn commands(plan: &Plan, with_sudo: bool) -> String {
    plan.steps
        .iter()
        .flat_map(|step| {
            let sudo = if with_sudo && step.needs_root() { "sudo " } else { "" };
            step.commands().into_iter().map(move |line| format!("  {sudo}{line}\n"))
        })
        .collect()
}

fn run(step: &Step) -> Result<()> {
    match step {
        Step::Packages(packages) => apt::install(packages),
        Step::BpfLinker => {
            let mut command = build::cargo();
            command.args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked"]);
            command.args(["--no-default-features", "--features", "llvm-22"]);
            // Neither the workspace's settings nor its target folder are meant for it.
            command.env("LLVM_PREFIX", LLVM_PREFIX).env_remove("CARGO_TARGET_DIR");
            shell::run(command.current_dir("/"))
        }
        Step::LinkToolchain => {
            shell::run(build::rustup().args(["toolchain", "link", TOOLCHAIN, "/usr"]))
        }
        Step::Components(components) => {
            shell::run(build::rustup().args(["component", "add"]).args(components))
        }
        Step::MountBpffs => {
            if !Path::new(bpffs::MOUNT_POINT).exists() {
                bail!("{} is not there: this kernel has no BPF", bpffs::MOUNT_POINT);
            }
            shell::run(&mut bpffs::mount_command())
        }
    }
}
