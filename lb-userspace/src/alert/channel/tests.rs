//! Channels with real servers, over TCP and TLS.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _, path::PathBuf};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::net::TcpListener;

use super::*;
use crate::{
    alert::{Severity, message::tests::notice},
    scratch::Directory,
};

/// What a receiver was sent.
#[derive(Clone, Debug)]
struct Got {
    path: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

/// A receiver that gives these answers, the last of them for ever.
struct Server {
    port: u16,
    got: Arc<Mutex<Vec<Got>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Said = (u16, Option<&'static str>, &'static str);

impl Server {
    async fn start(said: &'static [Said], tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let got = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&got);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let list = Arc::clone(&list);
                let service = service_fn(move |request| answer(request, Arc::clone(&list), said));
                let http = http1::Builder::new();
                match &tls {
                    None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                    Some(tls) => {
                        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(tls));
                        if let Ok(stream) = acceptor.accept(stream).await {
                            drop(http.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                }
            }
        });
        Self { port, got, task }
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    async fn until(&self, count: usize) -> Vec<Got> {
        for _ in 0..3000 {
            if self.got().len() >= count {
                return self.got();
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("{count} messages, and there are {:?}", self.got());
    }
}

async fn answer(
    request: Request<Incoming>,
    list: Arc<Mutex<Vec<Got>>>,
    said: &'static [Said],
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().iter();
    let headers = headers.map(|(name, it)| (name.to_string(), it.to_str().unwrap().to_owned()));
    let headers = headers.collect();
    let body = request.into_body().collect().await?.to_bytes();
    let mut list = list.lock().unwrap();
    let (status, retry, text) = said[list.len().min(said.len() - 1)];
    list.push(Got { path, headers, body: serde_json::from_slice(&body).unwrap() });
    let mut response = Response::builder().status(status);
    if let Some(retry) = retry {
        response = response.header("retry-after", retry);
    }
    Ok(response.body(Full::new(Bytes::from(text))).unwrap())
}

const OK: &[Said] = &[(200, None, r#"{"ok":true}"#)];

fn file(directory: &Directory, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn webhook(port: u16) -> Receiver {
    let url = Some(format!("http://127.0.0.1:{port}/hook"));
    Receiver::Webhook { url, url_file: None, token_file: None, ca_file: None }
}

fn start(receiver: Receiver) -> (Channel, Arc<Timeline>) {
    let timeline = Arc::new(Timeline::new(None));
    let config = Alert { name: "ops".into(), receiver, least: Severity::Warning };
    (Channel::start(config, Arc::clone(&timeline)), timeline)
}

async fn settled(channel: &Channel, so: impl Fn(&ChannelStatus) -> bool) -> ChannelStatus {
    for _ in 0..3000 {
        let status = channel.status();
        if so(&status) {
            return status;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", channel.status());
}

#[tokio::test]
async fn a_telegram_bot_is_asked_with_its_token() {
    let directory = Directory::new("alert");
    let server = Server::start(OK, None).await;
    let (channel, _) = start(Receiver::Telegram {
        api: format!("http://127.0.0.1:{}", server.port),
        token_file: file(&directory, "token", "1:secret\n"),
        chat_id: "-100123".into(),
        ca_file: None,
    });
    channel.offer(&notice());
    channel.offer(&Notice { severity: Severity::Info, ..notice() });
    let got = server.until(1).await;
    assert_eq!(got[0].path, "/bot1:secret/sendMessage");
    assert_eq!(got[0].body["chat_id"], "-100123");
    assert_eq!(got[0].body["text"], "CRITICAL: pg-01 is DOWN [edge]");
    let status = settled(&channel, |it| it.sent == 1).await;
    assert_eq!((status.queued, status.failing), (0, None), "info is below its level");
}

#[tokio::test]
async fn a_webhook_over_tls_is_verified() {
    let directory = Directory::new("alert");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let server = Server::start(OK, Some(Arc::new(tls))).await;
    let receiver = |host: &str, ca_file| Receiver::Webhook {
        url: None,
        url_file: Some(file(&directory, host, &format!("https://{host}:{}/h", server.port))),
        token_file: Some(file(&directory, "bearer", "topsecret")),
        ca_file,
    };
    let ca = Some(file(&directory, "ca.pem", &made.cert.pem()));
    let (channel, _) = start(receiver("localhost", ca.clone()));
    channel.test(notice()).await.unwrap();
    let got = server.until(1).await;
    assert_eq!(got[0].headers["authorization"], "Bearer topsecret");
    assert_eq!(got[0].body["alerts"][0]["labels"]["alertname"], "primary_down");
    assert!(got[0].headers["idempotency-key"].contains("-firing-"));
    // Another name, and an authority that nobody has named.
    let (channel, _) = start(receiver("127.0.0.1", ca));
    let wrong = channel.test(notice()).await.unwrap_err();
    assert!(wrong.contains("TLS with 127.0.0.1") && wrong.contains("certificate"), "{wrong}");
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let other = file(&directory, "other.pem", &other.cert.pem());
    let (channel, _) = start(receiver("localhost", Some(other)));
    let wrong = channel.test(notice()).await.unwrap_err();
    assert!(wrong.contains("TLS with localhost") && wrong.contains("certificate"), "{wrong}");
    assert_eq!(server.got().len(), 1);
}

#[tokio::test]
async fn what_does_not_get_through_is_told_and_tried_again() {
    const SAID: &[Said] = &[(503, None, "busy"), (429, Some("1"), ""), (200, None, "ok")];
    let server = Server::start(SAID, None).await;
    let (channel, timeline) = start(webhook(server.port));
    channel.offer(&notice());
    let failing = settled(&channel, |it| it.failing.is_some()).await;
    assert_eq!(failing.failing.as_deref(), Some("it answers 503: busy"));
    // More come meanwhile, and go together.
    for number in 0..3 {
        channel.offer(&Notice { subject: format!("appdb/pg-0{number}"), ..notice() });
    }
    let got = server.until(4).await;
    let counts: Vec<_> = got.iter().map(|it| it.body["alerts"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [1, 1, 1, 3]);
    let status = settled(&channel, |it| it.sent == 4).await;
    assert_eq!((status.failures, status.dropped, status.failing), (2, 0, None));
    let told: Vec<_> = timeline.recent().into_iter().map(|it| it.message).collect();
    assert_eq!(
        told,
        ["alerts do not get through to ops", "alerts get through to ops again"],
        "once each, however many tries"
    );
}

#[tokio::test]
async fn what_is_refused_for_itself_is_given_up() {
    const SAID: &[Said] = &[(400, None, "chat not found"), (200, None, "ok")];
    let server = Server::start(SAID, None).await;
    let (channel, _) = start(webhook(server.port));
    channel.offer(&notice());
    let status = settled(&channel, |it| it.dropped == 1).await;
    assert_eq!(status.failing.as_deref(), Some("it answers 400: chat not found"));
    channel.offer(&notice());
    assert_eq!(settled(&channel, |it| it.sent == 1).await.failing, None);
}

#[tokio::test]
async fn the_queue_is_bounded_and_the_oldest_go() {
    // Nobody listens there.
    let (channel, _) = start(webhook(1));
    for number in 0..QUEUED + 50 {
        channel.offer(&Notice { subject: number.to_string(), ..notice() });
    }
    let status = channel.status();
    assert!(status.queued <= QUEUED && status.dropped >= 40, "{status:?}");
    let failing = settled(&channel, |it| it.failing.is_some()).await.failing.unwrap();
    assert!(failing.contains("connect to 127.0.0.1"), "{failing}");
}

#[tokio::test]
async fn a_secret_that_is_gone_is_named_by_its_file() {
    let directory = Directory::new("alert");
    let path = directory.path().join("url");
    let (channel, _) = start(Receiver::Slack { url_file: path.clone(), ca_file: None });
    let wrong = channel.test(notice()).await.unwrap_err();
    assert!(wrong.contains(&path.display().to_string()), "{wrong}");
    let server = Server::start(OK, None).await;
    file(&directory, "url", &format!("http://127.0.0.1:{}/services/T/B/x", server.port));
    channel.test(notice()).await.unwrap();
    assert_eq!(server.until(1).await[0].path, "/services/T/B/x");
}
