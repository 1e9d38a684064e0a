//! What connections show, from the kernel's counters to the tables.

use lb_common::stats::{BackendSignals, handshake_class};

use super::*;
use crate::control::status::PassiveState;

/// Counts connections of the backend at `address`, so many of them refused.
fn connect(kernel: &FakeKernel, address: SocketAddr, connections: u64, refused: u64) {
    let mut maps = kernel.maps();
    let found = maps.backends.iter().find(|(_, backend)| backend.port == address.port());
    let Some((&id, _)) = found else { return };
    let signals = maps.signals.entry(id).or_insert(BackendSignals::ZERO);
    signals.attempts += connections;
    signals.refused += refused;
    signals.answered += connections - refused;
    signals.handshakes[handshake_class(100_000)] += (connections - refused) as u32;
}

/// Lets clients connect until the table is as wanted.
async fn under_load(running: &Running, load: &[(SocketAddr, u64)], wanted: &[SocketAddr]) {
    let wanted: BTreeSet<_> = wanted.iter().copied().collect();
    eventually("the table", || {
        for (address, refused) in load {
            connect(&running.kernel, *address, 4, *refused);
        }
        running.kernel.table(80) == Some(wanted.clone())
    })
    .await;
}

fn unprobed(backends: &[(&str, SocketAddr)], passive: &str) -> String {
    let text = file(&[("web", 80, backends)]);
    let (text, _) = text.split_once("[service.health]").unwrap();
    format!("{text}[service.health]\nprobe = \"none\"\n[service.passive]\n{passive}\n")
}

#[tokio::test]
async fn a_backend_that_refuses_is_out_and_comes_back_slowly() {
    let ((_one, first), (_two, second)) = (listener(), listener());
    let text = unprobed(&[("app-01", first), ("app-02", second)], "eject_time = \"300ms\"");
    let running = Running::start(&text).await;
    running.until_table(80, &[first, second]).await;
    let well = [(first, 0), (second, 0)];
    let patience = |address: SocketAddr| {
        let maps = running.kernel.maps();
        let mut backends = maps.backends.values().filter(|it| it.port == address.port());
        backends.next().unwrap().patience_ms
    };
    eventually("a patience", || {
        for (address, refused) in &well {
            connect(&running.kernel, *address, 4, *refused);
        }
        patience(first) == 50 && patience(second) == 50
    })
    .await;

    under_load(&running, &[(first, 0), (second, 4)], &[first]).await;
    assert!(running.kernel.forwards(second), "connections that are open go on");
    let timeline = Arc::clone(running.handle.timeline());
    let told =
        || timeline.recent().into_iter().filter(|it| it.backend.as_deref() == Some("app-02"));
    let ejection = told().find(|event| event.kind == Kind::Passive).unwrap();
    assert_eq!(ejection.message, "app-02 is ejected for 0.3 s");
    assert!(ejection.cause.unwrap().contains("connections refused in the last"));
    let decision = told().find(|event| event.message == "app-02 serves no longer").unwrap();
    assert!(decision.cause.unwrap().starts_with("ejected: "));

    under_load(&running, &[(first, 0)], &[first, second]).await;
    let status = running.status().await;
    let backend = &status.services[0].backends[1];
    assert!(backend.serving && backend.weight_percent < 100, "it is on trial");
    let passive = backend.passive.as_ref().unwrap();
    assert!(matches!(passive.state, PassiveState::Fit | PassiveState::Quiet));
    assert_eq!(passive.patience_ms, Some(50));
    let restored = told().find(|event| event.message == "app-02 is ejected no longer").unwrap();
    assert_eq!(restored.cause.as_deref(), Some("its time is over"));
}

#[tokio::test]
async fn its_probes_let_a_backend_back() {
    let ((_one, first), (_two, second)) = (listener(), listener());
    let running =
        Running::start(&file(&[("web", 80, &[("app-01", first), ("app-02", second)])])).await;
    running.until_table(80, &[first, second]).await;
    under_load(&running, &[(first, 0), (second, 4)], &[first]).await;
    // Its socket is open all the time, so the next probes pass.
    under_load(&running, &[(first, 0)], &[first, second]).await;
    let events = running.handle.timeline().recent();
    let why = events.iter().find(|it| it.message == "app-02 is ejected no longer").unwrap();
    assert_eq!(why.cause.as_deref(), Some("its probes pass"));
    let ejected = events.iter().find(|it| it.kind == Kind::Passive).unwrap();
    assert_eq!(ejected.message, "app-02 is ejected until its probes pass");
}

#[tokio::test]
async fn the_cap_and_panic_are_shown() {
    let ((_one, first), (_two, second), (_three, third)) = (listener(), listener(), listener());
    let backends = [("app-01", first), ("app-02", second), ("app-03", third)];
    let running = Running::start(&unprobed(&backends, "eject_time = \"1m\"")).await;
    running.until_table(80, &[first, second, third]).await;
    let of = |state: PassiveState, status: &Status| {
        let backends = status.services[0].backends.iter();
        let states = backends.map(|backend| backend.passive.as_ref().unwrap().state);
        states.filter(|it| *it == state).count()
    };
    let mut status = running.status().await;
    for (dead, failing, panic) in [(2, 1, false), (3, 2, true)] {
        let deadline = Instant::now() + Duration::from_secs(10);
        while of(PassiveState::Failing, &status) != failing {
            assert!(Instant::now() < deadline, "{dead} dead: {:?}", status.services[0]);
            for (place, (_, address)) in backends.iter().enumerate() {
                connect(&running.kernel, *address, 4, if place < dead { 4 } else { 0 });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            status = running.status().await;
        }
        assert_eq!(of(PassiveState::Ejected, &status), 1);
        assert_eq!(status.services[0].panic, panic);
        let serving = status.services[0].backends.iter().filter(|backend| backend.serving).count();
        assert_eq!(serving, if panic { 3 } else { 2 });
        let backends = status.services[0].backends.iter();
        let why: Vec<_> = backends.flat_map(|backend| backend.verdict.clone()).collect();
        let stays = if panic { "panic: no backend is fit" } else { "1 of 3 backends are ejected" };
        assert!(why.iter().any(|why| why.contains(stays)), "{why:?}");
    }
}
