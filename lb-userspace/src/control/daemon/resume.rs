//! Going on as Active where a killed daemon stopped, before the program is loaded.
//!
//! Loading and verifying takes longer than another node waits for adverts, if they are fast. What forwards meanwhile
//! is the program of the daemon before, which is pinned, with its tables: as long as the lease lasts that it left,
//! nobody else can have the addresses, and adverts may go on. Where the lease is over, or anything else is not as
//! it was, the machine listens first, as at any start. Should the start fail after all, the addresses are handed
//! over ([`GivingWay`]).

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{
    config::{Config, Node},
    dataplane::{self, KernelLeases},
    events::Note,
    vrrp::router::{Router, Setup},
};

/// VRRP that has begun before everything else, and what it has told.
pub(super) struct Early {
    router: Router,
    notes: mpsc::Receiver<Note>,
}

impl Early {
    /// Starts VRRP, if an earlier daemon has left all that this needs: its leases, and its program on the node's
    /// interface. With no lease that lasts it takes no part until the start is over.
    pub(super) async fn start(
        config: &Config,
        node: &Node,
        ifindex: u32,
        options: &dataplane::Options,
    ) -> Option<Self> {
        if !config.is_shared() || config.floating.is_empty() {
            return None;
        }
        let left = {
            let options = options.clone();
            tokio::task::spawn_blocking(move || KernelLeases::left(&options, ifindex)).await
        };
        let leases = match left.map_err(anyhow::Error::from).flatten() {
            Ok(leases) => leases?,
            Err(error) => {
                // Whatever it is, the start meets it again, and says so.
                tracing::debug!(error = format!("{error:#}"), "look for leases that were left");
                return None;
            }
        };
        let setup = Setup::new(config, &node.name)?;
        match Router::start(setup, Arc::new(leases)).await {
            Ok((router, notes)) => Some(Self { router, notes }),
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "go on with VRRP");
                None
            }
        }
    }

    /// What gives the addresses away if the start fails. It must be dropped when the start is over: VRRP ends with
    /// the last of those who command it.
    pub(super) fn giving_way(&self) -> GivingWay {
        GivingWay(self.router.clone())
    }

    /// What [`Setup::router`](crate::control::task::Setup) is.
    pub(super) fn into_parts(self) -> (Router, mpsc::Receiver<Note>) {
        (self.router, self.notes)
    }
}

/// See [`Early::giving_way`].
pub(super) struct GivingWay(Router);

impl GivingWay {
    /// If the start has failed, another node is to take over at once. If there is none, the addresses stay for a
    /// while, and the program of the daemon before goes on. If it has not, VRRP ends with the task that commands it
    /// from now on.
    pub(super) async fn unless<T>(
        started: anyhow::Result<T>,
        giving_way: Option<Self>,
    ) -> anyhow::Result<T> {
        if let (Err(_), Some(Self(router))) = (&started, giving_way) {
            router.stop().await;
        }
        started
    }
}
