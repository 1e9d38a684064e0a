//! One receiver of alerts: its queue, its pace, and what happens when it does not answer.
//!
//! Notices wait in a bounded queue; when it is full the oldest goes. Those that wait are sent together, one
//! message a second and twenty a minute at most, which is what Telegram and Slack let through. A message that
//! does not get through is tried again after 1 s, 2 s, 4 s … 60 s, or when the receiver says so, for an hour.

use std::{
    collections::VecDeque,
    fs, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, task::JoinHandle, time::sleep};

use super::{
    Notice,
    condition::CHANNEL_FAILING,
    http::{self, Answer},
    message, syslog,
};
use crate::{
    clock,
    config::{Alert, Receiver},
    events::{Kind, Note, Timeline},
};

/// Notices that wait at most.
const QUEUED: usize = 100;

/// Notices that are sent in one message.
const TOGETHER: usize = 10;

/// Time between two messages.
const PACE: Duration = Duration::from_secs(1);

/// Messages in [`WINDOW`].
const MOST_IN_WINDOW: usize = 20;

/// See [`MOST_IN_WINDOW`].
const WINDOW: Duration = Duration::from_mins(1);

/// Time before the second try, doubled for each further one, up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// See [`FIRST_WAIT`].
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// A receiver that wants longer than this is asked again all the same.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(10);

/// What has not got through for so long is given up.
const GIVE_UP: Duration = Duration::from_hours(1);

/// How a channel stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// Its name.
    pub name: String,
    /// `telegram`, `slack`, `webhook` or `syslog`.
    pub kind: String,
    /// Notices that got through.
    pub sent: u64,
    /// Tries that did not.
    pub failures: u64,
    /// Notices that were given up.
    pub dropped: u64,
    /// Notices that wait.
    pub queued: usize,
    /// Why the last try did not get through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
    /// When the last one got through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sent: Option<Timestamp>,
}

/// Why a message did not get through.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    why: String,
    /// The receiver says when to try again.
    after: Option<Duration>,
    /// Another try would end the same way.
    useless: bool,
}

