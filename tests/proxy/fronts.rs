//! What stands before the backends: the proxy in this process, or nginx.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ballast::{
    config,
    control::state::{State, Wish},
    health::{Health, Report},
    proxy::Proxy,
};
use xtask::{shell, wait};

use crate::{
    backends::{Backend, Manner},
    client::PATIENCE,
};

/// How long a backend may be silent. Good ones answer at once; this is for machines that do something
/// else meanwhile.
const READ_TIMEOUT: &str = "2s";

/// A service: one backend that misbehaves, and one that is asked after it.
pub(crate) struct Service {
    pub(crate) first: Backend,
    pub(crate) second: Option<Backend>,
    /// More keys of `[[service]]`, which nginx does not know.
    pub(crate) lines: &'static str,
    /// More keys of `[service.proxy]`, which nginx does not know.
    pub(crate) keys: &'static str,
    /// `next_upstream`, as nginx says it.
    pub(crate) next_upstream: &'static str,
}

impl Service {
    /// With a good backend behind the first one.
    pub(crate) fn start(manner: Manner) -> Result<Self> {
        Self::before(manner, Some(Manner::Good))
    }

    /// With this one, or with none.
    pub(crate) fn before(manner: Manner, second: Option<Manner>) -> Result<Self> {
        let second = second.map(|manner| Backend::start("second", manner)).transpose()?;
        let first = Backend::start("first", manner)?;
        Ok(Self::of(first, second))
    }

    /// With these backends.
    pub(crate) fn of(first: Backend, second: Option<Backend>) -> Self {
        Self { first, second, lines: "", keys: "", next_upstream: "error timeout" }
    }

    /// With these words in `next_upstream`.
    pub(crate) fn on(self, next_upstream: &'static str) -> Self {
        Self { next_upstream, ..self }
    }

    /// With more keys of the proxy.
    pub(crate) fn keys(self, keys: &'static str) -> Self {
        Self { keys, ..self }
    }
}

/// An address that nobody else uses: not another test, nor another run of the tests.
pub(crate) fn unused() -> Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    loop {
        let [_, _, high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let run = (std::process::id() % 250) as u8 + 2;
        let address = SocketAddr::from(([127, run, high, low], 8080));
        if low != 0 && low != u8::MAX && TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
        ensure!(high < u8::MAX, "every address is in use");
    }
}

/// The proxy, with the services, each on an address of its own.
pub(crate) fn ballast(services: &[Service]) -> Result<(Proxy, Vec<SocketAddr>)> {
    let (proxy, _, listens) = ballast_with(services, "")?;
    Ok((proxy, listens))
}

/// The same, with more lines at the end of the last service's `[service.proxy]`; and what is known of
/// the services.
pub(crate) fn ballast_with(
    services: &[Service],
    lines: &str,
) -> Result<(Proxy, State, Vec<SocketAddr>)> {
    let mut text = String::from(
        "[[node]]\nname = \"lb-01\"\naddress = \"192.0.2.11\"\ninterface = \"eth0\"\n\
         [[floating]]\nvrid = 51\naddresses = [\"192.0.2.100/24\"]\n",
    );
    for (number, service) in services.iter().enumerate() {
        let words: Vec<_> =
            service.next_upstream.split(' ').map(|word| format!("\"{word}\"")).collect();
        write!(
            text,
            "[[service]]\nname = \"s{number}\"\nlisten = \"192.0.2.100:{}\"\npath = \"proxy\"\n\
             {}\n[[service.backend]]\nname = \"first\"\naddress = \"{}\"\n",
            1000 + number,
            service.lines,
            service.first.address,
        )?;
        if let Some(second) = &service.second {
            write!(
                text,
                "[[service.backend]]\nname = \"second\"\naddress = \"{}\"\nbackup = true\n",
                second.address
            )?;
        }
        write!(
            text,
            "[service.health]\nprobe = \"none\"\n\
             [service.proxy]\nread_timeout = \"{READ_TIMEOUT}\"\nnext_upstream = [{}]\n{}\n",
            words.join(", "),
            service.keys,
        )?;
    }
    text.push_str(lines);
    let loaded = config::parse("test.toml", &text)?;
    let mut services = loaded.config.services;
    let mut listens = Vec::new();
    for service in &mut services {
        service.listen = unused()?;
        listens.push(service.listen);
    }
    let mut state = State::default();
    state.configure(&services, |_, _| Wish::default(), Duration::ZERO);
    for service in &services {
        for backend in &service.backends {
            let report = Report {
                service: service.name.clone(),
                backend: backend.name.clone(),
                health: Health::Up,
                reason: "not probed".into(),
            };
            state.observe(&report, Duration::ZERO);
        }
    }
    state.judge(Duration::ZERO);
    let proxy = Proxy::default();
    for (service, followed) in proxy.follow(state.services()) {
        ensure!(followed.wrong.is_none(), "{service}: {followed:?}");
    }
    Ok((proxy, state, listens))
}

