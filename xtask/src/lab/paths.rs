//! Where everything of a lab is.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::topology::{HOSTS, HostName};

/// Folder of all labs' configurations, logs, pids and sockets.
pub const RUN: &str = "/run/ballast-lab";

/// Folder of all labs' data.
pub(super) const DATA: &str = "/var/lib/ballast-lab";

/// What all labs share.
const CACHE: &str = "/var/cache/ballast-lab";

/// Host-like name of the namespace that holds the bridge.
pub(super) const SWITCH: &str = "sw";

pub(super) fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("remove {}", path.display())),
    }
}

pub(super) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}

pub(super) fn run_dir(name: &str) -> PathBuf {
    Path::new(RUN).join(name)
}

pub(super) fn data_dir(name: &str) -> PathBuf {
    Path::new(DATA).join(name)
}

/// What all labs share; made if it is not there.
pub(super) fn cache_dir() -> Result<PathBuf> {
    let path = PathBuf::from(CACHE);
    make_dir(&path)?;
    Ok(path)
}

/// Where a lab makes a thing for the cache, to be renamed when it is whole.
pub(super) fn draft(lab: &str, what: &str) -> PathBuf {
    Path::new(CACHE).join(format!("draft-{what}-{lab}"))
}

pub(super) fn namespace(lab: &str, host: &str) -> String {
    format!("{lab}-{host}")
}

pub(super) fn namespaces(lab: &str) -> Vec<String> {
    let hosts = HOSTS.into_iter().map(HostName::as_str);
    hosts.chain([SWITCH]).map(|host| namespace(lab, host)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn namespaces_of_two_labs_differ_even_if_one_name_begins_with_the_other() {
        let one: HashSet<_> = namespaces("lab").into_iter().collect();
        assert_eq!(one.len(), HOSTS.len() + 1);
        for other in ["lab-2", "lab-lb", "lab-sw"] {
            assert!(namespaces(other).iter().all(|name| !one.contains(name)), "{other}");
        }
    }
}
