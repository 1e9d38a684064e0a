//! The UDP echo of the app servers: `xtask serve-udp-echo`.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    HostName, Lab, netns,
    process::Program,
    topology::{ECHO_PORT, FLOATING_V4, FLOATING_V6},
};

/// How long a connection within one host may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// What `host` runs to echo.
pub(super) fn program(lab: &Lab, host: HostName) -> Program {
    let mut command = netns::command(&lab.namespace(host), lab.tool());
    command.args(["serve-udp-echo", "--name", host.as_str()]);
    if lab.options.steered {
        let floating: [SocketAddr; 2] =
            [(FLOATING_V4, ECHO_PORT).into(), (FLOATING_V6, ECHO_PORT).into()];
        command.args(floating.map(|socket| socket.to_string()));
    }
    command.args(host.sockets(ECHO_PORT).map(|socket| socket.to_string()));
    let namespace = lab.namespace(host);
    // Of its sockets this one is opened last.
    let last = SocketAddr::new(host.ipv6().into(), ECHO_PORT);
    Program {
        name: "echo",
        namespace: namespace.clone(),
        command,
        pid_file: lab.pid_file(host, "echo"),
        log: lab.log(host, "echo"),
        ready: Box::new(move || {
            let connect = || TcpStream::connect_timeout(&last, CONNECT_LIMIT).is_ok();
            netns::within(&namespace, connect).unwrap_or(false)
        }),
    }
}

/// Answers every datagram with `NAME:` and the same bytes; accepts and closes TCP connections at
/// the same address, so that a probe can tell whether it lives. Never returns without an error.
pub fn serve(name: &str, addresses: &[SocketAddr]) -> Result<()> {
    let sockets = addresses
        .iter()
        .map(|address| {
            let udp = UdpSocket::bind(address).with_context(|| format!("bind UDP {address}"))?;
            let tcp = TcpListener::bind(address).with_context(|| format!("bind TCP {address}"))?;
            Ok((udp, tcp))
        })
        .collect::<Result<Vec<_>>>()?;
    println!("serving {addresses:?}");
    thread::scope(|scope| {
        for (udp, tcp) in &sockets {
            scope.spawn(move || echo(name, udp));
            scope.spawn(move || tcp.incoming().for_each(drop));
        }
    });
    Ok(())
}

fn echo(name: &str, socket: &UdpSocket) {
    let mut buffer = vec![0; 65_536];
    let head = format!("{name}:").into_bytes();
    buffer[..head.len()].copy_from_slice(&head);
    loop {
        // An error here is an ICMP error about an earlier answer; the next datagram is another's.
        let Ok((length, from)) = socket.recv_from(&mut buffer[head.len()..]) else { continue };
        if let Err(error) = socket.send_to(&buffer[..head.len() + length], from) {
            eprintln!("answer {from}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_comes_back_with_the_name() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        thread::spawn(move || echo("app-01", &server));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for payload in ["hello", ""] {
            client.send_to(payload.as_bytes(), address).unwrap();
            let mut answer = [0; 64];
            let (length, from) = client.recv_from(&mut answer).unwrap();
            assert_eq!(&answer[..length], format!("app-01:{payload}").as_bytes());
            assert_eq!(from, address);
        }
    }
}
