//! Health checks against real servers on the loopback interface, and real commands.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use ballast::{
    config::{self, HttpProbe, Upstream},
    health::{
        self, Deadline, Health, Observation, Report, Target, command,
        http::{self, Trust},
        postgres, tcp,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Long enough for a busy machine: nothing waits for it unless a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// For probes that must time out.
const SHORT: Duration = Duration::from_millis(200);

fn pass(reason: &str) -> Observation {
    Observation::Pass(reason.into())
}

fn fail(reason: &str) -> Observation {
    Observation::Fail(reason.into())
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address where nothing listens. The socket is returned, so that nobody else can take the port.
fn closed_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

fn get(path: &str, host: Option<&str>) -> HttpProbe {
    HttpProbe {
        path: path.into(),
        host: host.map(Into::into),
        expect: vec![(200, 399)],
        upstream: Upstream::default(),
    }
}

/// Answers one connection with `answer`, then closes; gives the request that it read.
fn answer_once(listener: TcpListener, answer: &'static [u8]) -> JoinHandle<String> {
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        // The prober may hang up before the end.
        let _ = stream.write_all(answer).await;
        let _ = stream.shutdown().await;
        String::from_utf8(request).unwrap()
    })
}

async fn read_request(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.unwrap();
        request.push(byte);
    }
    request
}

async fn ask(answer: &'static [u8]) -> Observation {
    let (listener, address) = listener().await;
    let server = answer_once(listener, answer);
    let observation = http::probe(address, &get("/", None), &Deadline::after(PATIENCE)).await;
    server.await.unwrap();
    observation
}

#[tokio::test]
async fn tcp_connects_and_resets() {
    let (listener, address) = listener().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read(&mut [0; 1]).await.map_err(|error| error.kind())
    });
    assert_eq!(tcp::probe(address, &Deadline::after(PATIENCE)).await, pass("connected"));
    assert_eq!(server.await.unwrap(), Err(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn tcp_refused() {
    let (_socket, address) = closed_port();
    assert_eq!(tcp::probe(address, &Deadline::after(PATIENCE)).await, fail("connection refused"));
}

#[tokio::test]
async fn tcp_without_an_answer() {
    // A queue for one connection, and that one taken: the kernel drops further SYNs.
    let (socket, address) = closed_port();
    socket.listen(0).unwrap();
    let _first = TcpStream::connect(address).await.unwrap();
    assert_eq!(tcp::probe(address, &Deadline::after(SHORT)).await, fail("no answer within 200 ms"));
}

#[tokio::test]
async fn http_asks_what_was_configured() {
    let (listener, address) = listener().await;
    let server = answer_once(listener, b"HTTP/1.1 204 No Content\r\n\r\n");
    let probe = get("/health?deep=1", Some("app.example"));
    let observation = http::probe(address, &probe, &Deadline::after(PATIENCE)).await;
    assert_eq!(observation, pass("HTTP 204"));
    let request = server.await.unwrap().to_lowercase();
    assert!(request.starts_with("get /health?deep=1 http/1.1\r\n"), "{request}");
    for field in [
        "host: app.example\r\n",
        "connection: close\r\n",
        concat!("user-agent: ballast/", env!("CARGO_PKG_VERSION"), " (health check)\r\n"),
    ] {
        assert!(request.contains(field), "{field:?} is not in {request:?}");
    }
}

#[tokio::test]
async fn http_names_the_address_without_a_host() {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = answer_once(listener, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let observation = http::probe(address, &get("/", None), &Deadline::after(PATIENCE)).await;
    assert_eq!(observation, pass("HTTP 200"));
    let request = server.await.unwrap().to_lowercase();
    assert!(request.contains(&format!("host: [::1]:{}\r\n", address.port())), "{request}");
}

#[tokio::test]
async fn http_answers_and_what_they_mean() {
    let long_header: &'static [u8] = Box::leak(
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1_000_000)).into_boxed_str(),
    )
    .as_bytes();
    let table: [(&[u8], Observation); 9] = [
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", pass("HTTP 200")),
        (b"HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n", pass("HTTP 302")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            pass("HTTP 200"),
        ),
        (
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            fail("HTTP 503, expected 200-399"),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
            fail("HTTP 200, but the body broke off"),
        ),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", fail("the answer is not HTTP/1.1")),
        (b"", fail("connection closed without an HTTP answer")),
        (b"HTTP/1.1 200 OK\r\nHalf", fail("connection closed without an HTTP answer")),
        (long_header, fail("HTTP header too long")),
    ];
    for (answer, observation) in table {
        let start = String::from_utf8_lossy(&answer[..answer.len().min(60)]);
        assert_eq!(ask(answer).await, observation, "{start:?}");
    }
}

#[tokio::test]
async fn http_reset_by_the_server() {
    let (listener, address) = listener().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    });
    assert_eq!(
        http::probe(address, &get("/", None), &Deadline::after(PATIENCE)).await,
        fail("connected, but: connection reset")
    );
    server.await.unwrap();
}

