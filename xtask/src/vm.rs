//! `cargo xtask test vm`: the kernel tier once more, on the oldest kernel that ballast runs on.
//!
//! The tests are built as usual and run by root in a virtual machine of two CPUs that has nothing but
//! them: no disk, no network card. [`packages`] fetches what it takes, [`guest`] makes its file
//! system, [`boot`] runs it, [`console`] reads what comes out.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::build;

mod archive;
mod boot;
mod console;
mod guest;
mod packages;

use self::{boot::Machine, console::Complaint, guest::Program, packages::Packages};

/// What is run: package and test.
const TESTS: [(&str, &str); 3] =
    [("lb-tests", "kernel"), ("lb-userspace", "dataplane"), ("lb-userspace", "net")];

/// Runs the tests in the machine.
pub fn test() -> Result<()> {
    let packages = Packages::prepare().context("prepare the virtual machine")?;
    let programs = TESTS
        .into_iter()
        .map(|(package, name)| Ok(Program { name, file: build::test_program(package, name)? }))
        .collect::<Result<Vec<_>>>()?;
    let folder = packages::folder();
    let archive = folder.join("initramfs");
    fs::write(&archive, guest::archive(&packages, &programs).context("make its file system")?)
        .with_context(|| format!("write {}", archive.display()))?;

    println!("vm: boot Linux {}", packages.release);
    let log = folder.join("console.log");
    let _ = fs::remove_file(&log);
    let progress = Machine { packages: &packages, archive: &archive, log: &log }.run()?;
    let text = boot::read(&log);
    let complaint = progress.complaint(&TESTS.map(|(_, name)| name));
    if let Some(Complaint::Ended(what)) = complaint {
        bail!(
            "{what}; the kernel's last lines, all of which are in {}:\n{}",
            log.display(),
            console::end_of(&text)
        );
    }
    let suspicious = console::suspicious(&text);
    if !suspicious.is_empty() {
        bail!("the kernel complained, see {}:\n{}", log.display(), suspicious.join("\n"));
    }
    if let Some(Complaint::Failed(what)) = complaint {
        bail!("on Linux {}: {what}", packages.release);
    }
    let release = progress.release.unwrap_or_default();
    if release != packages.release {
        bail!("Linux {release} ran and not {}", packages.release);
    }
    Ok(())
}
