//! The task that keeps this node's MAC addresses known.
//!
//! It owns its two sockets. Cancelling it loses nothing: the next one asks again.

use std::{collections::BTreeSet, time::Duration};

use rtnetlink::MulticastGroup;
use tokio::{sync::watch, time::sleep};
use tracing::warn;

use super::{
    Macs,
    netlink::{Error, Netlink, Notifications},
};

/// Time before the sockets are opened again after an error.
const REOPEN: Duration = Duration::from_secs(1);

pub(super) struct Sockets {
    netlink: Netlink,
    notifications: Notifications,
}

impl Sockets {
    pub(super) fn open() -> Result<Self, Error> {
        // First the subscription: what changes while links are listed is then announced.
        let notifications = Notifications::open(&[MulticastGroup::Link])?;
        Ok(Self { netlink: Netlink::open()?, notifications })
    }

    async fn follow(mut self, macs: &watch::Sender<Macs>) -> Result<(), Error> {
        loop {
            let links = self.netlink.links().await?;
            let found: BTreeSet<_> = links.into_iter().filter_map(|link| link.mac).collect();
            macs.send_if_modified(|published| {
                let changed = *published != found;
                *published = found;
                changed
            });
            let mut event = tokio::select! {
                event = self.notifications.next() => Some(event),
                () = macs.closed() => return Ok(()),
            };
            // Whatever is announced is about links. One look does for all that is there.
            while let Some(next) = event {
                next?;
                event = self.notifications.try_next();
            }
        }
    }
}

pub(super) async fn run(sockets: Sockets, macs: watch::Sender<Macs>) {
    let mut sockets = Some(sockets);
    loop {
        let result = match sockets.take().map_or_else(Sockets::open, Ok) {
            Ok(sockets) => sockets.follow(&macs).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => return,
            Err(error) => warn!(%error, "MAC addresses are not followed; trying again"),
        }
        sleep(REOPEN).await;
    }
}
