//! Ending connections: marking them in the flow tables, and what is needed to tell their two sides.
//!
//! The program answers every later packet of a connection that is marked ([`state::CUT`]) with a reset
//! that is exact. A side that sends nothing has to be told: by a reset whose sequence number is the one
//! that it has asked for last.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
    os::fd::AsFd as _,
};

use anyhow::Context as _;
use lb_common::{
    backend::RESOLVED,
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, state},
};

use super::{Key, Reader, TCP, Table, View, backend, sync::Ended};
use crate::{
    dataplane::{Dataplane, batch},
    net::rst::Rst,
};

/// What a write is for, for errors.
const WRITE: &str = "write to the flow table";

/// An open connection, by what does not change while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The client.
    pub client: SocketAddr,
    /// The floating address and port that it talks to.
    pub listen: SocketAddr,
    /// Identifier of its backend.
    pub backend: u32,
    /// IP protocol number.
    pub protocol: u8,
}

/// A connection that has been ended in the tables, and the resets that tell its sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// To the client; `None` for UDP, or if the client has acknowledged nothing.
    pub to_client: Option<Rst>,
    /// To the backend; `None` likewise, or without a next hop.
    pub to_backend: Option<Rst>,
}

/// What [`View`] leaves out.
pub(in crate::dataplane) struct Details {
    /// Host byte order; 0 if none has been seen.
    ack: u32,
    client_mac: [u8; 6],
    local_mac: [u8; 6],
    client_ifindex: u32,
}

/// Keys of flows that can be ended.
pub(in crate::dataplane) trait Flow: Key {
    fn new(src: SocketAddr, dst: SocketAddr, protocol: u8) -> Option<Self>;
    fn details(entry: &Self::Entry) -> Details;
    fn marked(entry: Self::Entry) -> Self::Entry;
}

macro_rules! flow {
    ($key:ident, $entry:ty, $family:ident) => {
        impl Flow for $key {
            fn new(src: SocketAddr, dst: SocketAddr, protocol: u8) -> Option<Self> {
                let (SocketAddr::$family(src), SocketAddr::$family(dst)) = (src, dst) else {
                    return None;
                };
                Some(Self {
                    src: src.ip().octets(),
                    dst: dst.ip().octets(),
                    src_port: src.port().to_be_bytes(),
                    dst_port: dst.port().to_be_bytes(),
                    protocol,
                    reserved: [0; 3],
                })
            }

            fn details(entry: &$entry) -> Details {
                Details {
                    ack: u32::from_be(entry.ack),
                    client_mac: entry.client_mac(),
                    local_mac: entry.local_mac(),
                    client_ifindex: entry.client_ifindex,
                }
            }

            fn marked(mut entry: $entry) -> $entry {
                entry.state |= state::RESET | state::CUT;
                entry
            }
        }
    };
}

flow!(FlowKey4, FlowEntry4, V4);
flow!(FlowKey6, FlowEntry6, V6);

/// The two halves of a connection that was ended.
struct Halves {
    client: View,
    details: Details,
    /// The backend's half, if it is there still, by its acknowledgement number alone.
    server_ack: Option<u32>,
}

impl<K: Flow> Table<K> {
    /// Adds the open connections of these backends, but for steered ones: those have no other half.
    fn of_backends(
        &self,
        backends: &BTreeSet<u32>,
        found: &mut Vec<Connection>,
    ) -> anyhow::Result<()> {
        batch::for_each::<K, K::Entry>(self.fd(), |key, entry| {
            let view = self.view(key, entry);
            let other = view.is_return()
                || view.state & state::STEERED != 0
                || state::closed(view.state)
                || !backends.contains(&view.backend);
            if !other {
                found.push(Connection {
                    client: view.src,
                    listen: view.dst,
                    backend: view.backend,
                    protocol: view.protocol,
                });
            }
            ControlFlow::Continue(())
        })
        .context("read the flow table")
    }

    /// Marks a connection as ended. `None`: it is over, or has gone to another backend since.
    ///
    /// What the kernel program writes into the two entries at the same moment is lost: a stamp, or that
    /// it has just ended too. In that case the connection is counted as closed twice; the next sweeps
    /// find that.
    fn cut(&self, connection: &Connection) -> anyhow::Result<Option<Halves>> {
        let Some(key) = K::new(connection.client, connection.listen, connection.protocol) else {
            return Ok(None);
        };
        let Some(entry) = self.get(&key)? else { return Ok(None) };
        let client = self.view(&key, &entry);
        if client.backend != connection.backend || state::closed(client.state) {
            return Ok(None);
        }
        if !batch::replace(self.fd(), &key, &K::marked(entry)).context(WRITE)? {
            return Ok(None);
        }
        let partner = key.partner(&entry);
        let mut server_ack = None;
        if let Some(server) = self.get(&partner)?
            && partner.partner(&server) == key
        {
            server_ack = Some(K::details(&server).ack);
            batch::replace(self.fd(), &partner, &K::marked(server)).context(WRITE)?;
        }
        Ok(Some(Halves { client, details: K::details(&entry), server_ack }))
    }
}

impl Reader {
    /// The open connections of these backends that the flow tables know in both directions.
    pub fn connections(&self, backends: &BTreeSet<u32>) -> anyhow::Result<Vec<Connection>> {
        let mut found = Vec::new();
        self.flows.of_backends(backends, &mut found)?;
        self.flows6.of_backends(backends, &mut found)?;
        Ok(found)
    }
}

impl Dataplane {
    /// The open connections of these backends: see [`Reader::connections`].
    pub fn connections(&self, backends: &BTreeSet<u32>) -> anyhow::Result<Vec<Connection>> {
        self.reader.connections(backends)
    }

    /// Ends connections in the tables, and gives for each that was open what tells its sides.
    pub fn cut(&mut self, connections: &[Connection]) -> anyhow::Result<Vec<Cut>> {
        let mut cuts = Vec::new();
        for connection in connections {
            let halves = match connection.client.ip() {
                IpAddr::V4(_) => self.reader.flows.cut(connection)?,
                IpAddr::V6(_) => self.reader.flows6.cut(connection)?,
            };
            let Some(Halves { client, details, server_ack }) = halves else { continue };
            self.active.close(connection.backend);
            self.cuts.add(Ended {
                protocol: connection.protocol,
                backend: client.new_dst,
                nat: client.new_src,
            });
            if connection.protocol != TCP {
                cuts.push(Cut::default());
                continue;
            }
            let to_client = (details.ack != 0).then_some(Rst {
                ifindex: details.client_ifindex,
                source_mac: details.local_mac,
                next_hop: details.client_mac,
                src: connection.listen,
                dst: connection.client,
                seq: details.ack,
            });
            let mut to_backend = None;
            if let Some(seq) = server_ack.filter(|ack| *ack != 0)
                && let Some(backend) = backend(self.backends.fd().as_fd(), connection.backend)?
            {
                to_backend = (backend.flags & RESOLVED != 0).then_some(Rst {
                    ifindex: backend.ifindex,
                    source_mac: backend.source_mac,
                    next_hop: backend.next_hop,
                    src: client.new_src,
                    dst: client.new_dst,
                    seq,
                });
            }
            cuts.push(Cut { to_client, to_backend });
        }
        Ok(cuts)
    }
}
