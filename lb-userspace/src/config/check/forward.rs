//! `forward` and `encapsulation`: how packets get to the backends, and what that asks of them.

use lb_common::service::Balance;
use toml::Spanned;

use crate::config::{
    Encapsulation, Forwarding,
    raw::Service,
    report::Findings,
    value::{address::Endpoint, word::Forward},
};

/// Checks what stands beside `forward`. The address families and ports are checked with the backends.
pub(super) fn check(service: &Service, findings: &mut Findings) -> Forwarding {
    let forward = service.forward.or(Forward::Nat);
    if let Some(encapsulation) = service.encapsulation.get()
        && forward != Forward::Tunnel
        && !service.forward.is_wrong()
    {
        let finding = findings
            .error(encapsulation.span(), "`encapsulation` needs `forward = \"tunnel\"`")
            .help("write `forward = \"tunnel\"`, or remove `encapsulation`");
        if let Some(forward) = service.forward.span() {
            finding.label(forward, "packets go to the backends without a tunnel");
        }
    }
    if let Some(word) = word(forward) {
        check_balance(service, word, findings);
    }
    match forward {
        Forward::Nat => Forwarding::Nat,
        Forward::Direct => Forwarding::Direct,
        Forward::Tunnel => Forwarding::Tunnel(service.encapsulation.or(Encapsulation::Ipip)),
    }
}

/// How a backend is chosen if nothing is said.
pub(super) fn balance(forward: Forwarding) -> Balance {
    if forward == Forwarding::Nat { Balance::LeastConn } else { Balance::Maglev }
}

/// Whether the backends answer the clients by themselves.
pub(super) fn is_steered(service: &Service) -> bool {
    word(service.forward.or(Forward::Nat)).is_some()
}

/// Reports a backend whose port is not the service's: packets arrive with the port that the client
/// wrote.
pub(super) fn check_port(address: &Spanned<Endpoint>, service: &Service, findings: &mut Findings) {
    let (Some(word), Some(listen)) = (word(service.forward.or(Forward::Nat)), service.listen.get())
    else {
        return;
    };
    let (backend, port) = (address.get_ref().0, listen.get_ref().0.port());
    if backend.port() != port {
        let mut cured = backend;
        cured.set_port(port);
        findings
            .error(
                address.span(),
                format!(
                    "the backend's port is {}, but with `forward = \"{word}\"` packets keep port {port}",
                    backend.port(),
                ),
            )
            .help(format!("write \"{cured}\", and let the backend listen on port {port}"))
            .label(listen.span(), "the port that clients use");
    }
}

fn check_balance(service: &Service, word: &str, findings: &mut Findings) {
    let Some(balance) = service.balance.get() else { return };
    if *balance.get_ref() == Balance::Maglev {
        return;
    }
    findings
        .error(balance.span(), format!("`forward = \"{word}\"` needs `balance = \"maglev\"`"))
        .help(
            "remove `balance`: replies do not pass the balancer, so it cannot count connections, and \
             the choice by hash needs no memory of them",
        );
}

/// The word for a way on which replies do not pass the balancer.
fn word(forward: Forward) -> Option<&'static str> {
    match forward {
        Forward::Nat => None,
        Forward::Direct => Some("direct"),
        Forward::Tunnel => Some("tunnel"),
    }
}
