//! The lab: a whole site on one machine, made of network namespaces and real programs.
//!
//! Every host of the design's lab table is a namespace `NAME-HOST` with an `eth0`, joined by a
//! bridge in `NAME-sw`. Several labs of different names may stand side by side: nothing of them is
//! in the machine's own network namespace. The hosts share the machine's file system and processes.
//!
//! `cargo xtask lab` and the tests use the same [`Lab`]. What is running is never remembered but
//! asked of the kernel, so every step may be repeated, and `down` clears up after any accident.
//!
//! | what | where |
//! |---|---|
//! | configurations, logs, pids, sockets | `/run/ballast-lab/NAME/` |
//! | data of the databases, uploads | `/var/lib/ballast-lab/NAME/` |
//! | pinned maps of a balancer | `/sys/fs/bpf/NAME-HOST/` |
//! | what all labs share and later ones use again | `/var/cache/ballast-lab/` |

use std::{
    collections::HashSet,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{bpffs, build, shell};

mod balancer;
mod classic;
mod disk;
mod echo;
mod etcd;
mod guard;
mod hosts;
mod machine;
mod netns;
mod network;
mod nginx;
mod options;
mod paths;
mod postgres;
mod process;
mod steered;
mod teardown;
pub mod topology;
mod xdp_pass;

pub use self::{
    balancer::{config as default_config, with_key},
    echo::serve as serve_udp_echo,
    etcd::config as etcd_config,
    guard::watch,
    machine::{Machine, host},
    nginx::BIG_BYTES,
    options::{Balancers, DEFAULT_NAME, Options, TEST_PREFIX, test_name},
    paths::RUN as RUN_DIR,
    postgres::{automatic as automatic_config, config as postgres_config},
    process::Program,
    steered::LONG_MTU,
    teardown::down,
    topology::HostName,
};
use self::{
    guard::Guard,
    options::{check_name, complete, standing},
    paths::make_dir,
    teardown::{Lock, clear, kill_all},
    topology::{HOSTS, Role},
};

/// A lab that stands. Dropping it takes it down, unless it was [kept](Lab::keep).
pub struct Lab {
    options: Options,
    hosts: Vec<Host>,
    /// This program, for the helpers that it runs.
    tool: PathBuf,
    owned: bool,
    guard: Option<Guard>,
}

/// A host of a lab.
#[derive(Clone, Debug)]
pub struct Host {
    name: HostName,
    namespace: String,
}

impl Host {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name.as_str()
    }

    /// Name of its network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> std::net::Ipv4Addr {
        self.name.ipv4()
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> std::net::Ipv6Addr {
        self.name.ipv6()
    }

    /// Has the packets that arrive here taken in by these CPUs alone, each below 32.
    pub fn receive_on(&self, cpus: &[usize]) -> Result<()> {
        network::steer(&self.namespace, cpus.iter().fold(0, |mask, cpu| mask | 1 << cpu))
    }

    /// Puts a program on its interface that passes every packet. So what it receives comes the same way
    /// as what a balancer receives.
    pub fn pass_by_xdp(&self) -> Result<()> {
        let pin = Path::new(bpffs::MOUNT_POINT).join(format!("{}-pass", self.namespace));
        xdp_pass::attach(&self.namespace, &["eth0".to_owned()], &pin)
    }

    /// A command that will run on this host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        netns::command(&self.namespace, program)
    }

    /// Runs `work` in a thread that is on this host; sockets that it opens stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        netns::within(&self.namespace, work)
    }
}

impl Lab {
    /// Brings a lab up and waits until all of it serves. When that fails, and when this process
    /// dies, however it dies, it is taken down.
    ///
    /// If it stands already, whatever is missing of it or newly asked for is started, and it is
    /// left standing in any case.
    pub fn up(options: Options) -> Result<Self> {
        check_name(&options.name)?;
        check_privilege()?;
        let tool = build::xtask()?;
        let lock = Lock::take(&options.name)?;
        let old = standing(&options.name);
        let options = complete(options, old.as_ref())?;
        let fresh = old.is_none();
        let guard = if fresh { Some(Guard::new(&tool, &options.name)?) } else { None };
        // From here on `Drop` clears up.
        let lab = Self { hosts: hosts(&options.name), options, tool, owned: fresh, guard };
        let result = lab.build(fresh);
        // `Drop` needs it.
        drop(lock);
        result.map(|()| lab)
    }

