//! What is there.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    TOOLCHAIN,
    plan::{COMPILER, LIBRARIES, TOOLS, Tool},
};
use crate::{bpffs, shell};

/// What setup has to know of a machine.
#[expect(clippy::struct_excessive_bools, reason = "each is the answer to one question")]
pub(super) struct Facts {
    /// Whether this runs as root.
    pub(super) root: bool,
    /// Whether the packages' names are right for it.
    pub(super) debian_12: bool,
    /// Name of the distribution, for people.
    pub(super) distribution: String,
    /// Whether rustup is there.
    pub(super) rustup: bool,
    /// Those of the packages without a program that are installed.
    pub(super) packages: HashSet<String>,
    /// Programs that are not there.
    pub(super) missing_tools: Vec<&'static Tool>,
    /// Parts of the Rust toolchain that are not there.
    pub(super) missing_components: Vec<&'static str>,
    /// Whether rustup's `nightly` has the sources of `core`.
    pub(super) nightly_with_source: bool,
    /// Whether bpf-linker is there and finds its libraries.
    pub(super) bpf_linker: bool,
    /// Whether rustup has a toolchain `bpf`.
    pub(super) bpf_toolchain: bool,
    /// Whether the BPF file system is mounted.
    pub(super) bpffs: bool,
}

impl Facts {
    /// Looks.
    pub(super) fn gather() -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let debian_12 = os_release(&release, "ID") == Some("debian")
            && os_release(&release, "VERSION_ID") == Some("12");
        let toolchains = rustup_home().map(|home| home.join("toolchains")).unwrap_or_default();
        Self {
            root: nix::unistd::geteuid().is_root(),
            debian_12,
            distribution: os_release(&release, "PRETTY_NAME").unwrap_or("no Linux we know").into(),
            rustup: shell::find_program("rustup").is_some(),
            packages: if debian_12 { installed_packages() } else { HashSet::new() },
            missing_tools: TOOLS.iter().filter(|tool| !is_there(tool)).collect(),
            missing_components: missing_components(),
            nightly_with_source: nightly_with_source(&toolchains),
            bpf_linker: bpf_linker_works(),
            bpf_toolchain: toolchains.join(TOOLCHAIN).join("bin/rustc").exists(),
            bpffs: bpffs::is_mounted(),
        }
    }
}

pub(super) fn is_there(tool: &Tool) -> bool {
    let program = Path::new(tool.program);
    if program.is_absolute() {
        // Elsewhere than on Debian its folder may be in `PATH`.
        let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        shell::is_executable(program) || shell::find_program(name).is_some()
    } else {
        shell::find_program(tool.program).is_some()
    }
}

fn installed_packages() -> HashSet<String> {
    let mut command = Command::new("dpkg-query");
    command.args(["-W", "-f", "${db:Status-Abbrev} ${Package}\n"]);
    // It fails for a package that it has never heard of, and lists the others.
    let output = command.args(COMPILER).args(LIBRARIES).output();
    output
        .map(|output| parse_packages(&String::from_utf8_lossy(&output.stdout)))
        .unwrap_or_default()
}

/// Names of installed packages, of lines like `ii  gcc`: wanted state, state, error.
fn parse_packages(text: &str) -> HashSet<String> {
    let installed = text.lines().filter(|line| line.as_bytes().get(1) == Some(&b'i'));
    installed.filter_map(|line| Some(line.split_whitespace().nth(1)?.to_owned())).collect()
}

fn bpf_linker_works() -> bool {
    let Some(linker) = shell::find_program("bpf-linker") else { return false };
    Command::new(linker).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// `cargo clippy` and `cargo fmt` stand beside the `cargo` that runs this.
fn missing_components() -> Vec<&'static str> {
    let Some(cargo) = std::env::var_os("CARGO").map(PathBuf::from) else { return Vec::new() };
    [("clippy", "cargo-clippy"), ("rustfmt", "cargo-fmt")]
        .into_iter()
        .filter(|(_, program)| !cargo.with_file_name(program).exists())
        .map(|(component, _)| component)
        .collect()
}

fn rustup_home() -> Option<PathBuf> {
    std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".rustup")))
}

fn nightly_with_source(toolchains: &Path) -> bool {
    // Not nightly-2026-01-31-…, which rustup does not take for `nightly`.
    let start = format!("nightly-{}-", std::env::consts::ARCH);
    let Ok(entries) = fs::read_dir(toolchains) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        entry.file_name().to_string_lossy().starts_with(&start)
            && entry.path().join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    })
}

/// A value of `/etc/os-release`.
fn os_release<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_is_read() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(os_release(text, "ID"), Some("debian"));
        assert_eq!(os_release(text, "VERSION_ID"), Some("12"));
        assert_eq!(os_release(text, "PRETTY_NAME"), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(os_release(text, "NAME"), None);
    }

    #[test]
    fn removed_packages_are_not_installed() {
        let found = parse_packages("ii  gcc\nrc  llvm-22-dev\nun  rustc-web\nhi  libc6-dev\n");
        assert_eq!(found, HashSet::from(["gcc".into(), "libc6-dev".into()]));
    }

    #[test]
    fn nightly_counts_only_with_the_sources() {
        let root = std::env::temp_dir().join(format!("xtask-survey-{}", std::process::id()));
        let arch = std::env::consts::ARCH;
        let library = "lib/rustlib/src/rust/library/core";
        let put = |toolchain: &str| {
            let folder = root.join(toolchain).join(library);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("Cargo.toml"), "").unwrap();
        };
        fs::create_dir_all(root.join(format!("nightly-{arch}-unknown-linux-gnu/lib"))).unwrap();
        put(&format!("stable-{arch}-unknown-linux-gnu"));
        put(&format!("nightly-2026-01-31-{arch}-unknown-linux-gnu"));
        let without = nightly_with_source(&root);
        put(&format!("nightly-{arch}-unknown-linux-gnu"));
        let with = nightly_with_source(&root);
        fs::remove_dir_all(&root).unwrap();
        assert!(!without);
        assert!(with);
    }
}
