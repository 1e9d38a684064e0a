//! The hosts of the lab and their addresses: the lab table of the design, as data.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::ValueEnum;

/// What a host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Sends the requests.
    Client,
    /// Runs ballast.
    Balancer,
    /// Runs nginx and the UDP echo.
    App,
    /// Runs `PostgreSQL`.
    Postgres,
    /// Votes: runs etcd, if the lab has it.
    Witness,
}

/// A host of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostName {
    /// `client`
    Client,
    /// `lb-01`
    Lb01,
    /// `lb-02`
    Lb02,
    /// `app-01`
    App01,
    /// `app-02`
    App02,
    /// `app-03`
    App03,
    /// `pg-01`
    Pg01,
    /// `pg-02`
    Pg02,
    /// `witness`
    Witness,
}

/// All hosts, in the order of their addresses.
pub const HOSTS: [HostName; 9] = [
    HostName::Client,
    HostName::Lb01,
    HostName::Lb02,
    HostName::App01,
    HostName::App02,
    HostName::App03,
    HostName::Pg01,
    HostName::Pg02,
    HostName::Witness,
];

/// Last number of the floating addresses.
const FLOATING: u8 = 100;

/// The floating IPv4 address.
pub const FLOATING_V4: Ipv4Addr = ipv4(FLOATING);

/// The floating IPv6 address.
pub const FLOATING_V6: Ipv6Addr = ipv6(FLOATING);

/// Port of nginx on the app servers.
pub const APP_PORT: u16 = 8080;

/// More ports of nginx on the app servers, if they answer the clients by themselves: those that clients
/// use.
pub const STEERED_PORTS: [u16; 4] = [80, 81, 82, 83];

/// Port of the echo on the app servers: UDP; TCP connections are accepted and closed, for probes.
pub const ECHO_PORT: u16 = 9000;

/// Port of `PostgreSQL`.
pub const POSTGRES_PORT: u16 = 5432;

const fn ipv4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

/// `2001:db8::` and the number with the same *digits*: host .21 is `2001:db8::21`.
const fn ipv6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, same_digits(number))
}

/// 21 becomes 0x21.
const fn same_digits(number: u8) -> u16 {
    let (hundreds, tens, ones) = (number / 100, number / 10 % 10, number % 10);
    (hundreds as u16) << 8 | (tens as u16) << 4 | ones as u16
}

impl HostName {
    /// The name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Lb01 => "lb-01",
            Self::Lb02 => "lb-02",
            Self::App01 => "app-01",
            Self::App02 => "app-02",
            Self::App03 => "app-03",
            Self::Pg01 => "pg-01",
            Self::Pg02 => "pg-02",
            Self::Witness => "witness",
        }
    }

    /// The host of this name.
    pub fn find(name: &str) -> Option<Self> {
        HOSTS.into_iter().find(|host| host.as_str() == name)
    }

    /// Last number of the addresses.
    pub const fn number(self) -> u8 {
        match self {
            Self::Client => 9,
            Self::Lb01 => 11,
            Self::Lb02 => 12,
            Self::App01 => 21,
            Self::App02 => 22,
            Self::App03 => 23,
            Self::Pg01 => 31,
            Self::Pg02 => 32,
            Self::Witness => 41,
        }
    }

    /// What it does.
    pub const fn role(self) -> Role {
        match self {
            Self::Client => Role::Client,
            Self::Lb01 | Self::Lb02 => Role::Balancer,
            Self::App01 | Self::App02 | Self::App03 => Role::App,
            Self::Pg01 | Self::Pg02 => Role::Postgres,
            Self::Witness => Role::Witness,
        }
    }

    /// Its IPv4 address.
    pub const fn ipv4(self) -> Ipv4Addr {
        ipv4(self.number())
    }

    /// Its IPv6 address.
    pub const fn ipv6(self) -> Ipv6Addr {
        ipv6(self.number())
    }

    /// Both of its addresses.
    pub fn addresses(self) -> [IpAddr; 2] {
        [self.ipv4().into(), self.ipv6().into()]
    }

    /// Both of its addresses, with a port.
    pub fn sockets(self, port: u16) -> [SocketAddr; 2] {
        self.addresses().map(|address| SocketAddr::new(address, port))
    }

    /// MAC address of its `eth0`: `02:00:00:00:00:21` for host .21.
    pub fn mac(self) -> String {
        format!("02:00:00:00:00:{:02x}", same_digits(self.number()))
    }

    /// Its port of the switch.
    pub fn port(self) -> String {
        format!("p-{self}")
    }

    /// MAC address of its port of the switch: `02:00:00:00:01:21` for host .21.
    pub fn port_mac(self) -> String {
        format!("02:00:00:00:01:{:02x}", same_digits(self.number()))
    }
}

impl std::fmt::Display for HostName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl ValueEnum for HostName {
    fn value_variants<'a>() -> &'a [Self] {
        &HOSTS
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_design() {
        assert_eq!(HostName::Client.ipv4(), Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(HostName::App03.ipv4(), Ipv4Addr::new(192, 0, 2, 23));
        assert_eq!(HostName::App03.ipv6(), "2001:db8::23".parse::<Ipv6Addr>().unwrap());
        assert_eq!(FLOATING_V6, "2001:db8::100".parse::<Ipv6Addr>().unwrap());
        assert_eq!(HostName::Witness.mac(), "02:00:00:00:00:41");
        assert_eq!(HostName::Lb01.port_mac(), "02:00:00:00:01:11");
    }

    #[test]
    fn names_find_their_host() {
        for host in HOSTS {
            assert_eq!(HostName::find(host.as_str()), Some(host));
        }
        assert_eq!(HostName::find("app-04"), None);
    }

    #[test]
    fn ports_fit_an_interface_name() {
        for host in HOSTS {
            assert!(host.port().len() < libc::IFNAMSIZ, "{}", host.port());
        }
    }
}
