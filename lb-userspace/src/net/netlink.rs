//! Questions to the kernel, and its announcements, in our own words.

use std::{io, net::IpAddr, time::Duration};

use futures_util::{
    FutureExt,
    stream::{BoxStream, Stream, StreamExt, TryStreamExt},
};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol},
        link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
    },
};
use tokio::{task::JoinSet, time::timeout};

/// The kernel answers while it takes the question. Only an answer that cannot be understood is
/// waited for in vain.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why netlink could not say or do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("{what}: {error}")]
    Refused {
        /// Verb and noun.
        what: &'static str,
        /// The kernel's code.
        #[source]
        error: io::Error,
    },
    /// No answer, or none that could be read.
    #[error("{what}: no usable answer from the kernel")]
    NoAnswer {
        /// Verb and noun.
        what: &'static str,
    },
    /// The socket of announcements is closed.
    #[error("netlink socket closed")]
    Closed,
    /// There is no such interface.
    #[error("interface `{0}` does not exist")]
    NoInterface(String),
    /// The interface has no MAC address.
    #[error("interface `{0}` is not an Ethernet interface")]
    NotEthernet(String),
}

impl Error {
    pub(crate) fn from_request(what: &'static str, error: &rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(error) => Self::Refused { what, error: error.to_io() },
            _ => Self::NoAnswer { what },
        }
    }

    /// The kernel's error code, such as `libc::ENODEV`.
    pub(crate) fn code(&self) -> Option<i32> {
        match self {
            Self::Refused { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }
}

/// A link, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) ifindex: u32,
    pub(crate) name: String,
    /// `None` if it is not Ethernet.
    pub(crate) mac: Option<[u8; 6]>,
    /// Switched on, with carrier.
    pub(crate) running: bool,
    pub(crate) mtu: u32,
}

/// Where the kernel would send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) ifindex: u32,
    /// The neighbour: the gateway, or the destination itself.
    pub(crate) via: IpAddr,
    /// The address of ours that it would write as the source.
    pub(crate) source: Option<IpAddr>,
    /// The route's own limit of a packet's length, if it has one.
    pub(crate) mtu: Option<u32>,
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
    /// IPv4: it lives only as long as the first address of its subnet, unless
    /// `promote_secondaries` is set.
    pub(crate) secondary: bool,
    /// IPv6: another host had it when it was added; the kernel does not use it.
    pub(crate) duplicate: bool,
    /// `IFA_PROTO`: who added it.
    pub(crate) protocol: Option<u8>,
}

/// A connection for questions. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    _connection: JoinSet<()>,
}

