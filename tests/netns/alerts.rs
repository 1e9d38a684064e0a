//! Alerts, from what is wrong with a database to the message at its receiver.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixDatagram,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::lab::HostName;

use crate::{
    postgres,
    site::{Site, eventually, text},
};

/// Where the receiver listens on the witness.
const PORT: u16 = 9099;

/// A receiver of webhooks on the witness.
struct Receiver {
    alerts: Arc<Mutex<Vec<Value>>>,
    refuses: Arc<AtomicBool>,
}

impl Receiver {
    fn start(site: &Site) -> Result<Self> {
        let alerts = Arc::new(Mutex::new(Vec::new()));
        let refuses = Arc::new(AtomicBool::new(false));
        let host = site.host(HostName::Witness);
        let listener = host.within(|| TcpListener::bind(("192.0.2.41", PORT)))??;
        let (list, no) = (Arc::clone(&alerts), Arc::clone(&refuses));
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let Ok(body) = request(&mut stream) else { continue };
                let status = if no.load(Ordering::Relaxed) { "503 Busy" } else { "200 OK" };
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
                );
                if stream.write_all(answer.as_bytes()).is_ok() && !no.load(Ordering::Relaxed) {
                    let alerts = body["alerts"].as_array().cloned().unwrap_or_default();
                    list.lock().expect("no receiver panicked").extend(alerts);
                }
            }
        });
        Ok(Self { alerts, refuses })
    }

    /// What has come of an alert: the words `firing` and `resolved`, in order.
    fn of(&self, name: &str, subject: &str) -> Vec<String> {
        let alerts = self.alerts.lock().expect("no receiver panicked");
        let is =
            |it: &&Value| it["labels"]["alertname"] == name && it["labels"]["subject"] == subject;
        alerts.iter().filter(is).map(|it| it["status"].as_str().unwrap_or("?").to_owned()).collect()
    }

    fn until(&self, name: &str, subject: &str, words: &[&str]) -> Result<()> {
        eventually(&format!("{name} of {subject} to be told as {words:?}"), || {
            Ok((self.of(name, subject) == words).then_some(()))
        })
        .with_context(|| format!("{:?}", self.alerts.lock().expect("no receiver panicked")))
    }
}

fn request(stream: &mut std::net::TcpStream) -> Result<Value> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().split_once(": ") {
            Some((name, value)) => drop(headers.insert(name.to_lowercase(), value.to_owned())),
            None if line.trim().is_empty() => break,
            None => {}
        }
    }
    let length = headers.get("content-length").context("find the length")?.parse()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

const ALERTS: &str = r#"
[[alert]]
kind = "webhook"
url = "http://192.0.2.41:9099/alerts"
[[alert]]
kind = "webhook"
name = "nobody"
url = "http://192.0.2.41:9098/alerts"
[[alert]]
kind = "syslog"
socket = "@LAB@/log"
"#;

#[test]
fn what_is_wrong_with_a_database_is_told_and_its_end_too() -> Result<()> {
    let site = postgres::site("alerts", ALERTS)?;
    let receiver = Receiver::start(&site)?;
    let syslog = UnixDatagram::bind(site.lab().state_dir().join("log"))?;
    syslog.set_nonblocking(true)?;
    let lab = site.lab();

    // The channels are tried, and the one that does not work is named.
    let output = site.ballast("alert test")?;
    let said = text(&output);
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("webhook: it has got through"), "{said}");
    ensure!(said.contains("nobody: NOT SENT: connect to 192.0.2.41"), "{said}");
    ensure!(site.obeys("alert test --channel webhook")?.contains("got through"));
    ensure!(site.refuses("alert test --channel none")?.contains("webhook, nobody, syslog"));
    receiver.until("channel_failing", "lb-01/nobody", &["firing"])?;
    let warnings = site.status()?.warnings();
    ensure!(warnings.contains("alerts do not get through to nobody"), "{warnings}");
    let told = |words: &str| -> Result<bool> {
        Ok(site
            .events()?
            .iter()
            .any(|it| it["message"].as_str().is_some_and(|it| it.contains(words))))
    };
    ensure!(told("alerts do not get through to nobody")?);

    // The primary dies, and another takes its place.
    lab.kill("pg-01")?;
    receiver.until("primary_down", "appdb/pg-01", &["firing"])?;
    site.obeys("pg promote --yes --accept-data-loss --peer-is-down lb-02")?;
    receiver.until("promoted", "appdb", &["firing"])?;
    receiver.until("primary_down", "appdb/pg-01", &["firing", "resolved"])?;
    receiver.until("server_down", "appdb/pg-01", &["firing"])?;
    // The receiver does not answer for a while: what is told meanwhile comes late, but it comes.
    receiver.refuses.store(true, Ordering::Relaxed);
    lab.start("pg-01")?;
    eventually("the receiver's failure to be seen", || {
        let status = site.status()?.0;
        let channels = status["alerts"]["channels"].as_array().cloned().unwrap_or_default();
        let failing =
            channels.iter().find(|it| it["name"] == "webhook" && !it["failing"].is_null());
        Ok(failing.map(drop))
    })?;
    receiver.refuses.store(false, Ordering::Relaxed);
    receiver.until("quarantined", "appdb/pg-01", &["firing"])?;
    receiver.until("server_down", "appdb/pg-01", &["firing", "resolved"])?;
    let shown = site.obeys("alert status")?;
    ensure!(shown.contains("pg-01 (192.0.2.31:5432) is quarantined"), "{shown}");

    // Commits wait for a standby that is not there.
    lab.query("pg-02", "alter system set synchronous_standby_names = 'somebody'")?;
    lab.query("pg-02", "select pg_reload_conf()")?;
    receiver.until("sync_lost", "appdb/pg-02", &["firing"])?;
    lab.query("pg-02", "alter system reset synchronous_standby_names")?;
    lab.query("pg-02", "select pg_reload_conf()")?;
    receiver.until("sync_lost", "appdb/pg-02", &["firing", "resolved"])?;

    // A slot that nobody uses keeps the log.
    let config = xtask::lab::default_config() + &xtask::lab::postgres_config() + ALERTS;
    let config =
        config.replace("user = \"ballast\"", "user = \"ballast\"\nmax_retained = \"1MiB\"");
    site.write_config(&config)?;
    site.obeys("reload")?;
    lab.query("pg-02", "select pg_create_physical_replication_slot('left', true)")?;
    lab.query(
        "pg-02",
        "create table filler as select repeat('x', 1000) from generate_series(1, 4000)",
    )?;
    receiver.until("slot_retention", "appdb/pg-02/left", &["firing"])?;
    lab.query("pg-02", "select pg_drop_replication_slot('left')")?;
    receiver.until("slot_retention", "appdb/pg-02/left", &["firing", "resolved"])?;

    // The log has it all.
    let mut log = String::new();
    let mut bytes = [0; 4096];
    while let Ok(count) = syslog.recv(&mut bytes) {
        log.push_str(&String::from_utf8_lossy(&bytes[..count]));
        log.push('\n');
    }
    let line =
        log.lines().find(|it| it.contains(" primary_down - CRITICAL: primary database pg-01"));
    ensure!(line.is_some_and(|it| it.starts_with("<26>1 ")), "{log}");
    ensure!(log.contains(" primary_down - RESOLVED after "), "{log}");
    ensure!(log.contains(" promoted - WARNING: pg-02 is the primary of appdb now"), "{log}");
    site.finish()
}
