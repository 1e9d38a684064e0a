//! What a lab is made of.

use std::{fs, path::PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{netns, paths};
use crate::build;

/// Name of the lab when none is given.
pub const DEFAULT_NAME: &str = "ballast";

/// What the names of the tests' labs begin with.
pub const TEST_PREFIX: &str = "test-";

/// A name for the lab of a test: no other test has it, and none that runs at the same time on this
/// machine. `what` is a few letters.
pub fn test_name(what: &str) -> String {
    format!("{TEST_PREFIX}{what}-{}", std::process::id())
}

/// Longest name: the path of a database's socket must fit `sockaddr_un`.
const MAX_NAME: usize = 40;

/// Which balancers run the daemon. Both hosts are always there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Balancers {
    /// None.
    None,
    /// `lb-01`.
    #[default]
    First,
    /// `lb-01` and `lb-02`.
    Both,
}

/// What a lab is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Its name: lower-case letters, digits and dashes, at most 40.
    pub name: String,
    /// Which balancers run the daemon.
    pub balancers: Balancers,
    /// How many app servers run, 0 to 3. All hosts are always there.
    pub apps: usize,
    /// Whether the databases run.
    pub postgres: bool,
    /// Whether etcd runs, on both balancers' hosts and on the witness.
    #[serde(default)]
    pub etcd: bool,
    /// Whether the app servers can answer the clients by themselves: they have the floating addresses
    /// on `lo`, listen on the services' ports, and take packets out of tunnels.
    #[serde(default)]
    pub steered: bool,
    /// The balancers' configuration; [`default_config`] if absent.
    pub config: Option<String>,
    /// The `ballast` binary; built if absent and needed.
    pub ballast: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.into(),
            balancers: Balancers::default(),
            apps: 3,
            postgres: false,
            etcd: false,
            steered: false,
            config: None,
            ballast: None,
        }
    }
}

pub(super) fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || name.starts_with('-') || !name.chars().all(good)
    {
        bail!(
            "`{name}` cannot name a lab: use lower-case letters, digits and dashes, \
             at most {MAX_NAME} of them, and no dash in front"
        );
    }
    Ok(())
}

/// What the lab of this name is made of, if it stands.
pub(super) fn standing(name: &str) -> Option<Options> {
    let text = fs::read_to_string(paths::run_dir(name).join("lab.json")).ok()?;
    let whole = paths::namespaces(name).iter().all(|name| netns::id(name).is_some());
    if whole { serde_json::from_str(&text).ok() } else { None }
}

/// Fills in what is left open, and adds what the lab has already.
pub(super) fn complete(mut options: Options, old: Option<&Options>) -> Result<Options> {
    if let Some(old) = old {
        if options.etcd && !old.etcd {
            // Servers and daemons that run would not take what belongs to it.
            bail!(
                "lab `{0}` stands without etcd: take it down first (`cargo xtask lab down --name {0}`)",
                options.name
            );
        }
        options.balancers = options.balancers.max(old.balancers);
        options.apps = options.apps.max(old.apps);
        options.postgres |= old.postgres;
        options.etcd |= old.etcd;
        options.steered |= old.steered;
        options.config = options.config.or_else(|| old.config.clone());
        options.ballast = options.ballast.or_else(|| old.ballast.clone());
    }
    if options.apps > 3 {
        bail!("the lab has 3 app servers, not {}", options.apps);
    }
    let needs_ballast = options.balancers != Balancers::None || options.steered;
    if needs_ballast && options.ballast.is_none() {
        options.ballast = Some(build::ballast()?);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_path_are_refused() {
        for name in ["", "-a", "Lab", "a/b", "a b", "ä", &"a".repeat(MAX_NAME + 1)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["ballast", "t1-reload", &"a".repeat(MAX_NAME)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_lab_that_stands_gets_no_etcd() {
        let old = Options::default();
        let options = Options { etcd: true, balancers: Balancers::None, ..Options::default() };
        let error = complete(options.clone(), Some(&old)).unwrap_err();
        assert!(error.to_string().contains("lab down"), "{error}");
        assert!(complete(options.clone(), Some(&options)).unwrap().etcd);
    }

    #[test]
    fn tests_have_good_names() {
        assert!(check_name(&test_name("reload")).is_ok());
    }

    #[test]
    fn the_longest_name_leaves_room_for_a_sockets_path() {
        let name = "a".repeat(MAX_NAME);
        let socket = paths::run_dir(&name).join("pg-01").join(".s.PGSQL.5432.lock");
        assert!(socket.as_os_str().len() < 108, "{}", socket.display());
    }
}
