//! The access log, and the name that each request has in it and at the backend.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use xtask::wait;

use crate::{
    backends::Manner,
    client::{Connection, PATIENCE},
    fronts::{self, Service},
    tls::Folder,
};

#[test]
fn each_request_has_a_line_and_a_name() -> Result<()> {
    let folder = Folder::new()?;
    let file = folder.path().join("access.log");
    let services = [Service::start(Manner::Refuse)?];
    let lines = format!("access_log = \"{}\"\n", file.display());
    let (proxy, state, listens) = fronts::ballast_with(&services, &lines)?;
    let lines = |count: usize| {
        wait::until(PATIENCE, "lines in the log", || {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            Ok((lines.len() >= count).then_some(lines))
        })
    };
    let mut client = Connection::open(listens[0])?;
    client.send(
        b"GET /one?x HTTP/1.1\r\nHost: a.example\r\nX-Row: log\r\nUser-Agent: a\"b\r\n\r\n\
          GET /two HTTP/1.1\r\nHost: a.example\r\nX-Row: log\r\nX-Request-Id: given-1\r\n\r\n",
    );
    for _ in 0..2 {
        ensure!(client.answer("GET")?.status == 200);
    }
    client.send(b"GET / HTTP/1.2\r\n\r\n");
    ensure!(client.answer("GET")?.status == 505);
    let written = lines(3)?;
    let backend = services[0].second.as_ref().context("it has a second")?;
    let ids: Vec<String> = backend
        .asked("log")
        .iter()
        .map(|asked| Some((*asked.field("x-request-id").first()?).to_owned()))
        .collect::<Option<_>>()
        .context("the backend is told no name")?;
    ensure!(ids.len() == 2 && ids[0].len() == 32 && ids[1] == "given-1", "{ids:?}");
    for (line, parts) in written.iter().zip([
        &[
            "127.0.0.1 ",
            "\"GET /one?x HTTP/1.1\"",
            &format!("id=\"{}\"", ids[0]),
            "agent=\"a\\x22b\"",
            " first=",
            " second=answered",
            " status=200 ",
        ][..],
        &["\"GET /two HTTP/1.1\"", "id=\"given-1\"", " second=answered", " status=200 "],
        &["\"-\" refused=version", " status=505 "],
    ]) {
        for part in parts {
            ensure!(line.contains(part), "`{part}` is not in `{line}`");
        }
    }

    // Turned: what comes after a reload stands in the new file.
    fs::rename(&file, folder.path().join("access.log.1"))?;
    proxy.follow(state.services());
    let mut client = Connection::open(listens[0])?;
    client.send(b"GET /three HTTP/1.1\r\nHost: a.example\r\n\r\n");
    ensure!(client.answer("GET")?.status == 200);
    let written = lines(1)?;
    ensure!(written.len() == 1 && written[0].contains("/three"), "{written:?}");
    Ok(())
}
