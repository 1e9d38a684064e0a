use lb_common::{
    service::mapped,
    trace::{NOT_FORWARDED, TRACED_BYTES},
};

use super::*;

fn names() -> Names {
    let key = ServiceKey { address: mapped([192, 0, 2, 100]), port: 80, protocol: 6, reserved: 0 };
    let key6 = ServiceKey { port: 81, ..key };
    Names {
        services: [(3, ("web".into(), key)), (4, ("shop".into(), key6))].into(),
        backends: [(7, "app-01".into()), (8, "app-02".into()), (9, "app-01".into())].into(),
        service_of: [(7, 3), (8, 3), (9, 4)].into(),
        interfaces: [(2, "eth0".into())].into(),
    }
}

fn syn() -> TraceRecord {
    TraceRecord {
        time_ns: 1_500_000_000,
        before_src: mapped([192, 0, 2, 9]),
        before_dst: mapped([192, 0, 2, 100]),
        after_src: mapped([192, 0, 2, 100]),
        after_dst: mapped([192, 0, 2, 21]),
        before_ports: [0x9c, 0x40, 0, 80],
        after_ports: [0x9c, 0x40, 0x1f, 0x90],
        before_protocol: 6,
        after_protocol: 6,
        before_flags: 0x12,
        after_flags: 0x12,
        before_len: 60,
        after_len: 60,
        ifindex: 2,
        stage: Stage::Connect as u32,
        action: 3,
        reason: NONE,
        backend: 7,
        service: 3,
        direction: TO_BACKEND,
        before: [0xab; TRACED_BYTES],
        after: [0xcd; TRACED_BYTES],
        ..TraceRecord::ZERO
    }
}

#[test]
fn a_forwarded_packet_has_both_tuples_and_names() {
    let packet = names().packet(&syn(), Timestamp::UNIX_EPOCH, true);
    assert_eq!(packet.time.to_string(), "1970-01-01T00:00:01.5Z");
    assert_eq!((packet.interface.as_str(), packet.stage.as_str()), ("eth0", "connect"));
    assert_eq!(packet.before.source, Some("192.0.2.9:40000".parse().unwrap()));
    assert_eq!(packet.before.flags, "SYN ACK");
    assert_eq!(packet.before.bytes, "ab".repeat(60));
    let after = packet.after.unwrap();
    assert_eq!(after.destination, Some("192.0.2.21:8080".parse().unwrap()));
    assert_eq!(after.bytes, "cd".repeat(60));
    assert_eq!(
        (packet.service.as_deref(), packet.backend.as_deref()),
        (Some("web"), Some("app-01"))
    );
    assert_eq!((packet.reason, packet.forwarded), (None, Some(Direction::To)));
}

#[test]
fn a_refused_packet_has_the_service_that_it_came_to() {
    let record = TraceRecord {
        action: 1,
        reason: Reason::RateLimited as u32,
        direction: NOT_FORWARDED,
        backend: NONE,
        service: NONE,
        ..syn()
    };
    let packet = names().packet(&record, Timestamp::UNIX_EPOCH, false);
    assert_eq!(packet.reason.as_deref(), Some("rate_limited"));
    assert_eq!((packet.service.as_deref(), packet.backend), (Some("web"), None));
    assert_eq!((packet.action.as_str(), packet.after, packet.forwarded), ("drop", None, None));
    assert!(packet.before.bytes.is_empty());
}

#[test]
fn what_is_not_ip_has_no_ends() {
    let record = TraceRecord { before_len: 42, reason: Reason::NotIp as u32, ..TraceRecord::ZERO };
    let packet = names().packet(&record, Timestamp::UNIX_EPOCH, false);
    let frame = packet.before;
    assert_eq!((frame.protocol, frame.source, frame.destination), (None, None, None));
    assert_eq!(packet.interface, "number 0");
}

#[test]
fn requests_become_numbers() {
    let request = Request {
        service: Some("web".into()),
        backend: Some("app-01".into()),
        reason: Some(ReasonWanted::This(Reason::NoFlow)),
        one_in: 5,
        ..Request::default()
    };
    let wanted = names().filter(&request).unwrap();
    assert_eq!((wanted.service, wanted.backend, wanted.one_in), (3, 7, 5));
    assert_eq!((wanted.listen_port, wanted.listen_protocol), ([0, 80], 6));
    assert_eq!(wanted.reason, Reason::NoFlow as u32);
    let all = filter::ACTIVE | filter::SERVICE | filter::BACKEND | filter::REASON;
    assert_eq!(wanted.flags, all);
    let nothing = names().filter(&Request::default()).unwrap();
    assert_eq!(nothing, TraceFilter { flags: filter::ACTIVE, ..TraceFilter::ZERO });
}

#[test]
fn unknown_and_ambiguous_names_are_refused() {
    let refused = |service: Option<&str>, backend: Option<&str>| {
        let request = Request {
            service: service.map(str::to_owned),
            backend: backend.map(str::to_owned),
            ..Request::default()
        };
        names().filter(&request).unwrap_err().to_string()
    };
    let text = refused(Some("no"), None);
    assert!(text.contains("no service is called no") && text.contains("web, shop"), "{text}");
    let text = refused(Some("shop"), Some("app-02"));
    assert!(text.contains("app-02") && text.contains("there are: app-01"), "{text}");
    let text = refused(None, Some("app-01"));
    assert!(text.contains("--service (web, shop)"), "{text}");
}
