//! The classic stack: nginx as the balancer and keepalived for the floating address, as it is set up where
//! nobody has tuned it. `cargo xtask drill --compare` measures it beside ballast.

use std::{fmt::Write as _, fs, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Group, User},
};

use super::{
    HostName, Lab, netns,
    process::Program,
    topology::{APP_PORT, FLOATING_V4, HOSTS, Role},
};
use crate::{shell, wait};

/// How long a killed program may take to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(10);

const NGINX: &str = "\
# Written by `cargo xtask drill`.
daemon off;
worker_processes auto;
worker_rlimit_nofile 65536;
user @USER@;
pid @FOLDER@/balancer.pid;
error_log @LOG@ warn;
events { worker_connections 16384; }
http {
    access_log off;
    client_body_temp_path @FOLDER@/body;
    proxy_temp_path @FOLDER@/proxy;
    fastcgi_temp_path @FOLDER@/fastcgi;
    scgi_temp_path @FOLDER@/scgi;
    uwsgi_temp_path @FOLDER@/uwsgi;
    keepalive_requests 1000000;
    upstream app {
        least_conn;
@SERVERS@        keepalive 32;
    }
    server {
        listen 80 backlog=4096;
        location / {
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_connect_timeout 5s;
            proxy_read_timeout 30s;
            proxy_next_upstream error timeout;
        }
    }
}
";

const KEEPALIVED: &str = "\
# Written by `cargo xtask drill`.
vrrp_instance VI_1 {
    state @STATE@
    interface eth0
    virtual_router_id 51
    priority @PRIORITY@
    advert_int 1
    authentication {
        auth_type PASS
        auth_pass secretpassword
    }
    virtual_ipaddress {
        @ADDRESS@/24
    }
}
";

/// What a balancer of the classic stack runs: nginx, and then keepalived.
fn programs(lab: &Lab, host: HostName) -> [Program; 2] {
    let folder = lab.host_dir(host);
    let namespace = lab.namespace(host);
    let program = |name: &'static str, command: Command, pid: &str| {
        let (pid, namespace) = (folder.join(pid), namespace.clone());
        Program {
            name,
            namespace: namespace.clone(),
            command,
            pid_file: lab.pid_file(host, name),
            log: lab.log(host, name),
            ready: Box::new(move || {
                let pid = fs::read_to_string(&pid).ok().and_then(|pid| pid.trim().parse().ok());
                pid.zip(netns::id(&namespace)).is_some_and(|(pid, id)| netns::holds(id, pid))
            }),
        }
    };
    let find = |name: &str| shell::find_program(name).unwrap_or_else(|| name.into());
    let mut nginx = netns::command(&namespace, find("nginx"));
    nginx.arg("-p").arg(&folder).arg("-c").arg(folder.join("balancer.conf"));
    nginx.arg("-e").arg(lab.log(host, "balancer"));
    let mut keepalived = netns::command(&namespace, find("keepalived"));
    keepalived.args(["--dont-fork", "--log-console", "--vrrp", "--use-file"]);
    keepalived.arg(folder.join("keepalived.conf"));
    keepalived.arg("--pid").arg(folder.join("keepalived.pid"));
    keepalived.arg("--vrrp_pid").arg(folder.join("vrrp.pid"));
    [
        program("balancer", nginx, "balancer.pid"),
        program("keepalived", keepalived, "keepalived.pid"),
    ]
}

fn write_files(lab: &Lab, host: HostName) -> Result<()> {
    let folder = lab.host_dir(host);
    let user = User::from_name("nobody").context("look up nobody")?.context("find user nobody")?;
    let group = Group::from_gid(user.gid).context("look up nobody's group")?;
    let group = group.context("find nobody's group")?.name;
    let mut servers = String::new();
    for app in HOSTS.into_iter().filter(|host| host.role() == Role::App) {
        let _ = writeln!(servers, "        server {}:{APP_PORT};", app.ipv4());
    }
    let nginx = NGINX
        .replace("@USER@", &format!("nobody {group}"))
        .replace("@FOLDER@", &folder.display().to_string())
        .replace("@LOG@", &lab.log(host, "balancer").display().to_string())
        .replace("@SERVERS@", &servers);
    fs::write(folder.join("balancer.conf"), nginx).context("write the balancer's nginx.conf")?;
    let (state, priority) =
        if host == HostName::Lb01 { ("MASTER", "100") } else { ("BACKUP", "90") };
    let keepalived = KEEPALIVED
        .replace("@STATE@", state)
        .replace("@PRIORITY@", priority)
        .replace("@ADDRESS@", &FLOATING_V4.to_string());
    fs::write(folder.join("keepalived.conf"), keepalived).context("write keepalived.conf")
}

impl Lab {
    /// Starts what a balancer of the classic stack runs, as far as it does not run.
    pub fn start_classic(&self, host: &str) -> Result<()> {
        let host = super::find(host)?;
        write_files(self, host)?;
        programs(self, host).iter_mut().try_for_each(Program::start)
    }

    /// Stops it as a service manager would: keepalived, and then nginx.
    pub fn stop_classic(&self, host: &str) -> Result<()> {
        let [nginx, keepalived] = programs(self, super::find(host)?);
        keepalived.stop()?;
        nginx.stop()
    }

    /// Sends a signal to all processes of both, as to those of a service.
    pub fn signal_classic(&self, host: &str, signal: Signal) -> Result<()> {
        for program in programs(self, super::find(host)?) {
            let pid = program.pid().with_context(|| format!("find {}", program.name()))?;
            // They are process groups.
            killpg(pid, signal).with_context(|| format!("send {signal} to {}", program.name()))?;
        }
        Ok(())
    }

    /// Kills its nginx, the workers too: they would go on without their master.
    pub fn kill_classic_nginx(&self, host: &str) -> Result<()> {
        let [nginx, _] = programs(self, super::find(host)?);
        let pid = nginx.pid().context("find the balancer's nginx")?;
        // They are a process group.
        killpg(pid, Signal::SIGKILL).context("kill the balancer's nginx")?;
        wait::until(GONE_LIMIT, "nginx to be gone", || Ok(netns::has_ended(pid).then_some(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_in_the_files_is_filled() {
        let source = include_str!("classic.rs");
        for text in [NGINX, KEEPALIVED] {
            for name in text.split('@').skip(1).step_by(2) {
                assert!(source.contains(&format!(".replace(\"@{name}@\"")), "{name}");
            }
        }
    }
}
