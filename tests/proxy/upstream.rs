//! TLS and HTTP/2 towards backends: nginx says how it was spoken to.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ballast::{
    config::{BackendTls, HttpProbe, Upstream},
    health::{Deadline, Observation, http},
};

use crate::{
    backends::Backend,
    client::Connection,
    fronts::{self, Service},
    peers,
    tls::Folder,
};

/// What nginx says of a request.
const TOLD: &str = "$server_protocol $http_host $ssl_server_name $ssl_session_reused \
                    $ssl_client_verify $connection";

/// The lines of a server of nginx that speaks TLS with this certificate.
fn secure(folder: &Folder, name: &str) -> String {
    format!(
        "ssl_certificate {}; ssl_certificate_key {}; ssl_session_cache shared:{}:1m;",
        folder.chain(name).display(),
        folder.key(name).display(),
        name.replace('.', "_"),
    )
}

fn service(backend: SocketAddr) -> Service {
    Service::of(Backend::at(backend), None)
}

/// A service's answer: its status, and the words of nginx.
fn ask(target: SocketAddr) -> Result<(u16, Vec<String>)> {
    let mut connection = Connection::open(target)?;
    connection.send(b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n");
    let answer = connection.answer("GET")?;
    Ok((answer.status, answer.body.split(' ').map(str::to_owned).collect()))
}

#[test]
fn backends_are_spoken_to_in_tls_and_verified() -> Result<()> {
    let folder = Folder::new()?;
    for name in ["a.example", "b.example", "proxy.example"] {
        folder.certify(name)?;
    }
    let client = format!(
        "{} ssl_verify_client on; ssl_client_certificate {};",
        secure(&folder, "b.example"),
        folder.chain("proxy.example").display()
    );
    let servers = [("ssl", secure(&folder, "a.example")), ("ssl", client)];
    let (_nginx, backends) = peers::nginx(&servers, TOLD)?;
    let trusting = |name: &str, file: &str| {
        format!(
            "scheme = \"https\"\nkeepalive = 0\n[service.proxy.backend_tls]\n\
             server_name = \"{name}\"\nca_file = \"{}\"\n",
            folder.chain(file).display()
        )
    };
    let front = |backend: SocketAddr, lines: &str| fronts::ballast_with(&[service(backend)], lines);

    let (_proxy, _, listens) = front(backends[0], &trusting("a.example", "a.example"))?;
    let (status, told) = ask(listens[0])?;
    ensure!(
        status == 200 && told[..4] == ["HTTP/1.1", "www.example", "a.example", "."],
        "{told:?}"
    );
    let (_, told) = ask(listens[0])?;
    ensure!(told[3] == "r", "the session is not resumed: {told:?}");

    // Another name, another authority, and the address that the certificate does not have.
    for lines in [
        trusting("b.example", "a.example"),
        trusting("a.example", "b.example"),
        trusting("a.example", "a.example").replace("server_name = \"a.example\"\n", ""),
    ] {
        let (proxy, state, listens) = front(backends[0], &lines)?;
        let (status, told) = ask(listens[0])?;
        ensure!(status == 502, "{lines}: {status} {told:?}");
        let address = state.service("s0").context("the service")?.records[0].config.address;
        let signals = proxy.signals("s0", address).context("the backend")?;
        ensure!(signals.refused > 0, "it does not count against the backend: {signals:?}");
    }

    let blind = "scheme = \"https\"\n[service.proxy.backend_tls]\nverify = false\n";
    let (_proxy, _, listens) = front(backends[0], blind)?;
    ensure!(ask(listens[0])?.0 == 200);

    // A backend that asks who it is spoken to by. nginx answers 400 if it is not told.
    let lines = trusting("b.example", "b.example");
    let (_proxy, _, listens) = front(backends[1], &lines)?;
    ensure!(ask(listens[0])?.0 == 400);
    let lines = format!(
        "{lines}certificate = \"{}\"\nkey = \"{}\"\n",
        folder.chain("proxy.example").display(),
        folder.key("proxy.example").display()
    );
    let (_proxy, _, listens) = front(backends[1], &lines)?;
    let (status, told) = ask(listens[0])?;
    ensure!(status == 200 && told[4] == "SUCCESS", "{told:?}");
    Ok(())
}

#[test]
fn backends_are_spoken_to_in_http_2() -> Result<()> {
    let folder = Folder::new()?;
    folder.certify("a.example")?;
    let servers = [
        ("http2", String::new()),
        ("ssl http2", secure(&folder, "a.example")),
        ("ssl", secure(&folder, "a.example")),
    ];
    let (_nginx, backends) = peers::nginx(&servers, TOLD)?;
    let tls = format!(
        "scheme = \"https\"\nhttp_version = \"2\"\n[service.proxy.backend_tls]\n\
         server_name = \"a.example\"\nca_file = \"{}\"\n",
        folder.chain("a.example").display()
    );
    for (backend, lines, version) in [
        (backends[0], "http_version = \"2\"\n", "HTTP/2.0"),
        (backends[1], tls.as_str(), "HTTP/2.0"),
        // Who does not agree to HTTP/2 is spoken to in HTTP/1.1.
        (backends[2], &tls, "HTTP/1.1"),
    ] {
        let (_proxy, _, listens) = fronts::ballast_with(&[service(backend)], lines)?;
        let mut clients = [Connection::open(listens[0])?, Connection::open(listens[0])?];
        for round in 0..3 {
            for client in &mut clients {
                client.send(b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n");
                let answer = client.answer("GET")?;
                let said = format!("{version} www.example ");
                ensure!(answer.body.starts_with(&said), "{version}, {round}: {answer:?}");
            }
        }
        // A body, and a request that asks for a change of protocol, which HTTP/2 has not.
        for request in [
            "POST / HTTP/1.1\r\nHost: www.example\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: www.example\r\nConnection: upgrade\r\n\
             Upgrade: websocket\r\n\r\n",
        ] {
            clients[0].send(request.as_bytes());
            let answer = clients[0].answer("POST")?;
            ensure!(answer.status == 200 && answer.body.starts_with(version), "{answer:?}");
        }
    }
    Ok(())
}

#[test]
fn requests_share_a_connection_of_http_2_up_to_its_limit() -> Result<()> {
    let backend = crate::grpc::Server::start(crate::grpc::Manner::Grpc)?;
    let services =
        [Service::of(backend.backend(), None).keys("http_version = \"2\"\nmax_streams = 4")];
    let (proxy, listens) = fronts::ballast(&services)?;
    let ask = |client: &mut Connection| -> Result<()> {
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        let answer = client.answer("POST")?;
        ensure!(answer.status == 200 && answer.body == "hello", "{answer:?}");
        Ok(())
    };
    // One after the other, over all workers: each worker has one connection.
    for _ in 0..20 {
        ask(&mut Connection::open(listens[0])?)?;
    }
    let workers = std::thread::available_parallelism()?.get();
    ensure!(backend.connections() <= workers, "{} connections", backend.connections());
    // Many that are never whole: each connection has four at most.
    let before = backend.connections();
    let mut clients: Vec<_> =
        (0..40).map(|_| Connection::open(listens[0])).collect::<Result<_>>()?;
    for client in &mut clients {
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel");
    }
    for client in &mut clients {
        // The head of the answer comes first.
        ensure!(client.head()?.status == 200);
    }
    ensure!(backend.connections() >= 10.max(before), "{} connections", backend.connections());
    ensure!(proxy.status("s0").is_some_and(|status| status.retries == 0));
    Ok(())
}

#[test]
fn probes_speak_as_the_proxy_does() -> Result<()> {
    let folder = Folder::new()?;
    folder.certify("a.example")?;
    let servers = [
        ("http2", String::new()),
        ("ssl http2", secure(&folder, "a.example")),
        ("ssl", secure(&folder, "a.example")),
    ];
    let (_nginx, backends) = peers::nginx(&servers, TOLD)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let deadline = || Deadline::after(Duration::from_mins(1));
    let probe = |upstream| HttpProbe {
        path: "/".into(),
        host: Some("www.example".into()),
        expect: vec![(200, 200)],
        upstream,
    };
    let fine = Observation::Pass("HTTP 200".into());
    let clear = probe(Upstream { http2: true, ..Upstream::default() });
    let told = runtime.block_on(async { http::probe(backends[0], &clear, &deadline()).await });
    ensure!(told == fine, "{told:?}");

    let file = folder.path().join("trusted.pem");
    let tls = BackendTls {
        name: Some("a.example".into()),
        ca_file: Some(file.clone()),
        verify: true,
        certificate: None,
    };
    let upstream = Upstream { tls: Some(tls), http2: true, ..Upstream::default() };
    let secure = probe(upstream);
    let trust = http::Trust::default();
    let asked = |backend: SocketAddr| {
        runtime.block_on(async { http::probe_tls(backend, &secure, &trust, &deadline()).await })
    };
    // The file that is missing, then that of another, then the right one, which is read anew.
    ensure!(matches!(asked(backends[1]), Observation::Fail(_)));
    folder.certify("b.example")?;
    fs::copy(folder.chain("b.example"), &file)?;
    let told = asked(backends[1]);
    ensure!(matches!(&told, Observation::Fail(why) if why.starts_with("TLS: ")), "{told:?}");
    fs::copy(folder.chain("a.example"), &file)?;
    for backend in &backends[1..] {
        let told = asked(*backend);
        ensure!(told == fine, "{told:?}");
    }
    // A probe of a service without a proxy does not ask whose certificate it is.
    let any = probe(Upstream::default());
    let told =
        runtime.block_on(async { http::probe_tls(backends[2], &any, &trust, &deadline()).await });
    ensure!(told == fine, "{told:?}");
    Ok(())
}
