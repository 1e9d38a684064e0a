//! The database servers: a `PostgreSQL` 15 primary and its streaming standby.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::User;

use super::{
    HostName, Lab, hosts, netns, paths,
    process::Program,
    topology::{FLOATING_V4, POSTGRES_PORT},
};
use crate::{shell, wait};

/// Where Debian and others put the server's programs, which are in nobody's `PATH`.
const FOLDERS: [&str; 2] = ["/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin"];

/// Name of the file with the password that the balancers have, in the lab's folder.
const PASSWORD_FILE: &str = "pg.password";

/// Stands for the lab's folder in a configuration.
pub(super) const FOLDER: &str = "@LAB@";

/// Superuser of the servers, and the operating system's user that runs them.
const USER: &str = "postgres";

/// Password of the role that standbys stream with.
const REPLICATION_PASSWORD: &str = "replication";

/// What a new cluster is given: the application's database, and the roles. The one of ballast is as
/// `ballast pg setup` makes it. A line is a statement.
const ROLES: &str = "\
CREATE ROLE app LOGIN PASSWORD 'app';
CREATE DATABASE app OWNER app;
CREATE ROLE ballast LOGIN PASSWORD 'ballast' IN ROLE pg_monitor, pg_checkpoint;
GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf() TO ballast;
GRANT ALTER SYSTEM ON PARAMETER primary_conninfo, primary_slot_name, synchronous_standby_names TO ballast;
CREATE SCHEMA ballast AUTHORIZATION ballast;
CREATE TABLE ballast.mark (epoch bigint PRIMARY KEY, server text NOT NULL, node text NOT NULL, written timestamptz NOT NULL DEFAULT now());
ALTER TABLE ballast.mark OWNER TO ballast;
CREATE ROLE replication LOGIN REPLICATION PASSWORD 'replication';
CREATE ROLE rewinder LOGIN PASSWORD 'rewinder';
GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO rewinder;
";

const CONFIG: &str = "\
# Written by `cargo xtask lab up`.
cluster_name = '@HOST@'
listen_addresses = '@IPV4@,@IPV6@'
port = @PORT@
unix_socket_directories = '@FOLDER@'
max_connections = 100
shared_buffers = 16MB
# Files in the data folder: nothing stays in /dev/shm after a kill.
dynamic_shared_memory_type = mmap
wal_level = replica
max_wal_senders = 10
max_replication_slots = 10
wal_keep_size = 64MB
min_wal_size = 32MB
max_wal_size = 256MB
# A returning primary can be rewound.
wal_log_hints = on
hot_standby = on
# A link that is silent is found out.
wal_receiver_timeout = 5s
wal_sender_timeout = 5s
wal_retrieve_retry_interval = 500ms
jit = off
logging_collector = off
log_line_prefix = '%m [%p] '
timezone = 'UTC'
";

/// What a change without a person wants of a server: a standby asks after half of this time whether its primary
/// lives, and what the first primary acknowledges its standby has.
fn unattended(host: HostName) -> String {
    let text = String::from("wal_receiver_timeout = 2s\n");
    if host == PRIMARY {
        return text + &format!("synchronous_standby_names = '\"{STANDBY}\"'\n");
    }
    text
}

const ACCESS: &str = "\
# Written by `cargo xtask lab up`.
local all         all                        peer
host  all         all         192.0.2.0/24   scram-sha-256
host  all         all         2001:db8::/64  scram-sha-256
host  replication replication 192.0.2.0/24   scram-sha-256
host  replication replication 2001:db8::/64  scram-sha-256
";

/// Password of the role `ballast`.
const BALLAST_PASSWORD: &str = "ballast\n";

/// How long the standby may take until it streams.
const STREAM_LIMIT: Duration = Duration::from_secs(30);

