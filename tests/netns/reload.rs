//! A changed configuration under load: all of it, or nothing.

use std::{net::TcpStream, thread, time::Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use xtask::lab::{HostName, topology::FLOATING_V4};

use crate::{
    config::{self, APPS, Service, echo, web, web6},
    http::{self, Connection},
    load::{Load, PATIENCE},
    site::{Site, number},
};

#[test]
fn a_reload_loses_nothing_and_applies_everything() -> Result<()> {
    let untouched = || Service::web("web6", web6(), &APPS);
    let [one, two, three] = APPS;
    let extra = (FLOATING_V4, 8080).into();
    let site = Site::up(
        "reload",
        config::text(&[
            Service::web("web", web(), &[one, two]),
            untouched(),
            Service::echo("echo", echo(), &APPS),
        ]),
    )?;
    let load = Load::http(site.client(), 4, web());
    let load6 = Load::http(site.client(), 4, web6());
    let mut open = Connection::to(site.client(), web(), "app-01")?;
    let download = Connection::to(site.client(), web6(), "app-02")?.download("/big?rate=30m")?;
    let file = site.lab().big_file()?;
    thread::scope(|scope| {
        let download = scope.spawn(move || download.compare(&file));
        load.more(300)?;

        // A backend and a service more.
        site.write_config(&config::text(&[
            Service::web("web", web(), &APPS),
            untouched(),
            Service::web("extra", extra, &[two, three]),
            Service::echo("echo", echo(), &APPS),
        ]))?;
        let text = site.obeys("reload")?;
        ensure!(text.contains('4'), "it does not say what it has: {text}");
        site.until_serving("web", "app-03", true)?;
        let more = Instant::now();
        site.until_serving("extra", "app-03", true)?;
        let answer = site.client().within(|| http::get(extra, "/id"))??;
        ensure!(answer != "app-01", "{answer} is no backend of the new service");
        load.more(500)?;
        load6.more(300)?;

        // A backend and a service less, another weight and method.
        site.write_config(&config::text(&[
            Service::web("web", web(), &[two, three])
                .key("balance = \"round_robin\"")
                .backend_key("app-03", "weight = 3"),
            untouched(),
            Service::echo("echo", echo(), &APPS),
        ]))?;
        // SIGHUP is a reload too.
        site.daemon().signal(Signal::SIGHUP)?;
        site.until("the new configuration", |status| !status.has_service("extra"))?;
        let less = Instant::now();
        load.more(1000)?;
        load6.more(300)?;
        ensure!(open.get("/id")? == "app-01", "a removed backend's connection is broken");
        let refused = site.client().within(|| TcpStream::connect_timeout(&extra, PATIENCE))?;
        ensure!(refused.is_err(), "a removed service accepts connections");

        download.join().expect("join the download").context("download over the reloads")?;
        let report = load.stop();
        report.ensure_none_failed()?;
        load6.stop().ensure_none_failed()?;
        ensure!(report.answers(Some(more)).contains_key("app-03"), "the new backend got nothing");
        let answers = report.answers(Some(less));
        ensure!(!answers.contains_key("app-01"), "a removed backend got connections");
        let share = answers["app-03"] as f64 / (answers["app-02"] + answers["app-03"]) as f64;
        ensure!((share - 0.75).abs() < 0.05, "weight 3 of 4 got a share of {share}");
        Ok(())
    })?;
    let status = site.status()?;
    ensure!(status.backend("web", "app-03")["weight"] == 3, "the weight is not shown");
    ensure!(status.0["retiring"].as_array().is_some_and(|it| !it.is_empty()), "none retires");
    drop(open);
    site.until("the removed backend's last connection to be forgotten", |status| {
        status.0["retiring"].as_array().is_some_and(Vec::is_empty)
    })?;
    site.finish()
}

#[test]
fn a_wrong_reload_changes_nothing() -> Result<()> {
    let good = config::text(&[
        Service::web("web", web(), &APPS),
        Service::web("web6", web6(), &[HostName::App01]),
    ]);
    let site = Site::up("refused", good.clone())?;
    let load = Load::http(site.client(), 4, web());
    let mut open = Connection::open(site.client(), web())?;
    load.more(100)?;
    let before = site.status()?;
    let wrong = |from: &str, to: &str| good.replacen(from, to, 1);
    let cases = [
        (wrong("[[floating]]", "[[floating]"), "syntax", vec!["ballast.toml:", "[[floating]"]),
        (
            wrong("vrid = 51", "vrid = 51\nvird = 52"),
            "an unknown key",
            vec!["vird", "ballast.toml:", "^"],
        ),
        (
            wrong("listen = \"192.0.2.100:80\"", "listen = \"192.0.2.101:80\""),
            "an address that nobody holds",
            vec!["192.0.2.101", "ballast.toml:", "^"],
        ),
        (
            wrong("interface = \"eth0\"", "interface = \"eth7\""),
            "another interface",
            vec!["interface", "restart"],
        ),
        (
            // The first service is gone, the second is wrong: the first must stay.
            config::text(&[Service::new("web6", web6()).key("balnce = \"random\"")]),
            "half a good file",
            vec!["balnce", "backend"],
        ),
        (String::from_utf8_lossy(&[0xff, 0xfe]).into_owned(), "no text", vec!["ballast.toml"]),
    ];
    for (text, what, words) in cases {
        site.write_config(&text)?;
        let message = site.refuses("reload").with_context(|| format!("reload {what}"))?;
        for word in words {
            ensure!(message.contains(word), "{what}: {word} is not in\n{message}");
        }
        load.more(50)?;
        let after = site.status()?;
        ensure!(after.0["config_loaded"] == before.0["config_loaded"], "{what} is in force");
        ensure!(after.has_service("web") && after.has_service("web6"), "{what} removed a service");
    }
    std::fs::remove_file(site.lab().config())?;
    let message = site.refuses("reload")?;
    ensure!(message.contains("ballast.toml"), "{message}");
    ensure!(!open.get("/id")?.is_empty());
    load.more(100)?;
    load.stop().ensure_none_failed()?;
    let refused = site.events()?.iter().filter(|it| it["kind"] == "reload_refused").count();
    ensure!(refused == 7, "the timeline has {refused} refused reloads");

    site.write_config(&good)?;
    site.obeys("reload")?;
    let status = site.status()?;
    ensure!(number(&status.0["pid"]) == number(&before.0["pid"]), "the daemon has restarted");
    ensure!(status.0["config_loaded"] != before.0["config_loaded"]);
    site.finish()
}
