//! The configuration as the commands use it: files, secrets, and how mistakes are drawn.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use ballast::config::{
    self, Probe, Protocol,
    report::{self, Diagnostic, Severity},
};

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("ballast-config-{}-{number}", process::id()));
        fs::create_dir_all(&path).expect("create a scratch directory");
        Self(path)
    }

    /// Writes a file that `mode` allows.
    fn file(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("write a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set the mode");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The complete example of the contract.
const CONTRACT: &str = r#"
[cluster]
name = "edge"
secret_file = "DIR/cluster.key"   # authenticates the nodes to each other

[[node]]
name = "lb-01"
address = "192.0.2.11"
interface = "eth0"
priority = 100          # who is preferred; 1-254
[[node]]
name = "lb-02"
address = "192.0.2.12"
interface = "eth0"
priority = 90

[[floating]]            # one VRRP instance
vrid = 51
addresses = ["192.0.2.100/24", "2001:db8::100/64"]
interval = "100ms"      # version 3: 10 ms to 40.95 s; version 2: whole seconds
version = 3             # 2 with password = "…" speaks to old peers
preempt = false
unicast = false

[[service]]
name = "web"
listen = "192.0.2.100:80"
protocol = "tcp"        # tcp | udp
path = "auto"           # kernel | proxy | auto
forward = "nat"         # nat | direct | tunnel
balance = "least_conn"  # least_conn | maglev | round_robin | random
on_down = "reset"       # reset | keep: what happens to connections of a backend that is gone
drain_timeout = "30s"
  [[service.backend]]
  name = "app-01"
  address = "192.0.2.21:8080"
  weight = 1
  backup = false
  [service.health]
  probe = "http"        # tcp | http | https | postgres | command | none
  path = "/"
  expect = "200-399"
  interval = "1s"
  timeout = "500ms"
  rise = 2
  fall = 3
  [service.proxy]       # nginx's words
  connect_timeout = "5s"
  send_timeout = "30s"
  read_timeout = "30s"
  keepalive = 32
  next_upstream = ["error", "timeout"]
  next_upstream_tries = 0
  next_upstream_timeout = "0s"

[[postgres]]
name = "appdb"
read_write = "192.0.2.100:5432"
read_only = "192.0.2.100:5433"
user = "ballast"
password_file = "DIR/pg.password"
promotion = "manual"    # manual | veto | automatic
max_loss = "0B"         # most acknowledged WAL that an unattended promotion may lose
max_lag = "16MiB"       # a standby further behind serves no reads
  [[postgres.server]]
  name = "pg-01"
  address = "192.0.2.31:5432"
  [[postgres.server]]
  name = "pg-02"
  address = "192.0.2.32:5432"

[consensus]             # needed for promotion = "automatic"
etcd = ["http://192.0.2.11:2379", "http://192.0.2.12:2379", "http://192.0.2.41:2379"]

[[alert]]
kind = "telegram"       # telegram | slack | webhook | syslog
token_file = "DIR/telegram.token"
chat_id = "-100123"

[api]
listen = "127.0.0.1:9180"   # /metrics, dashboard, /healthz
"#;

const SECRETS: [&str; 3] = ["cluster.key", "pg.password", "telegram.token"];

fn contract(scratch: &Scratch) -> PathBuf {
    let text = CONTRACT.replace("DIR", scratch.0.to_str().expect("a UTF-8 path"));
    scratch.file("ballast.toml", text, 0o644)
}

fn errors(path: &Path) -> Vec<Diagnostic> {
    let rejected = config::load(path).expect_err("the file has a mistake");
    rejected.diagnostics.into_iter().filter(|found| found.severity == Severity::Error).collect()
}

#[test]
fn the_contract_gives_warnings_only() {
    let scratch = Scratch::new();
    for secret in SECRETS {
        scratch.file(secret, "secret\n", 0o600);
    }
    let loaded = config::load(&contract(&scratch)).unwrap_or_else(|rejected| panic!("{rejected}"));
    assert!(loaded.warnings.iter().all(|found| found.severity == Severity::Warning));
    let ignored: Vec<_> = loaded
        .warnings
        .iter()
        .filter_map(|found| found.message.split_once(" is not in this version yet"))
        .map(|(what, _)| what)
        .collect();
    assert_eq!(ignored, ["`[api]`"]);
    assert_eq!(loaded.warnings.len(), ignored.len());

    let config = loaded.config;
    assert_eq!(config.cluster.name, "edge");
    assert_eq!(config.node("lb-02").expect("a node").priority, 90);
    assert_eq!(config.node("lb-03"), None);
    assert!(config.is_shared());
    assert_eq!(config.floating[0].interval, std::time::Duration::from_millis(100));
    assert_eq!(config.floating[0].addresses[1], ("2001:db8::100".parse().unwrap(), 64));
    let service = &config.services[0];
    assert_eq!(service.protocol, Protocol::Tcp);
    assert_eq!(service.backends[0].address, "192.0.2.21:8080".parse().unwrap());
    let Probe::Http(http) = &service.health.probe else { panic!("an http probe") };
    assert_eq!(http.expect, [(200, 399)]);
}

#[test]
fn secrets_must_be_there_and_hidden() {
    let scratch = Scratch::new();
    scratch.file("cluster.key", "secret\n", 0o640);
    scratch.file("pg.password", "", 0o600);
    let path = contract(&scratch);
    let line = |key| 1 + CONTRACT.lines().position(|line| line.starts_with(key)).expect(key);
    let found = errors(&path);
    let said: Vec<_> = found
        .iter()
        .map(|found| (found.place.as_ref().expect("a place").line, found.message.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            (
                line("secret_file"),
                "others than its owner have access to the file of `secret_file` (mode 0640)"
            ),
            (line("password_file"), "the file of `password_file` is empty"),
            (line("token_file"), "the file of `token_file` does not exist"),
        ]
    );
    let help = found[0].help.as_deref().expect("help");
    assert_eq!(help, format!("run `chmod 600 {}`", scratch.0.join("cluster.key").display()));
    // The same text without its files is good.
    assert!(config::parse("ballast.toml", &fs::read_to_string(path).unwrap()).is_ok());
}

#[test]
fn a_directory_is_no_secret() {
    let scratch = Scratch::new();
    for secret in &SECRETS[1..] {
        scratch.file(secret, "secret\n", 0o400);
    }
    fs::create_dir(scratch.0.join("cluster.key")).expect("create a directory");
    let found = errors(&contract(&scratch));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].message, "`secret_file` is not a file");
}

