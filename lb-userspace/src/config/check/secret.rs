//! Files of secrets: they must be there, and nobody else may read them.

use std::{fs, io, os::unix::fs::PermissionsExt as _};

use toml::Spanned;

use crate::{
    config::{
        raw::{self, File},
        read::Field,
        report::Findings,
        value::AbsolutePath,
    },
    proxy::tls,
    trust,
};

/// Permission bits of the group and of all others.
const OTHERS: u32 = 0o077;

/// Checks every file of a secret that the configuration names.
pub(in crate::config) fn check(file: &File, findings: &mut Findings) {
    let (mut pairs, mut authorities) = (Vec::new(), Vec::new());
    let mut check = |field: &Field<AbsolutePath>, key: &str| {
        if let Some(path) = field.get() {
            check_file(path, key, findings);
        }
    };
    if let Some(cluster) = file.cluster.value() {
        check(&cluster.secret_file, "secret_file");
    }
    for service in file.service.items() {
        let proxy = service.get_ref().proxy.value();
        for certificate in proxy.iter().flat_map(|proxy| proxy.certificate.items()) {
            let raw::Certificate { chain, key } = certificate.get_ref();
            check(key, "key");
            pairs.extend(chain.get().zip(key.value()));
        }
        if let Some(tls) = proxy.and_then(|proxy| proxy.backend_tls.value()) {
            check(&tls.key, "key");
            pairs.extend(tls.certificate.get().zip(tls.key.value()));
            authorities.extend(tls.ca_file.get());
        }
    }
    for postgres in file.postgres.items() {
        check(&postgres.get_ref().password_file, "password_file");
    }
    if let Some(consensus) = file.consensus.value() {
        check(&consensus.password_file, "password_file");
    }
    for alert in file.alert.items() {
        check(&alert.get_ref().token_file, "token_file");
        check(&alert.get_ref().url_file, "url_file");
    }
    for authority in authorities {
        if let Err(error) = trust::roots(Some(&authority.get_ref().0)) {
            findings
                .error(authority.span(), error)
                .help("write a file with the certificate that signs those of the backends, in PEM");
        }
    }
    for (chain, key) in pairs {
        // What is wrong with the key's file itself has been said.
        if key.0.is_file()
            && let Err(error) = tls::load(&chain.get_ref().0, &key.0)
        {
            findings
                .error(chain.span(), error.to_string())
                .help("write the files of a certificate and of its own key, both in PEM");
        }
    }
}

fn check_file(path: &Spanned<AbsolutePath>, key: &str, findings: &mut Findings) {
    let span = path.span();
    let path = &path.get_ref().0;
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            findings.error(span, format!("the file of `{key}` does not exist")).help(format!(
                "create it with `install -m 600 /dev/null {shown}`, and write the secret into it"
            ));
            return;
        }
        Err(error) => {
            findings
                .error(span, format!("the file of `{key}` cannot be read: {error}"))
                .help(format!("see `namei -l {shown}`, and run this as the daemon's user"));
            return;
        }
    };
    if !metadata.is_file() {
        findings
            .error(span, format!("`{key}` is not a file"))
            .help("write the path of a file that holds the secret and nothing else");
        return;
    }
    let mode = metadata.permissions().mode();
    if mode & OTHERS != 0 {
        findings
            .error(
                span.clone(),
                format!(
                    "others than its owner have access to the file of `{key}` (mode {:04o})",
                    mode & 0o7777
                ),
            )
            .help(format!("run `chmod 600 {shown}`"));
    }
    if metadata.len() == 0 {
        findings
            .error(span, format!("the file of `{key}` is empty"))
            .help(format!("write the secret into {shown}"));
    }
}
