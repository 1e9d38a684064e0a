//! TLS and HTTP/2 towards clients, asked by curl.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::{
    backends::{Backend, Manner},
    client::Connection,
    fronts::{self, Service},
};

/// A folder that goes with the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Result<Self> {
        let unique = format!("ballast-tls-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let folder = std::env::temp_dir().join(unique);
        fs::create_dir(&folder).context("make a folder")?;
        Ok(Self(folder))
    }

    /// Writes a new certificate for the name, and its key; gives the lines that name them.
    pub(crate) fn certify(&self, name: &str) -> Result<String> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name.to_owned()])?;
        let (chain, key) = (self.chain(name), self.key(name));
        fs::write(&chain, cert.pem())?;
        fs::write(&key, signing_key.serialize_pem())?;
        Ok(format!(
            "[[service.proxy.certificate]]\nchain = \"{}\"\nkey = \"{}\"\n",
            chain.display(),
            key.display()
        ))
    }

    pub(crate) fn chain(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.pem"))
    }

    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.key"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left would be in nobody's way.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What curl is told: version of HTTP, status and body in one line.
fn curl(target: SocketAddr, name: &str, trusted: &Path, words: &[&str]) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "60", "-w", " %{http_version} %{http_code}", "--cacert"]);
    command.arg(trusted).arg("--resolve").arg(format!("{name}:{}:{}", target.port(), target.ip()));
    command.args(words).arg(format!("https://{name}:{}/x", target.port()));
    let output = command.output().context("run curl")?;
    ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn clients_speak_tls_and_the_version_that_they_like() -> Result<()> {
    let folder = Folder::new()?;
    let lines = folder.certify("a.example")? + &folder.certify("b.example")?;
    let services = [Service::start(Manner::Refuse)?];
    let (proxy, state, listens) = fronts::ballast_with(&services, &lines)?;
    let target = listens[0];
    for name in ["a.example", "b.example"] {
        // Each name with its own certificate, and nobody else's.
        let trusted = folder.chain(name);
        for (version, word) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let told = curl(target, name, &trusted, &[version])?;
            ensure!(told == format!("second GET /x HTTP/1.1 {word} 200"), "{told}");
            let told = curl(target, name, &trusted, &[version, "-X", "POST", "-d", "hello"])?;
            ensure!(told == format!("second POST /x HTTP/1.1 {word} 200"), "{told}");
        }
    }
    ensure!(curl(target, "b.example", &folder.chain("a.example"), &[]).is_err());
    what_the_backend_is_told(services[0].second.as_ref().context("it has a second")?, &|words| {
        curl(target, "a.example", &folder.chain("a.example"), words)
    })?;

    // Another certificate, read by a reload.
    folder.certify("a.example")?;
    ensure!(curl(target, "a.example", &folder.chain("a.example"), &[]).is_err(), "read too early");
    let followed = &proxy.follow(state.services())["s0"];
    ensure!(followed.listens && followed.wrong.is_none(), "{followed:?}");
    curl(target, "a.example", &folder.chain("a.example"), &[])?;

    // One that is none leaves what was there.
    let chain = folder.chain("a.example");
    let good = folder.0.join("good.pem");
    fs::rename(&chain, &good)?;
    fs::write(&chain, "nothing")?;
    let followed = &proxy.follow(state.services())["s0"];
    ensure!(followed.wrong.as_ref().is_some_and(|wrong| wrong.contains("no certificate")));
    curl(target, "a.example", &good, &[])?;

    let mut plain = Connection::open(target)?;
    plain.send(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    ensure!(plain.is_answered_by_tls()?, "plain text is answered");
    let counts = proxy.status("s0").unwrap_or_default();
    ensure!(counts.handshakes > 0, "{counts:?}");
    Ok(())
}

/// HTTP/2 in, HTTP/1.1 out.
fn what_the_backend_is_told(
    backend: &Backend,
    curl: &dyn Fn(&[&str]) -> Result<String>,
) -> Result<()> {
    let body = "x".repeat(200_000);
    let data = format!("@{}", write_down(&body)?.display());
    curl(&["--http2", "-X", "PUT", "-H", "X-Row: h2", "-b", "a=1; b=2", "--data-binary", &data])?;
    fs::remove_file(&data[1..])?;
    let asked = &backend.asked("h2")[0];
    ensure!(asked.body == body.as_bytes(), "the body arrived changed");
    ensure!(asked.field("x-forwarded-proto") == ["https"], "{:?}", asked.fields);
    ensure!(asked.field("cookie") == ["a=1; b=2"], "{:?}", asked.fields);
    ensure!(asked.field("host").len() == 1, "{:?}", asked.fields);
    ensure!(asked.field("host")[0].starts_with("a.example:"), "{:?}", asked.fields);
    let told = curl(&["--http2", "-I"])?;
    ensure!(told.ends_with("2 200"), "{told}");
    Ok(())
}

fn write_down(text: &str) -> Result<PathBuf> {
    let unique = format!("ballast-body-{}-{:08x}", std::process::id(), fastrand::u32(..));
    let file = std::env::temp_dir().join(unique);
    fs::write(&file, text).context("write a body")?;
    Ok(file)
}
