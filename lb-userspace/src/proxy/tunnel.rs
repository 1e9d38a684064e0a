//! Connections that have changed their protocol: bytes, handed through in both directions.
//!
//! There is no limit on their silence; TCP keep-alive finds out whether both ends are still there.

use std::{io, sync::Arc};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{
    answer::Lease,
    connect::Link,
    early::Early,
    serve::Route,
    service::{Open, Phase},
};

mod pipe;

/// Hands bytes through until one side ends, or the service does.
pub(super) fn spawn(route: &Route, client: OnUpgrade, lease: Lease, open: Arc<Open>) {
    route.service.stats.tunnels.add();
    tokio::spawn(async move {
        let mut phase = open.phase();
        let Lease { link, active, .. } = lease;
        tokio::select! {
            _ = phase.wait_for(|phase| *phase == Phase::Cut) => {}
            // How it ended is for both ends to see.
            _ = through(client, link) => {}
        }
        drop((active, open));
    });
}

async fn through(client: OnUpgrade, backend: Link) -> io::Result<()> {
    let Some((io, early)) = backend.into_parts() else { return Ok(()) };
    let client = client.await.map_err(io::Error::other)?;
    pipe::through(TokioIo::new(client), Early::new(early, io)).await
}
