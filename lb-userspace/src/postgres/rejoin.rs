//! How a server that was the primary becomes a standby of the new one: the commands for its host.

use serde::{Deserialize, Serialize};

use crate::config::{Postgres, Server};

/// Name of a server's slot on its primary.
fn slot(server: &str) -> String {
    server.to_lowercase().replace(|it: char| !it.is_ascii_alphanumeric(), "_")
}

/// The commands. `database` has both servers.
#[must_use]
pub fn commands(database: &Postgres, server: &Server, primary: &Server) -> String {
    let slot = slot(&server.name);
    let (host, port) = (primary.address.ip(), primary.address.port());
    let (name, leader, dbname) = (&server.name, &primary.name, &database.database);
    let conninfo = format!("host={host} port={port} user=REPLICATION_ROLE application_name={name}");
    format!(
        "# {name} becomes a standby of {leader}. On its host, as the user of the server, with PGDATA set.\n\
         # REWIND_ROLE and REPLICATION_ROLE are your roles for that; their passwords stand in ~/.pgpass.\n\
         \n\
         # 1. It must be down. The writes that {leader} does not have are lost with step 2: save them first\n\
         #    if they matter (pg_dump, while it runs alone).\n\
         pg_ctl -D \"$PGDATA\" -m fast stop\n\
         cp -p \"$PGDATA\"/postgresql.conf \"$PGDATA\"/pg_hba.conf /tmp/\n\
         \n\
         # 2. Back to where {leader} went on. It needs wal_log_hints or checksums, and that {leader} has written\n\
         #    a checkpoint since its promotion: until 15, `pg_rewind` does nothing before that, and says so.\n\
         psql -d 'host={host} port={port} user=REWIND_ROLE dbname={dbname}' -c checkpoint\n\
         pg_rewind -D \"$PGDATA\" --progress \\\n  \
           --source-server='host={host} port={port} user=REWIND_ROLE dbname={dbname}'\n\
         #    If it cannot: clone it anew.\n\
         #      rm -rf \"$PGDATA\"/*\n\
         #      pg_basebackup -D \"$PGDATA\" -d '{conninfo}' -R -X stream -c fast\n\
         \n\
         # 3. This server's own settings again, a slot on {leader}, and its way there.\n\
         cp -p /tmp/postgresql.conf /tmp/pg_hba.conf \"$PGDATA\"/\n\
         psql -d '{conninfo} dbname={dbname}' -c \"select pg_create_physical_replication_slot('{slot}')\"\n\
         touch \"$PGDATA/standby.signal\"\n\
         cat >> \"$PGDATA/postgresql.auto.conf\" <<'END'\n\
         primary_conninfo = '{conninfo}'\n\
         primary_slot_name = '{slot}'\n\
         END\n\
         pg_ctl -D \"$PGDATA\" start\n"
    )
}

/// What is run on the host of a server, so that it becomes a standby of the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// What gets to the host, such as `ssh db-01 sudo -u postgres`; a shell is started by it.
    pub command: Vec<String>,
    /// What that shell reads.
    pub script: String,
}

/// A word of a shell, whatever it holds (POSIX.1-2024, shell command language, 2.2.2).
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A function of the shell: waits until a primary has written a checkpoint since its promotion. Before that its
/// `pg_control` has the timeline that it has left, and `pg_rewind` (until 15) takes a server that has gone on
/// there for one that needs nothing: it would never follow. Without the right to write a checkpoint, the next
/// one comes by itself after `checkpoint_timeout`.
const CHECKPOINTED: &str = r#"checkpointed() {
now="select timeline_id = ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int"
for try in $(seq 360); do
if [ "$(psql -X -A -t -q -d "$1" -c "$now from pg_control_checkpoint()")" = t ]; then return 0; fi
psql -X -q -d "$1" -c checkpoint > /dev/null 2>&1 || sleep 1
done
return 1
}
"#;

