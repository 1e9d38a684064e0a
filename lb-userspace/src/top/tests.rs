use jiff::Timestamp;
use ratatui::{Terminal, backend::TestBackend, buffer::Cell};

use super::*;
use crate::{
    control::{
        status::{Backend, Service},
        verdict::Admin,
    },
    dataplane::{Flow, Info},
    events::Kind,
    health::Health,
};

fn backend(name: &str, second: u64) -> Backend {
    Backend {
        name: name.into(),
        address: "192.0.2.21:8080".parse().unwrap(),
        health: Health::Up,
        proxy: None,
        serving: true,
        draining: false,
        backup: false,
        admin: Admin::Enabled,
        reason: "200 OK".into(),
        verdict: vec!["fit".into()],
        passive: None,
        since: Timestamp::UNIX_EPOCH,
        weight: 1,
        weight_percent: 100,
        next_hop: None,
        connections: 40 * second,
        answered: 0,
        active: 12,
        forward_packets: 700 * second,
        forward_bytes: 0,
        return_packets: 500 * second,
        return_bytes: 250_000 * second,
        connections_per_second: 0.0,
        forward_bytes_per_second: 0.0,
        return_bytes_per_second: 0.0,
    }
}

fn flow(port: u16, second: u64, sampled: Option<u64>) -> NamedFlow {
    NamedFlow {
        service: Some("web".into()),
        backend_name: Some("app-01".into()),
        sampled: sampled.is_some(),
        packets_per_second: sampled,
        flow: Flow {
            protocol: 6,
            client: ([192, 0, 2, 9], port).into(),
            listen: "192.0.2.100:80".parse().unwrap(),
            nat: ([192, 0, 2, 100], port).into(),
            backend: "192.0.2.21:8080".parse().unwrap(),
            backend_id: 1,
            phase: "established".into(),
            idle_ms: 0,
            forward_packets: 10 * second,
            forward_bytes: 1000 * second,
            return_packets: 10 * second,
            return_bytes: 15_000 * second,
        },
    }
}

fn observation(second: u64) -> Observation {
    let service = |name: &str, backends: Vec<Backend>| Service {
        name: name.into(),
        listen: "192.0.2.100:80".parse().unwrap(),
        protocol: "tcp".into(),
        path: "kernel".into(),
        proxied: false,
        proxy: None,
        forward: "nat".into(),
        encapsulation: None,
        slots: None,
        balance: "least_conn".into(),
        panic: false,
        on_backups: false,
        connections: 80 * second,
        refused: second,
        replayed: 2 * second,
        not_replayed: second,
        connections_per_second: 0.0,
        serving_count: backends.iter().filter(|it| it.serving).count(),
        backend_count: backends.len(),
        backends,
    };
    let out = Backend {
        serving: false,
        verdict: vec!["probe failed: connection refused".into()],
        connections: 0,
        active: 0,
        forward_packets: 0,
        return_packets: 0,
        return_bytes: 0,
        ..backend("app-02", 0)
    };
    let status = Status {
        alerts: None,
        files: None,
        node: "lb-01".into(),
        cluster: "edge".into(),
        version: "0.1.0".into(),
        pid: 1,
        started: Timestamp::UNIX_EPOCH,
        uptime_seconds: 60,
        config_loaded: Timestamp::UNIX_EPOCH,
        floating: Vec::new(),
        anycast: Vec::new(),
        dataplane: Info::default(),
        flows: 1234,
        peers: Vec::new(),
        vrrp: Vec::new(),
        postgres: Vec::new(),
        services: vec![
            service("web", vec![backend("app-01", second), out.clone()]),
            service("shop", vec![out]),
        ],
        retiring: Vec::new(),
        reasons: [("no_flow".into(), 70 + 5 * second), ("not_ours".into(), 1_000_000)].into(),
        warnings: vec!["the clock is slow".into()],
    };
    Observation {
        at: Duration::from_secs(second),
        status,
        flows: vec![flow(4001, second, None), flow(4002, 7, None), flow(4003, 1, Some(100))],
    }
}

fn event(number: u64, message: &str) -> Event {
    Event {
        number,
        time: "2026-01-02T03:04:05Z".parse().unwrap(),
        monotonic_ms: 0,
        kind: Kind::Health,
        service: Some("web".into()),
        backend: Some("app-02".into()),
        message: message.into(),
        cause: Some("connection refused".into()),
    }
}

/// A model that has looked twice, two seconds apart.
fn model() -> Model {
    let mut model = Model::new(false);
    model.observe(observation(7));
    model.observe(observation(9));
    model.event(event(1, "app-02 is down"));
    model
}

fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, model)).unwrap();
    let cells = terminal.backend().buffer().content();
    let lines = cells.chunks(usize::from(width));
    lines.map(|line| line.iter().map(Cell::symbol).collect::<String>().trim_end().into()).collect()
}

#[test]
fn a_small_terminal_has_all_of_it() {
    assert_eq!(screen(&model(), 80, 24), SMALL);
}

#[test]
fn a_wide_terminal_shows_more() {
    let lines = screen(&model(), 120, 40);
    assert_eq!(lines.len(), 40);
    assert!(lines[1].contains("[SERVICES]"), "{lines:#?}");
    let web = lines.iter().find(|line| line.starts_with("web ")).unwrap();
    assert!(web.contains("tcp 192.0.2.100:80"), "{web}");
}

#[test]
fn any_size_can_be_drawn() {
    let mut model = model();
    model.key(Key::Help);
    for width in [1, 10, 39, 40, 60, 99, 100, 300] {
        for height in [1, 2, 11, 12, 13, 20, 100] {
            assert_eq!(screen(&model, width, height).len(), usize::from(height));
            screen(&Model::new(true), width, height);
        }
    }
    assert!(screen(&model, 39, 30)[0].contains("too small"));
}

