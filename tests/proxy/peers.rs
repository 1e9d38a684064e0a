//! Real programs beside the proxy: nginx behind it, `HAProxy` before it.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use xtask::{shell, wait};

use crate::{client::PATIENCE, fronts, tls::Folder};

/// A program, ended with this.
pub(crate) struct Peer {
    child: Child,
    folder: Folder,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It is ours alone, and nothing waits for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default()
    }
}

/// nginx with these servers: for each, what follows the address in `listen`, and its other lines. It
/// answers each request with `answer`.
pub(crate) fn nginx(servers: &[(&str, String)], answer: &str) -> Result<(Peer, Vec<SocketAddr>)> {
    let folder = Folder::new()?;
    let place = folder.path().display().to_string();
    let mut text = format!(
        "daemon off;\nmaster_process off;\npid {place}/pid;\nerror_log {place}/error.log info;\n\
         events {{ worker_connections 1024; }}\nhttp {{\n  access_log off;\n\
         \x20 client_body_temp_path {place}/b;\n  proxy_temp_path {place}/p;\n\
         \x20 fastcgi_temp_path {place}/f;\n  scgi_temp_path {place}/s;\n\
         \x20 uwsgi_temp_path {place}/u;\n"
    );
    let mut listens = Vec::new();
    for (how, lines) in servers {
        let listen = fronts::unused()?;
        listens.push(listen);
        let _ = writeln!(
            text,
            "  server {{\n    listen {listen} {how};\n    {lines}\n    location / {{ return 200 \
             \"{answer}\"; }}\n  }}"
        );
    }
    text.push_str("}\n");
    let file = folder.path().join("nginx.conf");
    fs::write(&file, text).context("write nginx.conf")?;
    let mut command = Command::new(shell::find_program("nginx").context("find nginx")?);
    command.arg("-p").arg(folder.path()).arg("-c").arg(&file);
    command.arg("-e").arg(folder.path().join("error.log"));
    let peer = run(command, folder, &listens)?;
    Ok((peer, listens))
}

/// `HAProxy`, which hands connections to `target` and begins them as `how` says.
pub(crate) fn haproxy(target: SocketAddr, how: &str) -> Result<(Peer, SocketAddr)> {
    let folder = Folder::new()?;
    let listen = fronts::unused()?;
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n\
         frontend f\n  bind {listen}\n  default_backend b\nbackend b\n  server s {target} {how}\n"
    );
    let file = folder.path().join("haproxy.cfg");
    fs::write(&file, text).context("write haproxy.cfg")?;
    let mut command = Command::new(shell::find_program("haproxy").context("find haproxy")?);
    command.arg("-db").arg("-f").arg(&file);
    Ok((run(command, folder, &[listen])?, listen))
}

fn run(mut command: Command, folder: Folder, listens: &[SocketAddr]) -> Result<Peer> {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let peer = Peer { child: child.with_context(|| format!("run {command:?}"))?, folder };
    for listen in listens {
        wait::until(PATIENCE, "a peer to listen", || Ok(TcpStream::connect(listen).ok()))
            .with_context(|| peer.log())?;
    }
    Ok(peer)
}