#[test]
fn files_that_cannot_be_read() {
    let scratch = Scratch::new();
    let missing = scratch.0.join("none.toml");
    let rejected = config::load(&missing).expect_err("there is no file");
    let shown = missing.display();
    assert_eq!(
        rejected.to_string(),
        format!(
            "error: the configuration cannot be read: No such file or directory (os error 2)\n\
            --> {shown}\n \
            = help: create it, or name another file with `-c`"
        )
    );
    let rejected = config::load(&scratch.0).expect_err("a directory is no file");
    assert_eq!(rejected.diagnostics[0].help.as_deref(), Some("name the file itself with `-c`"));
    let latin = scratch.file("latin.toml", b"[cluster]\nname = \"M\xfcnchen\"\n", 0o644);
    let found = errors(&latin);
    assert_eq!(found[0].message, "this is not UTF-8 text");
    let place = found[0].place.as_ref().expect("a place");
    assert_eq!((place.line, place.column), (2, 10));
}

#[test]
fn carets_stand_under_the_mistake_and_under_what_explains_it() {
    let text = r#"[[node]]
name = "lb-01"
address = "192.0.2.11"
interface = "eth0"

[[floating]]
vrid = 51
addresses = ["192.0.2.100/24"]

[[service]]
name = "web"
listen = "192.0.2.100:80"
balance = "leastconn"

[[service.backend]]
name = "app-01"
address = "192.0.2.21:8080"

[[service.backend]]
name = "app-01"
address = "192.0.2.22:8080"
"#;
    let rejected = config::parse("/etc/ballast/ballast.toml", text).unwrap_err();
    assert_eq!(
        report::render(&rejected.diagnostics, text, false),
        r#"error: `balance` cannot be "leastconn"
  --> /etc/ballast/ballast.toml:13:11
   |
13 | balance = "leastconn"
   |           ^^^^^^^^^^^
   |
   = help: did you mean "least_conn"? it may be "least_conn", "maglev", "round_robin" or "random"

error: two backends of this service have the name `app-01`
  --> /etc/ballast/ballast.toml:20:8
   |
16 | name = "app-01"
   |        -------- first used here
...
20 | name = "app-01"
   |        ^^^^^^^^
   |
   = help: give each backend of a service a name of its own
"#
    );
    assert_eq!(report::summary(&rejected.diagnostics), "2 errors");
    let coloured = report::render(&rejected.diagnostics, text, true);
    assert!(coloured.contains("\u{1b}["), "colours are asked for");
}

