//! What can be wrong at the start, and what is said about it.

use std::{
    fs::{self, File},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use xtask::{
    build,
    lab::{HostName, default_config, topology::FLOATING_V4},
    shell,
};

use crate::{
    config::{self, APPS, Service, echo, web, web6},
    load::Load,
    site::{Site, eventually, number, text},
};

/// Runs a daemon that cannot start, to its end; gives what it printed.
fn refused(mut command: Command) -> Result<String> {
    let what = shell::display(&command);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{what}`"))?;
    let ended = eventually("the daemon to end", || Ok(child.try_wait()?));
    if ended.is_err() {
        // `nsenter` becomes the program, so it is the daemon that ends.
        child.kill().context("end the daemon")?;
    }
    let output = child.wait_with_output()?;
    let text = text(&output);
    ensure!(ended.is_ok(), "`{what}` runs on: {text}");
    ensure!(output.status.code() == Some(1), "`{what}` ended with {}: {text}", output.status);
    ensure!(!text.contains("panicked"), "{text}");
    Ok(text)
}

fn ensure_says(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word} is not in:\n{text}");
    }
    Ok(())
}

#[test]
fn check_names_every_mistake_and_passes_what_is_right() -> Result<()> {
    let folder = Folder::new("check")?;
    let good = default_config();
    let file = folder.write("good.toml", &good)?;
    let ballast = build::ballast()?;
    let check = |file: &str, json: bool| -> Result<(i32, String)> {
        let mut command = Command::new(&ballast);
        command.args(["check", "-c", file]).args(json.then_some("--json"));
        let output = command.output().context("run `ballast check`")?;
        Ok((output.status.code().unwrap_or(-1), text(&output)))
    };
    let (code, said) = check(&file, false)?;
    ensure!(code == 0, "a right file is refused: {said}");
    let (code, said) = check(&file, true)?;
    ensure!(code == 0, "{said}");
    serde_json::from_str::<serde_json::Value>(&said).context("read the JSON of a right file")?;

    // One of each kind, all in one file.
    let wrong = good
        .replacen("vrid = 51", "vrid = 300", 1)
        .replacen("priority = 100", "priority = \"high\"", 1)
        .replacen("name = \"lab\"", "nmae = \"lab\"", 1)
        .replacen("listen = \"192.0.2.100:80\"", "listen = \"192.0.2.101:80\"", 1)
        .replacen("address = \"192.0.2.21:8080\"", "address = \"192.0.2.22:8080\"", 1)
        .replacen("address = \"[2001:db8::21]:8080\"", "address = \"192.0.2.21:8080\"", 1)
        .replacen("protocol = \"udp\"", "protocol = \"sctp\"", 1)
        .replacen("expect = \"200\"", "expect = \"200\"\n  interval = \"1\"", 1);
    let file = folder.write("wrong.toml", &wrong)?;
    let (code, said) = check(&file, false)?;
    ensure!(code == 1, "a wrong file passes: {said}");
    ensure_says(
        &said,
        &[
            "300",
            "priority",
            "nmae",
            "192.0.2.101",
            "192.0.2.22:8080",
            "IPv6",
            "sctp",
            "interval",
            "wrong.toml:",
            "^",
        ],
    )?;
    let (code, said) = check(&file, true)?;
    ensure!(code == 1, "{said}");
    let value: serde_json::Value = serde_json::from_str(&said).context("read the JSON")?;
    ensure!(value.to_string().matches("\"line\"").count() >= 8, "{value}");

    let file = folder.write("syntax.toml", &good.replacen("[cluster]", "[cluster", 1))?;
    let (code, said) = check(&file, false)?;
    ensure!(code == 1);
    ensure_says(&said, &["syntax.toml:2", "[cluster"])?;
    let (code, said) = check("/nonexistent/ballast.toml", false)?;
    ensure!(code == 1);
    ensure_says(&said, &["/nonexistent/ballast.toml"])?;
    Ok(())
}

#[test]
fn what_keeps_a_daemon_from_starting_is_said() -> Result<()> {
    let site = Site::up("wrong-starts", default_config())?;
    let load = Load::http(site.client(), 2, web());
    load.more(50)?;
    let lab = site.lab();
    let again = || lab.daemon_command("lb-01");
    let pid = site.status()?.0["pid"].to_string();

    // The same again.
    ensure_says(&refused(again())?, &["another ballast", &pid, "ballast.sock"])?;

    // Without privilege: another user, and root without capabilities.
    let folder = Folder::new("privilege")?;
    let ballast = folder.path("ballast");
    fs::copy(build::ballast()?, &ballast).context("copy ballast to where all may run it")?;
    let config = folder.write("ballast.toml", &default_config())?;
    for drop in [
        &["--reuid=nobody", "--clear-groups"][..],
        &["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"],
    ] {
        let mut command = site.balancer().command("setpriv");
        command.args(drop).arg("--").arg(&ballast).args(["run", "--node", "lb-01", "-c", &config]);
        ensure_says(&refused(command)?, &["CAP_BPF", "root"])?;
    }

    // On lb-02, where no daemon is.
    let other = || {
        let mut command = lab.daemon_command("lb-02");
        command.env("NO_COLOR", "1");
        command
    };
    let file = lab.config();
    let good = fs::read_to_string(&file)?;
    fs::write(&file, good.replace("interface = \"eth0\"", "interface = \"eth7\""))?;
    ensure_says(&refused(other())?, &["eth7", "ip link"])?;
    fs::write(&file, good.replace("vrid = 51", "vrid = 51\nvird = 5"))?;
    ensure_says(&refused(other())?, &["vird", "ballast.toml:"])?;
    fs::write(&file, &good)?;

    let mut command = site.host(HostName::Lb02).command(build::ballast()?);
    command.args(["run", "--node", "lb-02", "--config"]).arg(&file);
    command.args(["--socket", &folder.path("socket"), "--state-dir", &folder.path("state")]);
    command.args(["--pin-dir", &folder.path("pins")]);
    ensure_says(&refused(command)?, &["not on a BPF file system", "mount -t bpf"])?;

    let mut command = site.host(HostName::Lb02).command(build::ballast()?);
    command.args(["run", "--node", "lb-07", "-c"]).arg(&file);
    ensure_says(&refused(command)?, &["lb-07", "lb-01, lb-02"])?;

    // None of it touched the daemon that serves.
    ensure!(site.status()?.0["pid"].to_string() == pid);
    load.more(50)?;
    load.stop().ensure_none_failed()?;
    site.finish()
}

#[test]
fn pins_of_another_version_are_refused_or_discarded() -> Result<()> {
    let site = Site::up("stale-pins", default_config())?;
    let load = Load::http(site.client(), 2, web());
    load.more(50)?;
    site.daemon().stop()?;
    let meta = site.pins().join("META");
    let path = meta.to_str().context("write the path")?;
    let mut write: Vec<&str> = vec!["bpftool", "map", "update", "pinned", path];
    write.extend("key 0 0 0 0 value 99 0 0 0 0 0 0 0".split(' '));
    site.run(HostName::Lb01, &write)?;
    let text = refused(site.lab().daemon_command("lb-01"))?;
    ensure_says(&text, &["99", "another version", "--discard-pins"])?;
    // It still forwards, as the message says.
    load.more(100)?;
    load.stop().ensure_none_failed()?;

    let mut command = site.lab().daemon_command("lb-01");
    let log = File::options().append(true).open(site.daemon().log()).context("open the log")?;
    command.arg("--discard-pins").stderr(log);
    let daemon = Daemon(command.spawn().context("start the daemon")?);
    eventually("the daemon to listen", || {
        Ok(site.ballast("status")?.status.success().then_some(()))
    })?;
    let status = site.settled()?;
    ensure!(status.0["dataplane"]["adopted"] == false);
    let load = Load::http(site.client(), 2, web());
    load.more(100)?;
    load.stop().ensure_none_failed()?;
    drop(daemon);
    // A map of another shape is refused too, not used.
    fs::remove_file(site.pins().join("BACKENDS"))?;
    let backends = site.pins().join("BACKENDS");
    let path = backends.to_str().context("write the path")?;
    let mut create: Vec<&str> = vec!["bpftool", "map", "create", path];
    create.extend("type array key 4 value 16 entries 64 name BACKENDS".split(' '));
    site.run(HostName::Lb01, &create)?;
    let text = refused(site.lab().daemon_command("lb-01"))?;
    ensure_says(&text, &["BACKENDS", "16", "--discard-pins"])?;
    site.finish()
}

/// A daemon that the lab does not know of; killed when it is dropped.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_interface_without_driver_mode_gets_the_generic_hook() -> Result<()> {
    // A macvlan's driver knows no XDP; what arrives for its own MAC address goes by the generic hook.
    let services = [
        Service::web("web", web(), &APPS),
        Service::web("web6", web6(), &APPS),
        Service::echo("echo", echo(), &APPS),
    ];
    let text = config::text_of(HostName::Lb02, "mv0", &services)
        .replace("address = \"192.0.2.12\"", "address = \"192.0.2.13\"");
    let site = Site::without_daemon("generic", text)?.on_lb02();
    site.ip(HostName::Lb02, "address del 192.0.2.12/24 dev eth0")?;
    site.ip(HostName::Lb02, "address del 2001:db8::12/64 dev eth0")?;
    // Else eth0 would answer for the addresses on mv0.
    site.set(HostName::Lb02, "net/ipv4/conf/all/arp_ignore", "1")?;
    site.ip(HostName::Lb02, "link add mv0 link eth0 type macvlan mode bridge")?;
    site.ip(HostName::Lb02, "address add 192.0.2.13/24 dev mv0")?;
    site.ip(HostName::Lb02, "address add 2001:db8::13/64 dev mv0 nodad")?;
    site.ip(HostName::Lb02, "link set mv0 up")?;
    site.daemon().start()?;
    let status = site.settled()?;
    let attachments = &status.0["dataplane"]["attachments"];
    ensure!(attachments[0]["interface"] == "mv0" && attachments[0]["mode"] == "generic");
    ensure_says(&status.warnings(), &["mv0", "generic"])?;
    ensure_says(&site.obeys("status")?, &["generic"])?;
    for (service, target) in [("web", web()), ("web6", web6())] {
        let report = Load::http_requests(site.client(), 4, 50, target).end();
        report.ensure_none_failed()?;
        ensure!(report.answers(None).len() == 3, "{:?}", report.answers(None));
        ensure!(site.status()?.sum(service, "forward_packets") >= 200 * 4);
    }
    let datagrams = Load::echo(site.client(), echo());
    datagrams.more(50)?;
    datagrams.stop().ensure_none_failed()?;

    // A restart finds the generic link again.
    site.daemon().kill()?;
    site.daemon().start()?;
    let status = site.settled()?;
    ensure!(status.0["dataplane"]["attachments"][0]["mode"] == "generic");
    ensure!(status.0["dataplane"]["adopted"] == true);
    let report = Load::http_requests(site.client(), 4, 50, web()).end();
    report.ensure_none_failed()?;
    site.finish()
}

#[test]
fn another_program_on_the_interface_is_left_alone() -> Result<()> {
    let services = [Service::web("web", (FLOATING_V4, 80).into(), &APPS)];
    let site = Site::without_daemon("occupied", config::text(&services))?;
    // The lab's own program for the switch's ports serves as the stranger.
    let ports = site.lab().hosts()[0].namespace().replace("-client", "-sw");
    let mut show = Command::new("nsenter");
    show.arg(format!("--net=/run/netns/{ports}")).args(["ip", "-o", "link", "show", "p-lb-01"]);
    let shown = shell::output(&mut show)?;
    let (_, id) = shown.split_once("prog/xdp id ").context("find the switch's program")?;
    let id = id.split_whitespace().next().context("find its number")?;
    let pin = Pin(site.pins().with_file_name(crate::site::unique("stranger")));
    let path = pin.0.to_str().context("write the path")?;
    site.run(HostName::Lb01, &["bpftool", "prog", "pin", "id", id, path])?;
    site.ip(HostName::Lb01, &format!("link set dev eth0 xdpdrv pinned {path}"))?;
    let text = refused(site.lab().daemon_command("lb-01"))?;
    ensure_says(&text, &["another XDP program", "eth0", "xdp off"])?;
    ensure!(site.ip(HostName::Lb01, "-o link show dev eth0")?.contains(&format!("id {id}")));
    // Then as the message says.
    site.ip(HostName::Lb01, "link set dev eth0 xdp off")?;
    site.daemon().start()?;
    let status = site.settled()?;
    ensure!(number(&status.0["pid"]) > 0);
    let report = Load::http_requests(site.client(), 2, 20, web()).end();
    report.ensure_none_failed()?;
    drop(pin);
    site.finish()
}

/// A pinned program; the pin goes when this is dropped.
struct Pin(std::path::PathBuf);

impl Drop for Pin {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_file(&self.0);
    }
}

/// A folder that everybody may read, removed when it is dropped.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = std::env::temp_dir().join(crate::site::unique(name));
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    fn path(&self, file: &str) -> String {
        self.0.join(file).display().to_string()
    }

    fn write(&self, file: &str, text: &str) -> Result<String> {
        fs::write(self.0.join(file), text).with_context(|| format!("write {file}"))?;
        Ok(self.path(file))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