/// What `host` runs.
pub(super) fn program(lab: &Lab, host: HostName) -> Program {
    let folder = lab.host_dir(host);
    let mut command = as_postgres(&lab.namespace(host), "postgres");
    command.arg("-D").arg(data(lab, host));
    command.arg("-c").arg(format!("config_file={}", folder.join("postgresql.conf").display()));
    command.arg("-c").arg(format!("hba_file={}", folder.join("pg_hba.conf").display()));
    let mut probe = as_postgres(&lab.namespace(host), "pg_isready");
    probe.args(["-q", "-h"]).arg(&folder);
    let pid_file = lab.pid_file(host, "postgres");
    let probe = std::sync::Mutex::new(probe);
    Program {
        name: "postgres",
        namespace: lab.namespace(host),
        command,
        pid_file,
        log: lab.log(host, "postgres"),
        ready: Box::new(move || {
            let mut probe = probe.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            shell::output(&mut probe).is_ok()
        }),
    }
}

/// The server that begins as the primary.
pub(super) const PRIMARY: HostName = HostName::Pg01;

/// The server that begins as its standby.
const STANDBY: HostName = HostName::Pg02;
/// Writes the file with the password that the balancers have.
pub(super) fn write_password(lab: &Lab) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = lab.state_dir().join(PASSWORD_FILE);
    fs::write(&path, BALLAST_PASSWORD).context("write the password of ballast")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context("keep it from others")
}

/// The balancers' configuration of the database.
pub fn config() -> String {
    let mut text = format!(
        "\n[[postgres]]\nname = \"appdb\"\nread_write = \"{FLOATING_V4}:5432\"\n\
         read_only = \"{FLOATING_V4}:5433\"\nuser = \"ballast\"\n\
         password_file = \"{FOLDER}/{PASSWORD_FILE}\"\n"
    );
    for host in [HostName::Pg01, HostName::Pg02] {
        let address = host.sockets(POSTGRES_PORT)[0];
        text.push_str("  [[postgres.server]]\n");
        text.push_str(&["  name = \"", host.as_str(), "\"\n"].concat());
        text.push_str(&["  address = \"", &address.to_string(), "\"\n"].concat());
    }
    text
}

/// The balancers' configuration where the primary may change without a person.
pub fn automatic() -> String {
    let words =
        "user = \"ballast\"\npromotion = \"automatic\"\ninterval = \"100ms\"\ntimeout = \"400ms\"";
    config().replace("user = \"ballast\"", words)
}

/// Brings up the servers: the primary, and then the standby, cloned from it the first time.
pub(super) fn start(lab: &Lab) -> Result<()> {
    start_primary(lab)?;
    start_standby(lab)
}

/// Brings up the primary.
pub(super) fn start_primary(lab: &Lab) -> Result<()> {
    hosts::prepare(lab)?;
    write_config(lab, PRIMARY)?;
    let fresh = !data(lab, PRIMARY).exists();
    if fresh {
        copy_template(lab, PRIMARY)?;
    }
    restart(lab, PRIMARY)?;
    if fresh { make_slot(lab).context("make the standby's slot") } else { Ok(()) }
}

/// Brings up the standby. The primary is up, here or on another machine.
pub(super) fn start_standby(lab: &Lab) -> Result<()> {
    write_config(lab, STANDBY)?;
    if !data(lab, STANDBY).exists() {
        clone_primary(lab).context("clone the primary")?;
    }
    restart(lab, STANDBY)?;
    wait::until(STREAM_LIMIT, "the standby to stream", || {
        Ok((lab.postgres_state(STANDBY)? == "streaming").then_some(()))
    })
}

/// Starts one server again, with the data that it has.
pub(super) fn restart(lab: &Lab, host: HostName) -> Result<()> {
    if !data(lab, host).exists() {
        bail!("{host} has no data; `lab up` makes it");
    }
    let mut program = program(lab, host);
    if program.pid().is_none() {
        // A killed server leaves its number in two files, and that may belong to somebody by now, if only to
        // its own zombie. Nothing on this host uses the folder.
        clear_shared_memory(&data(lab, host));
        paths::remove(&data(lab, host).join("postmaster.pid"))?;
        let lock = format!(".s.PGSQL.{POSTGRES_PORT}.lock");
        paths::remove(&lab.host_dir(host).join(lock))?;
    }
    program.start()
}

