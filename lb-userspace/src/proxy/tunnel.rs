//! Connections that have changed their protocol: bytes, handed through in both directions.
//!
//! There is no limit on their silence; TCP keep-alive finds out whether both ends are still there.

use std::{future::poll_fn, io, pin::Pin, sync::Arc};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{
    answer::Lease,
    connect::Link,
    serve::Route,
    service::{Open, Phase},
};

mod pipe;

/// Hands bytes through until one side ends, or the service does.
pub(super) fn spawn(
    route: Arc<Route>,
    client: OnUpgrade,
    backend: OnUpgrade,
    mut lease: Lease,
    open: Arc<Open>,
) {
    route.service.stats.tunnels.add();
    tokio::spawn(async move {
        let mut phase = route.phase();
        tokio::select! {
            _ = phase.wait_for(|phase| *phase == Phase::Cut) => {}
            // How it ended is for both ends to see.
            _ = through(client, backend, &mut lease.link) => {}
        }
        drop((lease, open));
    });
}

async fn through(client: OnUpgrade, mut backend: OnUpgrade, link: &mut Link) -> io::Result<()> {
    let client = client.await.map_err(io::Error::other)?;
    let backend = poll_fn(|cx| {
        link.drive(cx);
        Pin::new(&mut backend).poll(cx)
    });
    let backend = backend.await.map_err(io::Error::other)?;
    pipe::through(TokioIo::new(client), TokioIo::new(backend)).await
}
