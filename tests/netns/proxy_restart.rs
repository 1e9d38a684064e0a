//! A daemon is restarted under clients that nobody but the proxy can serve: none is refused.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixDatagram},
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::Signal,
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use sendfd::RecvWithFd as _;
use xtask::{lab::HostName, wait};

use crate::{
    config::{self, APPS, Service, web},
    load::Load,
    site::{Site, number},
};

/// The name in the certificate.
const NAME: &str = "lab.example";

/// Whoever has to wait longer has been forgotten.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is kept: names, and sockets.
type Kept = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// As much of a service manager as the sockets need: `sd_notify(3)`'s `FDSTORE`, and `sd_listen_fds(3)`.
struct Manager {
    path: PathBuf,
    kept: Kept,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    fn start(site: &Site) -> Result<Self> {
        let path = site.lab().state_dir().join("notify");
        let socket = UnixDatagram::bind(&path).context("listen for notes")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (kept, ended) = (Kept::default(), Arc::<AtomicBool>::default());
        let thread = thread::spawn({
            let (kept, ended) = (Arc::clone(&kept), Arc::clone(&ended));
            move || {
                while !ended.load(Ordering::Relaxed) {
                    take(&socket, &kept);
                }
            }
        });
        Ok(Self { path, kept, ended, thread: Some(thread) })
    }

    /// Starts the daemon with the sockets that are kept, and waits until it serves.
    fn start_daemon(&self, site: &Site) -> Result<()> {
        let kept = self.kept();
        let daemon = site.lab().daemon_command(HostName::Lb01.as_str());
        let mut script = String::new();
        for (place, (_, socket)) in kept.iter().enumerate() {
            // Closed in this process when another program begins, but not in that one.
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).context("hand a socket on")?;
            let number = socket.as_raw_fd();
            let _ = writeln!(script, "exec {}<&{number} {number}<&-", 100 + place);
        }
        for place in 0..kept.len() {
            let _ = writeln!(script, "exec {}<&{} {}<&-", 3 + place, 100 + place, 100 + place);
        }
        let names: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
        let _ = write!(
            script,
            "export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES='{}'\nexec \"$@\"\n",
            kept.len(),
            names.join(":")
        );
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash"]).arg(daemon.get_program()).args(daemon.get_args());
        command.env("NOTIFY_SOCKET", &self.path);
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(site.lab().log(HostName::Lb01, "ballast"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("start the daemon")?;
        for (_, socket) in kept.iter() {
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("keep a socket")?;
        }
        drop(kept);
        fs::write(site.lab().pid_file(HostName::Lb01, "ballast"), child.id().to_string())?;
        thread::spawn(move || child.wait());
        site.daemon().wait_ready()?;
        site.settled().map(drop)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<(String, OwnedFd)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot be told anything any more.
            let _ = thread.join();
        }
    }
}

/// Takes a note, if one comes.
fn take(socket: &UnixDatagram, kept: &Kept) {
    let (mut bytes, mut numbers) = ([0; 4096], [0; 4]);
    let Ok((length, sockets)) = socket.recv_with_fd(&mut bytes, &mut numbers) else { return };
    let note = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let name = note.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    for number in &numbers[..sockets] {
        // SAFETY: the kernel has just made it for this process, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(*number) };
        kept.push((name.unwrap_or_default().to_owned(), socket));
    }
    if note.lines().any(|line| line == "FDSTOREREMOVE=1") {
        kept.retain(|(of, _)| Some(of.as_str()) != name);
    }
}

/// A client's side of TLS.
fn trust(site: &Site) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(site.lab().state_dir().join("chain.pem"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(Arc::new(builder.with_no_client_auth()))
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Bytes of a long answer: more than fit into all buffers on its way, so it lasts until it is read.
const LONG: usize = 60_000_000;

/// Asks for so many bytes at most on a new connection, and reads the beginning of the answer.
fn begin(
    target: SocketAddr,
    config: &Arc<ClientConfig>,
    path: &str,
    most: usize,
) -> Result<Stream> {
    let tcp = TcpStream::connect_timeout(&target, PATIENCE).context("connect")?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    let tls = ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME)?)?;
    let mut stream = StreamOwned::new(tls, tcp);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {NAME}\r\nRange: bytes=0-{}\r\nConnection: close\r\n\r\n",
        most - 1
    );
    stream.write_all(request.as_bytes()).context("send the request")?;
    let mut status = [0; 13];
    stream.read_exact(&mut status).context("read an answer")?;
    ensure!(status.starts_with(b"HTTP/1.1 20"), "{}", status.escape_ascii());
    Ok(stream)
}

