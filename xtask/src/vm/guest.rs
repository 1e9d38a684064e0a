//! The guest's file system: a shell, the tests with their libraries, and the script that runs them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{archive::Archive, packages::Packages};
use crate::shell;

/// Modules that the tests need, in an order in which they can be loaded.
const MODULES: [&str; 1] = ["drivers/net/veth.ko"];

/// Programs of this machine that the tests run.
const TOOLS: [&str; 1] = ["ip"];

/// Set it to the seed that a failed test printed.
const SEED: &str = "BALLAST_TEST_SEED";

/// What stands in front of lines that the script writes for the host.
pub(super) const MARK: &str = "ballast-vm:";

/// A test program: name, and file on this machine.
pub(super) struct Program {
    /// Name.
    pub(super) name: &'static str,
    /// File.
    pub(super) file: PathBuf,
}

/// The archive that the kernel unpacks.
pub(super) fn archive(packages: &Packages, tests: &[Program]) -> Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    files.insert("bin/busybox".to_owned(), packages.busybox());
    let mut modules = Vec::new();
    for path in MODULES {
        let file = packages.module(path);
        let name = path.rsplit('/').next().unwrap_or(path);
        modules.push(format!("/modules/{name}"));
        files.insert(format!("modules/{name}"), file);
    }
    for tool in TOOLS {
        let file = shell::find_program(tool).with_context(|| format!("find {tool}"))?;
        add(&mut files, &format!("tools/{tool}"), &file)?;
    }
    for test in tests {
        add(&mut files, &format!("tests/{}", test.name), &test.file)?;
    }

    let mut archive = Archive::default();
    let mut folders: Vec<String> = ["dev", "proc", "sys", "run", "tmp"].map(String::from).into();
    for path in files.keys() {
        let parents = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
        folders.extend(parents);
    }
    // A folder's name sorts before those of what is in it.
    folders.sort_unstable();
    folders.dedup();
    for folder in &folders {
        archive.folder(folder);
    }
    // The kernel opens it for init before anything is mounted.
    archive.device("dev/console", 5, 1);
    for (path, file) in &files {
        let content = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        archive.program(path, &content);
    }
    let names: Vec<&str> = tests.iter().map(|test| test.name).collect();
    let seed = std::env::var(SEED).ok();
    archive.program("init", script(&names, &modules, seed.as_deref()).as_bytes());
    Ok(archive.finish())
}

/// Adds a program and the libraries that it needs, these at their own places.
fn add(files: &mut BTreeMap<String, PathBuf>, place: &str, file: &Path) -> Result<()> {
    let listed = shell::output(Command::new("ldd").arg(file))
        .with_context(|| format!("list the libraries of {}", file.display()))?;
    for library in libraries(&listed) {
        files.insert(library.trim_start_matches('/').to_owned(), library.into());
    }
    files.insert(place.to_owned(), file.to_owned());
    Ok(())
}

/// Paths in lines like `libc.so.6 => /lib/…/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn libraries(listed: &str) -> impl Iterator<Item = &str> {
    listed.lines().filter_map(|line| {
        let path = line.split_once("=>").map_or(line, |(_, path)| path);
        path.split_whitespace().next().filter(|path| path.starts_with('/'))
    })
}

/// What the kernel starts. The tests' output goes to the second serial port, so that the kernel's own
/// lines, on the first, cannot come between; the port is closed before the end, which waits until
/// everything is sent.
fn script(tests: &[&str], modules: &[String], seed: Option<&str>) -> String {
    let mut text = String::from(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/tools:/bin HOME=/tmp RUST_BACKTRACE=1\n\
         mount -t devtmpfs devtmpfs /dev\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t tmpfs tmpfs /run\n\
         (\n\
         ip link set lo up\n",
    );
    for module in modules {
        let _ = writeln!(text, "insmod {module}");
    }
    if let Some(seed) = seed {
        let _ = writeln!(text, "export {SEED}={}", shell::quote(seed));
    }
    let _ = writeln!(text, "echo \"{MARK} runs $(uname -r)\"");
    for test in tests {
        let _ = writeln!(
            text,
            "echo '{MARK} begins {test}'\n/tests/{test} --nocapture\necho \"{MARK} ended {test} $?\""
        );
    }
    text + ") >/dev/ttyS1 2>&1 </dev/null\npoweroff -f\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_path() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1c)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f1d)\n\
                      \tlibgone.so.1 => not found\n";
        let found: Vec<&str> = libraries(listed).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn the_script_reports_how_each_test_ended() {
        let text = script(&["kernel", "net"], &["/modules/veth.ko".into()], Some("7"));
        for line in
            ["insmod /modules/veth.ko", "export BALLAST_TEST_SEED=7", "/tests/net --nocapture"]
        {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(text.contains("echo \"ballast-vm: ended kernel $?\""), "{text}");
        assert!(text.ends_with("poweroff -f\n"), "{text}");
    }
}
