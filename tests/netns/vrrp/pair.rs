//! A lab with two balancers.

use std::{
    fs,
    process::{Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::{
    lab::{Balancers, Host, HostName, Lab, Options, default_config},
    shell,
};

use crate::site::{ensure_gone, eventually, text, unique};

/// The floating addresses of the lab.
pub(super) const FLOATING: [&str; 2] = ["192.0.2.100", "2001:db8::100"];

/// Lines of a log that a failing test prints.
const PRINTED_LINES: usize = 30;

const BALANCERS: [HostName; 2] = [HostName::Lb01, HostName::Lb02];

/// Two balancers, or one beside something else.
pub(super) struct Pair {
    /// Taken by [`Pair::finish`].
    lab: Option<Lab>,
}

impl Pair {
    /// Both run ballast, with the lab's own configuration after these replacements. lb-01 is Active, and
    /// lb-02 follows it.
    pub(super) fn up(name: &str, edits: &[(&str, &str)]) -> Result<Self> {
        let pair = Self::with(name, edits, Balancers::First)?;
        pair.until_active(HostName::Lb01)?;
        pair.lab().daemon("lb-02").start()?;
        pair.until("lb-02 to follow", HostName::Lb02, |vrrp| {
            vrrp["role"] == "backup" && vrrp["active"].is_string()
        })?;
        Ok(pair)
    }

    /// The same, with other balancers.
    pub(super) fn with(name: &str, edits: &[(&str, &str)], balancers: Balancers) -> Result<Self> {
        let config = Some(edited(&default_config(), edits)?);
        // Named, so that a daemon can be started later.
        let ballast = Some(xtask::build::ballast()?);
        let name = unique(name);
        let options = Options { name, config, balancers, ballast, ..Options::default() };
        Ok(Self { lab: Some(Lab::up(options)?) })
    }

    pub(super) fn lab(&self) -> &Lab {
        self.lab.as_ref().expect("only `finish` takes the lab")
    }

    pub(super) fn host(&self, host: HostName) -> &Host {
        self.lab().host(host.as_str())
    }

    /// Changes the configuration file; a reload puts that into force.
    pub(super) fn edit_config(&self, edits: &[(&str, &str)]) -> Result<()> {
        let file = self.lab().config();
        let text = fs::read_to_string(&file).context("read the configuration")?;
        fs::write(file, edited(&text, edits)?).context("write the configuration")
    }

    /// `ballast …` for the daemon of a balancer, with arguments as one types them.
    pub(super) fn ballast(&self, host: HostName, words: &str) -> Result<Output> {
        let (command, arguments) = words.split_once(' ').unwrap_or((words, ""));
        let mut command = self.lab().ballast_command(host.as_str(), command);
        command.args(arguments.split_whitespace()).stdin(Stdio::null());
        command.output().with_context(|| format!("run `{}`", shell::display(&command)))
    }

    /// The same, which must succeed; gives its standard output.
    pub(super) fn obeys(&self, host: HostName, words: &str) -> Result<String> {
        let output = self.ballast(host, words)?;
        ensure!(output.status.success(), "`ballast {words}` on {host}: {}", text(&output));
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(super) fn status(&self, host: HostName) -> Result<Value> {
        Ok(serde_json::from_str(&self.obeys(host, "status --json")?)?)
    }

    /// The timeline, as people read it.
    pub(super) fn events(&self, host: HostName) -> Result<String> {
        self.obeys(host, "events")
    }

    /// How the virtual router stands on a host.
    pub(super) fn vrrp(&self, host: HostName) -> Result<Value> {
        Ok(self.status(host)?["vrrp"][0].clone())
    }

    /// Waits until it stands as asked.
    pub(super) fn until(
        &self,
        what: &str,
        host: HostName,
        mut so: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        eventually(what, || {
            last = self.vrrp(host)?;
            Ok(so(&last).then_some(()))
        })
        .with_context(|| format!("{host}: {last}"))?;
        Ok(last)
    }

    pub(super) fn until_role(&self, host: HostName, role: &str) -> Result<Value> {
        self.until(&format!("{host} to be {role}"), host, |vrrp| vrrp["role"] == role)
    }

    /// Waits until a host is Active and has the addresses.
    pub(super) fn until_active(&self, host: HostName) -> Result<()> {
        self.until_role(host, "active")?;
        eventually("the addresses to be there", || {
            let status = self.status(host)?;
            let all = status["floating"].as_array().context("list the addresses")?;
            Ok(all.iter().all(|it| it["held"] == true).then_some(()))
        })
    }

    pub(super) fn ip(&self, host: HostName, words: &str) -> Result<String> {
        let mut command = self.host(host).command("ip");
        shell::output(command.args(words.split_whitespace()))
    }

    /// Whether the kernel of a host has a floating address.
    pub(super) fn has_address(&self, host: HostName) -> Result<bool> {
        let shown = self.ip(host, "-o address show dev eth0")?;
        Ok(FLOATING.iter().any(|vip| shown.contains(vip)))
    }

    /// The MAC address that the client is told for an address.
    pub(super) fn who_answers(&self, vip: &str) -> Result<String> {
        let target = std::net::SocketAddr::new(vip.parse()?, 9);
        self.host(HostName::Client).within(|| -> Result<()> {
            let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            std::net::UdpSocket::bind(any)?.send_to(b"who", target)?;
            Ok(())
        })??;
        eventually("an answer", || {
            let shown = self.ip(HostName::Client, &format!("neigh show {vip} dev eth0"))?;
            let mac = shown.split_once("lladdr ").map(|(_, rest)| rest);
            Ok(mac.and_then(|rest| rest.split_whitespace().next()).map(str::to_owned))
        })
    }

    /// Lets a host hear no adverts.
    pub(super) fn deafen(&self, host: HostName) -> Result<()> {
        let rules = "table inet deaf {\n chain input {\n type filter hook input priority 0;\n \
                     meta l4proto 112 drop\n }\n}\n";
        let mut command = self.host(host).command("nft");
        shell::output_of(command.args(["-f", "-"]), rules).map(drop)
    }

    /// Lets it hear them again.
    pub(super) fn restore(&self, host: HostName) -> Result<()> {
        let mut command = self.host(host).command("nft");
        shell::output(command.args(["delete", "table", "inet", "deaf"])).map(drop)
    }

    /// The last step of each test: no daemon has panicked, and nothing of the lab stays behind.
    pub(super) fn finish(mut self) -> Result<()> {
        for host in BALANCERS {
            ensure!(!self.log(host).contains("panicked at"), "the daemon of {host} has panicked");
        }
        let lab = self.lab.take().context("take the lab")?;
        let name = lab.hosts()[0].namespace().trim_end_matches("-client").to_owned();
        lab.down()?;
        ensure_gone(&name)
    }

    fn log(&self, host: HostName) -> String {
        fs::read_to_string(self.lab().log(host, "ballast")).unwrap_or_default()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // `finish` was not reached.
        if self.lab.is_none() {
            return;
        }
        for host in BALANCERS {
            if let Ok(output) = self.ballast(host, "status") {
                println!("--- status of {host}\n{}", text(&output));
            }
            let log = self.log(host);
            let lines: Vec<&str> = log.lines().collect();
            println!("--- end of the log of {host}");
            for line in &lines[lines.len().saturating_sub(PRINTED_LINES)..] {
                println!("{line}");
            }
        }
    }
}

/// A text after replacements, each of which must find something.
fn edited(text: &str, edits: &[(&str, &str)]) -> Result<String> {
    let mut text = text.to_owned();
    for (from, to) in edits {
        ensure!(text.contains(from), "the configuration has no `{from}`");
        text = text.replace(from, to);
    }
    Ok(text)
}