#[test]
fn rates_are_differences() {
    let model = model();
    let web = &model.picture.services[0];
    assert!((web.connections - 80.0).abs() < 1e-9);
    assert!((web.packets - 1200.0).abs() < 1e-9);
    assert!((web.bits - 2_000_000.0).abs() < 1e-9);
    assert!((web.refused - 1.0).abs() < 1e-9);
    assert!((web.replayed - 2.0).abs() < 1e-9);
    assert_eq!((web.open, web.alarm), (12, false));
    assert!(model.picture.services[1].alarm, "no backend serves");
    let flows: Vec<_> = model.picture.flows.iter().map(|row| row.client.port()).collect();
    assert_eq!(flows, [4003, 4001], "what stands still is left out");
    assert!((model.picture.flows[1].packets - 20.0).abs() < 1e-9);
    assert!((model.picture.flows[0].bits - 8.0 * 100.0 * 800.0).abs() < 1e-9);
    let first = &model.picture.reasons[0];
    assert_eq!((first.label.as_str(), first.total), ("no_flow", 115));
    assert!((first.rate - 5.0).abs() < 1e-9);
}

#[test]
fn one_look_or_a_counter_that_began_anew_is_no_rate() {
    let mut model = Model::new(false);
    model.observe(observation(9));
    assert!(model.picture.services[0].packets.abs() < 1e-9);
    model.observe(Observation { at: Duration::from_secs(20), ..observation(1) });
    assert!(model.picture.services[0].packets.abs() < 1e-9);
}

#[test]
fn keys_move_sort_stop_and_end() {
    let mut model = model();
    assert!(model.key(Key::Next) && model.panel == Panel::Backends);
    for _ in 0..10 {
        model.key(Key::Down);
    }
    assert_eq!(model.offsets[Panel::Backends as usize], 2, "not past the last");
    model.key(Key::Up);
    assert_eq!(model.offsets[Panel::Backends as usize], 1);
    model.key(Key::Before);
    model.key(Key::Before);
    assert_eq!(model.panel, Panel::Events);
    model.key(Key::Sort);
    assert_eq!(model.picture.backends[0].name, "app-01");
    for _ in 0..3 {
        model.key(Key::Sort);
    }
    assert_eq!(model.sort, Sort::Config);
    model.key(Key::Pause);
    let shown = model.picture.clone();
    model.observe(observation(100));
    assert_eq!(model.picture, shown);
    assert!(screen(&model, 80, 24)[0].contains("STOPPED"));
    model.key(Key::Help);
    assert!(screen(&model, 80, 24).iter().any(|line| line.contains("KEYS")));
    assert!(model.key(Key::Quit), "it closes the help first");
    assert!(!model.key(Key::Quit));
}

#[test]
fn a_daemon_that_is_lost_is_told_and_events_come_once() {
    let mut model = model();
    model.lost("no daemon answers".into());
    assert!(screen(&model, 80, 24)[0].contains("no daemon answers"));
    model.observe(observation(10));
    assert!(!screen(&model, 80, 24)[0].contains("no daemon answers"));
    model.event(event(1, "app-02 is down"));
    assert_eq!(model.events.len(), 1);
    for number in 2..500 {
        model.event(event(number, "more"));
    }
    assert_eq!((model.events.len(), model.events.back().unwrap().number), (EVENTS, 499));
}

#[test]
fn figures_are_short() {
    let shown = [0.0, 0.4, 9.96, 12.0, 999.4, 999.6, 1234.0, 45_600.0, 2e6, 3e9].map(view::scaled);
    let expected = ["0", "0.4", "10", "12", "999", "1.0k", "1.2k", "46k", "2.0M", "3.0G"];
    assert_eq!(shown, expected);
}

#[test]
fn colours_are_used_only_if_they_may_be() {
    for colour in [true, false] {
        let mut model = model();
        model.colour = colour;
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| view::draw(frame, &model)).unwrap();
        let cells = terminal.backend().buffer().content();
        let coloured = cells.iter().any(|cell| cell.fg != ratatui::style::Color::Reset);
        assert_eq!(coloured, colour);
    }
}

#[rustfmt::skip]
const SMALL: [&str; 24] = [
    "ballast  lb-01 of edge  1234 connections  the clock is slow",
    "[SERVICES]──────────────────────────────────────────────────────────────────────",
    "NAME                          NEW/S   PKT/S   BIT/S    OPEN REFUSED/S REPLAYED/S",
    "web                              80    1.2k    2.0M      12         1          2",
    "shop                             80       0       0       0         1          2",
    " BACKENDS ──────────────────────────────────────────────────────────────────────",
    "NAME         SERVICE      STATE     NEW/S  PKT/S  BIT/S   OPEN WHY",
    "app-01       web          serves       40   1.2k   2.0M     12 200 OK",
    "app-02       web          out           0      0      0      0 probe failed: con",
    "app-02       shop         out           0      0      0      0 probe failed: con",
    " BUSIEST FLOWS ────────────────────────────────   NOT FORWARDED ────────────────",
    "CLIENT              BACKEND        PKT/S  BIT/S  REASON           PKT/S    TOTAL",
    "192.0.2.9:4003      app-01 (web)    ~100   640k  no_flow              5      115",
    "192.0.2.9:4001      app-01 (web)      20   128k  not_ours             0     1.0M",
    "",
    "",
    "",
    "",
    "",
    " EVENTS (UTC) ──────────────────────────────────────────────────────────────────",
    "03:04:05 [web/app-02] app-02 is down (connection refused)",
    "",
    "",
    "q end  Tab panel  arrows move  s sort: as configured  p stop  h help",
];
