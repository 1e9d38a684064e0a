//! What belongs to the contract but not to this version: its values are checked all the same, so
//! that the file is right when the version comes.

use std::ops::Range;

use super::{Listeners, Seen, network::Held, not_zero, service::note_listener};
use crate::config::{
    Protocol,
    raw::{File, Postgres, Proxy},
    read::Field,
    report::Findings,
    value::{
        Name,
        address::{Endpoint, unfit},
        word::{AlertKind, NextUpstream, Promotion},
    },
};

pub(super) fn check(file: &File, held: &Held, listeners: &mut Listeners, findings: &mut Findings) {
    for service in file.service.items() {
        if let Some(proxy) = service.get_ref().proxy.value() {
            check_proxy(proxy, findings);
        }
    }
    let mut names = Seen::default();
    for postgres in file.postgres.items() {
        check_postgres(postgres.get_ref(), file, held, &mut names, listeners, findings);
    }
    if let Some(consensus) = file.consensus.value()
        && let Some(etcd) = consensus.etcd.get()
        && etcd.get_ref().is_empty()
    {
        findings
            .error(etcd.span(), "`etcd` is empty")
            .help("write the members' addresses, such as \"http://192.0.2.11:2379\"");
    }
    for alert in file.alert.items() {
        let (span, alert) = (alert.span(), alert.get_ref());
        if alert.kind.value() == Some(&AlertKind::Telegram) {
            if alert.token_file.is_absent() {
                telegram(span.clone(), "token_file", "/etc/ballast/telegram.token", findings);
            }
            if alert.chat_id.is_absent() {
                telegram(span, "chat_id", "-100123", findings);
            }
        }
    }
}

fn telegram(span: Range<usize>, key: &str, example: &str, findings: &mut Findings) {
    findings
        .error(span, format!("an alert by telegram needs `{key}`"))
        .help(format!("add `{key} = \"{example}\"`"));
}

fn check_proxy(proxy: &Proxy, findings: &mut Findings) {
    for (field, key) in [
        (&proxy.connect_timeout, "connect_timeout"),
        (&proxy.send_timeout, "send_timeout"),
        (&proxy.read_timeout, "read_timeout"),
    ] {
        if let Some(timeout) = field.get()
            && timeout.get_ref().is_zero()
        {
            not_zero(timeout.span(), key, findings);
        }
    }
    let words: Vec<_> = proxy.next_upstream.items().collect();
    if words.len() > 1
        && let Some(off) = words.iter().find(|word| *word.get_ref() == NextUpstream::Off)
    {
        findings
            .error(off.span(), "`next_upstream` has \"off\" beside other words")
            .help("write \"off\" alone, or the cases in which the next backend is tried");
    }
}

fn check_postgres(
    postgres: &Postgres,
    file: &File,
    held: &Held,
    names: &mut Seen<Name>,
    listeners: &mut Listeners,
    findings: &mut Findings,
) {
    if let Some(name) = postgres.name.get() {
        names.once(
            name.get_ref().clone(),
            name.span(),
            || format!("two databases have the name `{}`", name.get_ref().0),
            "give each `[[postgres]]` a name of its own",
            findings,
        );
    }
    for (field, key) in [(&postgres.read_write, "read_write"), (&postgres.read_only, "read_only")] {
        if let Some(listen) = field.get() {
            let address = listen.get_ref().0;
            held.check_listen(address, listen.span(), key, findings);
            note_listener(address, Protocol::Tcp, listen, listeners, findings);
        }
    }
    if let Some(promotion) = postgres.promotion.get()
        && *promotion.get_ref() != Promotion::Manual
        && file.consensus.is_absent()
    {
        findings
            .error(promotion.span(), "a promotion without a person needs `[consensus]`")
            .help("add `[consensus]` with `etcd`, or write `promotion = \"manual\"`");
    }
    if let Some(servers) = postgres.server.get()
        && servers.get_ref().is_empty()
    {
        findings
            .error(servers.span(), "`server` is empty")
            .help("add a `[[postgres.server]]` with `name` and `address`");
    }
    let mut names: Seen<Name> = Seen::default();
    let mut addresses = Seen::default();
    for server in postgres.server.items() {
        let server = server.get_ref();
        if let Some(name) = server.name.get() {
            names.once(
                name.get_ref().clone(),
                name.span(),
                || format!("two servers of this database have the name `{}`", name.get_ref().0),
                "give each server a name of its own",
                findings,
            );
        }
        check_server(&server.address, held, &mut addresses, findings);
    }
}

fn check_server(
    address: &Field<Endpoint>,
    held: &Held,
    addresses: &mut Seen<Endpoint>,
    findings: &mut Findings,
) {
    let Some(address) = address.get() else { return };
    let (span, endpoint) = (address.span(), *address.get_ref());
    let ip = endpoint.0.ip();
    addresses.once(
        endpoint,
        span.clone(),
        || format!("two servers of this database have the address {}", endpoint.0),
        "write each server's own address",
        findings,
    );
    if let Some(why) = unfit(ip) {
        findings.error(span, format!("{ip} is {why}")).help("write the server's own address");
    } else if let Some(place) = held.place(ip) {
        findings
            .error(span, format!("the server's address {ip} is a floating address"))
            .help("write the server's own address")
            .label(place, "the floating address");
    }
}
