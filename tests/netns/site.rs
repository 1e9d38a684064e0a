//! A lab under test: its daemon's status, its commands, and what is printed when the test fails.

use std::{
    fs,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use xtask::{
    bpffs,
    lab::{Balancers, Host, HostName, Lab, Options},
    shell, wait,
};

/// How long anything may take that ought to happen at all. Nothing waits so long when all is well.
const LIMIT: Duration = Duration::from_mins(1);

/// Lines of a log that a failing test prints.
const PRINTED_LINES: usize = 60;

/// A lab with one balancer, lb-01.
pub(crate) struct Site {
    /// Taken by [`Site::finish`].
    lab: Option<Lab>,
    balancer: HostName,
}

impl Site {
    /// Brings a lab up whose daemon has this configuration, and waits until it has settled.
    pub(crate) fn up(name: &str, config: String) -> Result<Self> {
        let site = Self::with(name, Options { config: Some(config), ..Options::default() })?;
        site.settled()?;
        // With another node in the configuration, it listens for that one first.
        site.holding()?;
        Ok(site)
    }

    /// Brings a lab up without a daemon, which will have this configuration when it is started.
    pub(crate) fn without_daemon(name: &str, config: String) -> Result<Self> {
        // The daemon's binary is given by name, so that a daemon can be started later.
        let ballast = Some(xtask::build::ballast()?);
        let balancers = Balancers::None;
        Self::with(name, Options { config: Some(config), balancers, ballast, ..Options::default() })
    }

    /// Brings a lab up. The name is made unique.
    pub(crate) fn with(name: &str, options: Options) -> Result<Self> {
        let lab = Lab::up(Options { name: unique(name), ..options })?;
        Ok(Self { lab: Some(lab), balancer: HostName::Lb01 })
    }

    /// The same with lb-02 as its balancer.
    pub(crate) fn on_lb02(mut self) -> Self {
        self.balancer = HostName::Lb02;
        self
    }

    /// The lab.
    pub(crate) fn lab(&self) -> &Lab {
        self.lab.as_ref().expect("only `finish` takes the lab")
    }

    /// A host.
    pub(crate) fn host(&self, host: HostName) -> &Host {
        self.lab().host(host.as_str())
    }

    /// The client.
    pub(crate) fn client(&self) -> &Host {
        self.host(HostName::Client)
    }

    /// The balancer's host.
    pub(crate) fn balancer(&self) -> &Host {
        self.host(self.balancer)
    }

    /// The daemon's process and what starts and ends it.
    pub(crate) fn daemon(&self) -> xtask::lab::Program {
        self.lab().daemon(self.balancer.as_str())
    }

    /// Folder of the daemon's pins.
    pub(crate) fn pins(&self) -> std::path::PathBuf {
        self.lab().pin_dir(self.balancer)
    }

    /// What the daemon has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.lab().log(self.balancer, "ballast")).unwrap_or_default()
    }

    /// `ballast …` for the daemon, with arguments as one types them.
    pub(crate) fn ballast(&self, words: &str) -> Result<Output> {
        let (command, arguments) = words.split_once(' ').unwrap_or((words, ""));
        let mut command = self.lab().ballast_command(self.balancer.as_str(), command);
        command.args(arguments.split_whitespace()).stdin(Stdio::null());
        command.output().with_context(|| format!("run `{}`", shell::display(&command)))
    }

    /// The same, which must succeed; gives its standard output.
    pub(crate) fn obeys(&self, words: &str) -> Result<String> {
        let output = self.ballast(words)?;
        ensure!(
            output.status.success(),
            "`ballast {words}` ended with {}: {}",
            output.status,
            text(&output)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same, which must be refused with exit code 1; gives all that it printed.
    pub(crate) fn refuses(&self, words: &str) -> Result<String> {
        let output = self.ballast(words)?;
        let text = text(&output);
        ensure!(
            output.status.code() == Some(1),
            "`ballast {words}` ended with {}: {text}",
            output.status
        );
        Ok(text)
    }

    /// What the daemon says of itself.
    pub(crate) fn status(&self) -> Result<Status> {
        Ok(Status(serde_json::from_str(&self.obeys("status --json")?)?))
    }

    /// The daemon's timeline.
    pub(crate) fn events(&self) -> Result<Vec<Value>> {
        let text = self.obeys("events --json")?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Waits until the status is as asked, and gives it.
    pub(crate) fn until(&self, what: &str, mut so: impl FnMut(&Status) -> bool) -> Result<Status> {
        eventually(what, || {
            let status = self.status()?;
            Ok(so(&status).then_some(status))
        })
    }

    /// Waits until every backend has been probed and has its next hop.
    pub(crate) fn settled(&self) -> Result<Status> {
        self.until("all backends to serve", |status| {
            status.backends().all(|backend| backend["health"] != "unknown")
                && status.backends().all(|backend| {
                    backend["serving"] == true
                        || backend["backup"] == true
                        || backend["health"] == "down"
                })
        })
    }

    /// Waits until the balancer has the floating addresses.
    pub(crate) fn holding(&self) -> Result<Status> {
        self.until("the floating addresses to be held", |status| {
            list(&status.0["floating"]).all(|floating| floating["held"] == true)
        })
    }

    /// Waits until the backend of the service begins or ceases to get new connections.
    pub(crate) fn until_serving(
        &self,
        service: &str,
        backend: &str,
        serving: bool,
    ) -> Result<Status> {
        let word = if serving { "serve" } else { "cease to serve" };
        self.until(&format!("{backend} of {service} to {word}"), |status| {
            status.backend(service, backend)["serving"] == serving
        })
    }

    /// Replaces the configuration file.
    pub(crate) fn write_config(&self, text: &str) -> Result<()> {
        let text = self.lab().complete_config(text);
        fs::write(self.lab().config(), text).context("write the configuration")
    }

    /// Runs a program on a host to its end and gives what it printed.
    pub(crate) fn run(&self, host: HostName, words: &[&str]) -> Result<String> {
        let mut command = self.host(host).command(words[0]);
        shell::output(command.args(&words[1..]))
    }

    /// Runs `ip` on a host, with arguments as one types them.
    pub(crate) fn ip(&self, host: HostName, words: &str) -> Result<String> {
        let words: Vec<&str> = std::iter::once("ip").chain(words.split_whitespace()).collect();
        self.run(host, &words)
    }

    /// Sets a kernel parameter of a host: `net/…`, as below `/proc/sys`.
    pub(crate) fn set(&self, host: HostName, key: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that looks.
        let write = || fs::write(format!("/proc/sys/{key}"), value);
        self.host(host).within(write)?.with_context(|| format!("set {key} on {host}"))
    }

    /// The last step of each test: the daemon has not panicked, and nothing of the lab stays behind.
    pub(crate) fn finish(mut self) -> Result<()> {
        ensure!(!self.log().contains("panicked at"), "the daemon has panicked");
        let lab = self.lab.take().context("take the lab")?;
        let name = lab.hosts()[0].namespace().trim_end_matches("-client").to_owned();
        lab.down()?;
        ensure_gone(&name)
    }

    fn print(&self) {
        let lab = self.lab();
        if let Ok(output) = self.ballast("status") {
            println!("--- status\n{}", text(&output));
        }
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        println!("--- end of the daemon's log");
        for line in &lines[lines.len().saturating_sub(PRINTED_LINES)..] {
            println!("{line}");
        }
        for host in super::config::APPS {
            let log = fs::read_to_string(lab.log(host, "nginx")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("setrlimit")).collect();
            if !lines.is_empty() {
                println!("--- end of nginx's log on {host}");
                lines.iter().rev().take(10).rev().for_each(|line| println!("{line}"));
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // `finish` was not reached.
        if self.lab.is_some() {
            self.print();
        }
    }
}

/// What the daemon says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Status(pub(crate) Value);

impl Status {
    /// The service of this name.
    pub(crate) fn service(&self, name: &str) -> &Value {
        self.services()
            .find(|service| service["name"] == name)
            .unwrap_or_else(|| panic!("status names no service {name}: {}", self.0))
    }

    /// Whether there is a service of this name.
    pub(crate) fn has_service(&self, name: &str) -> bool {
        self.services().any(|service| service["name"] == name)
    }

    /// The backend of this name.
    pub(crate) fn backend(&self, service: &str, name: &str) -> &Value {
        list(&self.service(service)["backends"])
            .find(|backend| backend["name"] == name)
            .unwrap_or_else(|| panic!("status names no backend {name} of {service}: {}", self.0))
    }

    fn services(&self) -> impl Iterator<Item = &Value> {
        list(&self.0["services"])
    }

    /// Every backend of every service.
    pub(crate) fn backends(&self) -> impl Iterator<Item = &Value> {
        self.services().flat_map(|service| list(&service["backends"]))
    }

    /// A count summed over the backends of a service.
    pub(crate) fn sum(&self, service: &str, field: &str) -> u64 {
        list(&self.service(service)["backends"]).map(|backend| number(&backend[field])).sum()
    }

    /// Packets not forwarded for this reason.
    pub(crate) fn reason(&self, label: &str) -> u64 {
        self.0["reasons"][label].as_u64().unwrap_or(0)
    }

    /// What a human should look at.
    pub(crate) fn warnings(&self) -> String {
        list(&self.0["warnings"]).filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A count in a status.
pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// Asks until there is an answer.
pub(crate) fn eventually<T>(what: &str, ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait::until(LIMIT, what, ask)
}

/// All that a command printed.
pub(crate) fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

/// A name that no other lab has, also if the same tests run twice on a machine.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("t{}-{number}-{name}", std::process::id())
}

/// Fails if anything of the lab `name` is still there.
pub(crate) fn ensure_gone(name: &str) -> Result<()> {
    let left = remains(name)?;
    if !left.is_empty() {
        bail!("of lab {name} is left: {}", left.join(", "));
    }
    Ok(())
}

/// What is there of the lab `name`.
pub(crate) fn remains(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let places = ["/run/netns", bpffs::MOUNT_POINT, "/run/ballast-lab", "/var/lib/ballast-lab"];
    for place in places {
        let Ok(entries) = fs::read_dir(place) else { continue };
        for entry in entries {
            let file = entry?.file_name().to_string_lossy().into_owned();
            let of_lab = file
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']));
            if of_lab {
                found.push(format!("{place}/{file}"));
            }
        }
    }
    // Its processes name its folders, or are in its namespaces, which are gone.
    let folder = format!("/run/ballast-lab/{name}/");
    let mut command = Command::new("pgrep");
    let output = command.args(["-f", &folder]).output().context("run pgrep")?;
    let own = std::process::id().to_string();
    let pids = String::from_utf8_lossy(&output.stdout).into_owned();
    found.extend(pids.lines().filter(|pid| *pid != own).map(|pid| format!("process {pid}")));
    Ok(found)
}
