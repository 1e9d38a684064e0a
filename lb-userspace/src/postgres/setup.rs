//! The SQL that makes the role that the servers are asked as, with no more rights than it needs.

use crate::config::Postgres;

/// The SQL for a superuser, on the primary. It may be run again.
#[must_use]
pub fn sql(database: &Postgres) -> String {
    let role = identifier(&database.user);
    let name = literal(&database.user);
    // Inside of a string.
    let quoted = role.replace('\'', "''");
    let dbname = &database.database;
    format!(
        "-- For the database `{}` of ballast: run it on the primary, as a superuser, in the database\n\
         -- {dbname}. Standbys get it by replication. It may be run again.\n\
         -- Then: set a password with `\\password {}`, and write it into password_file on each balancer.\n\
         do $$ begin\n  \
           if not exists (select from pg_roles where rolname = {name}) then\n    \
             create role {role} login;\n  \
           end if;\n\
         end $$;\n\
         -- To look.\n\
         grant pg_monitor to {role};\n\
         -- To promote.\n\
         grant execute on function pg_promote(boolean, integer) to {role};\n\
         -- To show that a new primary takes writes, and which promotion a server descends from.\n\
         create schema if not exists ballast authorization {role};\n\
         create table if not exists ballast.mark (\n  \
           epoch bigint primary key,\n  \
           server text not null,\n  \
           node text not null,\n  \
           written timestamptz not null default now()\n\
         );\n\
         alter table ballast.mark owner to {role};\n\
         -- To take standbys off an old primary, to have them follow the new one, and to let commits go on\n\
         -- without a standby that is lost (`ballast pg degrade`). Before PostgreSQL 15 only a superuser\n\
         -- may: then standbys other than the promoted one, and that setting, are left to you.\n\
         do $$ begin\n  \
           if current_setting('server_version_num')::int >= 150000 then\n    \
             execute 'grant alter system on parameter primary_conninfo, primary_slot_name, \
                      synchronous_standby_names to {quoted}';\n    \
             execute 'grant pg_checkpoint to {quoted}';\n  \
           end if;\n  \
           -- To be let in where clients have taken all connections.\n  \
           if current_setting('server_version_num')::int >= 160000 then\n    \
             execute 'grant pg_use_reserved_connections to {quoted}';\n  \
           end if;\n\
         end $$;\n\
         grant execute on function pg_reload_conf() to {role};\n\
         -- Standbys with a primary_slot_name: make their slots on every server beforehand, by\n\
         --   select pg_create_physical_replication_slot('NAME', true);\n\
         -- To make them itself, the role would need REPLICATION, by which all data can be read: a standby\n\
         -- without a slot on its new primary is led there without one.\n\
         -- In pg_hba.conf of every server, for each balancer:\n\
         --   host {dbname} {} ADDRESS/32 scram-sha-256\n",
        database.name, database.user, database.user,
    )
}

fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
