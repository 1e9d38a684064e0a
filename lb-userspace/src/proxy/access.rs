//! The access log: a line for each request, written by a thread of its own.
//!
//! A disk that does not keep up makes lines go missing, not requests wait; how many is written once it
//! has caught up.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use hyper::{
    HeaderMap, Method, StatusCode, Uri, Version,
    header::{HeaderName, HeaderValue, REFERER, USER_AGENT},
};
use tokio::time::Instant;

use crate::clock;

/// Lines that may wait for the disk.
const WAITING: usize = 8192;

/// Longest piece of a line that comes from the client.
const PIECE: usize = 1024;

/// A file of lines.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    sender: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(String),
    Reopen,
}

impl Log {
    /// Opens the file, to write at its end.
    pub(super) fn open(path: &Path) -> io::Result<Arc<Self>> {
        let file = append_to(path)?;
        let (sender, receiver) = sync_channel(WAITING);
        let lost = Arc::<AtomicU64>::default();
        let writer = Writer { path: path.to_owned(), lost: Arc::clone(&lost), receiver };
        thread::Builder::new().name("access-log".into()).spawn(move || writer.run(file))?;
        Ok(Arc::new(Self { path: path.to_owned(), sender, lost }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file anew: it may have been moved away.
    pub(super) fn reopen(&self) {
        self.send(Message::Reopen);
    }

    fn send(&self, message: Message) {
        if self.sender.try_send(message).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
        io::Error::new(error.kind(), format!("open the access log {}: {error}", path.display()))
    })
}

struct Writer {
    path: PathBuf,
    lost: Arc<AtomicU64>,
    receiver: Receiver<Message>,
}

impl Writer {
    /// Writes until nobody sends any more.
    fn run(&self, file: File) {
        let mut out = BufWriter::new(file);
        while let Ok(first) = self.receiver.recv() {
            let mut result = self.take(&mut out, first);
            while let Ok(next) = self.receiver.try_recv() {
                result = result.and(self.take(&mut out, next));
            }
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                result = result.and(writeln!(out, "# {lost} lines are missing here"));
            }
            if let Err(error) = result.and(out.flush()) {
                tracing::warn!(%error, path = %self.path.display(), "write the access log");
            }
        }
    }

    fn take(&self, out: &mut BufWriter<File>, message: Message) -> io::Result<()> {
        match message {
            Message::Line(line) => out.write_all(line.as_bytes()),
            Message::Reopen => {
                out.flush()?;
                *out = BufWriter::new(append_to(&self.path)?);
                Ok(())
            }
        }
    }
}

/// A request, to be written down when its answer has ended.
#[derive(Debug)]
pub(super) struct Entry {
    log: Arc<Log>,
    line: String,
    begun: Instant,
}

impl Entry {
    /// What is known when it comes: client, time, request line.
    pub(super) fn new(
        log: &Arc<Log>,
        client: std::net::IpAddr,
        request: (&Method, &Uri, Version),
        begun: Instant,
    ) -> Self {
        let (method, uri, version) = request;
        let mut line = String::with_capacity(256);
        // Writing to a `String` cannot fail.
        let _ = write!(line, "{client} {:.3} \"{method} ", clock::wall());
        let target = uri.path_and_query().map_or(uri.path(), |target| target.as_str());
        escape(&mut line, target.as_bytes());
        let _ = write!(line, " {version:?}\"");
        Self { log: Arc::clone(log), line, begun }
    }

    /// A request that was refused before it was read.
    pub(super) fn refused(
        log: &Arc<Log>,
        client: std::net::IpAddr,
        why: &str,
        begun: Instant,
    ) -> Self {
        let line = format!("{client} {:.3} \"-\" refused={why}", clock::wall());
        Self { log: Arc::clone(log), line, begun }
    }

    /// What its header fields say.
    pub(super) fn describe(
        &mut self,
        headers: &HeaderMap,
        host: &HeaderValue,
        id: Option<&HeaderValue>,
    ) {
        for (key, value) in [
            ("host", Some(host)),
            ("id", id),
            ("referer", field(headers, &REFERER)),
            ("agent", field(headers, &USER_AGENT)),
        ] {
            let _ = write!(self.line, " {key}=\"");
            escape(&mut self.line, value.map_or(b"-", HeaderValue::as_bytes));
            self.line.push('"');
        }
    }

    /// A backend that it was tried at.
    pub(super) fn tried(&mut self, backend: &str, outcome: &str) {
        let _ = write!(self.line, " {backend}={outcome}");
    }

    /// Its end: what the client was given, and how many bytes of a body.
    pub(super) fn end(mut self, status: StatusCode, bytes: u64, whole: bool) {
        let took = (clock::timer() - self.begun).as_secs_f64();
        let broken = if whole { "" } else { " broken" };
        let _ = writeln!(
            self.line,
            " status={} bytes={bytes} seconds={took:.3}{broken}",
            status.as_u16()
        );
        self.log.send(Message::Line(self.line));
    }
}

fn field<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    headers.get(name)
}

/// Writes bytes of a client so that they stay in their field: no quotation mark, no control character.
fn escape(line: &mut String, bytes: &[u8]) {
    for &byte in bytes.iter().take(PIECE) {
        match byte {
            b'"' | b'\\' | 0..0x20 | 0x7f.. => {
                let _ = write!(line, "\\x{byte:02x}");
            }
            _ => line.push(char::from(byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_forge_a_line() {
        let mut line = String::new();
        escape(&mut line, b"a\" status=200\n\x7f\xff\\b");
        assert_eq!(line, "a\\x22 status=200\\x0a\\x7f\\xff\\x5cb");
    }

    #[test]
    fn lines_are_written_also_after_the_file_was_moved_away() {
        let scratch = crate::scratch::Directory::new("access");
        let path = scratch.path().join("access.log");
        let log = Log::open(&path).unwrap();
        let client = "192.0.2.9".parse().unwrap();
        let uri: Uri = "/x?y=1".parse().unwrap();
        let entry = || {
            let request = (&Method::GET, &uri, Version::HTTP_11);
            Entry::new(&log, client, request, clock::timer())
        };
        let mut one = entry();
        one.tried("app-01", "refused");
        one.end(StatusCode::OK, 7, true);
        let moved = scratch.path().join("access.log.1");
        wait_for(&path, "app-01=refused status=200 bytes=7");
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        entry().end(StatusCode::BAD_GATEWAY, 0, false);
        wait_for(&path, "broken");
        let first = std::fs::read_to_string(moved).unwrap();
        assert!(first.contains("\"GET /x?y=1 HTTP/1.1\"") && !first.contains("502"), "{first}");
    }

    fn wait_for(path: &Path, word: &str) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !std::fs::read_to_string(path).is_ok_and(|text| text.contains(word)) {
            assert!(std::time::Instant::now() < deadline, "{word} is never written");
            thread::yield_now();
        }
    }
}
