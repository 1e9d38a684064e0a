//! Whole systems in network namespaces: the real daemon, real nginx, real clients.
//!
//! Each test brings up a lab of its own. They need root; without it they fail.

mod alerts;
mod anycast;
mod config;
mod failure;
mod flood;
mod handover;
mod handshake;
mod http;
mod labs;
mod load;
mod operator;
mod passive;
mod peers;
mod ping;
mod ports;
mod postgres;
mod postgres_probe;
mod postgres_tls;
mod protection;
mod proxy;
mod proxy_files;
mod proxy_resets;
mod proxy_restart;
mod proxy_speed;
mod rejoin;
mod reload;
mod replay;
mod reset;
mod routes;
mod serving;
mod site;
mod start;
mod steer;
mod takeover;
mod trace;
mod upgrade;
mod vagrant;
mod vrrp;
