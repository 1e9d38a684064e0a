//! The interface, and the sockets on it.

use std::{net::IpAddr, time::Duration};

use anyhow::Context as _;
use rtnetlink::MulticastGroup;

use super::Run;
use crate::{
    clock,
    events::{Kind, Note},
    net::netlink::{Event as Change, Notifications},
    vrrp::{machine::Event, socket::AdvertSocket},
};

/// Time until a socket that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Run {
    pub(super) async fn changed(&mut self, change: Option<Change>) {
        let mut changes = vec![change];
        while let Some(next) = self.changes.try_next() {
            changes.push(next.ok());
        }
        // What was lost may have been about this interface.
        let concerns = changes.iter().any(|change| match change {
            Some(Change::Link(link)) => link.name == self.setup.interface,
            Some(Change::LinkGone(_) | Change::Lost) | None => true,
            Some(_) => false,
        });
        if concerns {
            self.open().await;
        }
        if changes.iter().any(Option::is_none) {
            match Notifications::open(&[MulticastGroup::Link]) {
                Ok(changes) => self.changes = changes,
                Err(error) => self.fail(format!("the interface cannot be followed: {error}")),
            }
        }
    }

    /// Opens the sockets that are missing, closes them where the interface cannot be used, and lets the
    /// machines know.
    pub(super) async fn open(&mut self) {
        self.retry = None;
        match self.open_sockets().await {
            Ok(()) => {
                if self.unusable.take().is_some() {
                    self.note(Note::new(
                        Kind::Recovered,
                        format!("VRRP can use {} again", self.setup.interface),
                    ));
                }
                self.start();
            }
            Err(error) => self.fail(format!("{error:#}")),
        }
    }

    async fn open_sockets(&mut self) -> anyhow::Result<()> {
        let interface = self.setup.interface.clone();
        let link = self.netlink.link(&interface).await?;
        anyhow::ensure!(link.mac.is_some(), "{interface} is not an Ethernet interface");
        anyhow::ensure!(link.running, "{interface} is down, or its cable is out");
        for family in 0..2 {
            let needed = self.instances.iter().any(|it| usize::from(!it.is_v4()) == family);
            if !needed {
                self.sockets[family] = None;
                continue;
            }
            let own = self.own_address(link.ifindex, family == 0).await?;
            let same = |socket: &AdvertSocket| socket.is_on(link.ifindex, own);
            if !self.sockets[family].as_ref().is_some_and(same) {
                let socket = AdvertSocket::open(&interface, link.ifindex, own);
                self.sockets[family] = Some(socket.context("open a socket for adverts")?);
            }
            for instance in self.instances.iter_mut().filter(|it| it.is_v4() == (family == 0)) {
                instance.set_own(own);
            }
        }
        Ok(())
    }

    /// The address that adverts come from: over IPv6 by multicast, a link-local one (RFC 9568 §5.1.2.1).
    async fn own_address(&self, ifindex: u32, is_v4: bool) -> anyhow::Result<IpAddr> {
        let addresses = self.netlink.addresses(ifindex).await?;
        let unicast = self.instances.iter().any(|it| it.floating.unicast && it.is_v4() == is_v4);
        let there = |wanted: IpAddr| addresses.iter().any(|it| it.ip == wanted);
        let own = self.setup.address;
        if own.is_ipv4() == is_v4 && (is_v4 || unicast) && there(own) {
            return Ok(own);
        }
        let fits = |address: IpAddr| match address {
            IpAddr::V4(_) => is_v4,
            IpAddr::V6(address) => !is_v4 && address.is_unicast_link_local(),
        };
        let floating = |address: IpAddr| {
            self.instances
                .iter()
                .any(|it| it.floating.addresses.iter().any(|(it, _)| *it == address))
        };
        let found = addresses.iter().map(|it| it.ip).find(|it| fits(*it) && !floating(*it));
        found.with_context(|| {
            let kind = if is_v4 { "IPv4 address" } else { "link-local IPv6 address" };
            format!("{} has no {kind} that adverts could come from", self.setup.interface)
        })
    }

    pub(super) fn fail(&mut self, problem: String) {
        self.sockets = [None, None];
        self.all(Event::Fault);
        if self.unusable.as_ref() != Some(&problem) {
            self.note(Note::new(Kind::Fault, "VRRP takes no part").because(problem.clone()));
            self.unusable = Some(problem);
        }
        self.retry = Some(clock::monotonic() + RETRY);
    }
}