/// The body of the answer.
fn end(mut stream: Stream) -> Result<Vec<u8>> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n").context("there is no head")?;
    Ok(answer.split_off(end + 4))
}

/// Clients that make a connection for each request.
fn load(site: &Site, trust: &Arc<ClientConfig>) -> Load {
    let trust = Arc::clone(trust);
    Load::start(site.client(), 4, u64::MAX, move || {
        let trust = Arc::clone(&trust);
        move || {
            let body = end(begin(web(), &trust, "/id", LONG)?)?;
            Ok(String::from_utf8(body)?.trim_end().to_owned())
        }
    })
}

#[test]
fn a_restart_refuses_no_client_of_tls() -> Result<()> {
    let service = Service::web("web", web(), &APPS)
        .key("path = \"proxy\"")
        .health("[[service.proxy.certificate]]")
        .health("chain = \"@LAB@/chain.pem\"")
        .health("key = \"@LAB@/key.pem\"");
    let site = Site::without_daemon("proxy-tls-restart", config::text(&[service]))?;
    let folder = site.lab().state_dir();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()])?;
    fs::write(folder.join("chain.pem"), cert.pem())?;
    fs::write(folder.join("key.pem"), signing_key.serialize_pem())?;
    fs::set_permissions(folder.join("key.pem"), fs::Permissions::from_mode(0o600))?;
    let manager = Manager::start(&site)?;
    manager.start_daemon(&site)?;
    let trust = trust(&site)?;
    let kept = manager.kept().len();
    ensure!(kept > 0, "no socket is kept");

    let clients = load(&site, &trust);
    clients.more(50)?;
    // Requests that end when this test wants it.
    let long = |_| site.client().within(|| begin(web(), &trust, "/big", LONG));
    let long: Vec<_> = (0..2).map(long).collect::<Result<Result<_>>>()??;
    site.daemon().signal(Signal::SIGTERM)?;
    // While the daemon waits for them, it serves those that come.
    clients.more(50)?;
    let expected = fs::read(site.lab().big_file()?)?;
    let long = long.into_iter().map(|stream| thread::spawn(move || end(stream)));
    for long in long.collect::<Vec<_>>() {
        let got = long.join().expect("join a long request").context("a long request")?;
        ensure!(got.len() == LONG && got == expected[..LONG], "a long answer differs");
    }
    site.daemon().stop()?;
    ensure!(manager.kept().len() == kept, "{} sockets are kept", manager.kept().len());
    manager.start_daemon(&site)?;
    clients.more(50)?;
    let report = clients.stop();
    println!("restart: {} requests, slowest {:?}", report.total(), report.slowest());
    report.ensure_none_failed()?;
    let requests = number(&site.status()?.service("web")["proxy"]["requests"]);
    ensure!(requests > 0, "the new daemon has none of them");

    // One that is killed loses what it has in its hands, and no more.
    let clients = load(&site, &trust);
    clients.more(50)?;
    site.daemon().kill()?;
    let killed = Instant::now();
    manager.start_daemon(&site)?;
    clients.more(50)?;
    let report = clients.stop();
    println!("killed: {} of {} requests failed", report.failed(), report.total());
    report.ensure_none_failed_since(killed)?;
    ensure!(manager.kept().len() == kept, "{} sockets are kept", manager.kept().len());

    // A service that the kernel can forward leaves no socket behind that nobody would serve.
    let text = fs::read_to_string(site.lab().config())?;
    let (plain, _) = text.split_once("  [[service.proxy.certificate]]").context("a certificate")?;
    fs::write(site.lab().config(), plain)?;
    site.obeys("reload")?;
    wait::until(PATIENCE, "the sockets to be forgotten", || {
        Ok(manager.kept().is_empty().then_some(()))
    })?;
    site.finish()
}
