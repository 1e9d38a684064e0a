//! The TCP probe: a connection is made and closed.
//!
//! It is closed by a reset. A normal close would leave a socket in `TIME_WAIT` here for each probe,
//! and a server that speaks first would be left with data that it cannot deliver. The price is that a
//! server may log a connection reset; those that greet their clients are better asked by their own
//! protocol.

use std::{io, net::SocketAddr};

use tokio::net::TcpStream;

use super::{Deadline, Observation, io_reason};

/// Connects to `address`.
pub async fn probe(address: SocketAddr, deadline: &Deadline) -> Observation {
    match connect(address, deadline).await {
        // Dropping the stream sends the reset.
        Ok(_stream) => Observation::Pass("connected".into()),
        Err(reason) => Observation::Fail(reason),
    }
}

/// A connection that is reset when it is dropped, or the reason why there is none.
pub(super) async fn connect(address: SocketAddr, deadline: &Deadline) -> Result<TcpStream, String> {
    let connect = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_zero_linger()?;
        stream.set_nodelay(true)?;
        io::Result::Ok(stream)
    };
    match deadline.within(connect).await {
        Some(result) => result.map_err(|error| io_reason(&error)),
        None => Err(deadline.missed("no answer")),
    }
}
