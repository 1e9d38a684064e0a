//! Sessions of the database while a balancer goes.

use std::sync::mpsc;

use super::*;
use crate::peers::{self, Key};

/// Sessions that are open.
const SESSIONS: usize = 8;

/// A session may wait for so long while the address moves.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens sessions, says so, waits for a word, and asks again in each: the same server process must answer.
fn go_on(host: &Host, ready: &mpsc::Sender<()>, go: &Mutex<mpsc::Receiver<()>>) -> Result<()> {
    on(host, async || {
        let mut config = tokio_postgres::Config::new();
        config.host("192.0.2.100").port(5432).user("app").password("app").dbname("app");
        let mut sessions = Vec::new();
        for _ in 0..SESSIONS {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
            let connection = tokio::spawn(connection);
            client.batch_execute("begin; create temporary table mine (number bigint)").await?;
            let process: i32 = client.query_one("select pg_backend_pid()", &[]).await?.get(0);
            sessions.push((client, connection, process));
        }
        ready.send(())?;
        go.lock().expect("nobody else has it").recv()?;
        for (client, connection, process) in sessions {
            let ask = async {
                client.batch_execute("insert into mine values (1)").await?;
                let now: i32 = client.query_one("select pg_backend_pid()", &[]).await?.get(0);
                client.batch_execute("commit").await?;
                Ok::<_, tokio_postgres::Error>(now)
            };
            let now = tokio::time::timeout(PATIENCE, ask).await.context("wait for the answer")?;
            ensure!(now.context("ask in an open session")? == process, "another process answers");
            connection.abort();
        }
        Ok(())
    })
}

#[test]
fn transactions_go_on_at_the_other_balancer() -> Result<()> {
    let key = Key::new("one key for both balancers\n")?;
    let site = pair::pair("pg-sessions", &key)?;
    let active = eventually("a balancer to have the address", || {
        for host in pair::BOTH {
            let shown = site.ip(host, "-o -4 address show dev eth0")?;
            if shown.contains(" 192.0.2.100/") {
                return Ok(Some(host));
            }
        }
        Ok(None)
    })?;
    let other = if active == HostName::Lb01 { HostName::Lb02 } else { HostName::Lb01 };
    let (ready, opened) = mpsc::channel();
    let (went, go) = mpsc::channel();
    let host = site.client().clone();
    let sessions = std::thread::spawn(move || go_on(&host, &ready, &Mutex::new(go)));
    // If it fails before that, its own error says more.
    if opened.recv().is_ok() {
        eventually("the sessions to be in the other balancer's tables", || {
            let flows = peers::obeys(&site, other, "flows --json")?;
            Ok((flows.matches("192.0.2.31:5432").count() >= SESSIONS).then_some(()))
        })?;
        site.lab().cut(active.as_str())?;
        went.send(())?;
    }
    sessions.join().ok().context("join the sessions")??;
    site.lab().heal(active.as_str())?;
    site.finish()
}
