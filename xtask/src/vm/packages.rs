//! What the virtual machine is made of: qemu, busybox and the kernel, from Debian's package sources.
//!
//! Nothing is installed: `apt-get` fetches into a folder of ours with lists of its own, as if no
//! package were there, so that also the libraries of qemu come along. Installing qemu could remove a
//! newer one, and wants root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{build, interrupt, shell};

/// The kernels that are booted: Debian 12's own.
pub(super) const SERIES: &str = "6.1";

/// The emulator, the guest's shell, and what both depend on.
const TOOLS: [&str; 2] = ["qemu-system-x86", "busybox-static"];

/// Says that everything is unpacked, and which kernel it is.
const STAMP: &str = "kernel";

/// The unpacked packages.
#[derive(Debug)]
pub(super) struct Packages {
    root: PathBuf,
    /// Release of the kernel, as `uname -r` tells it.
    pub(super) release: String,
}

impl Packages {
    /// Finds them unpacked, or fetches them.
    pub(super) fn prepare() -> Result<Self> {
        let folder = folder().join("packages");
        if let Some(found) = Self::find(&folder) {
            return Ok(found);
        }
        if std::env::consts::ARCH != "x86_64" {
            bail!("the virtual machine is for x86-64, and this is {}", std::env::consts::ARCH);
        }
        for program in ["apt-get", "dpkg-deb"] {
            if shell::find_program(program).is_none() {
                bail!(
                    "there is no {program}, which fetches qemu and the kernel: these tests need a \
                     Debian 12. The other tiers do not: `cargo xtask test unit kernel netns`"
                );
            }
        }
        println!(
            "vm: fetch qemu and Debian's kernel {SERIES} (about 85 MB, once) to {}",
            folder.display()
        );
        let draft = folder.with_extension("draft");
        remove(&draft)?;
        let release = fetch(&draft)?;
        fs::write(draft.join(STAMP), &release).context("note the kernel")?;
        remove(&folder)?;
        fs::rename(&draft, &folder).with_context(|| format!("make {}", folder.display()))?;
        Self::find(&folder).context("find the kernel in its package")
    }

    fn find(folder: &Path) -> Option<Self> {
        let release = fs::read_to_string(folder.join(STAMP)).ok()?.trim().to_owned();
        let found = Self { root: folder.join("root"), release };
        found.kernel().exists().then_some(found)
    }

    /// The kernel's image.
    pub(super) fn kernel(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// A module, by its path below the kernel's folder.
    pub(super) fn module(&self, path: &str) -> PathBuf {
        self.root.join("lib/modules").join(&self.release).join("kernel").join(path)
    }

    /// The guest's shell, which needs no library.
    pub(super) fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }

    /// The emulator, with its own libraries and firmware.
    pub(super) fn qemu(&self) -> Command {
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
            .map(|path| self.root.join(path).display().to_string());
        let mut command = Command::new(self.root.join("lib64/ld-linux-x86-64.so.2"));
        command.args(["--library-path", &libraries.join(":")]);
        command.arg(self.root.join("usr/bin/qemu-system-x86_64"));
        command.env("QEMU_MODULE_DIR", self.root.join("usr/lib/x86_64-linux-gnu/qemu"));
        for firmware in ["usr/share/seabios", "usr/share/qemu"] {
            command.arg("-L").arg(self.root.join(firmware));
        }
        command
    }
}

/// Where the tier keeps what it fetches and makes.
pub(super) fn folder() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    build::workspace().join(target).join("vm")
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

