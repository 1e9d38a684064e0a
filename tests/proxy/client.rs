//! A client that sends bytes as they are, and reads answers to the letter.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::backends::read_chunks;

/// Nothing here takes as long, unless it never ends.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The same where the other side is known to wait for ever.
const IMPATIENCE: Duration = Duration::from_secs(10);

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// 0: the connection ended without an answer, or what came is none.
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: String,
    /// The body ended as it should.
    pub(crate) whole: bool,
}

impl Answer {
    /// The values of a field.
    pub(crate) fn field(&self, name: &str) -> Vec<&str> {
        let values = self.fields.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        values.map(|(_, value)| value.as_str()).collect()
    }
}

/// A connection.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
    /// The other side may wait for ever.
    may_wait: bool,
}

impl Connection {
    pub(crate) fn open(target: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(target).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { reader: BufReader::new(stream), may_wait: false })
    }

    /// Our own end.
    pub(crate) fn local_address(&self) -> Result<SocketAddr> {
        self.reader.get_ref().local_addr().context("ask for our own address")
    }

    /// The other side may never answer: then that is the answer.
    pub(crate) fn impatient(self) -> Result<Self> {
        self.reader.get_ref().set_read_timeout(Some(IMPATIENCE))?;
        Ok(Self { may_wait: true, ..self })
    }

    /// Sends bytes. Whoever refuses them may end the connection meanwhile.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.reader.get_mut().write_all(bytes);
    }

    /// Sends bytes from another thread, so that what comes back may be read meanwhile.
    pub(crate) fn send_beside(&mut self, bytes: &[u8]) -> Result<()> {
        let mut stream = self.reader.get_ref().try_clone().context("share the connection")?;
        let bytes = bytes.to_vec();
        std::thread::spawn(move || stream.write_all(&bytes));
        Ok(())
    }

    /// Says that nothing more comes.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.reader.get_mut().shutdown(std::net::Shutdown::Write).context("shut down")
    }

    /// The final answer to a request of this method.
    pub(crate) fn answer(&mut self, method: &str) -> Result<Answer> {
        loop {
            let answer = self.head()?;
            if answer.status == 0 || answer.status == 101 || answer.status >= 200 {
                return self.body(answer, method);
            }
        }
    }

    /// A head, be it an interim one.
    pub(crate) fn head(&mut self) -> Result<Answer> {
        let mut answer = Answer { status: 0, fields: Vec::new(), body: String::new(), whole: true };
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => return Ok(answer),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(answer),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && self.may_wait => {
                return Ok(answer);
            }
            result => result.context("read an answer")?,
        };
        let status = line.split(' ').nth(1).and_then(|status| status.trim_end().parse().ok());
        let Some(status) = status.filter(|_| line.starts_with("HTTP/1.")) else {
            answer.whole = false;
            return Ok(answer);
        };
        answer.status = status;
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            answer.fields.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(answer)
    }

    fn body(&mut self, mut answer: Answer, method: &str) -> Result<Answer> {
        let status = answer.status;
        if method == "HEAD" || status == 0 || status == 101 || status == 204 || status == 304 {
            return Ok(answer);
        }
        let lengths = answer.field("content-length");
        let encodings = answer.field("transfer-encoding");
        ensure!(lengths.len() + encodings.len() <= 1, "two lengths reach the client: {answer:?}");
        let mut bytes = Vec::new();
        if !encodings.is_empty() {
            match read_chunks(&mut self.reader) {
                Ok(chunks) => bytes = chunks,
                Err(_) => answer.whole = false,
            }
        } else if let Some(length) = lengths.first() {
            let length: u64 = length.parse()?;
            let read = self.reader.by_ref().take(length).read_to_end(&mut bytes);
            answer.whole = read.is_ok() && bytes.len() as u64 == length;
        } else {
            answer.whole = self.reader.read_to_end(&mut bytes).is_ok();
        }
        answer.body = String::from_utf8_lossy(&bytes).into_owned();
        Ok(answer)
    }

    /// Reads so many bytes.
    pub(crate) fn read(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).context("read")?;
        Ok(bytes)
    }

    /// Whether the answer is a TLS alert (RFC 8446, section 6), and then the end.
    pub(crate) fn is_answered_by_tls(&mut self) -> Result<bool> {
        let mut bytes = Vec::new();
        self.reader.read_to_end(&mut bytes).context("read an alert")?;
        Ok(bytes.is_empty() || bytes[0] == 21)
    }

    /// Whether the other side has ended the connection.
    pub(crate) fn is_at_end(&mut self) -> bool {
        !matches!(self.reader.fill_buf(), Ok(bytes) if !bytes.is_empty())
    }
}
