//! The sections and keys of the file: this table is the schema.
//!
//! A key that is marked `later` belongs to the contract, but does nothing in this version. It is
//! read and checked, so that the file of a later version is not refused, and a warning says what
//! will not happen.

use std::time::Duration;

use lb_common::{
    limits::{MOST_BACKENDS, MOST_SERVICES, MOST_SLOTS},
    service::Balance,
};

use super::{
    Encapsulation, OnDown, Protocol,
    read::{List, section},
    value::{
        AbsolutePath, Argument, Bytes, Host, Interface, Name, Secret, ServerName, Share, Text, Url,
        UrlPath, Whole,
        address::{Address, Endpoint, Prefix},
        expect::Expect,
        source::Source,
        word::{
            AlertKind, Checksum, Durable, Forward, HttpVersion, NextUpstream, Probe, Promoted,
            ReadFallback, Route, Scheme, SendProxy,
        },
    },
};
use crate::alert::Severity;

section! {
    /// The whole file.
    File "" {
        cluster: Cluster;
        node: List<Node>;
        floating: List<Floating>;
        anycast: List<Anycast>;
        service: List<Service>;
        dataplane: Dataplane;
        paths: Paths;
        postgres: List<Postgres>;
        consensus: Consensus;
        alert: List<Alert>;
        api: Api, later "no metrics, dashboard or health page is served";
    }
}

section! {
    /// `[cluster]`.
    Cluster "[cluster]" {
        name: Name;
        secret_file: AbsolutePath;
        peer_port: Whole<1, 65_535>;
    }
}

section! {
    /// `[[node]]`.
    Node "[[node]]" {
        name: Name, required r#"name = "lb-01""#;
        address: Address, required r#"address = "192.0.2.11""#;
        interface: Interface, required r#"interface = "eth0""#;
        priority: Whole<1, 254>;
    }
}

section! {
    /// `[[floating]]`.
    Floating "[[floating]]" {
        vrid: Whole<1, 255>, required "vrid = 51";
        addresses: List<Prefix>, required r#"addresses = ["192.0.2.100/24"]"#;
        interval: Duration;
        version: Whole<2, 3>;
        password: Secret;
        preempt: bool;
        preempt_delay: Duration;
        unicast: bool;
        checksum: Checksum;
    }
}

section! {
    /// `[[anycast]]`.
    Anycast "[[anycast]]" {
        addresses: List<Address>, required r#"addresses = ["198.51.100.80"]"#;
    }
}

section! {
    /// `[[service]]`.
    Service "[[service]]" {
        name: Name, required r#"name = "web""#;
        listen: Endpoint, required r#"listen = "192.0.2.100:80""#;
        protocol: Protocol;
        path: Route;
        forward: Forward;
        encapsulation: Encapsulation;
        balance: Balance;
        on_down: OnDown;
        drain_timeout: Duration;
        slow_start: Duration;
        allow: List<Source>;
        deny: List<Source>;
        source_rate: Whole<1, 1_000_000>;
        source_burst: Whole<1, 1_000_000>;
        replay_tries: Whole<0, 4>;
        replay_budget: Share;
        backend: List<Backend>, required "[[service.backend]]` with `name` and `address";
        health: Health;
        passive: Passive;
        proxy: Proxy;
    }
}

section! {
    /// `[[service.backend]]`.
    Backend "[[service.backend]]" {
        name: Name, required r#"name = "app-01""#;
        address: Endpoint, required r#"address = "192.0.2.21:8080""#;
        weight: Whole<1, 256>;
        backup: bool;
    }
}

section! {
    /// `[service.health]`.
    Health "[service.health]" {
        probe: Probe;
        path: UrlPath;
        host: Host;
        expect: Expect;
        interval: Duration;
        timeout: Duration;
        rise: Whole<1, 1000>;
        fall: Whole<1, 1000>;
        command: List<Argument>;
    }
}

section! {
    /// `[service.passive]`.
    Passive "[service.passive]" {
        enabled: bool;
        eject_percent: Whole<1, 100>;
        eject_time: Duration;
    }
}

