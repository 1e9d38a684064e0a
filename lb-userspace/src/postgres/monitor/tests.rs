//! What is said of servers that cannot be used, by servers that are made up: they speak as much of the
//! protocol (version 3.0) as that takes.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use super::{super::sample::FailureKind, *};
use crate::postgres::fixture::one_server;

/// An error: its code, its text, and the file and the function of the server that it comes from.
type Refusal = (&'static str, &'static str, &'static str);

/// What a made-up server does.
#[derive(Clone, Copy)]
struct Made {
    /// It lets nobody in.
    refuses: Option<Refusal>,
    /// What it says of its version when it is asked for nothing else.
    version: &'static str,
    /// What it says to everything else: columns and their values, or an error.
    says: Result<&'static [(&'static str, &'static str)], Refusal>,
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut all = vec![kind];
    all.extend((body.len() as u32 + 4).to_be_bytes());
    all.extend(body);
    all
}

fn error(severity: &str, (code, text, place): Refusal) -> Vec<u8> {
    let (file, routine) = place.split_once(' ').unwrap_or(("", place));
    let fields = [(b'S', severity), (b'C', code), (b'M', text), (b'F', file), (b'R', routine)];
    let mut body = Vec::new();
    for (kind, text) in fields {
        body.push(kind);
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    message(b'E', &body)
}

fn row(columns: &[(&str, &str)]) -> Vec<u8> {
    let count = (columns.len() as u16).to_be_bytes();
    let (mut names, mut values) = (count.to_vec(), count.to_vec());
    for (name, value) in columns {
        names.extend(name.as_bytes());
        // Of no table, and text (OID 25) of any length.
        names.extend(b"\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
        values.extend((value.len() as u32).to_be_bytes());
        values.extend(value.as_bytes());
    }
    [message(b'T', &names), message(b'D', &values), message(b'C', b"SELECT 1\0")].concat()
}

impl Made {
    fn start(self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // Who asks may have gone.
                let _ = self.serve(stream.unwrap());
            }
        });
        address
    }

    fn serve(self, mut stream: TcpStream) -> std::io::Result<()> {
        let ready = message(b'Z', b"I");
        let mut begin = [0; 4];
        stream.read_exact(&mut begin)?;
        stream.read_exact(&mut vec![0; u32::from_be_bytes(begin) as usize - 4])?;
        if let Some(refusal) = self.refuses {
            return stream.write_all(&error("FATAL", refusal));
        }
        stream.write_all(&[message(b'R', &[0; 4]), ready.clone()].concat())?;
        loop {
            let mut head = [0; 5];
            stream.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut body = vec![0; length as usize - 4];
            stream.read_exact(&mut body)?;
            if head[0] != b'Q' {
                return Ok(());
            }
            let answer = match self.says {
                _ if body.starts_with(b"select current_setting('server_version_num')") => {
                    row(&[("version", self.version)])
                }
                Ok(columns) => row(columns),
                Err(refusal) => error("ERROR", refusal),
            };
            stream.write_all(&[answer, ready.clone()].concat())?;
        }
    }

    /// What is found of it.
    async fn found(self) -> Failure {
        let (database, server) = one_server(self.start(), Duration::from_secs(30));
        let session = match Link::new(&database, &server).connect().await {
            Ok(session) => session,
            Err(failure) => return failure,
        };
        sample(&session).await.expect_err("it cannot be used")
    }
}

const WELL: Made = Made { refuses: None, version: "150018", says: Ok(&[]) };

#[tokio::test]
async fn why_a_server_lets_nobody_in_is_said_with_its_cure() {
    let cases: [(Refusal, FailureKind, &str); 6] = [
        (("28P01", "password", "auth_failed"), FailureKind::Refuses, "wrong password"),
        (("28000", "no entry", "ClientAuthentication"), FailureKind::Refuses, "pg_hba.conf"),
        (("53300", "sorry, too many clients", "InitProcess"), FailureKind::Refuses, "too many"),
        (("57P03", "starting up", "ProcessStartupPacket"), FailureKind::Refuses, "starting up"),
        (
            ("XX000", "konnte Datei nicht schreiben", "relcache.c write_item"),
            FailureKind::Full,
            "its disk takes nothing",
        ),
        (("53100", "No space left", "mdextend"), FailureKind::Full, "its disk takes nothing"),
    ];
    for (refusal, kind, words) in cases {
        let found = Made { refuses: Some(refusal), ..WELL }.found().await;
        assert_eq!(found.kind, kind, "{found:?}");
        assert!(found.reason.contains(words), "{found:?}");
        assert!(!found.kind.is_down(), "who says something has not failed");
    }
}

#[tokio::test]
async fn an_old_version_is_named_although_it_does_not_understand_the_question() {
    let unknown = Err(("42883", "function pg_promote does not exist", "ParseFuncOrColumn"));
    let found = Made { version: "110022", says: unknown, ..WELL }.found().await;
    assert_eq!(found.kind, FailureKind::Unfit, "{found:?}");
    assert!(found.reason.contains("PostgreSQL 11, which is too old: 12 is"), "{found:?}");
    // What a later one does not understand is told as it is.
    let found = Made { says: unknown, ..WELL }.found().await;
    assert!(found.reason.contains("pg_promote does not exist"), "{found:?}");
}

#[tokio::test]
async fn a_role_that_may_not_look_is_told_what_it_lacks() {
    let says = Ok(&[("version", "150018"), ("monitor", "f"), ("superuser", "off")] as &'static [_]);
    let found = Made { says, ..WELL }.found().await;
    assert_eq!(found.kind, FailureKind::Unfit, "{found:?}");
    assert!(found.reason.contains("pg_monitor; `ballast pg setup` prints"), "{found:?}");
    let denied = Err(("42501", "permission denied for schema ballast", "aclcheck_error"));
    let found = Made { says: denied, ..WELL }.found().await;
    assert_eq!(found.kind, FailureKind::Unfit, "{found:?}");
    assert!(found.reason.contains("a privilege is missing"), "{found:?}");
}
