//! Connections that have changed their protocol: bytes, handed through in both directions.
//!
//! There is no limit on their silence; TCP keep-alive finds out whether both ends are still there.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::{body::Bytes, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    answer::Lease,
    connect::Link,
    serve::Route,
    service::{Open, Phase},
    wire::Io,
};

mod pipe;

/// Hands bytes through until one side ends, or the service does.
pub(super) fn spawn(route: Arc<Route>, client: OnUpgrade, lease: Lease, open: Arc<Open>) {
    route.service.stats.tunnels.add();
    tokio::spawn(async move {
        let mut phase = route.phase();
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
    pipe::through(TokioIo::new(client), Backend { io, early }).await
}

/// A backend's side, from which something may have come early.
struct Backend {
    io: Box<dyn Io>,
    early: Bytes,
}

impl AsyncRead for Backend {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let taken = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early.split_to(taken));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Backend {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