#[tokio::test]
async fn http_without_an_answer() {
    let (_listener, address) = listener().await;
    assert_eq!(
        http::probe(address, &get("/", None), &Deadline::after(SHORT)).await,
        fail("connected, but no HTTP answer within 200 ms")
    );
}

#[tokio::test]
async fn http_reads_a_long_body_only_in_part() {
    let (listener, address) = listener().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        // Endless: only the prober can end it.
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    let observation = http::probe(address, &get("/", None), &Deadline::after(PATIENCE)).await;
    assert_eq!(observation, pass("HTTP 200"));
    timeout(PATIENCE, server).await.expect("the connection is closed").unwrap();
}

/// A TLS server with a self-signed certificate: answers one request, gives the name it was asked for.
fn tls_server(listener: TcpListener) -> JoinHandle<Option<String>> {
    let certificate = rcgen::generate_simple_self_signed(["other.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![certificate.cert.der().clone()], key.into())
    .unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let mut stream = acceptor.accept(stream).await.unwrap();
        read_request(&mut stream).await;
        let name = stream.get_ref().1.server_name().map(Into::into);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        stream.shutdown().await.unwrap();
        name
    })
}

#[tokio::test]
async fn https_takes_any_certificate_and_sends_the_name() {
    for (host, name) in [(Some("app.example:443"), Some("app.example")), (None, None)] {
        let (listener, address) = listener().await;
        let server = tls_server(listener);
        let probe = get("/", host);
        let observation =
            http::probe_tls(address, &probe, &Trust::default(), &Deadline::after(PATIENCE)).await;
        assert_eq!(observation, pass("HTTP 200"));
        assert_eq!(server.await.unwrap().as_deref(), name);
    }
}

#[tokio::test]
async fn https_to_a_server_without_tls() {
    let (listener, address) = listener().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        // The prober hangs up.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    match http::probe_tls(address, &get("/", None), &Trust::default(), &Deadline::after(PATIENCE))
        .await
    {
        Observation::Fail(reason) => assert!(reason.starts_with("TLS: "), "{reason}"),
        Observation::Pass(reason) => panic!("passed: {reason}"),
    }
    server.await.unwrap();
}

#[tokio::test]
async fn https_without_a_handshake() {
    let (_listener, address) = listener().await;
    assert_eq!(
        http::probe_tls(address, &get("/", None), &Trust::default(), &Deadline::after(SHORT)).await,
        fail("TLS: no handshake within 200 ms")
    );
}

/// What the probe of Postgres says of a server without TLS that answers a startup packet with this.
async fn postgres_says(answer: &'static [u8]) -> Observation {
    let (listener, address) = listener().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Whether TLS is spoken here.
        stream.read_exact(&mut [0; 8]).await.unwrap();
        stream.write_all(b"N").await.unwrap();
        let length = stream.read_u32().await.unwrap() as usize;
        let mut startup = vec![0; length - 4];
        stream.read_exact(&mut startup).await.unwrap();
        stream.write_all(answer).await.unwrap();
        startup
    });
    let observation = postgres::probe(address, &Deadline::after(PATIENCE)).await;
    let startup = server.await.unwrap();
    assert!(startup.starts_with(&[0, 3, 0, 0]), "protocol 3.0: {startup:?}");
    observation
}

