//! The file system that pinned maps and programs live on.

use std::process::Command;

/// Where it is mounted.
pub const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Whether it is mounted there.
pub fn is_mounted() -> bool {
    const BPF_FS_MAGIC: u32 = 0xcafe_4a11;
    nix::sys::statfs::statfs(MOUNT_POINT)
        .is_ok_and(|stat| stat.filesystem_type().0 as u32 == BPF_FS_MAGIC)
}

/// The command that mounts it.
pub fn mount_command() -> Command {
    let mut command = Command::new("mount");
    command.args(["-t", "bpf", "bpf", MOUNT_POINT]);
    command
}