    fn build(&self, fresh: bool) -> Result<()> {
        if fresh {
            // Something half-built may be there, of a machine that lost power.
            clear(&self.options.name)?;
            network::build(self)?;
        }
        self.prepare()?;
        if self.options.steered {
            steered::prepare(self)?;
        }
        self.start_all()
    }

    /// The lab of this name, which stands already. It is not taken down when this value goes.
    pub fn attach(name: &str) -> Result<Self> {
        check_name(name)?;
        let Some(options) = standing(name) else {
            bail!("there is no lab `{name}`; `cargo xtask lab up --name {name}` makes it")
        };
        let tool = build::xtask()?;
        Ok(Self { hosts: hosts(name), options, tool, owned: false, guard: None })
    }

    /// Leaves the lab standing.
    pub fn keep(mut self) {
        self.owned = false;
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
    }

    /// Whether dropping it takes it down.
    pub fn is_owned(&self) -> bool {
        self.owned
    }

    /// Takes the lab down and says what went wrong with that; dropping does it in silence.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        let result = down(&self.options.name);
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
        result
    }

    /// A host by its name.
    ///
    /// # Panics
    /// If no host has the name.
    pub fn host(&self, name: &str) -> &Host {
        let host = self.hosts.iter().find(|host| host.name() == name);
        host.unwrap_or_else(|| panic!("the lab has no host `{name}`"))
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Runs `work` in a thread that is in the switch, whose ports are `p-HOST`.
    pub fn within_switch<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        netns::within(&self.switch(), work)
    }

    /// A program of a host: `ballast`, `etcd`, `nginx`, `echo` or `postgres`.
    ///
    /// # Panics
    /// If the host runs no such program.
    pub fn program(&self, host: &str, name: &str) -> Program {
        let programs = HostName::find(host).map(|host| self.programs(host)).unwrap_or_default();
        let program = programs.into_iter().find(|program| program.name() == name);
        program.unwrap_or_else(|| panic!("host `{host}` has no program `{name}`"))
    }

    /// The ballast daemon of a balancer.
    ///
    /// # Panics
    /// If the host is no balancer.
    pub fn daemon(&self, host: &str) -> Program {
        self.program(host, "ballast")
    }

    /// The command that runs the daemon of a balancer, for a second one beside the lab's own.
    ///
    /// # Panics
    /// If no host has the name.
    pub fn daemon_command(&self, host: &str) -> Command {
        balancer::command(self, self.host(host).name)
    }

    /// `ballast SUBCOMMAND` that speaks to the daemon of a balancer.
    ///
    /// # Panics
    /// If no host has the name.
    pub fn ballast_command(&self, host: &str, subcommand: &str) -> Command {
        balancer::client(&self.ballast(), &self.socket(self.host(host).name), subcommand)
    }

    /// `ballast decap` for the interface of an app server, to which arguments may be added.
    ///
    /// # Panics
    /// If no host has the name.
    pub fn decap_command(&self, host: &str) -> Command {
        steered::decap_command(self, self.host(host).name)
    }

    /// SIGKILL for every process on the host; its link stays.
    pub fn kill(&self, host: &str) -> Result<()> {
        let namespace = self.namespace(find(host)?);
        let id = netns::id(&namespace).with_context(|| format!("find namespace {namespace}"))?;
        kill_all(&HashSet::from([id]))
    }

    /// Starts what the host ought to run, as far as it does not.
    pub fn start(&self, host: &str) -> Result<()> {
        let host = find(host)?;
        if host.role() == Role::Postgres {
            return if self.options.postgres { postgres::restart(self, host) } else { Ok(()) };
        }
        let mut programs = self.wanted(host);
        programs.iter_mut().try_for_each(Program::spawn)?;
        programs.iter().try_for_each(Program::wait_ready)
    }

    /// Pulls the host's cable, at the switch: nobody hears of it any more, and its processes go on.
    pub fn cut(&self, host: &str) -> Result<()> {
        network::set_port(self, find(host)?, "down")
    }

    /// Plugs it in again.
    pub fn heal(&self, host: &str) -> Result<()> {
        network::set_port(self, find(host)?, "up")
    }

    /// Makes an app server's `/id` answer 503, or 200 again; connections and `/` stay as they are.
    pub fn set_sick(&self, host: &str, sick: bool) -> Result<()> {
        let file = self.host_dir(find(host)?).join("sick");
        if sick {
            File::create(&file).with_context(|| format!("make {}", file.display()))?;
        } else if let Err(error) = fs::remove_file(&file)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("remove {}", file.display()));
        }
        Ok(())
    }

    /// Where a `PUT /upload/FILE` on this app server ends up.
    pub fn upload(&self, host: &str, file: &str) -> PathBuf {
        self.data_dir().join(host).join("upload").join(file)
    }

    /// The file that `/big` answers with on every app server, [`BIG_BYTES`] long.
    pub fn big_file(&self) -> Result<PathBuf> {
        nginx::big_file(&self.options.name)
    }

    /// Configurations, logs, pids and sockets.
    pub fn state_dir(&self) -> PathBuf {
        paths::run_dir(&self.options.name)
    }

    /// Data of the databases, and uploads.
    pub fn data_dir(&self) -> PathBuf {
        paths::data_dir(&self.options.name)
    }

    /// The balancers' configuration file.
    pub fn config(&self) -> PathBuf {
        self.state_dir().join("ballast.toml")
    }

    /// Where a program of a host logs to.
    pub fn log(&self, host: HostName, program: &str) -> PathBuf {
        self.state_dir().join("logs").join(format!("{host}.{program}.log"))
    }

    /// Socket of the daemon of a balancer.
    pub fn socket(&self, host: HostName) -> PathBuf {
        self.host_dir(host).join("ballast.sock")
    }

    /// Folder of the maps that a balancer pins.
    pub fn pin_dir(&self, host: HostName) -> PathBuf {
        Path::new(bpffs::MOUNT_POINT).join(self.namespace(host))
    }

    /// What every host is and does, for people.
    pub fn status(&self) -> Result<Vec<HostStatus>> {
        HOSTS.into_iter().map(|host| self.host_status(host)).collect()
    }

    fn host_status(&self, host: HostName) -> Result<HostStatus> {
        let programs = self
            .wanted(host)
            .iter()
            .map(|program| (program.name(), program.pid().map(nix::unistd::Pid::as_raw)))
            .collect::<Vec<_>>();
        let serves = programs.iter().all(|(_, pid)| pid.is_some());
        let note = match host.role() {
            Role::Postgres if self.options.postgres && serves => {
                self.postgres_state(host).unwrap_or_else(|_| "does not answer".into())
            }
            _ => String::new(),
        };
        Ok(HostStatus { host, plugged_in: network::port_is_up(self, host)?, programs, note })
    }

    /// Everything that the host can run.
    fn programs(&self, host: HostName) -> Vec<Program> {
        match host.role() {
            Role::Balancer => vec![etcd::program(self, host), balancer::program(self, host)],
            Role::App => vec![nginx::program(self, host), echo::program(self, host)],
            Role::Postgres => vec![postgres::program(self, host)],
            Role::Witness => vec![etcd::program(self, host)],
            Role::Client => Vec::new(),
        }
    }

    /// What it ought to run in this lab.
    fn wanted(&self, host: HostName) -> Vec<Program> {
        let wanted = match host.role() {
            Role::Balancer => match self.options.balancers {
                Balancers::None => false,
                Balancers::First => host == HostName::Lb01,
                Balancers::Both => true,
            },
            Role::App => usize::from(host.number() - HostName::App01.number()) < self.options.apps,
            Role::Postgres => self.options.postgres,
            Role::Client | Role::Witness => false,
        };
        let mut programs = self.programs(host);
        let etcd = self.options.etcd;
        programs.retain(|program| if program.name == "etcd" { etcd } else { wanted });
        programs
    }

    /// Writes all files that the programs need.
    fn prepare(&self) -> Result<()> {
        HOSTS.into_iter().try_for_each(|host| self.prepare_host(host))?;
        let text = serde_json::to_string_pretty(&self.options).context("describe the lab")?;
        fs::write(self.state_dir().join("lab.json"), text).context("write lab.json")
    }

    /// Writes the files that the programs of a host need.
    fn prepare_host(&self, host: HostName) -> Result<()> {
        for folder in ["pids", "logs"] {
            make_dir(&self.state_dir().join(folder))?;
        }
        make_dir(&self.host_dir(host))?;
        make_dir(&self.data_dir())?;
        match host.role() {
            Role::App => nginx::prepare(self, host),
            Role::Balancer => self.write_config(),
            Role::Client | Role::Postgres | Role::Witness => Ok(()),
        }
    }

    /// Writes the balancers' configuration.
    fn write_config(&self) -> Result<()> {
        postgres::write_password(self)?;
        balancer::write_key(self)?;
        let database = || match (self.options.postgres, self.options.etcd) {
            (true, true) => self.with_hosts(&postgres::automatic()) + &etcd::config(),
            (true, false) => self.with_hosts(&postgres::config()),
            (false, _) => String::new(),
        };
        let config = self.options.config.clone();
        let config =
            config.unwrap_or_else(|| balancer::with_key(&balancer::config()) + &database());
        fs::write(self.config(), self.complete_config(&config)).context("write ballast.toml")
    }

    /// A configuration in which `@LAB@` is the lab's folder, as in [`postgres_config`] and [`with_key`].
    pub fn complete_config(&self, text: &str) -> String {
        text.replace(postgres::FOLDER, &self.state_dir().display().to_string())
    }

    fn start_all(&self) -> Result<()> {
        if self.options.etcd {
            // They wait for each other.
            let mut members = etcd::MEMBERS.map(|host| etcd::program(self, host));
            members.iter_mut().try_for_each(Program::spawn)?;
            members.iter().try_for_each(Program::wait_ready)?;
        }
        std::thread::scope(|scope| {
            let databases = self.options.postgres.then(|| scope.spawn(|| postgres::start(self)));
            let others = self.start_others();
            let databases = databases.map_or(Ok(()), |thread| {
                thread.join().unwrap_or_else(|_| bail!("the thread for the databases panicked"))
            });
            others.and(databases)
        })
    }

    fn start_others(&self) -> Result<()> {
        // The balancers last: they find their backends up.
        for role in [Role::App, Role::Balancer] {
            let hosts = HOSTS.into_iter().filter(|host| host.role() == role);
            let mut programs: Vec<Program> = hosts.flat_map(|host| self.wanted(host)).collect();
            programs.iter_mut().try_for_each(Program::spawn)?;
            programs.iter().try_for_each(Program::wait_ready)?;
        }
        Ok(())
    }

    fn namespace(&self, host: HostName) -> String {
        paths::namespace(&self.options.name, host.as_str())
    }

    fn switch(&self) -> String {
        paths::namespace(&self.options.name, paths::SWITCH)
    }

    fn host_dir(&self, host: HostName) -> PathBuf {
        self.state_dir().join(host.as_str())
    }

    /// File with the number of the process of a program.
    pub fn pid_file(&self, host: HostName, program: &str) -> PathBuf {
        self.state_dir().join("pids").join(format!("{host}.{program}"))
    }

    fn tool(&self) -> &Path {
        &self.tool
    }

    fn ballast(&self) -> PathBuf {
        self.options.ballast.clone().unwrap_or_else(|| "ballast".into())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = down(&self.options.name)
        {
            eprintln!("take down lab {}: {error:#}", self.options.name);
        }
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
    }
}

/// A line of `lab status`.
pub struct HostStatus {
    /// The host.
    pub host: HostName,
    /// Whether its cable is in.
    pub plugged_in: bool,
    /// What it ought to run, with the process of what does run.
    pub programs: Vec<(&'static str, Option<i32>)>,
    /// More about it, or nothing.
    pub note: String,
}

fn hosts(lab: &str) -> Vec<Host> {
    HOSTS.map(|name| Host { name, namespace: paths::namespace(lab, name.as_str()) }).into()
}

fn find(host: &str) -> Result<HostName> {
    HostName::find(host).with_context(|| {
        let names = HOSTS.map(HostName::as_str).join(", ");
        format!("find host `{host}`: the lab has {names}")
    })
}

fn check_privilege() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab needs root, for network namespaces and XDP: run it again as root");
    }
    if !bpffs::is_mounted() {
        let mount = shell::display(&bpffs::mount_command());
        bail!("no BPF file system at {}: `{mount}` mounts it", bpffs::MOUNT_POINT);
    }
    Ok(())
}
