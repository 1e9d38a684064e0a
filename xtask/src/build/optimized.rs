//! The binary as it is to be installed, compiled by a profile of its own work.
//!
//! ```text
//!   instrumented build ──▶ training ──▶ merge ──▶ build by the profile
//!   (counts what it does)  (`bench`)              (profile `dist`)
//! ```
//!
//! Both builds have the same cargo profile: functions are found again by names and files that depend on
//! it. Only the last step of the first one, linking, is done in a cheaper way, since the counters stand in
//! the code by then. Both are cross builds by name (`--target`), so that the flags reach neither build
//! scripts nor the XDP program.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    build_by, cargo,
    profile::{self, Compiler},
    target_folder,
};
use crate::{interrupt, shell};

/// How the instrumented program is linked: nothing but its counts matters of it.
const CHEAP_LINK: [&str; 2] = ["-Clto=thin", "-Copt-level=1"];

/// At the end of a training the counts are added to one of so many files.
const RAW_NAME: &str = "%4m.profraw";

/// Where everything of this is, in cargo's target folder.
#[derive(Debug)]
struct Places {
    /// Counts as they were written, and nothing else.
    raw: PathBuf,
    /// The merged counts of this source.
    profile: PathBuf,
    /// Cargo's folders of the two builds.
    instrumented: PathBuf,
    optimized: PathBuf,
}

impl Places {
    fn new(target: &Path, source: &str) -> Self {
        let folder = target.join("pgo");
        Self {
            raw: folder.join("raw"),
            profile: folder.join(format!("{source}.profdata")),
            instrumented: folder.join("instrumented"),
            optimized: folder.join("optimized"),
        }
    }
}

/// Builds the `ballast` binary as it is to be installed, and says where it is. The first time that takes
/// many minutes; it says so.
pub fn ballast() -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = BUILT.get() {
        return Ok(path.clone());
    }
    let compiler = Compiler::ask()?;
    let places = Places::new(&target_folder()?, &profile::key(&compiler)?);
    if !places.profile.exists() {
        train(&compiler, &places)?;
        interrupt::check()?;
        // The compiler's results by another profile would only take room.
        remove(&places.optimized)?;
    }
    eprintln!("build: optimize by the profile {}", places.profile.display());
    let path = places.profile.to_str().filter(|path| !path.contains(char::is_whitespace));
    let path = path.with_context(|| {
        let folder = places.profile.display();
        format!("{folder} cannot be said to the compiler: choose a CARGO_TARGET_DIR without spaces")
    })?;
    let built = compile(&compiler, &places.optimized, &format!("-Cprofile-use={path}"), &[])?;
    Ok(BUILT.get_or_init(|| built).clone())
}

/// Builds with counters, has the clients of the benchmark work, and merges what was counted.
fn train(compiler: &Compiler, places: &Places) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the profile is of requests in network namespaces, which need root: run this as root, or \
         build without a profile by `cargo build --profile dist`"
    );
    let tool = compiler.profile_tool()?;
    eprintln!("build: 1 of 3: with counters (some minutes)");
    let flag = "-Cprofile-generate";
    let ballast = compile(compiler, &places.instrumented, flag, &CHEAP_LINK)?;
    interrupt::check()?;

    eprintln!("build: 2 of 3: requests through it, to be counted (a minute)");
    remove(&places.raw)?;
    fs::create_dir_all(&places.raw).with_context(|| format!("make {}", places.raw.display()))?;
    let mut bench = cargo();
    bench.args(["run", "--quiet", "--package", "lb-tests", "--bin", "bench", "--", "--l7"]);
    bench.arg("--train").arg(&ballast).env("LLVM_PROFILE_FILE", places.raw.join(RAW_NAME));
    shell::run(&mut bench).context("send requests through the proxy")?;
    interrupt::check()?;

    eprintln!("build: 3 of 3: merge the counts");
    let raw = written(&places.raw)?;
    // Earlier profiles are of sources that are gone.
    for old in files_of(places.raw.parent().unwrap_or(&places.raw), "profdata")? {
        fs::remove_file(&old).with_context(|| format!("remove {}", old.display()))?;
    }
    let merged = places.profile.with_extension("part");
    let mut merge = std::process::Command::new(tool);
    shell::output(merge.args(["merge", "--output"]).arg(&merged).args(raw))?;
    fs::rename(&merged, &places.profile).context("put the profile into its place")?;
    remove(&places.raw)
}

/// The files of counts; some at least.
fn written(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = files_of(folder, "profraw")?;
    if files.is_empty() {
        bail!(
            "no counts were written to {}: a program writes them when it ends in order, and not when it \
             is killed. Try again; if that does not help, build without a profile by \
             `cargo build --profile dist`",
            folder.display()
        );
    }
    Ok(files)
}

/// The files in a folder that end so.
fn files_of(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut files = list().with_context(|| format!("list {}", folder.display()))?;
    files.retain(|file| file.extension().is_some_and(|it| it == extension));
    files.sort();
    Ok(files)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Builds with this flag for everything that the binary is made of, and these for its linking.
fn compile(compiler: &Compiler, folder: &Path, flag: &str, link: &[&str]) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["rustc", "--profile", "dist", "--package", "lb-userspace", "--bin", "ballast"]);
    command.arg("--target").arg(&compiler.host).arg("--target-dir").arg(folder);
    let (variable, flags) = profile::flags(&compiler.host, flag, |name| std::env::var(name).ok());
    command.env(variable, flags);
    build_by(command, link, "ballast")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_nobody_wrote_are_an_error_that_says_why() {
        let folder = std::env::temp_dir().join(format!("xtask-pgo-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("notes.txt"), "").unwrap();
        let none = written(&folder).unwrap_err().to_string();
        fs::write(folder.join("1.profraw"), "").unwrap();
        let some = written(&folder).unwrap();
        remove(&folder).unwrap();
        remove(&folder).unwrap();
        assert!(none.contains("ends in order") && none.contains("--profile dist"), "{none}");
        assert_eq!(some, [folder.join("1.profraw")]);
    }

    #[test]
    fn another_source_has_another_profile_and_the_same_folders() {
        let [one, two] = ["1", "2"].map(|source| Places::new(Path::new("/target"), source));
        assert_ne!(one.profile, two.profile);
        assert_eq!(one.instrumented, two.instrumented);
        assert_eq!(one.profile, Path::new("/target/pgo/1.profdata"));
    }
}
