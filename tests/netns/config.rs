//! Configurations for the balancers, put together in code.

use std::{fmt::Write as _, net::SocketAddr};

use xtask::lab::{
    HostName,
    topology::{APP_PORT, ECHO_PORT, FLOATING_V4, FLOATING_V6},
};

/// The app servers.
pub(crate) const APPS: [HostName; 3] = [HostName::App01, HostName::App02, HostName::App03];

/// Where HTTP is served, over IPv4.
pub(crate) fn web() -> SocketAddr {
    (FLOATING_V4, 80).into()
}

/// Where HTTP is served, over IPv6.
pub(crate) fn web6() -> SocketAddr {
    (FLOATING_V6, 80).into()
}

/// Where datagrams are echoed.
pub(crate) fn echo() -> SocketAddr {
    (FLOATING_V4, ECHO_PORT).into()
}

/// The same over IPv6.
pub(crate) fn echo6() -> SocketAddr {
    (FLOATING_V6, ECHO_PORT).into()
}

/// A `[[service]]`.
#[derive(Clone)]
pub(crate) struct Service {
    name: String,
    listen: SocketAddr,
    keys: Vec<String>,
    backends: Vec<Backend>,
    health: Vec<String>,
}

#[derive(Clone)]
struct Backend {
    name: String,
    address: SocketAddr,
    keys: Vec<String>,
}

impl Service {
    /// A TCP service without backends, probed by its protocol's default.
    pub(crate) fn new(name: &str, listen: SocketAddr) -> Self {
        Self {
            name: name.into(),
            listen,
            keys: Vec::new(),
            backends: Vec::new(),
            health: Vec::new(),
        }
    }

    /// HTTP on the app servers given.
    pub(crate) fn web(name: &str, listen: SocketAddr, apps: &[HostName]) -> Self {
        let family = usize::from(listen.is_ipv6());
        apps.iter()
            .fold(Self::new(name, listen), |service, app| {
                service.backend(app.as_str(), app.sockets(APP_PORT)[family], "")
            })
            .health("probe = \"http\"")
            .health("path = \"/id\"")
            .health("expect = \"200\"")
    }

    /// Datagrams echoed by the app servers given.
    pub(crate) fn echo(name: &str, listen: SocketAddr, apps: &[HostName]) -> Self {
        let family = usize::from(listen.is_ipv6());
        apps.iter()
            .fold(Self::new(name, listen), |service, app| {
                service.backend(app.as_str(), app.sockets(ECHO_PORT)[family], "")
            })
            .key("protocol = \"udp\"")
            // The echo accepts TCP connections too.
            .health("probe = \"tcp\"")
    }

    /// With another line.
    pub(crate) fn key(mut self, line: &str) -> Self {
        self.keys.push(line.into());
        self
    }

    /// With another backend; `key` is a line more for it, or nothing.
    pub(crate) fn backend(mut self, name: &str, address: SocketAddr, key: &str) -> Self {
        let keys = if key.is_empty() { Vec::new() } else { vec![key.into()] };
        self.backends.push(Backend { name: name.into(), address, keys });
        self
    }

    /// With a line more for the backend of this name.
    pub(crate) fn backend_key(mut self, name: &str, line: &str) -> Self {
        for backend in self.backends.iter_mut().filter(|backend| backend.name == name) {
            backend.keys.push(line.into());
        }
        self
    }

    /// With another line in `[service.health]`.
    pub(crate) fn health(mut self, line: &str) -> Self {
        self.health.push(line.into());
        self
    }

    fn write(&self, text: &mut String) {
        let Self { name, listen, .. } = self;
        let _ = write!(text, "\n[[service]]\nname = \"{name}\"\nlisten = \"{listen}\"\n");
        for line in &self.keys {
            let _ = writeln!(text, "{line}");
        }
        for Backend { name, address, keys } in &self.backends {
            let _ = write!(
                text,
                "  [[service.backend]]\n  name = \"{name}\"\n  address = \"{address}\"\n"
            );
            for line in keys {
                let _ = writeln!(text, "  {line}");
            }
        }
        if !self.health.is_empty() {
            text.push_str("  [service.health]\n");
            for line in &self.health {
                let _ = writeln!(text, "  {line}");
            }
        }
    }
}

/// A configuration with these services and one balancer, lb-01.
pub(crate) fn text(services: &[Service]) -> String {
    text_of(HostName::Lb01, "eth0", services)
}

/// A configuration with these services and one balancer.
pub(crate) fn text_of(node: HostName, interface: &str, services: &[Service]) -> String {
    let mut text = format!(
        "[cluster]\nname = \"test\"\n\n\
         [[node]]\nname = \"{node}\"\naddress = \"{}\"\ninterface = \"{interface}\"\n\
         priority = 100\n\n\
         [[floating]]\nvrid = 51\naddresses = [\"{FLOATING_V4}/24\", \"{FLOATING_V6}/64\"]\n",
        node.ipv4()
    );
    for service in services {
        service.write(&mut text);
    }
    text
}
