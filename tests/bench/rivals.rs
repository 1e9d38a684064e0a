//! What else could stand in ballast's place: the same requests through nftables, `HAProxy` and
//! nginx.
//!
//! Each runs on the lab's second balancer, with the settings that its own manual gives for this use,
//! and sends everything to the same app server.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use xtask::{
    lab::{Host, Lab},
    shell, wait,
};

/// The host that they run on.
const HOST: &str = "lb-02";

/// How long one may take to answer the first request.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A way to do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rival {
    /// Destination and source are translated by the kernel's connection tracking.
    Nftables,
    /// Bytes are copied from one TCP connection to another.
    HaproxyTcp,
    /// Requests are read and sent on, by connections that stay open.
    HaproxyHttp,
    /// The same.
    Nginx,
}

impl Rival {
    pub(crate) const ALL: [Self; 4] =
        [Self::Nftables, Self::HaproxyTcp, Self::HaproxyHttp, Self::Nginx];

    /// In the table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables DNAT",
            Self::HaproxyTcp => "HAProxy, TCP",
            Self::HaproxyHttp => "HAProxy, HTTP",
            Self::Nginx => "nginx as proxy",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Nftables => 8001,
            Self::HaproxyTcp => 8002,
            Self::HaproxyHttp => 8003,
            Self::Nginx => 8004,
        }
    }

    /// Where it takes requests.
    pub(crate) fn url(self, lab: &Lab) -> String {
        format!("http://{}:{}/", lab.host(HOST).ipv4(), self.port())
    }
}

/// The rivals, while they run.
#[derive(Debug)]
pub(crate) struct Rivals {
    servers: Vec<Child>,
    folder: PathBuf,
}

impl Rivals {
    /// Starts all of them, with `app` (address and port) behind them.
    pub(crate) fn start(lab: &Lab, app: &str) -> anyhow::Result<Self> {
        let host = lab.host(HOST);
        let folder =
            std::env::temp_dir().join(format!("ballast-bench-rivals-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let mut rivals = Self { servers: Vec::new(), folder };
        nftables(host, app).context("set up nftables")?;

        let config = rivals.write("haproxy.cfg", &haproxy(host, app))?;
        let mut haproxy = host.command("haproxy");
        haproxy.arg("-db").arg("-f").arg(config);
        let config = rivals.write("nginx.conf", &nginx(host, app, &rivals.folder))?;
        let mut nginx = host.command("nginx");
        nginx.arg("-p").arg(&rivals.folder).arg("-c").arg(config);
        for mut command in [haproxy, nginx] {
            let log = fs::File::create(rivals.folder.join("log")).context("create a log")?;
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            let child = command.spawn();
            rivals
                .servers
                .push(child.with_context(|| format!("start `{}`", shell::display(&command)))?);
        }
        for rival in Rival::ALL {
            let url = rival.url(lab);
            wait::until(START_LIMIT, &format!("{} to answer at {url}", rival.name()), || {
                let mut curl = lab.host("client").command("curl");
                curl.args(["--silent", "--fail", "--max-time", "2", &url]);
                let output = curl.output().context("run curl")?;
                Ok(output.status.success().then_some(()))
            })?;
        }
        Ok(rivals)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Rivals {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // One that has ended by itself needs no more.
            let _ = server.kill();
            let _ = server.wait();
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} is left behind: {error}", self.folder.display());
        }
    }
}

/// Switches segmentation and aggregation off on a host: else one way would carry a large segment as
/// one packet where another carries it as many, and packets could not be compared.
pub(crate) fn plain_packets(host: &Host) -> anyhow::Result<()> {
    let mut command = host.command("ethtool");
    command.args(["-K", "eth0", "tso", "off", "gso", "off", "gro", "off"]);
    shell::output(&mut command)
        .with_context(|| format!("switch offloads off on {}", host.name()))?;
    Ok(())
}

fn nftables(host: &Host, app: &str) -> anyhow::Result<()> {
    let forward = host.within(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
    forward.context("switch forwarding on")?;
    let (address, port) = (host.ipv4(), Rival::Nftables.port());
    let (app_address, _) = app.split_once(':').context("read the app server's address")?;
    let rules = format!(
        "table ip rival {{\n\
         chain before {{ type nat hook prerouting priority dstnat; \
         ip daddr {address} tcp dport {port} dnat to {app}; }}\n\
         chain after {{ type nat hook postrouting priority srcnat; \
         ip daddr {app_address} masquerade; }}\n}}\n"
    );
    let mut command = host.command("nft");
    command.arg("--file").arg("-").stdin(Stdio::piped());
    let mut child = command.spawn().context("run nft")?;
    let mut input = child.stdin.take().context("write to nft")?;
    std::io::Write::write_all(&mut input, rules.as_bytes()).context("write to nft")?;
    drop(input);
    ensure!(child.wait().context("wait for nft")?.success(), "nft refused:\n{rules}");
    Ok(())
}

fn haproxy(host: &Host, app: &str) -> String {
    let address = host.ipv4();
    let (tcp, http) = (Rival::HaproxyTcp.port(), Rival::HaproxyHttp.port());
    format!(
        "global\n    nbthread 1\n\
         defaults\n    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\n\
         listen tcp\n    mode tcp\n    bind {address}:{tcp}\n    server app {app}\n\
         listen http\n    mode http\n    http-reuse always\n    bind {address}:{http}\n    \
         server app {app}\n"
    )
}

fn nginx(host: &Host, app: &str, folder: &std::path::Path) -> String {
    let (address, port, folder) = (host.ipv4(), Rival::Nginx.port(), folder.display());
    format!(
        "daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         access_log off;\nkeepalive_requests 1000000;\n\
         client_body_temp_path {folder}/body;\nproxy_temp_path {folder}/proxy;\n\
         fastcgi_temp_path {folder}/fastcgi;\nscgi_temp_path {folder}/scgi;\n\
         uwsgi_temp_path {folder}/uwsgi;\n\
         upstream app {{ server {app}; keepalive 64; keepalive_requests 1000000; }}\n\
         server {{\nlisten {address}:{port};\n\
         location / {{ proxy_pass http://app; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; }}\n}}\n}}\n"
    )
}
