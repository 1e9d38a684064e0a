//! The proxies, and the app server behind all of them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde::Serialize;
use xtask::{
    lab::{Lab, Program},
    shell, wait,
};

use crate::machine;

/// How long one may take to answer the first request.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The floating address.
pub(super) const FLOATING: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
/// The hosts, as the lab has them.
pub(super) const BALLAST: &str = "lb-01";
const RIVALS: &str = "lb-02";
pub(super) const APP: &str = "app-01";
const RIVALS_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
/// Where the app server listens.
pub(super) const APP_ADDRESS: &str = "192.0.2.21:8090";

/// A proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Front {
    Nginx,
    Haproxy,
    Ballast,
}

impl Front {
    pub(super) const ALL: [Self; 3] = [Self::Nginx, Self::Haproxy, Self::Ballast];

    /// In the table.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Ballast => "ballast",
        }
    }

    /// Where it takes requests.
    pub(super) fn address(self, tls: bool) -> SocketAddr {
        let (host, port): (_, u16) = match self {
            Self::Nginx => (RIVALS_ADDRESS, 8001),
            Self::Haproxy => (RIVALS_ADDRESS, 8002),
            Self::Ballast => (FLOATING, 80),
        };
        (host, if tls { port + 1000 } else { port }).into()
    }
}

/// All of them, while they run.
pub(super) struct Fronts {
    _app: Server,
    nginx: Server,
    haproxy: Server,
    ballast: Program,
}

/// A program of ours; it ends with this.
pub(super) struct Server(Child);

impl Server {
    fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let log = fs::File::create(log).context("create a log")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn();
        Ok(Self(child.with_context(|| format!("start `{}`", shell::display(&command)))?))
    }

    fn process(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself needs no more; a worker ends with its master.
        let _ = kill(self.process(), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

impl Fronts {
    /// Starts the proxies on some CPUs and the app server on others, and waits until all answer.
    pub(super) fn start(lab: &Lab, own: &[usize], others: &[usize]) -> anyhow::Result<Self> {
        let folder = lab.state_dir();
        let (chain, key) = certify(&folder)?;
        let app = machine::on_cpus(others, || start_app(lab, ""))?;
        let start = |name: &str, config: String| {
            machine::on_cpus(own, || start(lab, RIVALS, name, config.clone()))
        };
        let nginx = start("nginx", nginx(&folder, &chain, &key))?;
        let haproxy = start("haproxy", haproxy(&folder))?;
        let ballast = machine::on_cpus(own, || {
            let mut daemon = lab.daemon(BALLAST);
            daemon.start()?;
            Ok(daemon)
        })?;
        let fronts = Self { _app: app, nginx, haproxy, ballast };
        for front in Front::ALL {
            for tls in [false, true] {
                answers(lab, front, tls)?;
            }
        }
        Ok(fronts)
    }

    /// The process of one.
    pub(super) fn process(&self, front: Front) -> anyhow::Result<Pid> {
        match front {
            Front::Nginx => Ok(self.nginx.process()),
            Front::Haproxy => Ok(self.haproxy.process()),
            Front::Ballast => self.ballast.pid().context("find the daemon"),
        }
    }
}

/// Starts the app server, with `more` in its configuration.
pub(super) fn start_app(lab: &Lab, more: &str) -> anyhow::Result<Server> {
    let folder = lab.state_dir();
    let large = folder.join("large");
    fs::write(&large, vec![b'x'; 1 << 20]).context("write a large file")?;
    start(lab, APP, "nginx", app(&folder, &large, more))
}

/// Starts nginx or `HAProxy` on a host.
fn start(lab: &Lab, host: &str, name: &str, config: String) -> anyhow::Result<Server> {
    let folder = lab.state_dir();
    let path = folder.join(format!("{host}.{name}.conf"));
    fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
    let mut command = lab.host(host).command(name);
    if name == "nginx" {
        command.arg("-p").arg(&folder).arg("-c").arg(path);
    } else {
        command.arg("-db").arg("-f").arg(path);
    }
    Server::start(command, &folder.join(format!("{host}.{name}.log")))
}

/// Waits until a proxy answers.
pub(super) fn answers(lab: &Lab, front: Front, tls: bool) -> anyhow::Result<()> {
    let scheme = if tls { "https" } else { "http" };
    let url = format!("{scheme}://{}/", front.address(tls));
    wait::until(START_LIMIT, &format!("{} to answer at {url}", front.name()), || {
        let mut curl = lab.host("client").command("curl");
        curl.args(["--silent", "--fail", "--insecure", "--max-time", "2", &url]);
        let output = curl.output().context("run curl")?;
        Ok(output.status.success().then_some(()))
    })
}

/// A certificate and its key; and both in one file, as `HAProxy` wants them.
pub(super) fn certify(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["bench".to_owned()])?;
    let (chain, key) = (cert.pem(), signing_key.serialize_pem());
    let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
        let path = folder.join(name);
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).truncate(true).write(true).mode(0o600).open(&path);
        std::io::Write::write_all(&mut file.context("create a file")?, text.as_bytes())?;
        Ok(path)
    };
    write("both.pem", &format!("{chain}{key}"))?;
    Ok((write("chain.pem", &chain)?, write("key.pem", &key)?))
}

