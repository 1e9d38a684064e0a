//! The store that keeps who the primary is: etcd on both balancers and on the witness.

use std::net::{SocketAddr, TcpStream};

use super::{HostName, Lab, netns, process::Program};
use crate::shell;

/// The hosts that have a member.
pub(super) const MEMBERS: [HostName; 3] = [HostName::Lb01, HostName::Lb02, HostName::Witness];

/// Where clients ask.
const CLIENT_PORT: u16 = 2379;

/// Where the members talk to each other.
const PEER_PORT: u16 = 2380;

fn url(host: HostName, port: u16) -> String {
    format!("http://{}:{port}", host.ipv4())
}

/// The balancers' configuration of the store.
pub fn config() -> String {
    let members: Vec<_> = MEMBERS.map(|host| format!("\"{}\"", url(host, CLIENT_PORT))).into();
    format!("\n[consensus]\netcd = [{}]\n", members.join(", "))
}

/// What `host` runs.
pub(super) fn program(lab: &Lab, host: HostName) -> Program {
    let namespace = lab.namespace(host);
    let binary = shell::find_program("etcd").unwrap_or_else(|| "etcd".into());
    let mut command = netns::command(&namespace, &binary);
    let cluster: Vec<_> = MEMBERS.map(|host| format!("{host}={}", url(host, PEER_PORT))).into();
    let folder = lab.data_dir().join(host.as_str()).join("etcd");
    command.args(["--name", host.as_str(), "--data-dir"]).arg(folder);
    for (option, port) in [("client", CLIENT_PORT), ("peer", PEER_PORT)] {
        command.arg(format!("--listen-{option}-urls")).arg(url(host, port));
    }
    command.arg("--advertise-client-urls").arg(url(host, CLIENT_PORT));
    command.arg("--initial-advertise-peer-urls").arg(url(host, PEER_PORT));
    command.arg("--initial-cluster").arg(cluster.join(","));
    command.args(["--initial-cluster-token", &lab.options.name]);
    let address = SocketAddr::new(host.ipv4().into(), CLIENT_PORT);
    Program {
        name: "etcd",
        namespace: namespace.clone(),
        command,
        pid_file: lab.pid_file(host, "etcd"),
        log: lab.log(host, "etcd"),
        // It listens for clients once it has found the others.
        ready: Box::new(move || {
            netns::within(&namespace, || TcpStream::connect(address).is_ok()).unwrap_or(false)
        }),
    }
}
