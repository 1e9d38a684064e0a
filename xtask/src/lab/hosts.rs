//! How ballast gets to the hosts of the databases, for `ballast pg rejoin`: here that needs no ssh.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
};

use anyhow::{Context as _, Result};

use super::{HostName, Lab, postgres};

/// The passwords of the roles that stream and that rewind, in the lab's folder.
const PASSWORDS: &str = "pgpass";

impl Lab {
    /// A configuration with what gets to the hosts of both servers.
    pub fn with_hosts(&self, config: &str) -> String {
        let mut text = config.replace(
            "user = \"ballast\"",
            "user = \"ballast\"\nreplication_user = \"replication\"\nrewind_user = \"rewinder\"",
        );
        for host in [HostName::Pg01, HostName::Pg02] {
            let (namespace, data) = (self.namespace(host), postgres::data(self, host));
            let (lab, data) = (postgres::FOLDER, data.display());
            let settings = format!("{lab}/{host}");
            let line = format!("  name = \"{host}\"\n");
            let more = format!(
                "  command = [\"nsenter\", \"--net=/run/netns/{namespace}\", \"setpriv\", \
                 \"--reuid=postgres\", \"--regid=postgres\", \"--init-groups\", \"--\", \"env\", \
                 \"PGPASSFILE={lab}/{PASSWORDS}\", \
                 \"PATH=/usr/lib/postgresql/15/bin:/usr/pgsql-15/bin:/usr/bin:/bin\"]\n\
                 \x20 data_directory = \"{data}\"\n\
                 \x20 start_command = 'pg_ctl -D \"$PGDATA\" -w -l {settings}/rejoin.log -o \"-c \
                 config_file={settings}/postgresql.conf -c hba_file={settings}/pg_hba.conf\" start'\n"
            );
            text = text.replace(&line, &(line.clone() + &more));
        }
        text
    }
}

/// The servers' user may replace the data, as on a host of its own, and has the passwords.
pub(super) fn prepare(lab: &Lab) -> Result<()> {
    let passwords = lab.state_dir().join(PASSWORDS);
    fs::write(&passwords, "*:*:*:replication:replication\n*:*:*:rewinder:rewinder\n")
        .context("write the passwords of the databases")?;
    fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600))
        .context("keep them from others")?;
    let (user, group) = postgres::owner()?;
    for path in [lab.data_dir(), passwords] {
        chown(&path, Some(user), Some(group))
            .with_context(|| format!("give {} to postgres", path.display()))?;
    }
    Ok(())
}
