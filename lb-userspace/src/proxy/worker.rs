//! A worker: one thread, one runtime, its share of the connections.
//!
//! Connections do not move between workers, so nothing that belongs to one is shared with another CPU.

use std::{io, sync::Arc, thread, time::Duration};

use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use super::{
    files::FILES,
    serve::{self, Route},
    service::{Phase, Service},
};

/// After a failure to take a connection (most often: no file descriptor is left) a worker waits so
/// long before the next one.
const PAUSE: Duration = Duration::from_millis(20);

/// A worker's thread. It ends with its handle.
#[derive(Debug)]
pub(super) struct Worker {
    commands: UnboundedSender<Listen>,
}

/// Take the connections of a service.
#[derive(Debug)]
struct Listen {
    service: Arc<Service>,
    socket: std::net::TcpListener,
}

impl Worker {
    /// Starts the thread.
    pub(super) fn start(number: usize) -> io::Result<Self> {
        let (commands, receiver) = unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new()
            .name(format!("proxy-{number}"))
            .spawn(move || runtime.block_on(work(receiver)))?;
        Ok(Self { commands })
    }

    /// Has it take connections of the service from the socket.
    pub(super) fn listen(
        &self,
        service: Arc<Service>,
        socket: std::net::TcpListener,
    ) -> io::Result<()> {
        let listen = Listen { service, socket };
        self.commands.send(listen).map_err(|_| io::Error::other("a worker of the proxy has ended"))
    }
}

async fn work(mut commands: UnboundedReceiver<Listen>) {
    while let Some(Listen { service, socket }) = commands.recv().await {
        match TcpListener::from_std(socket) {
            Ok(listener) => {
                let route = Route::new(service);
                tokio::spawn(Arc::clone(&route).sweep());
                tokio::spawn(accept(listener, route));
            }
            Err(error) => tracing::error!(%error, service = service.name, "listen"),
        }
    }
}

/// Takes connections until the service ends.
async fn accept(listener: TcpListener, route: Arc<Route>) {
    let mut phase = route.phase();
    let ends = async {
        // It fails only if the service is gone, which `route` holds.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Closing | Phase::Cut)).await;
    };
    tokio::pin!(ends);
    loop {
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            () = &mut ends => return,
        };
        match taken {
            Ok((stream, client)) => {
                let is_last = FILES.is_last(&stream);
                tokio::spawn(serve::connection(Arc::clone(&route), stream, client));
                if is_last {
                    tokio::select! {
                        () = FILES.room(&listener) => {}
                        () = &mut ends => return,
                    }
                }
            }
            Err(error) => {
                // A client that has gone away meanwhile is no failure of ours.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    route.count_accept_failure(&error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
