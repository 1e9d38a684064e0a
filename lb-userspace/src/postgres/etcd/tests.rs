//! Against a member that is played here, as far as it is asked for: one key, its versions, tokens.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    postgres::{lsn::Lsn, record::Branch},
    scratch,
};

/// What the members have.
#[derive(Debug, Default)]
struct Kept {
    value: Option<String>,
    version: u64,
    /// The password that is asked for, and the token that is right now.
    password: Option<&'static str>,
    token: u64,
    /// The next so many transactions are done, and their answers lost.
    lose: u32,
}

type Shared = Arc<Mutex<Kept>>;

async fn member(kept: Shared) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&kept)));
        }
    });
    format!("http://{address}")
}

async fn serve(mut stream: TcpStream, kept: Shared) {
    let mut text = Vec::new();
    let (head, body) = loop {
        let mut buffer = [0; 4096];
        let len = stream.read(&mut buffer).await.unwrap();
        text.extend_from_slice(&buffer[..len]);
        let all = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = all.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).unwrap();
            let length: usize = length.lines().next().unwrap().parse().unwrap();
            if body.len() == length {
                break (head, serde_json::from_str::<Value>(body).unwrap());
            }
        }
        if len == 0 {
            return;
        }
    };
    let answer = kept.lock().unwrap().answer(&head, &body);
    let Some((status, answer)) = answer else { return };
    let answer = answer.to_string();
    let answer = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
        answer.len()
    );
    let _ = stream.write_all(answer.as_bytes()).await;
}

impl Kept {
    fn answer(&mut self, head: &str, body: &Value) -> Option<(u16, Value)> {
        let path = head.split(' ').nth(1).unwrap();
        if path == "/v3/auth/authenticate" {
            let right = body["name"] == "ballast" && body["password"].as_str() == self.password;
            return Some(if right {
                (200, json!({ "token": format!("token-{}", self.token) }))
            } else {
                (400, json!({ "error": "authentication failed", "code": 3 }))
            });
        }
        if self.password.is_some()
            && !head.contains(&format!("authorization: token-{}\r", self.token))
        {
            return Some((401, json!({ "error": "etcdserver: invalid auth token" })));
        }
        if path == "/v3/kv/range" {
            let entry = |value: &String| json!({ "kvs": [{ "value": value, "mod_revision": self.version.to_string() }] });
            return Some((200, self.value.as_ref().map_or_else(|| json!({}), entry)));
        }
        assert_eq!(path, "/v3/kv/txn");
        let compare = &body["compare"][0];
        let holds = match compare["target"].as_str().unwrap() {
            "CREATE" => self.value.is_none(),
            _ => compare["mod_revision"].as_str() == Some(self.version.to_string().as_str()),
        };
        if holds {
            let value = body["success"][0]["request_put"]["value"].as_str().unwrap();
            (self.value, self.version) = (Some(value.to_owned()), self.version + 1);
        }
        if self.lose > 0 {
            self.lose -= 1;
            return None;
        }
        Some((200, if holds { json!({ "succeeded": true }) } else { json!({}) }))
    }
}

fn consensus(etcd: Vec<String>) -> Consensus {
    Consensus { etcd, ca_file: None, user: None, password_file: None, cluster: "edge".into() }
}

fn first() -> Record {
    Record::first("pg-01", Branch { system_id: 7, timeline: 1, switch: Lsn(0) }, None)
}

#[tokio::test]
async fn of_two_who_change_the_record_one_does() {
    let kept = Shared::default();
    let url = member(Arc::clone(&kept)).await;
    let one = Etcd::new(&consensus(vec![url.clone()]), "appdb");
    let two = Etcd::new(&consensus(vec![url]), "appdb");
    assert_eq!(one.read().await, Ok(None));
    let base = first();
    one.propose(&base, None).await.unwrap();
    two.propose(&base, None).await.unwrap();
    assert_eq!(kept.lock().unwrap().version, 1, "it was there already");
    let fenced = |server: &str| base.next(|it| it.fenced = [server.to_owned()].into());
    let (ours, theirs) = (fenced("pg-02"), fenced("pg-03"));
    one.propose(&ours, Some(&base)).await.unwrap();
    let conflict = two.propose(&theirs, Some(&base)).await;
    assert_eq!(conflict, Err(Error::Conflict(Box::new(ours.clone()))));
    assert_eq!(two.read().await, Ok(Some(ours.clone())));
    // What went on without the store is put there when it is back.
    let later = ours.next(|_| ()).next(|_| ());
    one.propose(&later, Some(&later)).await.unwrap();
    assert_eq!(two.read().await, Ok(Some(later)));
}

#[tokio::test]
async fn a_lost_answer_is_no_conflict() {
    let kept = Shared::default();
    let url = member(Arc::clone(&kept)).await;
    let etcd = Etcd::new(&consensus(vec![url]), "appdb");
    kept.lock().unwrap().lose = 1;
    assert!(matches!(etcd.propose(&first(), None).await, Err(Error::Failed(_))));
    etcd.propose(&first(), None).await.unwrap();
    assert_eq!(kept.lock().unwrap().version, 1);
}

#[tokio::test]
async fn another_member_answers_for_one_that_does_not() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    // It accepts, and says nothing.
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging = hangs.local_addr().unwrap();
    let kept = Shared::default();
    let url = member(kept).await;
    let urls = vec![format!("http://{dead}"), format!("http://{hanging}"), url];
    let etcd = Etcd::new(&consensus(urls.clone()), "appdb");
    etcd.propose(&first(), None).await.unwrap();
    assert_eq!(etcd.read().await, Ok(Some(first())));
    let nobody = Etcd::new(&consensus(urls[..2].to_vec()), "appdb");
    let Err(Error::Failed(why)) = nobody.read().await else { panic!("nobody is there") };
    assert!(why.contains(&urls[0]) && why.contains(&urls[1]), "{why}");
}

#[tokio::test]
async fn a_password_is_shown_and_a_token_renewed() {
    let directory = scratch::Directory::new("etcd");
    let file = directory.path().join("password");
    std::fs::write(&file, "secret\n").unwrap();
    let kept = Shared::default();
    kept.lock().unwrap().password = Some("secret");
    let url = member(Arc::clone(&kept)).await;
    let mut consensus = consensus(vec![url]);
    let stranger = Etcd::new(&consensus, "appdb");
    assert!(matches!(stranger.read().await, Err(Error::Failed(why)) if why.contains("401")));
    (consensus.user, consensus.password_file) = (Some("ballast".into()), Some(file.clone()));
    let etcd = Etcd::new(&consensus, "appdb");
    etcd.propose(&first(), None).await.unwrap();
    kept.lock().unwrap().token += 1;
    assert_eq!(etcd.read().await, Ok(Some(first())), "with a new token");
    kept.lock().unwrap().token += 1;
    std::fs::write(&file, "another\n").unwrap();
    let Err(Error::Failed(why)) = etcd.read().await else { panic!("it is the wrong one") };
    assert!(why.contains("authentication failed") && !why.contains("another"), "{why}");
}