/// An nginx, ended with this.
pub(crate) struct Nginx {
    child: Child,
    folder: PathBuf,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It is ours alone, and nothing waits for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// nginx with the same services.
pub(crate) fn nginx(services: &[Service]) -> Result<(Nginx, Vec<SocketAddr>)> {
    let unique = format!("ballast-oracle-{}-{:08x}", std::process::id(), fastrand::u32(..));
    let folder = std::env::temp_dir().join(unique);
    fs::create_dir(&folder).context("make a folder")?;
    let place = folder.display();
    let mut text = format!(
        "daemon off;\nmaster_process off;\npid {place}/pid;\nerror_log {place}/error.log;\n\
         events {{ worker_connections 1024; }}\nhttp {{\n  access_log off;\n\
         \x20 client_body_temp_path {place}/b;\n  proxy_temp_path {place}/p;\n\
         \x20 fastcgi_temp_path {place}/f;\n  scgi_temp_path {place}/s;\n\
         \x20 uwsgi_temp_path {place}/u;\n  client_max_body_size 0;\n\
         \x20 map $http_upgrade $up {{ default \"upgrade\"; '' ''; }}\n"
    );
    let mut listens = Vec::new();
    for (number, service) in services.iter().enumerate() {
        let listen = unused()?;
        listens.push(listen);
        let second = service.second.as_ref().map_or(String::new(), |second| {
            format!("    server {} backup max_fails=0;\n", second.address)
        });
        write!(
            text,
            "  upstream u{number} {{\n    server {} max_fails=0;\n{second}    keepalive 8;\n  }}\n\
             \x20 server {{\n    listen {listen};\n    location / {{\n\
             \x20     proxy_pass http://u{number};\n      proxy_http_version 1.1;\n\
             \x20     proxy_set_header Connection $up;\n\
             \x20     proxy_set_header Upgrade $http_upgrade;\n\
             \x20     proxy_set_header Host $http_host;\n\
             \x20     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
             \x20     proxy_connect_timeout 5s;\n      proxy_read_timeout {READ_TIMEOUT};\n\
             \x20     proxy_next_upstream {};\n    }}\n  }}\n",
            service.first.address, service.next_upstream,
        )?;
    }
    text.push_str("}\n");
    let file = folder.join("nginx.conf");
    fs::write(&file, text).context("write nginx.conf")?;
    let binary = shell::find_program("nginx").context("find nginx: `cargo xtask setup`")?;
    let mut command = Command::new(binary);
    command.arg("-p").arg(&folder).arg("-c").arg(&file).arg("-e").arg(folder.join("error.log"));
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("run nginx")?;
    let nginx = Nginx { child, folder };
    let last = *listens.last().context("there is no service")?;
    let log = nginx.folder.join("error.log");
    wait::until(PATIENCE, "nginx to listen", || Ok(TcpStream::connect(last).ok()))
        .with_context(|| fs::read_to_string(log).unwrap_or_default())?;
    Ok((nginx, listens))
}