/// Frees what a killed server has left outside of its folders.
pub(super) fn clear_shared_memory(data: &Path) {
    // Line 7 of the file is key and id of a System V segment that guards the data folder.
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let id = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    if let Some(id) = id {
        // SAFETY: no memory of ours is involved; a wrong number gives an error, and no running
        // server of another lab has written its number into this folder.
        unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// The data folder of a server.
pub(super) fn data(lab: &Lab, host: HostName) -> PathBuf {
    lab.data_dir().join(host.as_str())
}

/// Runs a statement as the superuser, without a password, and gives the bare rows.
pub(super) fn query(lab: &Lab, host: HostName, database: &str, statement: &str) -> Result<String> {
    let mut command = as_postgres(&lab.namespace(host), "psql");
    command.args(["-XAtq", "-h"]).arg(lab.host_dir(host)).args(["-d", database, "-c", statement]);
    Ok(shell::output(&mut command)?.trim().to_owned())
}

/// A server's program, run by the user that it wants, in a namespace.
fn as_postgres(namespace: &str, program: &str) -> Command {
    let mut command = netns::command(namespace, "setpriv");
    let user = format!("--reuid={USER}");
    command.args([&user, "--regid=postgres", "--init-groups", "--"]).arg(binary(program));
    command.env("LC_ALL", "C.UTF-8").env_remove("PGDATA").env_remove("PGHOST").current_dir("/");
    command
}

fn binary(program: &str) -> PathBuf {
    FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|file| shell::is_executable(file))
        .unwrap_or_else(|| program.into())
}

fn write_config(lab: &Lab, host: HostName) -> Result<()> {
    let folder = lab.host_dir(host);
    give_to_postgres(&folder)?;
    let text = CONFIG
        .replace("@HOST@", host.as_str())
        .replace("@IPV4@", &host.ipv4().to_string())
        .replace("@IPV6@", &host.ipv6().to_string())
        .replace("@PORT@", &POSTGRES_PORT.to_string())
        .replace("@FOLDER@", &folder.display().to_string());
    let text = if lab.options.etcd { text + &unattended(host) } else { text };
    fs::write(folder.join("postgresql.conf"), text).context("write postgresql.conf")?;
    fs::write(folder.join("pg_hba.conf"), ACCESS).context("write pg_hba.conf")
}

/// User and group that run the servers.
pub(super) fn owner() -> Result<(u32, u32)> {
    let user = User::from_name(USER).context("look up user postgres")?;
    let user = user.context("find user postgres: `cargo xtask setup` installs PostgreSQL")?;
    Ok((user.uid.as_raw(), user.gid.as_raw()))
}

pub(super) fn give_to_postgres(folder: &Path) -> Result<()> {
    let (user, group) = owner()?;
    std::os::unix::fs::chown(folder, Some(user), Some(group))
        .with_context(|| format!("give {} to postgres", folder.display()))
}

/// An empty folder as the server wants it: its own, and nobody else's to read.
fn make_data_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)?;
    give_to_postgres(path)
}

/// Makes a server's data folder a new cluster, by copying one that is made once on a machine.
fn copy_template(lab: &Lab, host: HostName) -> Result<()> {
    let template = template(lab, host)?;
    let draft = data(lab, host).with_extension("draft");
    paths::remove(&draft)?;
    // Whatever takes time runs on a host of the lab, so that `down` finds it.
    let mut copy = netns::command(&lab.namespace(host), "cp");
    copy.args(["-a", "--reflink=auto"]).arg(template).arg(&draft);
    shell::output(&mut copy).context("copy the empty cluster")?;
    fs::rename(&draft, data(lab, host)).context("keep the copy")
}

