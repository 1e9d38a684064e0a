//! The app servers: nginx.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::unistd::{Group, User};

use super::{
    HostName, Lab, netns, paths,
    process::Program,
    topology::{APP_PORT, STEERED_PORTS},
};
use crate::shell;

/// Size of what `/big` answers with.
pub const BIG_BYTES: u64 = 200_000_000;

const CONFIG: &str = r#"# Written by `cargo xtask lab up`.
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
user @USER@;
pid @FOLDER@/nginx.pid;
error_log @LOG@ warn;
events { worker_connections 16384; }
http {
    access_log off;
    default_type text/plain;
    sendfile on;
    keepalive_timeout 10m;
    client_max_body_size 0;
    client_body_temp_path @DATA@/body;
    proxy_temp_path @DATA@/proxy;
    fastcgi_temp_path @DATA@/fastcgi;
    scgi_temp_path @DATA@/scgi;
    uwsgi_temp_path @DATA@/uwsgi;
    server {
        listen @IPV4@:@PORT@ backlog=4096;
        listen [@IPV6@]:@PORT@ backlog=4096;@STEERED@

        location = / {
            default_type text/html;
            return 200 "<!doctype html><title>@HOST@</title><h1>@HOST@</h1>\n";
        }
        location = /id {
            if (-f @FOLDER@/sick) { return 503 "@HOST@ is sick\n"; }
            return 200 "@HOST@\n";
        }
        # ?rate=1m slows it down.
        location = /big {
            default_type application/octet-stream;
            limit_rate $arg_rate;
            alias @BIG@;
        }
        # 16 KB at 1 KB a second.
        location = /slow {
            limit_rate 1k;
            alias @DATA@/slow;
        }
        # PUT /upload/NAME keeps the body; POST /upload reads it and forgets it.
        location /upload/ {
            root @DATA@;
            dav_methods PUT;
            dav_access user:rw group:r all:r;
        }
        location = /upload { return 200 "@HOST@\n"; }
        location = /requests { stub_status; }
    }
}
"#;

/// What `host` runs to serve HTTP.
pub(super) fn program(lab: &Lab, host: HostName) -> Program {
    let folder = lab.host_dir(host);
    let config = folder.join("nginx.conf");
    let binary = shell::find_program("nginx").unwrap_or_else(|| "nginx".into());
    let mut command = netns::command(&lab.namespace(host), binary);
    command.arg("-p").arg(&folder).arg("-c").arg(config).arg("-e").arg(lab.log(host, "nginx"));
    // nginx writes it once its sockets listen, and removes it when it ends in order.
    let pid = folder.join("nginx.pid");
    let namespace = lab.namespace(host);
    Program {
        name: "nginx",
        namespace: namespace.clone(),
        command,
        pid_file: lab.pid_file(host, "nginx"),
        log: lab.log(host, "nginx"),
        ready: Box::new(move || {
            let pid = fs::read_to_string(&pid).ok().and_then(|pid| pid.trim().parse().ok());
            pid.zip(netns::id(&namespace)).is_some_and(|(pid, id)| netns::holds(id, pid))
        }),
    }
}

/// Writes the configuration and the files that are served.
pub(super) fn prepare(lab: &Lab, host: HostName) -> Result<()> {
    let folder = lab.host_dir(host);
    let data = lab.data_dir().join(host.as_str());
    fs::create_dir_all(data.join("upload")).context("make the upload folder")?;
    let slow: Vec<u8> = (0..16 * 1024).map(|at| b'a' + (at / 1024) as u8).collect();
    fs::write(data.join("slow"), slow).context("write what /slow answers")?;

    let user = User::from_name("nobody").context("look up nobody")?.context("find user nobody")?;
    let group = Group::from_gid(user.gid).context("look up nobody's group")?;
    let group = group.context("find nobody's group")?.name;
    std::os::unix::fs::chown(data.join("upload"), Some(user.uid.as_raw()), None)
        .context("give the upload folder to nobody")?;

    let text = CONFIG
        .replace("@USER@", &format!("nobody {group}"))
        .replace("@FOLDER@", &folder.display().to_string())
        .replace("@LOG@", &lab.log(host, "nginx").display().to_string())
        .replace("@DATA@", &data.display().to_string())
        .replace("@BIG@", &big_file(&lab.options.name)?.display().to_string())
        .replace("@IPV4@", &host.ipv4().to_string())
        .replace("@IPV6@", &host.ipv6().to_string())
        .replace("@PORT@", &APP_PORT.to_string())
        .replace("@STEERED@", &steered(lab))
        .replace("@HOST@", host.as_str());
    fs::write(folder.join("nginx.conf"), text).context("write nginx.conf")
}

/// What else it listens on if the app servers answer the clients by themselves: any address, as the
/// floating ones and the host's own are both asked.
fn steered(lab: &Lab) -> String {
    if !lab.options.steered {
        return String::new();
    }
    let listen = |port| {
        format!(
            "\n        listen {port} backlog=4096;\n        listen [::]:{port} backlog=4096 \
             ipv6only=on;"
        )
    };
    STEERED_PORTS.map(listen).concat()
}

/// The file behind `/big`: made once on a machine, the same on every machine.
pub(super) fn big_file(lab: &str) -> Result<PathBuf> {
    let file = paths::cache_dir()?.join(format!("big-{BIG_BYTES}"));
    if file.metadata().is_ok_and(|meta| meta.len() == BIG_BYTES) {
        return Ok(file);
    }
    // Another lab may be making it too.
    let draft = paths::draft(lab, "big");
    write_big(&draft, BIG_BYTES).with_context(|| format!("write {}", draft.display()))?;
    fs::rename(&draft, &file).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

/// Pseudo-random numbers: a lost, doubled or moved piece changes any checksum.
fn write_big(file: &Path, bytes: u64) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(file)?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..bytes / 8 {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.write_all(&state.to_le_bytes())?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_in_the_configuration_is_filled_by_prepare() {
        let source = include_str!("nginx.rs");
        let names = CONFIG.split('@').skip(1).step_by(2);
        for name in names {
            assert!(source.contains(&format!(".replace(\"@{name}@\"")), "{name}");
        }
    }

    #[test]
    fn the_size_of_the_big_file_is_a_whole_number_of_words() {
        assert_eq!(BIG_BYTES % 8, 0);
    }
}
