//! Frames of HTTP/2, written by hand: also those that no library would write.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

use crate::{client::PATIENCE, tls::Folder};

/// How a client begins (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames (RFC 9113, section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// Flags.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const WHOLE: u8 = END_STREAM | END_HEADERS;

/// A frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field, literal and not indexed, with a new name (RFC 7541, section 6.2.2).
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        length(&mut bytes, text.len(), 7, 0);
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// A number with a prefix of so many bits (RFC 7541, section 5.1).
pub(crate) fn length(bytes: &mut Vec<u8>, number: usize, prefix: u32, first: u8) {
    let most = (1 << prefix) - 1;
    if number < most {
        bytes.push(first | number as u8);
        return;
    }
    bytes.push(first | most as u8);
    let mut left = number - most;
    while left >= 128 {
        bytes.push((left % 128 + 128) as u8);
        left /= 128;
    }
    bytes.push(left as u8);
}

/// Fields.
pub(crate) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// The head of a request that is as it should be, and has these fields after its own.
pub(crate) fn get(more: &[(&str, &str)]) -> Vec<u8> {
    let mut all = vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "x"),
        ("x-row", "attack"),
    ];
    all.extend(more);
    fields(&all)
}

/// What the other side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error of a `RST_STREAM` or `GOAWAY`.
    pub(crate) fn code(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }

    /// The status, of a head that says it first and that no head came before on its connection.
    pub(crate) fn status(&self) -> Option<u16> {
        if self.kind != HEADERS {
            return None;
        }
        let known = [200, 204, 206, 304, 400, 404, 500];
        match *self.payload.as_slice() {
            [index @ 0x88..=0x8e, ..] => Some(known[usize::from(index - 0x88)]),
            [0x08 | 0x18 | 0x48, length, ref text @ ..] => {
                let text = text.get(..usize::from(length & 0x7f))?;
                if length & 0x80 == 0 {
                    return std::str::from_utf8(text).ok()?.parse().ok();
                }
                digits(text)
            }
            _ => None,
        }
    }
}

/// Three digits in Huffman's code (RFC 7541, appendix B).
fn digits(bytes: &[u8]) -> Option<u16> {
    let bits: Vec<u8> =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let number = |bits: &[u8]| bits.iter().fold(0_u16, |number, bit| number * 2 + u16::from(*bit));
    let (mut at, mut all) = (0, 0);
    for _ in 0..3 {
        let short = number(bits.get(at..at + 5)?);
        let digit = if short <= 2 {
            at += 5;
            short
        } else {
            at += 6;
            number(bits.get(at - 6..at)?).checked_sub(0b01_1001)? + 3
        };
        all = all * 10 + digit;
    }
    Some(all)
}

trait Socket: Read + Write + Send {}
impl<S: Read + Write + Send> Socket for S {}

/// A connection that frames are written to.
pub(crate) struct Client {
    socket: Box<dyn Socket>,
    held: Vec<u8>,
}

/// What a client of HTTP/2 over TLS needs to know of the server `a.example`, whose certificate is in this folder.
pub(crate) fn tls_client(folder: &Folder) -> Result<(Arc<ClientConfig>, ServerName<'static>)> {
    let mut roots = RootCertStore::empty();
    let chain = folder.chain("a.example");
    roots.add(CertificateDer::from_pem_file(chain).context("read a certificate")?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((Arc::new(config), ServerName::try_from("a.example")?))
}

impl Client {
    /// Opens one; over TLS if there is a folder with a certificate of `a.example`. Nothing is sent yet but
    /// what TLS needs.
    pub(crate) fn open(target: SocketAddr, folder: Option<&Folder>) -> Result<Self> {
        let tcp = TcpStream::connect(target).context("connect")?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let socket: Box<dyn Socket> = match folder {
            None => Box::new(tcp),
            Some(folder) => {
                let (config, name) = tls_client(folder)?;
                let tls = ClientConnection::new(config, name)?;
                Box::new(StreamOwned::new(tls, tcp))
            }
        };
        Ok(Self { socket, held: Vec::new() })
    }

    /// The same, with preface and settings sent.
    pub(crate) fn begin(
        target: SocketAddr,
        folder: Option<&Folder>,
        settings: &[u8],
    ) -> Result<Self> {
        let mut client = Self::open(target, folder)?;
        client.send(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat());
        Ok(client)
    }

    /// Sends bytes. Whoever refuses them may end the connection meanwhile.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes).and_then(|()| self.socket.flush());
    }

    /// The next frame; nothing at the end. Pings are answered.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(length) = self.held.get(..3) {
                let length = usize::from(length[0]) << 16
                    | usize::from(length[1]) << 8
                    | usize::from(length[2]);
                if self.held.len() >= 9 + length {
                    let bytes: Vec<u8> = self.held.drain(..9 + length).collect();
                    let stream = u32::from_be_bytes(bytes[5..9].try_into()?);
                    let payload = bytes[9..].to_vec();
                    let frame = Frame { kind: bytes[3], flags: bytes[4], stream, payload };
                    if frame.kind == PING && frame.flags & ACK == 0 {
                        self.send(&self::frame(PING, ACK, 0, &frame.payload));
                    }
                    return Ok(Some(frame));
                }
            }
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) => {
                    ensure!(self.held.is_empty(), "it ends within a frame: {:?}", self.held);
                    return Ok(None);
                }
                Ok(read) => self.held.extend(&bytes[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A reset, or an end of TLS without a word.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
                    ) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error).context("read a frame"),
            }
        }
    }

    /// Reads until there is such a frame.
    pub(crate) fn until(&mut self, what: &str, is_it: impl Fn(&Frame) -> bool) -> Result<Frame> {
        let mut others = Vec::new();
        while let Some(frame) = self.next()? {
            if is_it(&frame) {
                return Ok(frame);
            }
            others.push((frame.kind, frame.stream, frame.code()));
        }
        bail!("no {what} but (type, stream, error) {others:?}, and the end")
    }

    /// Whether nothing comes any more but the end.
    pub(crate) fn ends(&mut self) -> Result<bool> {
        Ok(self.next()?.is_none())
    }
}