impl Netlink {
    /// Opens a socket in the network namespace of this thread. Needs a tokio runtime.
    pub(crate) fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Self { handle, _connection: tasks })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) async fn links(&self) -> Result<Vec<Link>, Error> {
        let links = collect("list interfaces", self.handle.link().get().execute()).await?;
        Ok(links.iter().filter_map(link).collect())
    }

    pub(crate) async fn link(&self, name: &str) -> Result<Link, Error> {
        let request = self.handle.link().get().match_name(name);
        match collect("find an interface", request.execute()).await {
            Ok(links) => links.iter().find_map(link),
            Err(error) if error.code() == Some(libc::ENODEV) => None,
            Err(error) => return Err(error),
        }
        .ok_or_else(|| Error::NoInterface(name.into()))
    }

    pub(crate) async fn addresses(&self, ifindex: u32) -> Result<Vec<Address>, Error> {
        let request = self.handle.address().get().set_link_index_filter(ifindex);
        let addresses = collect("list addresses", request.execute()).await?;
        Ok(addresses.iter().filter_map(address).collect())
    }

    /// All neighbours whose MAC address is known.
    pub(crate) async fn neighbours(&self) -> Result<Vec<(u32, IpAddr, [u8; 6])>, Error> {
        let neighbours =
            collect("list neighbours", self.handle.neighbours().get().execute()).await?;
        let known = |message: &NeighbourMessage| {
            let (ifindex, address) = neighbour(message)?;
            Some((ifindex, address, neighbour_mac(message)?))
        };
        Ok(neighbours.iter().filter_map(known).collect())
    }

    /// Where packets for `destination` go; `None` if nowhere, or to this host.
    pub(crate) async fn route(&self, destination: IpAddr) -> Result<Option<Route>, Error> {
        let mut question = RouteMessage::default();
        (question.header.address_family, question.header.destination_prefix_length) =
            match destination {
                IpAddr::V4(_) => (AddressFamily::Inet, 32),
                IpAddr::V6(_) => (AddressFamily::Inet6, 128),
            };
        question.attributes.push(RouteAttribute::Destination(destination.into()));
        match collect("look up a route", self.handle.route().get(question).execute()).await {
            Ok(routes) => Ok(routes.first().and_then(|message| route(message, destination))),
            // ENETUNREACH and EHOSTUNREACH for no route, EACCES for `prohibit`, EINVAL for `blackhole`
            // or what cannot be a destination: all mean that nothing can be sent there.
            Err(Error::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the kernel look for a neighbour, or check one that it has not heard from for some time,
    /// as if a packet was sent to it.
    pub(crate) async fn resolve(&self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        const WHAT: &str = "resolve a neighbour";
        let mut message = NeighbourMessage::default();
        message.header.ifindex = ifindex;
        message.header.flags = NeighbourFlags::Use;
        let destination = match address {
            IpAddr::V4(address) => {
                message.header.family = AddressFamily::Inet;
                NeighbourAddress::Inet(address)
            }
            IpAddr::V6(address) => {
                message.header.family = AddressFamily::Inet6;
                NeighbourAddress::Inet6(address)
            }
        };
        message.attributes.push(NeighbourAttribute::Destination(destination));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        // Without NLM_F_REPLACE an entry that is there keeps its MAC address.
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        let mut handle = self.handle.clone();
        let answers = handle.request(request).map_err(|e| Error::from_request(WHAT, &e))?;
        let answers = answers.map(|answer| match answer.payload {
            NetlinkPayload::Error(error) => Err(rtnetlink::Error::NetlinkError(error)),
            _ => Ok(()),
        });
        collect(WHAT, answers).await.map(|_| ())
    }
}

/// All answers to a question. Announced changes never come between them, as they have a socket of
/// their own: with one socket, an overrun by announcements could swallow an answer.
async fn collect<T>(
    what: &'static str,
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, Error> {
    match timeout(PATIENCE, answers.try_collect()).await {
        Ok(result) => result.map_err(|error| Error::from_request(what, &error)),
        Err(_) => Err(Error::NoAnswer { what }),
    }
}

/// Something that the kernel announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A link came, or changed.
    Link(Link),
    /// A link is gone.
    LinkGone(u32),
    /// A neighbour has this MAC address now, or none that can be used.
    Neighbour(u32, IpAddr, Option<[u8; 6]>),
    /// Addresses of an interface changed.
    Addresses(u32),
    /// Routes or routing rules changed.
    Routes,
    /// Announcements were lost.
    Lost,
}

/// A subscription to announcements.
pub(crate) struct Notifications {
    // netlink-proto's channel is not bounded; the socket's buffer before it is, and the readers here
    // take everything that is there at each turn.
    messages: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    _connection: JoinSet<()>,
}

impl Notifications {
    /// Subscribes in the network namespace of this thread. Needs a tokio runtime.
    pub(crate) fn open(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(groups).map_err(Error::Open)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Self { messages: messages.map(|(message, _)| message).boxed(), _connection: tasks })
    }

    /// Waits for the next announcement. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let message = self.messages.next().await.ok_or(Error::Closed)?;
            if let Some(event) = event(&message.payload) {
                return Ok(event);
            }
        }
    }

    /// The next announcement that is there already.
    pub(crate) fn try_next(&mut self) -> Option<Result<Event, Error>> {
        self.next().now_or_never()
    }
}

fn event(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Event> {
    use RouteNetlinkMessage as M;
    let message = match payload {
        NetlinkPayload::Overrun(_) => return Some(Event::Lost),
        NetlinkPayload::InnerMessage(message) => message,
        _ => return None,
    };
    match message {
        M::NewLink(message) => link(message).map(Event::Link),
        // A bridge announces with its own family that a port has left; the port lives on.
        M::DelLink(message) if message.header.interface_family == AddressFamily::Unspec => {
            Some(Event::LinkGone(message.header.index))
        }
        M::NewNeighbour(message) => {
            let (ifindex, address) = neighbour(message)?;
            Some(Event::Neighbour(ifindex, address, neighbour_mac(message)))
        }
        M::DelNeighbour(message) => {
            let (ifindex, address) = neighbour(message)?;
            Some(Event::Neighbour(ifindex, address, None))
        }
        M::NewAddress(message) | M::DelAddress(message) => {
            Some(Event::Addresses(message.header.index))
        }
        M::NewRoute(_) | M::DelRoute(_) | M::NewRule(_) | M::DelRule(_) => Some(Event::Routes),
        _ => None,
    }
}

fn link(message: &LinkMessage) -> Option<Link> {
    let header = &message.header;
    if header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link {
        ifindex: header.index,
        name: String::new(),
        mac: None,
        running: header.flags.contains(LinkFlags::Up | LinkFlags::Running),
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) if header.link_layer_type == LinkLayerType::Ether => {
                link.mac = mac.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    Some(link)
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut other, mut flags, mut protocol) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Flags(value) => flags = Some(*value),
            AddressAttribute::Protocol(value) => {
                protocol = Some(u8::from(*value as AddressProtocol));
            }
            _ => {}
        }
    }
    let flags = flags.unwrap_or(AddressFlags::empty());
    // On a point-to-point link, IFA_ADDRESS is the other end's.
    let ip = local.or(other)?;
    Some(Address {
        ip,
        prefix: message.header.prefix_len,
        secondary: ip.is_ipv4() && flags.contains(AddressFlags::Secondary),
        duplicate: flags.contains(AddressFlags::Dadfailed),
        protocol,
    })
}