/// A channel, and its task. Dropping it ends the task.
#[derive(Debug)]
pub struct Channel {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    config: Alert,
    timeline: Arc<Timeline>,
    inner: Mutex<Inner>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<Notice>,
    status: ChannelStatus,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Channel {
    /// Starts it.
    #[must_use]
    pub fn start(config: Alert, timeline: Arc<Timeline>) -> Self {
        let status = ChannelStatus {
            name: config.name.clone(),
            kind: config.receiver.word().into(),
            ..ChannelStatus::default()
        };
        let inner = Mutex::new(Inner { queue: VecDeque::new(), status });
        let shared = Arc::new(Shared { config, timeline, inner, more: Notify::new() });
        let task = tokio::spawn(run(Arc::clone(&shared)));
        Self { shared, task }
    }

    /// What it was configured as.
    #[must_use]
    pub fn config(&self) -> &Alert {
        &self.shared.config
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> ChannelStatus {
        let inner = self.shared.lock();
        ChannelStatus { queued: inner.queue.len(), ..inner.status.clone() }
    }

    /// Takes a notice to send, if it is grave enough.
    pub fn offer(&self, notice: &Notice) {
        let config = &self.shared.config;
        // That it does not get through, it could tell only when it does.
        let own = notice.alert == CHANNEL_FAILING
            && notice.subject == format!("{}/{}", notice.node, config.name);
        if notice.severity < config.least || own {
            return;
        }
        let mut inner = self.shared.lock();
        if inner.queue.len() == QUEUED {
            inner.queue.pop_front();
            inner.status.dropped += 1;
        }
        inner.queue.push_back(notice.clone());
        drop(inner);
        self.shared.more.notify_one();
    }

    /// Sends a notice at once, beside the queue.
    pub fn test(&self, notice: Notice) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            let sent = send(&shared.config, &[notice]).await;
            shared.note(sent.as_ref().err());
            if sent.is_ok() {
                shared.lock().status.sent += 1;
            }
            sent.map_err(|failure| failure.why)
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic of another thread in here leaves a whole queue behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how a try went: on the timeline, if that is news.
    fn note(&self, failure: Option<&Failure>) {
        let why = failure.map(|failure| failure.why.clone());
        let mut inner = self.lock();
        let status = &mut inner.status;
        let news = status.failing.is_some() != why.is_some();
        match &why {
            Some(_) => status.failures += 1,
            None => status.last_sent = Some(clock::wall()),
        }
        status.failing.clone_from(&why);
        drop(inner);
        let name = &self.config.name;
        match why {
            Some(why) if news => {
                let message = format!("alerts do not get through to {name}");
                self.timeline.add(Note::new(Kind::Alert, message).because(why));
            }
            None if news => {
                let message = format!("alerts get through to {name} again");
                self.timeline.add(Note::new(Kind::Alert, message));
            }
            _ => {}
        }
    }
}

async fn run(shared: Arc<Shared>) {
    let together =
        if matches!(shared.config.receiver, Receiver::Syslog { .. }) { 1 } else { TOGETHER };
    let mut sent = VecDeque::new();
    loop {
        let batch: Vec<Notice> = {
            let mut inner = shared.lock();
            let count = together.min(inner.queue.len());
            inner.queue.drain(..count).collect()
        };
        if batch.is_empty() {
            shared.more.notified().await;
            continue;
        }
        deliver(&shared, &batch).await;
        if together == 1 {
            // The local log takes what comes.
            continue;
        }
        let now = clock::monotonic();
        sent.push_back(now);
        sent.retain(|&at| now < at + WINDOW);
        let full = sent.len() >= MOST_IN_WINDOW;
        let next = if full { sent[sent.len() - MOST_IN_WINDOW] + WINDOW } else { now };
        sleep(next.saturating_sub(now).max(PACE)).await;
    }
}

/// Sends it, however often that must be tried.
async fn deliver(shared: &Shared, batch: &[Notice]) {
    let began = clock::monotonic();
    let mut wait = FIRST_WAIT;
    loop {
        let sent = send(&shared.config, batch).await;
        shared.note(sent.as_ref().err());
        let over = clock::monotonic() >= began + GIVE_UP;
        match sent {
            Ok(()) => {
                shared.lock().status.sent += batch.len() as u64;
                return;
            }
            Err(failure) if failure.useless || over => {
                shared.lock().status.dropped += batch.len() as u64;
                return;
            }
            Err(failure) => {
                let asked = failure.after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
                sleep(wait.max(asked)).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

/// Sends these in one message. Secrets are read each time, so that a new one needs no reload.
async fn send(config: &Alert, batch: &[Notice]) -> Result<(), Failure> {
    let again = |why| Failure { why, after: None, useless: false };
    let (post, ca_file) = match &config.receiver {
        Receiver::Syslog { socket } => {
            for notice in batch {
                let sent = syslog::send(socket, notice, clock::wall(), std::process::id()).await;
                sent.map_err(again)?;
            }
            return Ok(());
        }
        Receiver::Telegram { api, token_file, chat_id, ca_file } => {
            let token = secret(token_file).map_err(again)?;
            (message::telegram(api, &token, chat_id, batch), ca_file)
        }
        Receiver::Slack { url_file, ca_file } => {
            (message::slack(&secret(url_file).map_err(again)?, batch), ca_file)
        }
        Receiver::Webhook { url, url_file, token_file, ca_file } => {
            let url = match (url, url_file) {
                (_, Some(path)) => secret(path).map_err(again)?,
                (url, None) => url.clone().unwrap_or_default(),
            };
            let token = token_file.as_deref().map(secret).transpose().map_err(again)?;
            (message::webhook(&url, token.as_deref(), &config.name, batch), ca_file)
        }
    };
    let secrets = [post.url.clone()].into_iter().chain(post.token.clone()).collect::<Vec<_>>();
    let answer = http::post(post, ca_file.as_deref()).await.map_err(again)?;
    judge(&config.receiver, &answer, &secrets)
}

/// What an answer means.
fn judge(receiver: &Receiver, answer: &Answer, secrets: &[String]) -> Result<(), Failure> {
    let Answer { status, retry_after, body } = answer;
    let json: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let telegram = matches!(receiver, Receiver::Telegram { .. });
    if status.is_success() && (!telegram || json["ok"] == true) {
        return Ok(());
    }
    let said = json["description"].as_str().unwrap_or(body);
    let said: String = said.chars().filter(|it| !it.is_control()).take(120).collect();
    let secret = secrets.iter().any(|secret| said.contains(secret.as_str()));
    let said = if secret || said.is_empty() { String::new() } else { format!(": {said}") };
    let after = json["parameters"]["retry_after"].as_u64().map(Duration::from_secs);
    Err(Failure {
        why: format!("it answers {}{said}", status.as_u16()),
        after: after.or(*retry_after),
        // What is wrong with the message itself does not get better.
        useless: matches!(*status, StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE),
    })
}

/// The first line of a file.
fn secret(path: &Path) -> Result<String, String> {
    let read = || -> io::Result<String> {
        let text = fs::read_to_string(path)?;
        let line = text.lines().next().unwrap_or_default().trim();
        if line.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its first line is empty"));
        }
        Ok(line.to_owned())
    };
    read().map_err(|error| format!("read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
