//! The task with real probes on loopback and a model of the kernel's side, through the socket that
//! the command line uses.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpListener},
};

use lb_common::{event::Event, reason::Reason};

use super::*;
use crate::{
    admin::{
        Server,
        client::{Call, Error},
    },
    control::status::Status,
    net::NextHop,
    postgres::databases::Databases,
    scratch,
};

mod fake;
mod passive;
mod peers;
mod traces;

use fake::FakeKernel;

/// A backend that answers TCP probes until it is dropped.
fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A service: its name, its port, its backends with their names.
type Of<'a> = (&'a str, u16, &'a [(&'a str, SocketAddr)]);

/// This node is lb-01. It does not hold the floating addresses: VRRP needs an Ethernet interface.
fn file(services: &[Of<'_>]) -> String {
    let mut text = String::from(
        r#"
[cluster]
name = "edge"
[[node]]
name = "lb-01"
address = "192.0.2.11"
interface = "lo"
priority = 90
[[node]]
name = "lb-02"
address = "192.0.2.12"
interface = "lo"
priority = 100
[[floating]]
vrid = 51
addresses = ["192.0.2.100/24"]
"#,
    );
    // Writing to a `String` cannot fail.
    for (name, port, backends) in services {
        let _ = write!(
            text,
            "[[service]]\nname = \"{name}\"\nlisten = \"192.0.2.100:{port}\"\n\
             protocol = \"tcp\"\nbalance = \"least_conn\"\ndrain_timeout = \"60s\"\n"
        );
        for (name, address) in *backends {
            let backend = format_args!("name = \"{name}\"\naddress = \"{address}\"\n");
            let _ = write!(text, "[[service.backend]]\n{backend}");
        }
        text += "[service.health]\nprobe = \"tcp\"\ninterval = \"50ms\"\ntimeout = \"40ms\"\n\
                 rise = 1\nfall = 2\n";
    }
    text
}

/// A running task with its socket.
struct Running {
    directory: scratch::Directory,
    kernel: Arc<FakeKernel>,
    handle: Handle,
    server: tokio::task::JoinHandle<()>,
    _next_hops: watch::Sender<NextHops>,
}

impl Running {
    async fn start(text: &str) -> Self {
        let directory = scratch::Directory::new("task");
        Self::start_in(directory, Arc::default(), text).await
    }

    async fn start_in(directory: scratch::Directory, kernel: Arc<FakeKernel>, text: &str) -> Self {
        let path = directory.path().join("ballast.toml");
        fs::write(&path, text).unwrap();
        let loaded = match crate::config::load(&path) {
            Ok(loaded) => loaded,
            Err(rejected) => panic!("{rejected}"),
        };
        let hop =
            NextHop { ifindex: 1, source_mac: [2; 6], mac: Some([4; 6]), mtu: 1500, source: None };
        let hops = NextHops::from([("127.0.0.1".parse().unwrap(), hop)]);
        let (next_hops, receiver) = watch::channel(NextHops::new());
        let timeline = Arc::new(Timeline::new(Some(directory.path())));
        let handle = Task::start(Setup {
            node: "lb-01".into(),
            config_path: path,
            config: loaded.config,
            warnings: Vec::new(),
            state_dir: directory.path().to_owned(),
            kernel: Arc::<FakeKernel>::clone(&kernel),
            router: None,
            timeline,
            next_hops: receiver,
            wanted: watch::Sender::default(),
            proxy: crate::proxy::Proxy::default(),
            databases: watch::Sender::default(),
            alerts: watch::Sender::default(),
        })
        .await
        .unwrap();
        next_hops.send_replace(hops);
        let server = Server::bind(&directory.path().join("sock")).unwrap();
        let server = tokio::spawn(server.run(handle.clone(), Databases::default(), None));
        Self { directory, kernel, handle, server, _next_hops: next_hops }
    }

    /// Ends the task, and leaves what survives it.
    async fn stop(self) -> (scratch::Directory, Arc<FakeKernel>) {
        self.handle.stop().await;
        self.server.abort();
        fs::remove_file(self.directory.path().join("sock")).unwrap();
        (self.directory, self.kernel)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &[&str]) -> T {
        Call::get(path).json(&self.directory.path().join("sock")).await.unwrap()
    }

    async fn post(&self, path: &[&str], service: Option<&str>) -> Result<String, String> {
        let call = Call::post(path).with("service", service);
        match call.text(&self.directory.path().join("sock")).await {
            Ok(text) => Ok(text),
            Err(Error::Refused(problem)) => Err(problem.error),
            Err(error) => panic!("{error}"),
        }
    }

    async fn status(&self) -> Status {
        self.get(&["status"]).await
    }

    async fn until_table(&self, port: u16, wanted: &[SocketAddr]) {
        let wanted: BTreeSet<_> = wanted.iter().copied().collect();
        eventually("the table", || self.kernel.table(port) == Some(wanted.clone())).await;
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn healthy_backends_come_into_the_table_and_dead_ones_leave_it() {
    let ((_one, first), (two, second)) = (listener(), listener());
    let text = file(&[("web", 80, &[("app-01", first), ("app-02", second)])]);
    let mut running = Running::start(&text).await;
    running.until_table(80, &[first, second]).await;
    running.handle.settled().await;

    let status = running.status().await;
    assert_eq!((status.node.as_str(), status.cluster.as_str()), ("lb-01", "edge"));
    // VRRP does not run on the loopback interface.
    assert_eq!((status.floating[0].holder.as_str(), status.floating[0].held), ("", false));
    assert_eq!(status.floating[0].role.as_deref(), Some("initialize"));
    assert!(status.warnings.iter().any(|warning| warning.contains("is not an Ethernet interface")));
    assert_eq!(status.reasons, BTreeMap::from([("no_service".into(), 7)]));
    assert!(status.warnings.iter().any(|warning| warning.contains("generic mode")));
    let service = &status.services[0];
    assert_eq!((service.connections, service.refused, service.panic), (40, 2, false));
    assert_eq!(service.balance, "least_conn");
    let backend = &service.backends[0];
    assert!(backend.serving && !backend.draining && backend.active == 3);
    assert_eq!(backend.next_hop.as_deref(), Some("04:04:04:04:04:04"));
    assert_eq!(running.kernel.maps().attached.len(), 1, "lo is attached once");

    drop(two);
    running.until_table(80, &[first]).await;
    eventually("the reset", || !running.kernel.forwards(second)).await;
    let status = running.status().await;
    assert_eq!(status.services[0].backends[1].health, crate::health::Health::Down);
    assert!(status.services[0].backends[1].verdict[0].contains("refused"));
    let events = running.handle.timeline().recent();
    let told = |message: &str| events.iter().any(|event| event.message == message);
    assert!(told("app-02 is down") && told("app-02 serves no longer"));
    let kept = fs::read_to_string(running.directory.path().join("events.jsonl")).unwrap();
    assert!(kept.contains("app-02 serves no longer"));
}

#[tokio::test]
async fn a_wish_is_in_force_when_it_is_answered_and_survives_a_restart() {
    let ((_one, first), (_two, second)) = (listener(), listener());
    let text = file(&[
        ("web", 80, &[("app-01", first), ("app-02", second)]),
        ("api", 81, &[("app-01", first)]),
    ]);
    let running = Running::start(&text).await;
    running.until_table(80, &[first, second]).await;
    running.until_table(81, &[first]).await;

    let answer = running.post(&["backends", "app-01", "drain"], None).await.unwrap();
    let wished: Vec<Wished> = serde_json::from_str(&answer).unwrap();
    let services: Vec<_> = wished.iter().map(|wished| wished.service.as_str()).collect();
    assert_eq!(services, ["web", "api"]);
    assert_eq!(running.kernel.table(80), Some(BTreeSet::from([second])));
    assert_eq!(running.kernel.table(81), Some(BTreeSet::new()), "panic takes nobody that drains");
    assert!(running.kernel.forwards(first), "its connections go on");

    running.post(&["backends", "app-01", "enable"], Some("api")).await.unwrap();
    assert_eq!(running.kernel.table(81), Some(BTreeSet::from([first])));
    running.post(&["backends", "app-02", "weight", "9"], Some("web")).await.unwrap();

    let (directory, kernel) = running.stop().await;
    let running = Running::start_in(directory, kernel, &text).await;
    let mut handle = running.handle.clone();
    handle.settled().await;
    let status = running.status().await;
    let web = &status.services[0].backends;
    assert!(web[0].draining && !web[0].serving);
    assert_eq!((web[1].weight, web[1].serving), (9, true));
    assert!(status.services[1].backends[0].serving);

    running.post(&["backends", "app-01", "disable"], None).await.unwrap();
    assert!(!running.kernel.forwards(first), "its connections are reset at once");
}

#[tokio::test]
async fn a_wish_about_nothing_or_without_a_disk_changes_nothing() {
    let (_one, first) = listener();
    let running = Running::start(&file(&[("web", 80, &[("app-01", first)])])).await;
    running.until_table(80, &[first]).await;
    let error = running.post(&["backends", "app-09", "drain"], None).await.unwrap_err();
    assert_eq!(error, "no backend is called app-09; there are: app-01");
    let error = running.post(&["backends", "app-01", "drain"], Some("wap")).await.unwrap_err();
    assert_eq!(error, "no service is called wap; there are: web");
    for weight in ["0", "257", "-1", "much"] {
        let error = running.post(&["backends", "app-01", "weight", weight], None).await;
        assert!(error.unwrap_err().contains("from 1 to 256"));
    }
    assert!(running.post(&["backends", "app-01", "explode"], None).await.is_err());
    let released = running.post(&["release"], None).await.unwrap();
    assert!(released.contains("this node is not Active"), "{released}");

    // The new file cannot be written where a directory stands.
    fs::create_dir(running.directory.path().join("wishes.json.new")).unwrap();
    let error = running.post(&["backends", "app-01", "drain"], None).await.unwrap_err();
    assert!(error.starts_with("nothing has changed"), "{error}");
    assert!(running.status().await.services[0].backends[0].serving);
}

#[tokio::test]
async fn a_reload_applies_as_a_whole_or_not_at_all() {
    let ((_one, first), (_two, second)) = (listener(), listener());
    let running = Running::start(&file(&[("web", 80, &[("app-01", first)])])).await;
    running.until_table(80, &[first]).await;
    let path = running.directory.path().join("ballast.toml");

    for wrong in [
        "[[service]\n".to_owned(),
        file(&[("web", 80, &[("app-01", first), ("app-01", second)])]),
        file(&[("web", 80, &[("app-02", second)])]).replace("lb-01", "lb-07"),
        file(&[("web", 80, &[("app-02", second)])]) + "[dataplane]\nmax_flows = 1024\n",
    ] {
        fs::write(&path, wrong).unwrap();
        running.post(&["reload"], None).await.unwrap_err();
        assert_eq!(running.kernel.table(80), Some(BTreeSet::from([first])));
        let last = running.handle.timeline().recent().pop().unwrap();
        assert_eq!(last.kind, Kind::ReloadRefused);
    }
    fs::write(&path, file(&[("web", 80, &[("app-02", second)]), ("api", 81, &[("a", first)])]))
        .unwrap();
    let answer = running.post(&["reload"], None).await.unwrap();
    let reloaded: Reloaded = serde_json::from_str(&answer).unwrap();
    assert_eq!((reloaded.services, reloaded.backends), (2, 2));
    running.until_table(80, &[second]).await;
    running.until_table(81, &[first]).await;
    let status = running.status().await;
    assert_eq!(status.retiring.len(), 1, "app-01 of web still drains");
    assert!(status.retiring[0].seconds_left.is_some_and(|left| left > 50));
}

#[tokio::test]
async fn a_reload_that_needs_larger_tables_is_refused_with_the_cure() {
    let ((_one, first), (_two, second)) = (listener(), listener());
    let kernel = Arc::<FakeKernel>::default();
    kernel.maps().sizes.backends = 1;
    let directory = scratch::Directory::new("task");
    let text = file(&[("web", 80, &[("app-01", first)])]);
    let running = Running::start_in(directory, kernel, &text).await;
    running.until_table(80, &[first]).await;
    let path = running.directory.path().join("ballast.toml");
    fs::write(&path, file(&[("web", 80, &[("app-01", first), ("app-02", second)])])).unwrap();
    let error = running.post(&["reload"], None).await.unwrap_err();
    assert!(error.contains("room for 2 backends") && error.contains("restart"), "{error}");
    assert_eq!(running.kernel.table(80), Some(BTreeSet::from([first])));
}

#[tokio::test]
async fn an_interface_that_leads_to_no_backend_loses_the_program() {
    // No interface of this machine has that number.
    const GONE: u32 = 2_000_000_000;
    let (_one, first) = listener();
    let kernel = Arc::<FakeKernel>::default();
    let (interface, mode) = ("gone0".to_owned(), crate::dataplane::AttachMode::Generic);
    let old = crate::dataplane::Attachment { interface, ifindex: GONE, mode };
    kernel.maps().attached.push(old);
    let directory = scratch::Directory::new("task");
    let text = file(&[("web", 80, &[("app-01", first)])]);
    let running = Running::start_in(directory, kernel, &text).await;
    running.until_table(80, &[first]).await;
    let told = |text: &str| {
        let events = running.handle.timeline().recent();
        events.iter().any(|event| event.message.contains(text))
    };
    eventually("the program to leave", || told("the program is off number 2000000000")).await;
    let attached: Vec<u32> = running.kernel.maps().attached.iter().map(|it| it.ifindex).collect();
    assert_eq!(attached, [1]);
}

#[tokio::test]
async fn a_view_shows_one_service() {
    let (_one, first) = listener();
    let text = file(&[("web", 80, &[("a", first)]), ("api", 81, &[("b", first)])]);
    let running = Running::start(&text).await;
    running.until_table(81, &[first]).await;
    let socket = running.directory.path().join("sock");
    let of = |name| Call::get(&["status"]).with("service", Some(name));
    let status: Status = of("api").json(&socket).await.unwrap();
    assert_eq!(status.services.len(), 1);
    let api = &status.services[0];
    assert_eq!((api.name.as_str(), api.backends.len(), api.backend_count), ("api", 1, 1));
    let error = of("wap").text(&socket).await.unwrap_err().to_string();
    assert_eq!(error, "no service is called wap");
}

#[tokio::test]
async fn a_thousand_services_come_at_once_and_change_one_by_one() {
    let address = |host: u8, port| SocketAddr::from(([127, 0, 0, host], port));
    let names: Vec<String> = (0..1000).map(|number| format!("web-{number}")).collect();
    let hosts: Vec<String> = (0..20).map(|number| format!("app-{number}")).collect();
    let backends = |port| -> Vec<_> {
        hosts.iter().map(String::as_str).zip((1..).map(|host| address(host, port))).collect()
    };
    let backends: Vec<_> = (0..1000).map(|at| backends(8000 + at)).collect();
    let services: Vec<Of<'_>> = (0..1000_u16)
        .map(|at| (names[usize::from(at)].as_str(), at + 1, &backends[usize::from(at)][..]))
        .collect();
    let text = |services: &[Of<'_>]| file(services).replace("probe = \"tcp\"", "probe = \"none\"");
    let kernel = Arc::<FakeKernel>::default();
    kernel.maps().sizes.backends = 25_000;
    let directory = scratch::Directory::new("task");
    let running = Running::start_in(directory, Arc::clone(&kernel), &text(&services)).await;
    eventually("the last table", || kernel.maps().services.len() == 1000).await;
    assert_eq!(kernel.maps().backends.len(), 20_000);

    // Only 127.0.0.1 has a next hop, so one of each service serves.
    running.until_table(1000, &[address(1, 8999)]).await;
    let status = running.status().await;
    assert_eq!(status.services.len(), 1000);
    assert!(status.services.iter().all(|it| (it.serving_count, it.backend_count) == (1, 20)));
    assert!(status.services[0].backends.is_empty(), "20,000 are counted, not listed");
    let events = running.handle.timeline().recent();
    assert!(events.iter().any(|event| event.message.contains("more of this kind")));

    // What has not changed is not written again.
    let mut changed = services.clone();
    changed[7].2 = &changed[7].2[..19];
    fs::write(running.directory.path().join("ballast.toml"), text(&changed)).unwrap();
    let before = kernel.maps().writes;
    running.post(&["reload"], None).await.unwrap();
    let written = kernel.maps().writes - before;
    assert!(written < 10, "{written} writes");
}

#[tokio::test]
async fn what_a_daemon_left_stays_until_the_next_one_knows_better() {
    let ((_one, first), (_two, second)) = (listener(), listener());
    let text = file(&[("web", 80, &[("app-01", first), ("app-02", second)])]);
    let running = Running::start(&text).await;
    running.until_table(80, &[first, second]).await;
    let (directory, kernel) = running.stop().await;
    let before = kernel.maps().backends.clone();
    let gone = kernel.maps().writes;
    let running = Running::start_in(directory, kernel, &text).await;
    let mut handle = running.handle.clone();
    loop {
        assert_eq!(running.kernel.table(80), Some(BTreeSet::from([first, second])));
        assert_eq!(running.kernel.maps().backends, before, "numbers and next hops are kept");
        tokio::select! {
            () = handle.settled() => break,
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    assert_eq!(running.kernel.maps().backends, before);
    let written = running.kernel.maps().writes - gone;
    assert_eq!(written, 4, "two filters, table and service; the backends were right");
}

#[tokio::test]
async fn a_failure_to_write_is_told_and_made_good() {
    let (one, first) = listener();
    let kernel = Arc::<FakeKernel>::default();
    kernel.maps().broken = true;
    let directory = scratch::Directory::new("task");
    let text = file(&[("web", 80, &[("app-01", first)])]);
    let running = Running::start_in(directory, kernel, &text).await;
    let mut handle = running.handle.clone();
    handle.settled().await;
    let warnings = running.status().await.warnings;
    assert!(warnings.iter().any(|it| it.contains("the maps are broken")), "{warnings:?}");
    running.kernel.maps().broken = false;
    running.until_table(80, &[first]).await;
    let timeline = Arc::clone(running.handle.timeline());
    eventually("the note", || timeline.recent().iter().any(|it| it.kind == Kind::Recovered)).await;
    drop(one);
}

#[tokio::test]
async fn followers_and_lists_see_what_the_kernel_reports() {
    let (_one, first) = listener();
    let running = Running::start(&file(&[("web", 80, &[("app-01", first)])])).await;
    running.until_table(80, &[first]).await;
    let event = Event { reason: Reason::PortsExhausted as u32, ..Event::ZERO };
    let socket = running.directory.path().join("sock");
    let mut sent = false;
    let kernel = Arc::clone(&running.kernel);
    let follow = Call::get(&["events"]).with("follow", Some("true")).lines(&socket, |line| {
        if !sent {
            kernel.maps().events.push(event);
            sent = true;
        }
        !line.contains("ports towards app-01 ran out")
    });
    tokio::time::timeout(Duration::from_secs(10), follow).await.unwrap().unwrap();
    let warnings = running.status().await.warnings;
    assert!(warnings.iter().any(|it| it.contains("ports towards app-01")), "{warnings:?}");

    let flows: Vec<crate::control::status::NamedFlow> = running.get(&["flows"]).await;
    assert_eq!(flows[0].service.as_deref(), Some("web"));
    assert_eq!(flows[0].backend_name.as_deref(), Some("app-01"));
    let call = Call::get(&["flows"]).with("service", Some("wap"));
    let error = call.text(&socket).await.unwrap_err().to_string();
    assert_eq!(error, "no service is called wap; there are: web");
    let error = Call::get(&["nothing"]).text(&socket).await.unwrap_err().to_string();
    assert_eq!(error, "this ballast knows no /nothing");
    let error = Call::post(&["status"]).text(&socket).await.unwrap_err().to_string();
    assert_eq!(error, "POST is not for this");
}