fn neighbour(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
            Some((message.header.ifindex, IpAddr::V4(*address)))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some((message.header.ifindex, IpAddr::V6(*address)))
        }
        _ => None,
    })
}

/// The MAC address, if the kernel would use it: the states of `NUD_VALID`.
fn neighbour_mac(message: &NeighbourMessage) -> Option<[u8; 6]> {
    use NeighbourState as S;
    let valid = matches!(
        message.header.state,
        S::Reachable | S::Stale | S::Delay | S::Probe | S::Permanent | S::Noarp
    );
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    });
    mac.filter(|_| valid)
}

fn route(message: &RouteMessage, destination: IpAddr) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut ifindex, mut via, mut source, mut mtu) = (None, destination, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway))
            | RouteAttribute::Via(RouteVia::Inet(gateway)) => via = IpAddr::V4(*gateway),
            // RFC 5549: a gateway of the other family.
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway))
            | RouteAttribute::Via(RouteVia::Inet6(gateway)) => via = IpAddr::V6(*gateway),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => {
                source = Some(IpAddr::V4(*address));
            }
            RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => {
                source = Some(IpAddr::V6(*address));
            }
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Route { ifindex: ifindex?, via, source, mtu })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::ErrorMessage;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn neighbour_message(state: NeighbourState) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 7;
        message.header.state = state;
        let address = NeighbourAddress::Inet("192.0.2.21".parse().unwrap());
        message.attributes.push(NeighbourAttribute::Destination(address));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(MAC.into()));
        message
    }

    #[test]
    fn only_valid_neighbours_have_a_mac() {
        use NeighbourState as S;
        for (state, valid) in [
            (S::None, false),
            (S::Incomplete, false),
            (S::Reachable, true),
            (S::Stale, true),
            (S::Delay, true),
            (S::Probe, true),
            (S::Failed, false),
            (S::Noarp, true),
            (S::Permanent, true),
        ] {
            let message = RouteNetlinkMessage::NewNeighbour(neighbour_message(state));
            let expected = Event::Neighbour(7, "192.0.2.21".parse().unwrap(), valid.then_some(MAC));
            assert_eq!(event(&NetlinkPayload::InnerMessage(message)), Some(expected), "{state}");
        }
    }

    #[test]
    fn a_bridge_port_that_leaves_is_not_gone() {
        let mut message = LinkMessage::default();
        message.header.index = 3;
        let gone = |message: &LinkMessage| {
            event(&NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message.clone())))
        };
        assert_eq!(gone(&message), Some(Event::LinkGone(3)));
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(gone(&message), None);
    }

    #[test]
    fn an_overrun_is_told() {
        assert_eq!(event(&NetlinkPayload::Overrun(Vec::new())), Some(Event::Lost));
        assert_eq!(event(&NetlinkPayload::Error(ErrorMessage::default())), None);
    }

    #[test]
    fn routes_to_nowhere_are_none() {
        let destination = "203.0.113.5".parse().unwrap();
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Oif(4));
        let direct = Route { ifindex: 4, via: destination, source: None, mtu: None };
        assert_eq!(route(&message, destination), Some(direct));
        let gateway: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
        message.attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway)));
        let ours: std::net::Ipv6Addr = "2001:db8::11".parse().unwrap();
        message.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet6(ours)));
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]));
        let routed =
            Route { via: gateway.into(), source: Some(ours.into()), mtu: Some(1400), ..direct };
        assert_eq!(route(&message, destination), Some(routed));
        for kind in [RouteType::Local, RouteType::BlackHole, RouteType::Broadcast] {
            message.header.kind = kind;
            assert_eq!(route(&message, destination), None);
        }
    }
}
