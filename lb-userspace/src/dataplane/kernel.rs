//! The oldest kernel that ballast runs on.

/// Major and minor number of the oldest kernel that the tests run on (`cargo xtask test vm`): Debian
/// 12's own. Nothing older is promised, even where the verifier might take the program.
pub const OLDEST: (u32, u32) = (6, 1);

/// The running kernel is older than [`OLDEST`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Linux {release} runs here, and ballast needs Linux {}.{} or newer: install a newer kernel (on \
     Debian 12 the package `linux-image-amd64` is new enough) and reboot",
    OLDEST.0,
    OLDEST.1
)]
pub struct TooOld {
    /// The running kernel, as `uname -r` tells it.
    pub release: String,
}

/// An error if the running kernel is too old.
pub(super) fn check() -> Result<(), TooOld> {
    check_release(&release())
}

/// The running kernel, as `uname -r` tells it.
pub(super) fn release() -> String {
    let uname = nix::sys::utsname::uname();
    uname.map(|uname| uname.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Major and minor number of the running kernel, if it tells them.
pub fn running() -> Option<(u32, u32)> {
    numbers(&release())
}

/// A release that is not understood is not refused: the verifier has the last word.
fn check_release(release: &str) -> Result<(), TooOld> {
    match numbers(release) {
        Some(found) if found < OLDEST => Err(TooOld { release: release.to_owned() }),
        _ => Ok(()),
    }
}

/// Major and minor number of a release like `6.1.0-56-cloud-amd64`, `6.12-rc3` or `6.1+`.
fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        for good in ["6.1.0-56-cloud-amd64", "6.1", "6.1+", "6.12-rc3", "6.18.44-fc-v669", "10.0.1"]
        {
            assert_eq!(check_release(good), Ok(()), "{good}");
        }
        for old in ["6.0.12", "5.15.0-91-generic", "5.10.0-30-amd64", "4.19.0", "2.6.78", "6.0-rc7"]
        {
            assert_eq!(check_release(old), Err(TooOld { release: old.into() }), "{old}");
        }
    }

    #[test]
    fn a_strange_release_is_left_to_the_verifier() {
        for strange in ["", "linux", "6", "v6.1", "99999999999.1"] {
            assert_eq!(check_release(strange), Ok(()), "{strange}");
        }
    }

    #[test]
    fn the_message_says_what_runs_what_is_needed_and_what_to_do() {
        let text = check_release("5.10.0-30-amd64").unwrap_err().to_string();
        for part in ["Linux 5.10.0-30-amd64 runs", "needs Linux 6.1 or newer", "linux-image-amd64"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