#[test]
fn carets_are_right_after_tabs_and_wide_letters() {
    let text = "cluster = { name = \"é漢\", 'ü' = 1 }\n[[node]]\n\tname =\t\t5\n\taddress = \"192.0.2.11\"\n\
                \tinterface = \"eth0\"\n";
    let rejected = config::parse("test.toml", text).unwrap_err();
    let columns: Vec<_> = rejected
        .diagnostics
        .iter()
        .filter_map(|found| found.place.as_ref())
        .map(|place| (place.line, place.column, place.end_column))
        .collect();
    assert_eq!(columns, [(1, 26, 29), (3, 10, 11)]);
    assert_eq!(
        report::render(&rejected.diagnostics[..2], text, false),
        "error: unknown key `ü` in `[cluster]`\n\
        \x20--> test.toml:1:26\n\
        \x20 |\n\
        1 | cluster = { name = \"é漢\", 'ü' = 1 }\n\
        \x20 |                           ^^^\n\
        \x20 |\n\
        \x20 = help: known here: `name`, `secret_file`, `peer_port`\n\
        \n\
        error: `name` must be a name, but is a whole number\n\
        \x20--> test.toml:3:10\n\
        \x20 |\n\
        3 |     name =        5\n\
        \x20 |                   ^\n\
        \x20 |\n\
        \x20 = help: text stands in double quotes\n"
    );
}

#[test]
fn passwords_are_not_shown() {
    for (line, wrong) in [
        ("password = \"hunter2\"", "VRRP version 3 has no password"),
        ("pasword = \"hunter2\"", "unknown key `pasword` in `[[floating]]`"),
        ("password = [\"hunter2\"]", "`password` must be a text, but is a list"),
        ("password = hunter2", "string values must be quoted, expected literal string"),
        ("password = \"hunter2", "invalid basic string, expected `\"`"),
    ] {
        let text = format!(
            "[[node]]\nname = \"a\"\naddress = \"192.0.2.11\"\ninterface = \"eth0\"\n\
             [[floating]]\nvrid = 1\naddresses = [\"192.0.2.100/24\"]\n{line}\n"
        );
        let rejected = config::parse("test.toml", &text).expect_err(line);
        let shown = rejected.to_string() + &format!("{rejected:?}");
        assert!(shown.contains(&format!("{wrong:?}")[1..8]), "{line}: {shown}");
        assert!(rejected.diagnostics.iter().any(|found| found.message == wrong), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("***"), "{shown}");
        assert!(shown.contains("192.0.2.100"), "only the password is masked: {shown}");
    }
}

#[test]
fn diagnostics_are_json() {
    let text = "[cluster]\nnam = \"x\"\n";
    let rejected = config::parse("test.toml", text).unwrap_err();
    let found = rejected.diagnostics.iter().find(|found| found.place.is_some()).expect("a place");
    let json = serde_json::to_value(found).expect("serialise");
    assert_eq!(
        json,
        serde_json::json!({
            "severity": "error",
            "message": "unknown key `nam` in `[cluster]`",
            "help": "did you mean `name`?",
            "file": "test.toml",
            "line": 2,
            "column": 1,
            "end_line": 2,
            "end_column": 4,
            "start": 10,
            "end": 13,
        })
    );
    for found in &rejected.diagnostics {
        let json = serde_json::to_string(found).expect("serialise");
        assert_eq!(serde_json::from_str::<Diagnostic>(&json).expect("deserialise"), *found);
    }
}
