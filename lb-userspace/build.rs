//! Builds the XDP program, so that the daemon's binary holds it.

use std::{env, path::Path, process::Command};

use anyhow::Context;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lb-ebpf");
    let root = root.to_str().ok_or_else(|| anyhow::anyhow!("{} is not UTF-8", root.display()))?;
    println!("cargo:rerun-if-changed=../lb-common/src");
    println!("cargo:rerun-if-changed=../lb-ebpf/src");
    println!("cargo:rerun-if-env-changed=RUSTC_BOOTSTRAP");
    // `cargo xtask setup` links Debian's compiler, which has a prebuilt `core` for BPF, under the
    // name `bpf`. Without it, the usual way: nightly with rust-src.
    let toolchain = if has_bpf_toolchain() {
        // SAFETY: a build script has one thread here.
        unsafe { env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf,ballast_xdp") };
        Toolchain::Custom("bpf")
    } else {
        Toolchain::Nightly
    };
    // Cargo's progress lines would all be printed as warnings of this crate.
    // SAFETY: as above.
    unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
    let package = Package {
        name: "lb-ebpf",
        root_dir: root,
        no_default_features: true,
        features: &["program"],
    };
    aya_build::build_ebpf([package], toolchain)
        .context("build the XDP program; `cargo xtask setup` installs what that needs")
}

fn has_bpf_toolchain() -> bool {
    Command::new("rustup")
        .args(["run", "bpf", "rustc", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}
