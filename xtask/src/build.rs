//! `cargo xtask build`, and where its results are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::shell;

mod optimized;
mod profile;

pub use optimized::ballast as optimized_ballast;

/// The workspace's folder.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// `cargo`, in the workspace.
pub fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").map(PathBuf::from);
    let mut command = rust_tool(cargo.unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// `rustup`.
pub fn rustup() -> Command {
    rust_tool("rustup".into())
}

/// A tool that finds the others, also where the user's `PATH` does not lead to `cargo install`'s
/// folder: the BPF linker is looked for there.
fn rust_tool(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    // What cargo tells us about ourselves is not for the crates that are built: some build scripts
    // look at it, and would run again at every change between `cargo build` and `cargo xtask`.
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.to_str().is_some_and(is_about_this_package)) {
        command.env_remove(name);
    }
    if let Some(home) = shell::cargo_home() {
        command.env("PATH", shell::path_with(&[home.join("bin")]));
    }
    command
}

/// Whether cargo sets this variable for the program that it runs or tests.
fn is_about_this_package(variable: &str) -> bool {
    const STARTS: [&str; 4] = ["CARGO_BIN_", "CARGO_CRATE_", "CARGO_MANIFEST_", "CARGO_PKG_"];
    STARTS.iter().any(|start| variable.starts_with(start))
        || ["CARGO_PRIMARY_PACKAGE", "CARGO_TARGET_TMPDIR", "OUT_DIR"].contains(&variable)
}

/// Builds the `ballast` binary, with the XDP program inside, and says where it is.
pub fn ballast() -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    once(&BUILT, "lb-userspace", "ballast")
}

/// This program: itself, or built where the caller is a test.
pub fn xtask() -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let own = std::env::current_exe().context("find this program")?;
    if own.file_name() == Some("xtask".as_ref()) {
        return Ok(own);
    }
    once(&BUILT, "xtask", "xtask")
}

/// Copies the binary and this program to where `vagrant/Vagrantfile` has them from, and says where.
pub fn for_vagrant(ballast: &Path) -> Result<PathBuf> {
    let folder = workspace().join("target/vagrant");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    for program in [ballast, &xtask()?] {
        let name = program.file_name().context("find the program's name")?;
        fs::copy(program, folder.join(name))
            .with_context(|| format!("copy {} to {}", program.display(), folder.display()))?;
    }
    Ok(folder)
}

/// Where cargo builds.
fn target_folder() -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let words = ["metadata", "--no-deps", "--format-version", "1", "--offline"];
    let text = shell::output(cargo().args(words))?;
    let metadata: Metadata = serde_json::from_str(&text).context("read cargo's metadata")?;
    Ok(metadata.target_directory)
}

fn once(built: &OnceLock<PathBuf>, package: &str, binary: &str) -> Result<PathBuf> {
    if let Some(path) = built.get() {
        return Ok(path.clone());
    }
    let path = build(&["build", "--package", package, "--bin", binary], binary)?;
    Ok(built.get_or_init(|| path).clone())
}

/// Builds an integration test, and says where it is.
pub fn test_program(package: &str, test: &str) -> Result<PathBuf> {
    build(&["test", "--no-run", "--package", package, "--test", test], test)
}

fn build(arguments: &[&str], binary: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(arguments);
    build_by(command, &[], binary)
}

/// Builds by this command of cargo; the compiler gets these words for the program itself.
fn build_by(mut command: Command, to_compiler: &[&str], binary: &str) -> Result<PathBuf> {
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    if !to_compiler.is_empty() {
        command.arg("--").args(to_compiler);
    }
    let output =
        command.output().with_context(|| format!("start `{}`", shell::display(&command)))?;
    if !output.status.success() {
        bail!("`{}` ended with {}", shell::display(&command), output.status);
    }
    executable(&String::from_utf8_lossy(&output.stdout), binary)
        .with_context(|| format!("find {binary} in what cargo built"))
}

/// The line of cargo's messages that names a finished binary.
fn executable(messages: &str, binary: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.target.as_ref().is_some_and(|target| target.name == binary))
        .find_map(|message| message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"ballast"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"ballast"},"executable":"/t/debug/ballast","fresh":true}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "ballast"), Some("/t/debug/ballast".into()));
        assert_eq!(executable(messages, "other"), None);
    }

    #[test]
    fn settings_of_the_user_reach_cargo() {
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_TERM_COLOR", "CARGO", "PATH"] {
            assert!(!is_about_this_package(name), "{name}");
        }
        for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "OUT_DIR"] {
            assert!(is_about_this_package(name), "{name}");
        }
    }

    #[test]
    fn the_workspace_is_the_folder_with_the_lock_file() {
        assert!(workspace().join("Cargo.lock").exists());
    }
}