/// Fetches and unpacks; gives the kernel's release.
fn fetch(folder: &Path) -> Result<String> {
    let apt = Apt::new(folder)?;
    // Often only some other source is broken. If it matters, the kernel is not found.
    let updated = apt.update();
    interrupt::check()?;
    let names = apt.kernels()?;
    let Some(newest) = newest(&names) else {
        updated.context(UNREACHABLE)?;
        bail!(
            "no package linux-image-{SERIES}.*-cloud-amd64 in the package sources: these tests \
             need Debian 12's, `bookworm` and `bookworm-security`"
        );
    };
    println!("vm: {newest}");
    let mut install = apt.get();
    install.args(["install", "--download-only", "--yes", "--no-install-recommends"]);
    shell::output(install.args(TOOLS)).context(UNREACHABLE)?;
    interrupt::check()?;
    // Alone: it depends on what makes an initramfs of the usual kind.
    let archives = apt.archives();
    let mut download = apt.get();
    download.args(["download", newest]).current_dir(&archives);
    shell::output(&mut download).context(UNREACHABLE)?;
    unpack(&archives, &folder.join("root"))?;
    remove(&apt.folder)?;
    Ok(newest.trim_start_matches("linux-image-").to_owned())
}

/// What to do when `apt-get` cannot fetch.
const UNREACHABLE: &str = "fetch packages: these tests need Debian's package sources the first time; \
     look to the network or a proxy (the other tiers do not need them: `cargo xtask test unit \
     kernel netns`)";

fn unpack(archives: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(root).with_context(|| format!("make {}", root.display()))?;
    let entries = fs::read_dir(archives).with_context(|| format!("read {}", archives.display()))?;
    for entry in entries {
        let path = entry.context("read the fetched packages")?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            shell::output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(root))?;
            interrupt::check()?;
        }
    }
    Ok(())
}

/// The package manager, with the system's sources and nothing else of the system's.
struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(parent: &Path) -> Result<Self> {
        let folder = parent.join("apt");
        for name in ["lists/partial", "cache/archives/partial"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        // No package is installed.
        let status = folder.join("status");
        fs::write(&status, "").with_context(|| format!("write {}", status.display()))?;
        let options = [
            format!("Dir::State::Lists={}", folder.join("lists").display()),
            format!("Dir::State::Status={}", status.display()),
            format!("Dir::Cache={}", folder.join("cache").display()),
            // Its own user may not write here, and there is nobody to lock out.
            "APT::Sandbox::User=root".into(),
            "Debug::NoLocking=1".into(),
        ];
        let options = options.into_iter().flat_map(|option| ["-o".into(), option]).collect();
        Ok(Self { folder, options })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).env("LC_ALL", "C.UTF-8");
        command
    }

    fn get(&self) -> Command {
        let mut command = self.command("apt-get");
        command.arg("-q").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn archives(&self) -> PathBuf {
        self.folder.join("cache/archives")
    }

    fn update(&self) -> Result<()> {
        // Of itself it takes a source that cannot be reached for an empty one.
        let mut update = self.get();
        update.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        shell::output(&mut update).map(drop)
    }

    /// Lines of names and descriptions.
    fn kernels(&self) -> Result<String> {
        let pattern = format!("^linux-image-{}\\..*-cloud-amd64$", SERIES.replace('.', "\\."));
        let mut search = self.command("apt-cache");
        shell::output(search.args(["search", "--names-only", &pattern]))
    }
}

/// The package of the newest kernel: the greatest build number.
fn newest(found: &str) -> Option<&str> {
    found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| {
            let release = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
            let numbers = release.split(['.', '-']).map(str::parse::<u32>);
            Some((numbers.collect::<Result<Vec<_>, _>>().ok()?, name))
        })
        .max()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_that_of_the_greatest_number() {
        let found = "\
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-47-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-57-rt-cloud-amd64 - another kind
";
        assert_eq!(newest(found), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(""), None);
    }

    #[test]
    fn half_of_a_download_is_not_found() {
        let folder = std::env::temp_dir().join(format!("xtask-vm-{}", std::process::id()));
        fs::create_dir_all(folder.join("root/boot")).unwrap();
        let nothing = Packages::find(&folder).is_none();
        fs::write(folder.join(STAMP), "6.1.0-56-cloud-amd64\n").unwrap();
        let half = Packages::find(&folder).is_none();
        fs::write(folder.join("root/boot/vmlinuz-6.1.0-56-cloud-amd64"), "").unwrap();
        let whole = Packages::find(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert!(nothing && half);
        assert_eq!(whole.expect("found").release, "6.1.0-56-cloud-amd64");
    }
}
