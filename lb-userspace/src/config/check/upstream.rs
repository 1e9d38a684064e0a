//! The keys of `[service.proxy]` that say how backends are spoken to, and how clients are known.

use crate::config::{
    BackendTls, Certificate, Health, Probe, Proxy, ProxyHeader, Upstream,
    raw::{self, Service},
    report::Findings,
    value::word::{HttpVersion, Probe as Word, Scheme, SendProxy},
};

use super::whole;

/// Most requests at once on a connection of HTTP/2 (RFC 9113, section 6.5.2, advises no less).
const MAX_STREAMS: u32 = 100;

pub(super) fn upstream(raw: &raw::Proxy, findings: &mut Findings) -> Upstream {
    let secure = raw.scheme.or(Scheme::Http) == Scheme::Https;
    let http2 = raw.http_version.or(HttpVersion::One) == HttpVersion::Two;
    if let Some(streams) = raw.max_streams.get()
        && !http2
        && !raw.http_version.is_wrong()
    {
        findings
            .warning(streams.span(), "`max_streams` has no effect without `http_version = \"2\"`")
            .help("write `http_version = \"2\"` if the backends speak HTTP/2, or remove it");
    }
    if let Some(tls) = raw.backend_tls.get()
        && !secure
        && !raw.scheme.is_wrong()
    {
        findings
            .warning(tls.span(), "`[service.proxy.backend_tls]` has no effect without TLS")
            .help("write `scheme = \"https\"` in `[service.proxy]`, or remove the section");
    }
    let section = raw.backend_tls.or(raw::BackendTls::default());
    Upstream {
        tls: secure.then(|| backend_tls(&section, findings)),
        http2,
        max_streams: whole(&raw.max_streams, MAX_STREAMS),
        send_proxy: match raw.send_proxy.or(SendProxy::Off) {
            SendProxy::Off => None,
            SendProxy::V1 => Some(ProxyHeader::V1),
            SendProxy::V2 => Some(ProxyHeader::V2),
        },
    }
}

fn backend_tls(raw: &raw::BackendTls, findings: &mut Findings) -> BackendTls {
    let verify = raw.verify.or(true);
    if !verify && let Some(span) = raw.verify.span() {
        findings.warning(span, "the certificates of the backends are not verified").help(
            "write `ca_file` with the certificate that signs theirs, and `server_name` with the \
                 name in them: now whoever gets between can read and change all requests",
        );
        if let Some(file) = raw.ca_file.span() {
            findings
                .error(file, "`ca_file` has no effect with `verify = false`")
                .help("remove `verify = false`, or `ca_file`");
        }
    }
    for (there, missing, key, other) in [
        (&raw.certificate, &raw.key, "certificate", "key"),
        (&raw.key, &raw.certificate, "key", "certificate"),
    ] {
        if let Some(span) = there.span()
            && missing.is_absent()
        {
            findings
                .error(span, format!("`{key}` of `[service.proxy.backend_tls]` needs `{other}`"))
                .help("write the files of the certificate and of its key, or neither");
        }
    }
    let pair = raw.certificate.value().zip(raw.key.value());
    BackendTls {
        name: raw.server_name.value().map(|host| host.0.clone()),
        ca_file: raw.ca_file.value().map(|path| path.0.clone()),
        verify,
        certificate: pair
            .map(|(chain, key)| Certificate { chain: chain.0.clone(), key: key.0.clone() }),
    }
}

/// What works with `path = "proxy"` alone: with "auto" the kernel hands packets on as they are.
pub(super) fn needs_proxy(raw: &raw::Proxy, findings: &mut Findings) {
    let tells = |word| word != SendProxy::Off;
    for (span, what) in [
        (raw.accept_proxy.span(), "`accept_proxy`"),
        (
            raw.send_proxy.get().filter(|it| tells(*it.get_ref())).map(toml::Spanned::span),
            "`send_proxy`",
        ),
        (
            raw.scheme.get().filter(|it| *it.get_ref() == Scheme::Https).map(toml::Spanned::span),
            "`scheme = \"https\"`",
        ),
        (
            raw.http_version
                .get()
                .filter(|it| *it.get_ref() == HttpVersion::Two)
                .map(toml::Spanned::span),
            "`http_version = \"2\"`",
        ),
    ] {
        if let Some(span) = span {
            findings.error(span, format!("{what} needs `path = \"proxy\"`")).help(
                "write `path = \"proxy\"`: with \"auto\" the kernel forwards packets as they are, and \
                 backends would not understand them",
            );
        }
    }
}

/// Whether probes speak as the proxy does.
pub(super) fn check_probe(raw: &raw::Proxy, service: &Service, findings: &mut Findings) {
    let Some(section) = service.health.value() else { return };
    let Some(probe) = section.probe.get() else { return };
    let (wrong, right) = match (probe.get_ref(), raw.scheme.or(Scheme::Http)) {
        (Word::Http, Scheme::Https) => ("http", "https"),
        (Word::Https, Scheme::Http) => ("https", "http"),
        _ => return,
    };
    let finding = findings.warning(
        probe.span(),
        format!("`probe = \"{wrong}\"` asks backends in another way than the proxy does"),
    );
    finding.help(format!("write `probe = \"{right}\"`"));
    if let Some(span) = raw.scheme.span() {
        finding.label(span, "the proxy's");
    }
}

/// Has the probes of a proxied service speak as its proxy does.
pub(super) fn equip(health: &mut Health, proxy: Option<&Proxy>) {
    if let (Probe::Http(probe) | Probe::Https(probe), Some(proxy)) = (&mut health.probe, proxy) {
        probe.upstream = proxy.upstream.clone();
    }
}