/// The script for a server that has a `command`; none if it has none. With `clone` it is not tried to rewind
/// it.
///
/// Each step may be repeated. The old data are removed only when the clone is whole.
#[must_use]
pub fn remote(
    database: &Postgres,
    server: &Server,
    primary: &Server,
    clone: bool,
) -> Option<Remote> {
    let host = server.host.as_ref()?;
    let (at, port) = (primary.address.ip(), primary.address.port());
    let (name, dbname) = (&server.name, &database.database);
    let slot = slot(name);
    let user = &host.replication_user;
    let conninfo = format!("host={at} port={port} user={user} application_name={name}");
    let rewind = host.rewind_user.as_ref().filter(|_| !clone).map_or_else(
        || "false".to_owned(),
        |user| {
            let source = format!("host={at} port={port} user={user} dbname={dbname}");
            let source = quoted(&source);
            format!("checkpointed {source} && pg_rewind -D \"$PGDATA\" --source-server={source}")
        },
    );
    let settings = format!("primary_conninfo = '{conninfo}'\nprimary_slot_name = '{slot}'");
    let make_slot = format!(
        "select pg_create_physical_replication_slot('{slot}') where not exists \
         (select from pg_replication_slots where slot_name = '{slot}')"
    );
    let default_stop = "pg_ctl -D \"$PGDATA\" -m fast -w stop".to_owned();
    let default_start = "pg_ctl -D \"$PGDATA\" -w -l /dev/null start".to_owned();
    let script = format!(
        "set -eu\n\
         PGDATA={data}\n\
         export PGDATA\n\
         say() {{ echo \"ballast: $*\"; }}\n\
         {CHECKPOINTED}\
         if pg_ctl -D \"$PGDATA\" status > /dev/null; then\n\
         say 'stop {name}'\n\
         {stop}\n\
         fi\n\
         keep=\"$PGDATA.ballast-settings\"\n\
         mkdir -p \"$keep\"\n\
         for file in postgresql.conf pg_hba.conf pg_ident.conf; do\n\
         if [ -e \"$PGDATA/$file\" ]; then cp -p \"$PGDATA/$file\" \"$keep/\"; fi\n\
         done\n\
         say 'rewind it to where {leader} went on'\n\
         if {rewind}; then\n\
         say 'it is rewound'\n\
         else\n\
         say 'it is cloned anew'\n\
         rm -rf \"$PGDATA.ballast-clone\"\n\
         pg_basebackup -D \"$PGDATA.ballast-clone\" -d {clone_from} -X stream -c fast\n\
         rm -rf \"$PGDATA.ballast-old\"\n\
         mv \"$PGDATA\" \"$PGDATA.ballast-old\"\n\
         mv \"$PGDATA.ballast-clone\" \"$PGDATA\"\n\
         rm -rf \"$PGDATA.ballast-old\"\n\
         fi\n\
         for file in \"$keep\"/*; do\n\
         if [ -e \"$file\" ]; then cp -p \"$file\" \"$PGDATA/\"; fi\n\
         done\n\
         rm -rf \"$keep\"\n\
         psql -X -q -d {clone_from_db} -c {make_slot} > /dev/null\n\
         touch \"$PGDATA/standby.signal\"\n\
         cat >> \"$PGDATA/postgresql.auto.conf\" <<'END'\n\
         {settings}\n\
         END\n\
         say 'start it'\n\
         {start}\n",
        data = quoted(&host.data_directory.display().to_string()),
        stop = host.stop_command.as_ref().unwrap_or(&default_stop),
        start = host.start_command.as_ref().unwrap_or(&default_start),
        leader = primary.name,
        clone_from = quoted(&conninfo),
        clone_from_db = quoted(&format!("{conninfo} dbname={dbname}")),
        make_slot = quoted(&make_slot),
    );
    Some(Remote { command: host.command.clone(), script })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell_hold_anything() {
        assert_eq!(quoted("a b$c"), "'a b$c'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