/// The daemon's configuration: the same service in the clear and with TLS.
pub(super) fn ballast_config() -> String {
    let service = |name: &str, port: u16, more: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\nlisten = \"{FLOATING}:{port}\"\npath = \"proxy\"\n\
             [[service.backend]]\nname = \"{APP}\"\naddress = \"{APP_ADDRESS}\"\n\
             [service.health]\nprobe = \"tcp\"\n\
             [service.proxy]\nkeepalive = 64\n{more}"
        )
    };
    let certificate = "[[service.proxy.certificate]]\nchain = \"@LAB@/chain.pem\"\n\
                       key = \"@LAB@/key.pem\"\n";
    format!(
        "[[node]]\nname = \"{BALLAST}\"\naddress = \"192.0.2.11\"\ninterface = \"eth0\"\n\
         [[floating]]\nvrid = 51\naddresses = [\"{FLOATING}/24\"]\n{}{}",
        service("web", Front::Ballast.address(false).port(), ""),
        service("tls", Front::Ballast.address(true).port(), certificate)
    )
}

/// What both nginx have alike.
fn nginx_with(folder: &Path, name: &str, http: &str) -> String {
    let folder = folder.display();
    format!(
        "daemon off;\nworker_processes 1;\npid {folder}/{name}.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 16384; }}\n\
         http {{\naccess_log off;\nkeepalive_requests 100000000;\nkeepalive_timeout 10m;\n\
         client_body_temp_path {folder}/{name}-body;\nproxy_temp_path {folder}/{name}-proxy;\n\
         fastcgi_temp_path {folder}/{name}-fastcgi;\nscgi_temp_path {folder}/{name}-scgi;\n\
         uwsgi_temp_path {folder}/{name}-uwsgi;\n{http}}}\n"
    )
}

fn app(folder: &Path, large: &Path, more: &str) -> String {
    let large = large.display();
    let http = format!(
        "sendfile on;\nserver {{\nlisten {APP_ADDRESS} backlog=4096;\ndefault_type text/plain;\n\
         location / {{ return 200 \"app-01\\n\"; }}\nlocation = /large {{ alias {large}; }}\n}}\n{more}"
    );
    nginx_with(folder, "app", &http)
}

fn nginx(folder: &Path, chain: &Path, key: &Path) -> String {
    let [plain, secure] = [false, true].map(|tls| Front::Nginx.address(tls));
    let http = format!(
        "upstream app {{ server {APP_ADDRESS}; keepalive 64; keepalive_requests 100000000; }}\n\
         server {{\nlisten {plain} backlog=4096;\nlisten {secure} ssl backlog=4096;\n\
         ssl_certificate {};\nssl_certificate_key {};\n\
         location / {{\nproxy_pass http://app;\nproxy_http_version 1.1;\n\
         proxy_max_temp_file_size 0;\n\
         proxy_set_header Connection \"\";\nproxy_set_header Host $http_host;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         proxy_set_header X-Forwarded-Proto $scheme;\n}}\n}}\n",
        chain.display(),
        key.display()
    );
    nginx_with(folder, "nginx", &http)
}

fn haproxy(folder: &Path) -> String {
    let [plain, secure] = [false, true].map(|tls| Front::Haproxy.address(tls));
    let both = folder.join("both.pem");
    format!(
        "global\n    nbthread 1\n    maxconn 8000\n\
         defaults\n    mode http\n    timeout connect 5s\n    timeout client 10m\n    \
         timeout server 30s\n    timeout http-keep-alive 10m\n    http-reuse always\n    \
         option forwardfor\n\
         listen web\n    bind {plain}\n    bind {secure} ssl crt {}\n    \
         http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]\n    \
         server app {APP_ADDRESS}\n",
        both.display()
    )
}
