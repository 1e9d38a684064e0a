//! What a profile of the daemon depends on: the compiler, its flags, the source.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{rust_tool, rustup, workspace};
use crate::shell;

/// What the proxy is made of, and what trains it. The rest of the daemon does little while requests pass,
/// and functions that have changed since are compiled as without a profile.
const SOURCES: [&str; 12] = [
    ".cargo/config.toml",
    "Cargo.lock",
    "Cargo.toml",
    "lb-common/src",
    "lb-userspace/Cargo.toml",
    "lb-userspace/src/allocator.rs",
    "lb-userspace/src/main.rs",
    "lb-userspace/src/proxy",
    "lb-userspace/src/proxy.rs",
    "tests/bench/l7/train.rs",
    "xtask/src/build/optimized.rs",
    "xtask/src/build/profile.rs",
];

/// The compiler that cargo takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compiler {
    /// All that it says of its version.
    version: String,
    /// The target that it runs on itself.
    pub(super) host: String,
}

impl Compiler {
    pub(super) fn ask() -> Result<Self> {
        let version = shell::output(rust_tool("rustc".into()).arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("find the host in what `rustc -vV` says")?.to_owned();
        Ok(Self { version, host })
    }

    /// `llvm-profdata` of the compiler's own LLVM: another one may not understand what it wrote. Where it
    /// is missing, rustup adds it.
    pub(super) fn profile_tool(&self) -> Result<PathBuf> {
        let root = shell::output(rust_tool("rustc".into()).args(["--print", "sysroot"]))?;
        let libraries = Path::new(root.trim()).join("lib/rustlib");
        let tool = libraries.join(&self.host).join("bin/llvm-profdata");
        if !shell::is_executable(&tool) {
            eprintln!("build: add llvm-tools to the Rust toolchain, for llvm-profdata");
            shell::run(rustup().args(["component", "add", "llvm-tools"])).with_context(|| {
                format!(
                    "install {}, without which there is no profile. Where rustup cannot add it, \
                     `cargo build --profile dist` builds without one",
                    tool.display()
                )
            })?;
        }
        let found = shell::is_executable(&tool).then_some(tool);
        found.context("find llvm-profdata where rustup's llvm-tools have it")
    }
}

/// The name of the compiler and the source: as long as it is the same, so is the profile.
pub(super) fn key(compiler: &Compiler) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    compiler.version.hash(&mut hasher);
    for source in SOURCES {
        let path = workspace().join(source);
        add(&path, &mut hasher).with_context(|| format!("read {}", path.display()))?;
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Adds a file, or all that is below a folder. A file that is not there is one too.
fn add(path: &Path, hasher: &mut DefaultHasher) -> io::Result<()> {
    if path.is_dir() {
        let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
        let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| add(entry, hasher));
    }
    let content = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        content => Some(content?),
    };
    // Where the workspace is does not matter.
    path.strip_prefix(workspace()).unwrap_or(path).hash(hasher);
    content.hash(hasher);
    Ok(())
}

/// The variable by which cargo is told a flag for a target, with what the user says in it. Cargo reads one
/// of the three, so ours goes to the one that it reads.
pub(super) fn flags(
    target: &str,
    flag: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> (String, String) {
    let own = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    let by_users = ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS"].into_iter();
    let read = by_users.map(str::to_owned).find(|name| variable(name).is_some()).unwrap_or(own);
    let separator = if read == "CARGO_ENCODED_RUSTFLAGS" { "\u{1f}" } else { " " };
    let given = variable(&read).filter(|given| !given.is_empty());
    let flags = given.map_or_else(|| flag.to_owned(), |given| given + separator + flag);
    (read, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_goes_to_the_variable_that_cargo_reads() {
        let target = "x86_64-unknown-linux-gnu";
        let own = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";
        let (encoded, plain) = ("CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS");
        for (given, (variable, value)) in [
            (&[][..], (own, "-Cx")),
            (&[(own, "-Ca -Cb")], (own, "-Ca -Cb -Cx")),
            (&[(own, "-Ca"), (plain, "-Cb")], (plain, "-Cb -Cx")),
            (&[(plain, "")], (plain, "-Cx")),
            (&[(plain, "-Cb"), (encoded, "-Cc")], (encoded, "-Cc\u{1f}-Cx")),
        ] {
            let read = |name: &str| {
                let found = given.iter().find(|(given, _)| *given == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let found = flags(target, "-Cx", read);
            assert_eq!(found, (variable.to_owned(), value.to_owned()), "{given:?}");
        }
    }

    #[test]
    fn what_a_profile_depends_on_is_there() {
        for source in SOURCES {
            assert!(workspace().join(source).exists(), "{source}");
        }
    }

    #[test]
    fn the_key_is_that_of_the_source_and_the_compiler() {
        let compiler = Compiler { version: "1".into(), host: "here".into() };
        let newer = Compiler { version: "2".into(), ..compiler.clone() };
        assert_eq!(key(&compiler).unwrap(), key(&compiler).unwrap());
        assert_ne!(key(&compiler).unwrap(), key(&newer).unwrap());
    }

    #[test]
    fn a_changed_file_changes_the_key() {
        let folder = std::env::temp_dir().join(format!("xtask-key-{}", std::process::id()));
        fs::create_dir_all(folder.join("a")).unwrap();
        let hash = || {
            let mut hasher = DefaultHasher::new();
            add(&folder, &mut hasher).unwrap();
            hasher.finish()
        };
        let empty = hash();
        fs::write(folder.join("a/b"), "1").unwrap();
        let one = hash();
        fs::write(folder.join("a/b"), "2").unwrap();
        let two = hash();
        fs::rename(folder.join("a/b"), folder.join("a/c")).unwrap();
        let moved = hash();
        fs::remove_dir_all(&folder).unwrap();
        let all = std::collections::HashSet::from([empty, one, two, moved]);
        assert_eq!(all.len(), 4);
    }
}
