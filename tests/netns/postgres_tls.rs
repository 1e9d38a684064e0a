//! Servers that are asked over TLS, and those that are not who they should be.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use xtask::lab::{default_config, postgres_config};

use crate::{
    postgres::{self, leads_to, server, until},
    site::Site,
};

/// An authority that certificates come from.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Gives a server a certificate for this address, and its key.
    fn certify(&self, site: &Site, host: &str, address: &str) -> Result<()> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = vec![SanType::IpAddress(address.parse::<IpAddr>()?)];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let folder = site.lab().data_dir().join(host);
        give(&folder, "server.crt", &certificate.pem())?;
        give(&folder, "server.key", &key.serialize_pem())
    }
}

/// Writes a file that the server's user has, and nobody else.
fn give(folder: &Path, name: &str, text: &str) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let path = folder.join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let owner = fs::metadata(folder)?;
    chown(&path, Some(owner.uid()), Some(owner.gid()))?;
    Ok(())
}

/// The configuration, in which servers are verified by this file.
fn config(ca_file: &str) -> String {
    let ca = format!("user = \"ballast\"\nca_file = \"@LAB@/{ca_file}\"");
    default_config() + &postgres_config().replace("user = \"ballast\"", &ca)
}

#[test]
fn servers_are_asked_over_tls_and_those_of_another_authority_are_not_believed() -> Result<()> {
    let site = postgres::site("pg-tls", "")?;
    let lab = site.lab();
    let (ours, others) = (Authority::new()?, Authority::new()?);
    fs::write(lab.state_dir().join("ours.pem"), &ours.certificate)?;
    fs::write(lab.state_dir().join("others.pem"), &others.certificate)?;

    // The servers speak no TLS yet, and that is said.
    site.write_config(&config("ours.pem"))?;
    site.obeys("reload")?;
    let why = |name: &'static str, words: &'static str| {
        until(&site, words, move |it| {
            server(it, name)["failure"].as_str().is_some_and(|it| it.contains(words))
        })
    };
    why("pg-01", "it speaks no TLS")?;
    // A primary that cannot be asked goes on, and nobody takes it for dead.
    let database = why("pg-02", "it speaks no TLS")?;
    ensure!(server(&database, "pg-01")["failure_kind"] == "refuses", "{database}");
    ensure!(leads_to(&site, 5432)? == "192.0.2.31");

    // The first is right, the second has a certificate for another address.
    ours.certify(&site, "pg-01", "192.0.2.31")?;
    ours.certify(&site, "pg-02", "192.0.2.99")?;
    for host in ["pg-01", "pg-02"] {
        // From now on it lets ballast in over TLS alone.
        let access = lab.state_dir().join(host).join("pg_hba.conf");
        let text = fs::read_to_string(&access).context("read pg_hba.conf")?;
        fs::write(&access, format!("hostnossl all ballast all reject\n{text}"))?;
        lab.query(host, "alter system set ssl = on")?;
        lab.query(host, "select pg_reload_conf()")?;
    }
    until(&site, "pg-01 to answer", |it| server(it, "pg-01")["answers"] == true)?;
    let encrypted = lab.query(
        "pg-01",
        "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) \
         where application_name = 'ballast' and ssl",
    )?;
    ensure!(encrypted != "0", "no connection of ballast is encrypted");
    why("pg-02", "its certificate is not for the address that it is asked at")?;
    ours.certify(&site, "pg-02", "192.0.2.32")?;
    lab.query("pg-02", "select pg_reload_conf()")?;
    until(&site, "pg-02 to serve", |it| server(it, "pg-02")["read_only"]["state"] == "serves")?;

    // All that a change of the primary does goes over TLS too.
    site.obeys("pg switchover --yes --wait 60s --peer-is-down lb-02")?;
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");

    // Another authority: nobody is believed, and nothing changes for clients.
    site.write_config(&config("others.pem"))?;
    site.obeys("reload")?;
    why("pg-02", "its certificate is from no authority that stands in ca_file")?;
    ensure!(leads_to(&site, 5432)? == "192.0.2.32");
    let refused = site.refuses("pg promote --yes --peer-is-down lb-02")?;
    ensure!(refused.contains("pg-02 lives"), "{refused}");
    // Without TLS the servers do not let it in, and say why.
    site.write_config(&(default_config() + &postgres_config()))?;
    site.obeys("reload")?;
    why("pg-02", "see its pg_hba.conf")?;
    site.finish()
}
