//! Traces and samples, from the model of the kernel's side to the socket.

use lb_common::{
    service::mapped,
    trace::{MAX_TRACES, NONE, Sample, Stage, TO_BACKEND, TraceRecord, filter},
};

use super::*;
use crate::{control::status::NamedFlow, trace::Line};

/// A record for the traces of these bits.
fn record(wanted: u32) -> TraceRecord {
    TraceRecord {
        before_src: mapped([192, 0, 2, 9]),
        before_dst: mapped([192, 0, 2, 100]),
        before_protocol: 6,
        wanted,
        stage: Stage::Known as u32,
        action: 3,
        reason: NONE,
        direction: TO_BACKEND,
        ..TraceRecord::ZERO
    }
}

fn lines(text: &str) -> Vec<Line> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_trace_ends_after_its_count_and_names_what_it_shows() {
    let (_one, first) = listener();
    let running = Running::start(&file(&[("web", 80, &[("app-01", first)])])).await;
    running.until_table(80, &[first]).await;
    let socket = running.directory.path().join("sock");
    let kernel = Arc::clone(&running.kernel);
    let feed = async {
        eventually("the trace", || !kernel.maps().traces.is_empty()).await;
        let filter = kernel.maps().traces[&0];
        assert_eq!(filter.flags, filter::ACTIVE | filter::SERVICE);
        assert_eq!(filter.listen_port, [0, 80]);
        kernel.maps().traced.lost[0] = 7;
        // One is for another trace.
        kernel.maps().traced.records = vec![record(1), record(2), record(1), record(1)];
    };
    let call = Call::get(&["trace"]).with("service", Some("web")).with("count", Some("2"));
    let (text, ()) = tokio::join!(call.text(&socket), feed);
    let lines = lines(&text.unwrap());
    assert_eq!(lines[0], Line::Began);
    let packets: Vec<_> = lines
        .iter()
        .filter_map(|it| if let Line::Packet(it) = it { Some(it) } else { None })
        .collect();
    assert_eq!(packets.len(), 2);
    assert_eq!(packets[0].stage, "known");
    assert_eq!(packets[0].backend.as_deref(), Some("app-01"));
    assert!(lines.contains(&Line::Lost(7)), "{lines:?}");
    let kernel = Arc::clone(&running.kernel);
    eventually("the end of the trace", || kernel.maps().traces.is_empty()).await;
}

#[tokio::test]
async fn a_trace_ends_when_its_reader_goes_and_when_the_daemon_does() {
    let (_one, first) = listener();
    let running = Running::start(&file(&[("web", 80, &[("app-01", first)])])).await;
    running.until_table(80, &[first]).await;
    let socket = running.directory.path().join("sock");
    let start = || {
        let socket = socket.clone();
        tokio::spawn(async move { Call::get(&["trace"]).text(&socket).await })
    };
    let kernel = Arc::clone(&running.kernel);
    let runs = |number: usize| kernel.maps().traces.len() == number;
    let mut readers = Vec::new();
    for number in 1..=MAX_TRACES as usize {
        readers.push(start());
        eventually("the trace", || runs(number)).await;
    }
    let error = Call::get(&["trace"]).text(&socket).await.unwrap_err().to_string();
    assert!(error.contains("no room"), "{error}");
    readers[1].abort();
    eventually("its end", || runs(3)).await;
    assert!(!kernel.maps().traces.contains_key(&1));
    running.handle.stop().await;
    assert!(runs(0), "the plain program is not in force again");
    for reader in readers {
        // Those that were not aborted come to an end.
        if let Ok(text) = reader.await {
            assert_eq!(lines(&text.unwrap()), [Line::Began]);
        }
    }
}

#[tokio::test]
async fn what_a_trace_cannot_be_is_told() {
    let (_one, first) = listener();
    let running = Running::start(&file(&[("web", 80, &[("app-01", first)])])).await;
    running.until_table(80, &[first]).await;
    let socket = running.directory.path().join("sock");
    for (key, value, told) in [
        ("service", "wap", "no service is called wap; there are: web"),
        ("backend", "app-02", "no backend is called app-02; there are: app-01"),
        ("from", "here", "from: here is no address"),
        ("reason", "none", "reason: there is no reason none"),
        ("count", "many", "count: "),
    ] {
        let call = Call::get(&["trace"]).with(key, Some(value));
        let error = call.text(&socket).await.unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    assert!(running.kernel.maps().traces.is_empty());
}

#[tokio::test]
async fn samples_come_into_the_list_of_flows() {
    let (_one, first) = listener();
    let running = Running::start(&file(&[("web", 80, &[("app-01", first)])])).await;
    running.until_table(80, &[first]).await;
    let id = *running.kernel.maps().backends.keys().next().unwrap();
    running.kernel.maps().samples.push(Sample {
        src: mapped([192, 0, 2, 77]),
        dst: mapped([192, 0, 2, 100]),
        ports: [0x9c, 0x40, 0, 80],
        backend: id,
        bytes: 100,
        protocol: 6,
        ..Sample::ZERO
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    let flow = loop {
        let mut flows: Vec<NamedFlow> = running.get(&["flows"]).await;
        if flows[0].sampled {
            break flows.swap_remove(0);
        }
        assert!(Instant::now() < deadline, "the sample is not shown");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(
        (flow.service.as_deref(), flow.backend_name.as_deref()),
        (Some("web"), Some("app-01"))
    );
    assert_eq!(flow.flow.client, "192.0.2.77:40000".parse().unwrap());
    assert_eq!((flow.flow.nat, flow.flow.backend), (flow.flow.client, first));
    assert_eq!((flow.flow.forward_packets, flow.flow.forward_bytes), (1024, 102_400));
    assert!(flow.packets_per_second.is_some());
    let json = serde_json::to_value(&flow).unwrap();
    assert_eq!((&json["sampled"], &json["phase"]), (&true.into(), &"sampled".into()));
}
