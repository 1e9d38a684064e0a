//! The balancers: ballast itself, and the configuration that it gets in the lab.

use std::{
    fmt::Write as _,
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::{
    HostName, Lab, netns,
    postgres::FOLDER,
    process::Program,
    topology::{APP_PORT, ECHO_PORT, FLOATING_V4, FLOATING_V6, HOSTS, Role},
};

/// The file of the key by which the nodes know each other, in the lab's folder.
const KEY_FILE: &str = "cluster.key";

/// A laboratory's. It is the same in every lab, because machines of one lab need not share a folder.
const KEY: &str = "no secret: every lab has this key\n";

/// What `host` runs to balance.
pub(super) fn program(lab: &Lab, host: HostName) -> Program {
    let socket = lab.socket(host);
    let pid_file = lab.pid_file(host, "ballast");
    Program {
        name: "ballast",
        namespace: lab.namespace(host),
        command: command(lab, host),
        pid_file: pid_file.clone(),
        log: lab.log(host, "ballast"),
        ready: Box::new(move || answers(&socket, &pid_file)),
    }
}

/// Whether the process that was started last is the one that listens. A socket left by a killed daemon refuses,
/// but perhaps not from the first moment on.
fn answers(socket: &Path, pid_file: &Path) -> bool {
    let listener = UnixStream::connect(socket).ok();
    let listener = listener.and_then(|it| getsockopt(&it, PeerCredentials).ok());
    let started = fs::read_to_string(pid_file).ok().and_then(|pid| pid.trim().parse().ok());
    listener.is_some_and(|listener| Some(listener.pid()) == started)
}

/// `ballast run …` of this node.
pub(super) fn command(lab: &Lab, host: HostName) -> Command {
    let mut command = netns::command(&lab.namespace(host), lab.ballast());
    command.arg("run").arg("--config").arg(lab.config());
    command.args(["--node", host.as_str()]);
    command.arg("--socket").arg(lab.socket(host));
    command.arg("--state-dir").arg(lab.host_dir(host).join("state"));
    command.arg("--pin-dir").arg(lab.pin_dir(host));
    command
}

/// The lab's configuration: every app server behind the floating addresses, by HTTP and by UDP.
pub fn config() -> String {
    let mut text =
        String::from("# Written by `cargo xtask lab up`.\n[cluster]\nname = \"lab\"\n\n");
    for (host, priority) in [(HostName::Lb01, 100), (HostName::Lb02, 90)] {
        let address = host.ipv4();
        let _ = write!(
            text,
            "[[node]]\nname = \"{host}\"\naddress = \"{address}\"\ninterface = \"eth0\"\n\
             priority = {priority}\n\n"
        );
    }
    let _ = write!(
        text,
        "[[floating]]\nvrid = 51\naddresses = [\"{FLOATING_V4}/24\", \"{FLOATING_V6}/64\"]\n\
         interval = \"100ms\"\n"
    );
    let http = "probe = \"http\"\n  path = \"/id\"\n  expect = \"200\"";
    // The echo accepts TCP connections too.
    let tcp = "probe = \"tcp\"";
    for (name, listen, protocol, family, port, probe) in [
        ("web", format!("{FLOATING_V4}:80"), "tcp", 0, APP_PORT, http),
        ("web6", format!("[{FLOATING_V6}]:80"), "tcp", 1, APP_PORT, http),
        ("echo", format!("{FLOATING_V4}:{ECHO_PORT}"), "udp", 0, ECHO_PORT, tcp),
        ("echo6", format!("[{FLOATING_V6}]:{ECHO_PORT}"), "udp", 1, ECHO_PORT, tcp),
    ] {
        let _ = write!(
            text,
            "\n[[service]]\nname = \"{name}\"\nlisten = \"{listen}\"\nprotocol = \"{protocol}\"\n"
        );
        for host in HOSTS.into_iter().filter(|host| host.role() == Role::App) {
            let address = host.sockets(port)[family];
            let _ = write!(
                text,
                "  [[service.backend]]\n  name = \"{host}\"\n  address = \"{address}\"\n"
            );
        }
        let _ = write!(text, "  [service.health]\n  {probe}\n");
    }
    text
}

/// A configuration with the key by which the nodes know each other, in the lab's folder.
pub fn with_key(config: &str) -> String {
    let line = format!("[cluster]\nsecret_file = \"{FOLDER}/{KEY_FILE}\"\n");
    config.replacen("[cluster]\n", &line, 1)
}

/// Writes that key.
pub(super) fn write_key(lab: &Lab) -> Result<()> {
    let path = lab.state_dir().join(KEY_FILE);
    fs::write(&path, KEY).context("write the key of the nodes")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context("keep it from others")
}

/// `ballast COMMAND` for the daemon at `socket`.
pub(super) fn client(ballast: &Path, socket: &Path, subcommand: &str) -> Command {
    let mut command = Command::new(ballast);
    command.arg(subcommand).arg("--socket").arg(socket);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_belongs_to_the_cluster() {
        let text = with_key(&config());
        assert!(text.contains("[cluster]\nsecret_file = \"@LAB@/cluster.key\"\nname = "), "{text}");
    }

    #[test]
    fn the_configuration_names_every_service_and_backend() {
        let text = config();
        for line in [
            "addresses = [\"192.0.2.100/24\", \"2001:db8::100/64\"]",
            "listen = \"192.0.2.100:80\"",
            "listen = \"[2001:db8::100]:80\"",
            "listen = \"192.0.2.100:9000\"",
            "listen = \"[2001:db8::100]:9000\"",
        ] {
            assert_eq!(text.matches(line).count(), 1, "{line}");
        }
        assert_eq!(text.matches("name = \"app-02\"").count(), 4);
        assert_eq!(text.matches("address = \"192.0.2.22:8080\"").count(), 1);
        assert_eq!(text.matches("address = \"[2001:db8::22]:9000\"").count(), 1);
    }
}