#[tokio::test]
async fn postgres_answers_and_what_they_mean() {
    // Asks for a password, in the clear and by SCRAM, and for what no client here has (GSS).
    for asks in [
        b"R\0\0\0\x08\0\0\0\x03".as_slice(),
        b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0",
        b"R\0\0\0\x08\0\0\0\x07",
    ] {
        assert_eq!(postgres_says(asks).await, pass("PostgreSQL asks who we are"));
    }
    assert_eq!(
        postgres_says(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await,
        pass("PostgreSQL lets clients in")
    );
    let error = b"E\0\0\0\x26SFATAL\0C57P03\0Mit is starting up\0\0";
    assert_eq!(
        postgres_says(error).await,
        fail("PostgreSQL lets nobody in: it is starting up (57P03)")
    );
    let error = b"E\0\0\0\x25SFATAL\0C53300\0Mtoo many clients\0\0";
    let full = "PostgreSQL has as many clients as it may (too many clients)";
    assert_eq!(postgres_says(error).await, fail(full));
    assert_eq!(postgres_says(b"").await, fail("connection closed without an answer of PostgreSQL"));
    assert_eq!(postgres_says(b"hello\0\0\0").await, fail("the answer is not PostgreSQL's"));
}

#[tokio::test]
async fn postgres_without_an_answer() {
    let (_socket, address) = closed_port();
    let refused = postgres::probe(address, &Deadline::after(PATIENCE)).await;
    assert_eq!(refused, fail("connection refused"));
    // It takes the connection, and says nothing.
    let (_listener, address) = listener().await;
    let silent = postgres::probe(address, &Deadline::after(SHORT)).await;
    let Observation::Fail(reason) = silent else { panic!("{silent:?}") };
    assert!(reason.starts_with("connected, but PostgreSQL does not answer"), "{reason}");
}

fn target(probe: config::Probe, address: SocketAddr) -> Target {
    Target {
        service: "web".into(),
        backend: "app-01".into(),
        address,
        health: config::Health {
            probe,
            interval: Duration::from_millis(10),
            timeout: PATIENCE,
            rise: 2,
            fall: 2,
        },
    }
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(Into::into).into()
}

async fn run(command: &[String], limit: Duration) -> Observation {
    let target = target(config::Probe::None, "[2001:db8::21]:8080".parse().unwrap());
    command::probe(command, &target, &Deadline::after(limit)).await
}

#[tokio::test]
async fn command_verdicts() {
    for (script, observation) in [
        ("echo took 3 ms", pass("exit code 0")),
        ("echo disk full >&2; echo usage; exit 2", fail("exit code 2: disk full")),
        ("echo CRITICAL; exit 2", fail("exit code 2: CRITICAL")),
        ("exit 1", fail("exit code 1")),
        ("kill -TERM $$", fail("killed by SIGTERM")),
        ("yes | head -c 1000000; exit 3", fail("exit code 3: y")),
        (
            r#"echo "$BALLAST_SERVICE $BALLAST_BACKEND $BALLAST_ADDRESS $BALLAST_PORT"; exit 1"#,
            fail("exit code 1: web app-01 2001:db8::21 8080"),
        ),
    ] {
        assert_eq!(run(&shell(script), PATIENCE).await, observation, "{script}");
    }
}

#[tokio::test]
async fn command_that_cannot_start() {
    assert_eq!(
        run(&["/nonexistent/check".into()], PATIENCE).await,
        fail("cannot start /nonexistent/check: no such file")
    );
    assert_eq!(
        run(&["/etc/passwd".into()], PATIENCE).await,
        fail("cannot start /etc/passwd: permission denied")
    );
    assert_eq!(run(&[], PATIENCE).await, fail("no command to run"));
}

/// Polls until `condition` holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A shell and its child, which both would wait for ever; their process numbers end up in `file`.
fn stuck(file: &Path) -> Vec<String> {
    let file = file.display();
    shell(&format!("sleep 1000 & echo $$ $! > {file}.new; mv {file}.new {file}; wait"))
}

fn processes(file: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(file).unwrap();
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

/// Gone, or dead and waiting for a parent that is not us (an orphan's).
fn dead(process: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'),
        Err(_) => true,
    }
}

struct TemporaryFile(std::path::PathBuf);

impl TemporaryFile {
    fn new(name: &str) -> Self {
        let name = format!("ballast-health-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn command_group_is_killed_when_time_is_over() {
    let file = TemporaryFile::new("timeout");
    // The shell needs some of the time to write its file.
    let observation = run(&stuck(&file.0), Duration::from_secs(2)).await;
    assert_eq!(observation, fail("no exit within 2 s"));
    let processes = processes(&file.0);
    assert_eq!(processes.len(), 2);
    // The command itself has been waited for.
    assert!(!Path::new(&format!("/proc/{}", processes[0])).exists());
    eventually("the child is killed", || dead(processes[1])).await;
}

#[tokio::test]
async fn command_group_is_killed_with_its_task() {
    let file = TemporaryFile::new("abort");
    let target =
        target(config::Probe::Command(stuck(&file.0)), SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    let (sender, _receiver) = mpsc::channel(1);
    let task = health::spawn(target, sender);
    eventually("the command runs", || file.0.exists()).await;
    task.abort();
    for process in processes(&file.0) {
        eventually("the group is killed", || dead(process)).await;
    }
}

#[tokio::test]
async fn command_that_leaves_a_child_is_not_waited_for() {
    let file = TemporaryFile::new("orphan");
    let script = format!("sleep 1000 & echo $! > {}; echo why >&2; exit 4", file.0.display());
    let begin = Instant::now();
    assert_eq!(run(&shell(&script), PATIENCE).await, fail("exit code 4: why"));
    assert!(begin.elapsed() < PATIENCE);
    let child = processes(&file.0)[0];
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child as i32),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

async fn next(reports: &mut mpsc::Receiver<Report>) -> (Health, String) {
    let report = timeout(PATIENCE, reports.recv()).await.expect("a report").expect("the task runs");
    (report.health, report.reason)
}

#[tokio::test]
async fn a_server_that_dies_and_returns() {
    let (listener, address) = listener().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        tokio::select! {
            () = async { while listener.accept().await.is_ok() {} } => {}
            _ = stopped => {}
        }
    });
    let (sender, mut reports) = mpsc::channel(16);
    let task = health::spawn(target(config::Probe::Tcp, address), sender);
    assert_eq!(next(&mut reports).await, (Health::Up, "connected".into()));
    stop.send(()).unwrap();
    server.await.unwrap();
    assert_eq!(next(&mut reports).await.0, Health::Up);
    assert_eq!(next(&mut reports).await, (Health::Down, "connection refused".into()));
    let _listener = TcpListener::bind(address).await.unwrap();
    assert_eq!(next(&mut reports).await, (Health::Down, "connected".into()));
    assert_eq!(next(&mut reports).await, (Health::Up, "connected".into()));
    drop(reports);
    // Nobody listens any more: the task ends with its next report, and can be ended at any time.
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
}
