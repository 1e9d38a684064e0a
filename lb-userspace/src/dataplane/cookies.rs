//! What the kernel program has to know of the node's own TCP to answer SYNs in its name.

use std::{fs, path::Path};

/// Where the kernel shows its settings.
const SYSCTLS: &str = "/proc/sys/net";

/// What an operator who has services with a proxy should know of the kernel's settings.
#[must_use]
pub fn warning() -> Option<&'static str> {
    Settings::read().warning()
}

/// What connections lose that begin with a SYN cookie, and what would keep it.
#[must_use]
pub fn loss() -> Option<&'static str> {
    Settings::read().loss()
}

/// Settings of the node's network namespace that SYN cookies depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// `net.ipv4.tcp_syncookies`: 0 never, 1 while a listener's queue is full, 2 always.
    syncookies: u32,
    /// `net.ipv4.tcp_timestamps`: 0 none, 1 with a secret offset for each pair of hosts, 2 without.
    timestamps: u32,
    /// `net.ipv4.tcp_window_scaling` and `net.ipv4.tcp_sack`.
    options: bool,
    /// Largest receive buffer of a socket, bytes.
    buffer: u32,
}

impl Settings {
    /// Those in force.
    pub(super) fn read() -> Self {
        Self::under(Path::new(SYSCTLS))
    }

    fn under(root: &Path) -> Self {
        // The last number of the setting. What is not there, or cannot be read, is 0: then less is made use of.
        let last = |name: &str| {
            let text = fs::read_to_string(root.join(name)).unwrap_or_default();
            text.split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        Self {
            syncookies: last("ipv4/tcp_syncookies"),
            timestamps: last("ipv4/tcp_timestamps"),
            options: last("ipv4/tcp_window_scaling") != 0 && last("ipv4/tcp_sack") != 0,
            buffer: last("ipv4/tcp_rmem").max(last("core/rmem_max")),
        }
    }

    /// The value of [`lb_common::names::OWN_SCALE`].
    ///
    /// A timestamp of an answer brings back what the client's SYN offered, if the node's stack reads it as it
    /// was written: with no offset, and with each option allowed. The shift is the one that Linux gives its
    /// windows (`tcp_select_initial_window`). If the buffers grow while the daemon runs, its own is larger, and
    /// clients take windows for smaller than they are: harmless.
    pub(super) const fn own_scale(self) -> u32 {
        /// Largest shift (RFC 7323, section 2.3).
        const MOST: u32 = 14;
        if self.timestamps != 2 || !self.options {
            return 0;
        }
        let shift = match self.buffer.checked_ilog2() {
            Some(bits) => bits.saturating_sub(15),
            None => 0,
        };
        1 + if shift < MOST { shift } else { MOST }
    }

    const fn loss(self) -> Option<&'static str> {
        if self.own_scale() == 0 {
            Some(
                "their windows end at 64 KiB and selective acknowledgements are off: with \
                 net.ipv4.tcp_timestamps=2, read when the daemon starts, they keep both",
            )
        } else {
            None
        }
    }

    const fn warning(self) -> Option<&'static str> {
        if self.syncookies == 0 {
            Some(
                "net.ipv4.tcp_syncookies is 0: a SYN flood can keep new connections from the proxy; \
                 `sysctl -w net.ipv4.tcp_syncookies=1`",
            )
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Directory;

    #[test]
    fn the_kernels_settings_are_read() {
        let scratch = Directory::new("cookies");
        let root = scratch.path();
        fs::create_dir_all(root.join("ipv4")).unwrap();
        fs::create_dir_all(root.join("core")).unwrap();
        for (name, value) in [
            ("ipv4/tcp_syncookies", "1\n"),
            ("ipv4/tcp_timestamps", "2\n"),
            ("ipv4/tcp_window_scaling", "1\n"),
            ("ipv4/tcp_sack", "1\n"),
            ("ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
            ("core/rmem_max", "212992\n"),
        ] {
            fs::write(root.join(name), value).unwrap();
        }
        let settings = Settings::under(root);
        let expected = Settings { syncookies: 1, timestamps: 2, options: true, buffer: 6_291_456 };
        assert_eq!(settings, expected);
        assert_eq!(settings.own_scale(), 1 + 7, "Linux's own shift with this buffer is 7");
        assert_eq!(settings.warning(), None);
        fs::remove_file(root.join("ipv4/tcp_syncookies")).unwrap();
        assert!(Settings::under(root).warning().unwrap().contains("tcp_syncookies=1"));
    }

    #[test]
    fn timestamps_are_written_only_as_they_are_read() {
        let all = Settings { syncookies: 1, timestamps: 2, options: true, buffer: 33_554_432 };
        assert_eq!(all.own_scale(), 1 + 10);
        assert_eq!(Settings { buffer: 1 << 31, ..all }.own_scale(), 1 + 14);
        assert_eq!(Settings { buffer: 0, ..all }.own_scale(), 1);
        assert_eq!(all.loss(), None);
        let usual = Settings { timestamps: 1, ..all };
        assert_eq!(usual.own_scale(), 0);
        assert!(usual.loss().is_some_and(|text| text.contains("tcp_timestamps=2")));
        assert_eq!(Settings { options: false, ..all }.own_scale(), 0);
    }

    #[test]
    fn this_kernel_has_them() {
        assert!(Settings::read().buffer > 0);
    }
}
