//! `[[postgres]]`: the database, and the two services that it becomes.

use std::{net::SocketAddr, time::Duration};

use toml::Spanned;

use super::{Listeners, Seen, network::Held, not_zero, service::note_listener};
use crate::config::{
    Access, Backend, Consensus, Durability, Forwarding, Guard, Health, OnDown, Postgres, Probe,
    Promotion, Protocol, Replay, Server, ServerHost, Service,
    raw::{self, File},
    read::Field,
    report::Findings,
    value::{
        Name,
        address::{Endpoint, unfit},
        word::ReadFallback,
    },
};

const DATABASE: &str = "postgres";
const INTERVAL: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(1);
const MAX_LAG: u64 = 16 << 20;
const MAX_RETAINED: u64 = 1 << 30;

/// How long the reads of a standby that serves no longer may go on.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Checks the databases, and adds their services.
pub(super) fn databases(
    file: &File,
    held: &Held,
    listeners: &mut Listeners,
    services: &mut Vec<Service>,
    findings: &mut Findings,
) -> Vec<Postgres> {
    let mut names = Seen::default();
    check_consensus(file, findings);
    let mut databases = Vec::new();
    for raw in file.postgres.items() {
        let postgres = raw.get_ref();
        let checked = database(postgres, file, held, &mut names, listeners, findings);
        let Some(database) = checked else { continue };
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let name = database.service(access);
            if services.iter().any(|service| service.name == name) {
                findings
                    .error(raw.span(), format!("a `[[service]]` has the name `{name}` already"))
                    .help("this database makes a service of that name: rename one of the two");
            }
            services.extend(service(&database, access));
        }
        databases.push(database);
    }
    databases
}

/// The service of one of the addresses of a database.
fn service(database: &Postgres, access: Access) -> Option<Service> {
    let listen = match access {
        Access::ReadWrite => database.read_write,
        Access::ReadOnly => database.read_only,
    };
    let backends = database.servers.iter().map(|server| Backend {
        name: server.name.clone(),
        address: server.address,
        weight: 1,
        backup: false,
    });
    let health = Health {
        probe: Probe::Database { leased: database.promotion != Promotion::Manual },
        interval: database.interval,
        timeout: database.timeout,
        rise: 1,
        fall: 1,
    };
    Some(Service {
        name: database.service(access),
        listen: listen?,
        protocol: Protocol::Tcp,
        forward: Forwarding::Nat,
        balance: lb_common::service::Balance::LeastConn,
        on_down: OnDown::Reset,
        drain_timeout: DRAIN_TIMEOUT,
        slow_start: Duration::ZERO,
        // Only one server may have a connection; no other is tried.
        replay: Replay { tries: 0, per_mille: 1 },
        backends: backends.collect(),
        health,
        passive: None,
        guard: Guard::default(),
        proxy: None,
    })
}

fn database(
    postgres: &raw::Postgres,
    file: &File,
    held: &Held,
    names: &mut Seen<Name>,
    listeners: &mut Listeners,
    findings: &mut Findings,
) -> Option<Postgres> {
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
    for (field, key) in [(&postgres.interval, "interval"), (&postgres.timeout, "timeout")] {
        if let Some(time) = field.get()
            && time.get_ref().is_zero()
        {
            not_zero(time.span(), key, findings);
        }
    }
    check_promotion(postgres, file, findings);
    let servers = servers(postgres, held, findings);
    let listen = |field: &Field<Endpoint>| field.value().map(|endpoint| endpoint.0);
    let promotion = postgres.promotion.value().map_or(Promotion::Manual, |it| it.0);
    Some(Postgres {
        name: postgres.name.value()?.0.clone(),
        read_write: listen(&postgres.read_write),
        read_only: listen(&postgres.read_only),
        read_from_primary: postgres.read_only_fallback.or(ReadFallback::Primary)
            == ReadFallback::Primary,
        user: postgres.user.value()?.0.clone(),
        password_file: postgres.password_file.value().map(|path| path.0.clone()),
        database: postgres.database.value().map_or_else(|| DATABASE.into(), |it| it.0.clone()),
        ca_file: postgres.ca_file.value().map(|path| path.0.clone()),
        interval: postgres.interval.or(INTERVAL),
        timeout: postgres.timeout.or(TIMEOUT),
        promotion,
        max_loss: postgres.max_loss.value().map_or(0, |bytes| bytes.0),
        durability: postgres.durability.value().map_or(Durability::Strict, |it| it.0),
        max_lag: postgres.max_lag.value().map_or(MAX_LAG, |bytes| bytes.0),
        max_retained: postgres.max_retained.value().map_or(MAX_RETAINED, |bytes| bytes.0),
        servers,
        consensus: (promotion != Promotion::Manual).then(|| consensus(file)).flatten(),
    })
}

fn check_promotion(postgres: &raw::Postgres, file: &File, findings: &mut Findings) {
    let manual = postgres.promotion.value().is_none_or(|it| it.0 == Promotion::Manual);
    if let Some(durability) = postgres.durability.get().filter(|_| manual)
        && durability.get_ref().0 != Durability::Strict
    {
        findings
            .error(durability.span(), "only `promotion = \"automatic\"` or \"veto\" has this")
            .help(
                "otherwise a person decides, by `ballast pg degrade`: etcd must hold that and a promotion \
                 apart",
            );
    }
    let Some(promotion) = postgres.promotion.get() else { return };
    if promotion.get_ref().0 == Promotion::Manual {
        return;
    }
    if file.consensus.is_absent() {
        findings
            .error(promotion.span(), "a promotion without a person needs `[consensus]`")
            .help("add `[consensus]` with `etcd`, or write `promotion = \"manual\"`");
    }
    if file.node.items().count() > 1
        && file.cluster.value().is_none_or(|it| it.secret_file.is_absent())
    {
        findings
            .error(
                promotion.span(),
                "a promotion without a person needs the nodes to talk to each other",
            )
            .help("add `secret_file` to `[cluster]`: the same key on every node");
    }
}