section! {
    /// `[service.proxy]`.
    #[expect(clippy::struct_field_names, reason = "keys are named as in other proxies")]
    Proxy "[service.proxy]" {
        connect_timeout: Duration;
        send_timeout: Duration;
        read_timeout: Duration;
        client_timeout: Duration;
        keepalive: Whole<0, 65_535>;
        max_requests: Whole<0, 65_535>;
        queue: Whole<0, 65_535>;
        queue_timeout: Duration;
        least_time: bool;
        next_upstream: List<NextUpstream>;
        next_upstream_tries: Whole<0, 65_535>;
        next_upstream_timeout: Duration;
        retry_budget: Share;
        body_buffer: Bytes;
        access_log: AbsolutePath;
        accept_proxy: List<Source>;
        send_proxy: SendProxy;
        scheme: Scheme;
        http_version: HttpVersion;
        max_streams: Whole<1, 65_535>;
        backend_tls: BackendTls;
        certificate: List<Certificate>;
    }
}

section! {
    /// `[service.proxy.backend_tls]`.
    BackendTls "[service.proxy.backend_tls]" {
        server_name: ServerName;
        ca_file: AbsolutePath;
        verify: bool;
        certificate: AbsolutePath;
        key: AbsolutePath;
    }
}

section! {
    /// `[[service.proxy.certificate]]`.
    Certificate "[[service.proxy.certificate]]" {
        chain: AbsolutePath, required r#"chain = "/etc/ballast/example.org.pem""#;
        key: AbsolutePath, required r#"key = "/etc/ballast/example.org.key""#;
    }
}

section! {
    /// `[dataplane]`.
    Dataplane "[dataplane]" {
        max_flows: Whole<1024, 16_777_216>;
        max_half_open: Whole<1024, 16_777_216>;
        max_services: Whole<1, MOST_SERVICES>;
        max_backends: Whole<1, MOST_BACKENDS>;
        max_slots: Whole<1024, MOST_SLOTS>;
        tcp_idle_timeout: Duration;
        tcp_closing_timeout: Duration;
        udp_idle_timeout: Duration;
    }
}

section! {
    /// `[paths]`.
    Paths "[paths]" {
        socket: AbsolutePath;
        state: AbsolutePath;
        pins: AbsolutePath;
    }
}

section! {
    /// `[[postgres]]`.
    Postgres "[[postgres]]" {
        name: Name, required r#"name = "appdb""#;
        read_write: Endpoint;
        read_only: Endpoint;
        user: Text, required r#"user = "ballast""#;
        password_file: AbsolutePath;
        database: Text;
        ca_file: AbsolutePath;
        read_only_fallback: ReadFallback;
        interval: Duration;
        timeout: Duration;
        promotion: Promoted;
        max_loss: Bytes;
        durability: Durable;
        max_lag: Bytes;
        max_retained: Bytes;
        replication_user: Text;
        rewind_user: Text;
        server: List<Server>, required "[[postgres.server]]` with `name` and `address";
    }
}

section! {
    /// `[[postgres.server]]`.
    Server "[[postgres.server]]" {
        name: Name, required r#"name = "pg-01""#;
        address: Endpoint, required r#"address = "192.0.2.31:5432""#;
        command: List<Argument>;
        data_directory: AbsolutePath;
        stop_command: Text;
        start_command: Text;
    }
}

section! {
    /// `[consensus]`.
    Consensus "[consensus]" {
        etcd: List<Url>, required r#"etcd = ["http://192.0.2.11:2379"]"#;
        ca_file: AbsolutePath;
        user: Text;
        password_file: AbsolutePath;
    }
}

section! {
    /// `[[alert]]`.
    Alert "[[alert]]" {
        kind: AlertKind, required r#"kind = "syslog""#;
        name: Name;
        level: Severity;
        token_file: AbsolutePath;
        chat_id: Text;
        url: Url;
        url_file: AbsolutePath;
        ca_file: AbsolutePath;
        socket: AbsolutePath;
    }
}

section! {
    /// `[api]`.
    Api "[api]" {
        listen: Endpoint, required r#"listen = "127.0.0.1:9180""#;
    }
}