fn template(lab: &Lab, host: HostName) -> Result<PathBuf> {
    let version = shell::output(Command::new(binary("postgres")).arg("--version"))
        .context("find PostgreSQL 15: `cargo xtask setup` installs it")?;
    let mut hasher = DefaultHasher::new();
    (version.trim(), ROLES).hash(&mut hasher);
    let template = paths::cache_dir()?.join(format!("postgres-{:016x}", hasher.finish()));
    if template.exists() {
        return Ok(template);
    }
    let draft = paths::draft(&lab.options.name, "postgres");
    paths::remove(&draft)?;
    make_data_dir(&draft).context("make a folder for the empty cluster")?;
    let mut initdb = as_postgres(&lab.namespace(host), "initdb");
    initdb.args(["--encoding=UTF8", "--locale=C.UTF-8", "--auth-local=peer"]);
    initdb.args(["--auth-host=scram-sha-256", "--data-checksums", "--no-sync", "-D"]).arg(&draft);
    shell::output(&mut initdb).context("make an empty cluster")?;
    let mut single = as_postgres(&lab.namespace(host), "postgres");
    single.args(["--single", "-D"]).arg(&draft).arg("postgres");
    shell::output_of(&mut single, ROLES).context("make the roles")?;
    match fs::rename(&draft, &template) {
        // Another lab was faster.
        Err(_) if template.exists() => paths::remove(&draft)?,
        result => result.context("keep the empty cluster")?,
    }
    Ok(template)
}

/// Whether the primary accepts connections over the network.
pub(super) fn answers(lab: &Lab) -> bool {
    let mut probe = as_postgres(&lab.namespace(STANDBY), "pg_isready");
    probe.args(["-q", "-h", &PRIMARY.ipv4().to_string(), "-p", &POSTGRES_PORT.to_string()]);
    shell::output(&mut probe).is_ok()
}

/// Name of the standby's replication slot.
fn slot() -> String {
    STANDBY.as_str().replace('-', "_")
}

/// Makes the slot. It keeps no WAL before the standby has used it.
fn make_slot(lab: &Lab) -> Result<()> {
    let slot = slot();
    let statement = format!(
        "SELECT pg_create_physical_replication_slot('{slot}') WHERE NOT EXISTS \
         (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')"
    );
    query(lab, PRIMARY, USER, &statement).map(drop)
}

fn clone_primary(lab: &Lab) -> Result<()> {
    let draft = data(lab, STANDBY).with_extension("draft");
    paths::remove(&draft)?;
    make_data_dir(&draft).context("make a folder for the clone")?;
    let mut clone = as_postgres(&lab.namespace(STANDBY), "pg_basebackup");
    clone.arg("-D").arg(&draft).arg("-d").arg(format!(
        "host={} port={POSTGRES_PORT} user=replication application_name={STANDBY}",
        PRIMARY.ipv4()
    ));
    clone.args(["-R", "-S", &slot(), "-X", "stream", "-c", "fast", "--no-sync"]);
    clone.env("PGPASSWORD", REPLICATION_PASSWORD);
    shell::output(&mut clone)?;
    fs::rename(&draft, data(lab, STANDBY)).context("keep the clone")
}

impl Lab {
    /// Runs a statement on a database server as its superuser; gives the rows, columns joined by
    /// `|`.
    pub fn query(&self, host: &str, statement: &str) -> Result<String> {
        query(self, super::find(host)?, USER, statement)
    }

    /// The same in the database of the application.
    pub fn query_app(&self, host: &str, statement: &str) -> Result<String> {
        query(self, super::find(host)?, "app", statement)
    }

    /// `primary`, or the state of the standby's receiver (`streaming` when all is well), or
    /// `waiting` for one without.
    pub(super) fn postgres_state(&self, host: HostName) -> Result<String> {
        query(
            self,
            host,
            USER,
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN 'primary' ELSE \
             coalesce((SELECT status FROM pg_stat_wal_receiver), 'waiting') END",
        )
    }
}
