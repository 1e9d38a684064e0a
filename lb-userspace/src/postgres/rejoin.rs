//! How a server that was the primary becomes a standby of the new one: the commands for its host.

use crate::config::{Postgres, Server};

/// The commands. `database` has both servers.
#[must_use]
pub fn commands(database: &Postgres, server: &Server, primary: &Server) -> String {
    let slot = server.name.to_lowercase().replace(|it: char| !it.is_ascii_alphanumeric(), "_");
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
         # 2. Back to where {leader} went on. It needs wal_log_hints or checksums.\n\
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