/// Checks `[consensus]` as far as single values do not.
fn check_consensus(file: &File, findings: &mut Findings) {
    let Some(consensus) = file.consensus.value() else { return };
    if let Some(etcd) = consensus.etcd.get() {
        if etcd.get_ref().is_empty() {
            findings
                .error(etcd.span(), "`etcd` is empty")
                .help("write the members' addresses, such as \"http://192.0.2.11:2379\"");
        }
        for url in etcd
            .get_ref()
            .iter()
            .filter(|url| consensus.ca_file.is_absent() && url.get_ref().0.starts_with("https"))
        {
            findings
                .error(url.span(), "nobody says which certificate this member may have")
                .help("add `ca_file` to `[consensus]`: the certificate of its authority");
        }
    }
    if let Some(user) = consensus.user.get()
        && consensus.password_file.is_absent()
    {
        findings
            .error(user.span(), "`user` has no password")
            .help("add `password_file = \"/etc/ballast/etcd.password\"`");
    }
}

/// What `[consensus]` says.
fn consensus(file: &File) -> Option<Consensus> {
    let consensus = file.consensus.value()?;
    Some(Consensus {
        etcd: consensus.etcd.items().map(|url| url.get_ref().0.clone()).collect(),
        ca_file: consensus.ca_file.value().map(|path| path.0.clone()),
        user: consensus.user.value().map(|user| user.0.clone()),
        password_file: consensus.password_file.value().map(|path| path.0.clone()),
        cluster: super::cluster(&file.cluster).name,
    })
}

fn servers(postgres: &raw::Postgres, held: &Held, findings: &mut Findings) -> Vec<Server> {
    if let Some(servers) = postgres.server.get()
        && servers.get_ref().is_empty()
    {
        findings
            .error(servers.span(), "`server` is empty")
            .help("add a `[[postgres.server]]` with `name` and `address`");
    }
    let mut names: Seen<Name> = Seen::default();
    let mut addresses = Seen::default();
    let mut servers = Vec::new();
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
        check_server(&server.address, postgres, held, &mut addresses, findings);
        if let (Some(name), Some(address)) = (server.name.value(), server.address.value()) {
            let host = host(server, postgres, findings);
            servers.push(Server { name: name.0.clone(), address: address.0, host });
        }
    }
    servers
}

/// How commands get to the host of a server.
fn host(
    server: &raw::Server,
    postgres: &raw::Postgres,
    findings: &mut Findings,
) -> Option<ServerHost> {
    let command = server.command.get()?;
    let mut missing = |what: &str, help: &str| {
        findings
            .error(command.span(), format!("a server with `command` needs `{what}`"))
            .help(help.to_owned());
    };
    if command.get_ref().is_empty() {
        missing("command", "write what gets to the host, such as [\"ssh\", \"db-01\"]");
    }
    if server.data_directory.is_absent() {
        missing("data_directory", "add the server's data_directory");
    }
    if postgres.replication_user.is_absent() {
        missing("replication_user", "add `replication_user = \"replication\"` to the database");
    }
    let words = server.command.items().map(|word| word.get_ref().0.clone());
    Some(ServerHost {
        command: words.collect(),
        data_directory: server.data_directory.value()?.0.clone(),
        stop_command: server.stop_command.value().map(|it| it.0.clone()),
        start_command: server.start_command.value().map(|it| it.0.clone()),
        replication_user: postgres.replication_user.value()?.0.clone(),
        rewind_user: postgres.rewind_user.value().map(|it| it.0.clone()),
    })
}

fn check_server(
    address: &Field<Endpoint>,
    postgres: &raw::Postgres,
    held: &Held,
    addresses: &mut Seen<SocketAddr>,
    findings: &mut Findings,
) {
    let Some(address) = address.get() else { return };
    let (span, endpoint) = (address.span(), address.get_ref().0);
    let ip = endpoint.ip();
    addresses.once(
        endpoint,
        span.clone(),
        || format!("two servers of this database have the address {endpoint}"),
        "write each server's own address",
        findings,
    );
    if let Some(why) = unfit(ip) {
        findings.error(span, format!("{ip} is {why}")).help("write the server's own address");
        return;
    }
    if let Some(place) = held.place(ip) {
        findings
            .error(span, format!("the server's address {ip} is a floating address"))
            .help("write the server's own address")
            .label(place, "the floating address");
        return;
    }
    let other = |listen: &Spanned<Endpoint>| listen.get_ref().0.is_ipv4() != ip.is_ipv4();
    let listens = [&postgres.read_write, &postgres.read_only];
    if let Some(listen) = listens.iter().filter_map(|it| it.get()).find(|it| other(it)) {
        let family = |v4| if v4 { "IPv4" } else { "IPv6" };
        let (theirs, ours) = (family(ip.is_ipv4()), family(!ip.is_ipv4()));
        findings
            .error(span, format!("{ip} is {theirs}, but the database listens on {ours}"))
            .help(format!("write the server's {ours} address"))
            .label(listen.span(), format!("the database listens on {ours}"));
    }
}
