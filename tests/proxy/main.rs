//! The proxy as clients and backends see it, beside nginx: the same requests go to both, in front of the
//! same backends, and what comes of them must be the same.
//!
//! Where it is not, that is on purpose: `differences` lists the cases and says why. All of it happens on
//! loopback and needs no privilege, only nginx.

mod attacks;
mod backends;
mod client;
mod differences;
mod frames;
mod fronts;
mod grpc;
mod hostile;
mod http2;
mod identity;
mod limits;
mod log;
mod packets;
mod peers;
mod prior;
mod retries;
mod streams;
mod tls;
mod upstream;
