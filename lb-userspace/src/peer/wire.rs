//! Datagrams between two nodes: sealed, so that nobody without the cluster's key can make or alter one.
//!
//! ```text
//!  0         4    5       8            16
//! ┌─────────┬────┬───────┬────────────┬───────────────────────┬──────────────────────────┐
//! │ "BLPR"  │ver.│kind, 0│ sequence   │ body                  │ HMAC-SHA256 of all before│
//! └─────────┴────┴───────┴────────────┴───────────────────────┴──────────────────────────┘
//! ```
//!
//! All numbers are in network byte order. There are two kinds:
//!
//! - A *hello* is sealed with a key that is derived from the cluster's key alone. It names its sender and
//!   its receiver, and carries a fresh random number of the sender's (a nonce) and the one that it has
//!   seen from the other side.
//! - *Data* is sealed with a key of the session, which is derived from the cluster's key, both nonces and
//!   both names, one for each direction. Its sequence number counts up from 1 and is accepted once
//!   ([`window::Window`](super::window::Window)).
//!
//! A nonce is proof of life: who shows mine back to me, under the cluster's key, lives now. So a recorded
//! hello proves nothing, a recorded session cannot be played to a node that has been started anew, and
//! no node has to keep a counter over a restart.
//!
//! What is sent is authentic, not secret: who can listen sees addresses and ports of connections, which
//! are in the packets of those connections too.

use ring::hmac;

pub mod change;
pub mod frame;
mod reader;

pub(crate) use reader::Reader;

/// Bytes of the longest datagram: with IPv6 and UDP headers it fits the least MTU of IPv6 (RFC 8200,
/// section 5), which every Ethernet has.
pub const MAX_DATAGRAM: usize = 1232;

/// Bytes before the body.
const HEADER: usize = 16;

/// Bytes of the seal.
const SEAL: usize = 32;

/// Bytes of the longest body.
pub const MAX_BODY: usize = MAX_DATAGRAM - HEADER - SEAL;

/// What a datagram begins with.
const MAGIC: [u8; 4] = *b"BLPR";

/// Version of all that is written here.
pub const VERSION: u8 = 1;

const HELLO: u8 = 1;
const DATA: u8 = 2;

/// A random number that is used once.
pub type Nonce = [u8; 16];

/// No nonce: nothing has been seen from the other side.
pub const NO_NONCE: Nonce = [0; 16];

/// Why a datagram is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// It is none of ours, or cut off.
    #[error("it is no datagram of ballast")]
    Malformed,
    /// It is of another version.
    #[error("it speaks version {0} of the protocol, and this node version {VERSION}")]
    Version(u8),
    /// Its seal is wrong.
    #[error("it is sealed with another key: `secret_file` must be the same on every node")]
    Unauthentic,
    /// It is not from the node that has this address, or not to this node.
    #[error("it is from or to another node: `[[node]]` must be the same in every file")]
    Misdirected,
    /// It was accepted before, or is too old to tell.
    #[error("it has come before")]
    Replayed,
    /// It belongs to no session.
    #[error("it belongs to no session")]
    NoSession,
}

/// Begins a session, or answers who wants to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who sends it.
    pub from: String,
    /// Whom it is for.
    pub to: String,
    /// The sender's nonce.
    pub nonce: Nonce,
    /// The receiver's nonce, as the sender has seen it; or [`NO_NONCE`].
    pub seen: Nonce,
    /// The sender has the session of these two nonces already, and needs no answer.
    pub done: bool,
}

/// What is derived from the cluster's key.
pub struct Keys {
    secret: hmac::Key,
    hello: hmac::Key,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

/// What is derived for one session.
pub struct SessionKeys {
    send: hmac::Key,
    receive: hmac::Key,
}

impl std::fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKeys")
    }
}

/// One end of a session: a node and its nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End<'a> {
    /// Name of the node.
    pub name: &'a str,
    /// Its nonce.
    pub nonce: &'a Nonce,
}

impl Keys {
    /// Derives what is needed from the content of the secret's file.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let hello = derive(&secret, &[b"ballast peer hello"]);
        Self { secret, hello }
    }

    /// A datagram with a hello.
    #[must_use]
    pub fn seal_hello(&self, hello: &Hello) -> Vec<u8> {
        let mut body = Vec::with_capacity(64);
        body.extend_from_slice(&hello.nonce);
        body.extend_from_slice(&hello.seen);
        body.push(u8::from(hello.done));
        for name in [&hello.from, &hello.to] {
            body.extend_from_slice(&(name.len() as u16).to_be_bytes());
            body.extend_from_slice(name.as_bytes());
        }
        seal(&self.hello, HELLO, 0, &body)
    }

    /// The hello in a datagram.
    pub fn open_hello(&self, datagram: &[u8]) -> Result<Hello, Refusal> {
        let (_, body) = open(&self.hello, HELLO, datagram)?;
        read_hello(body).ok_or(Refusal::Malformed)
    }

    /// The keys of a session.
    #[must_use]
    pub fn session(&self, own: End<'_>, peer: End<'_>) -> SessionKeys {
        let key = |from: End<'_>, to: End<'_>| {
            let len = (from.name.len() as u64).to_be_bytes();
            let parts: [&[u8]; 6] = [
                b"ballast peer session",
                from.nonce,
                to.nonce,
                &len,
                from.name.as_bytes(),
                to.name.as_bytes(),
            ];
            derive(&self.secret, &parts)
        };
        SessionKeys { send: key(own, peer), receive: key(peer, own) }
    }
}

impl SessionKeys {
    /// A datagram with a body of at most [`MAX_BODY`] bytes. A sequence number is used once.
    #[must_use]
    pub fn seal(&self, sequence: u64, body: &[u8]) -> Vec<u8> {
        seal(&self.send, DATA, sequence, body)
    }

    /// Sequence number and body of a datagram.
    pub fn open<'a>(&self, datagram: &'a [u8]) -> Result<(u64, &'a [u8]), Refusal> {
        open(&self.receive, DATA, datagram)
    }
}

/// Whether a datagram says that it is a hello. It may lie.
#[must_use]
pub fn is_hello(datagram: &[u8]) -> bool {
    datagram.get(5) == Some(&HELLO)
}

fn derive(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Key {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref())
}

fn seal(key: &hmac::Key, kind: u8, sequence: u64, body: &[u8]) -> Vec<u8> {
    debug_assert!(body.len() <= MAX_BODY, "a body of {} bytes", body.len());
    let mut datagram = Vec::with_capacity(HEADER + body.len() + SEAL);
    datagram.extend_from_slice(&MAGIC);
    datagram.extend_from_slice(&[VERSION, kind, 0, 0]);
    datagram.extend_from_slice(&sequence.to_be_bytes());
    datagram.extend_from_slice(body);
    let seal = hmac::sign(key, &datagram);
    datagram.extend_from_slice(seal.as_ref());
    datagram
}

fn open<'a>(key: &hmac::Key, kind: u8, datagram: &'a [u8]) -> Result<(u64, &'a [u8]), Refusal> {
    if datagram.len() < HEADER + SEAL || datagram.len() > MAX_DATAGRAM {
        return Err(Refusal::Malformed);
    }
    let (sealed, seal) = datagram.split_at(datagram.len() - SEAL);
    let (header, body) = sealed.split_at(HEADER);
    let mut reader = Reader::new(header);
    let malformed = || Refusal::Malformed;
    if reader.array().ok_or_else(malformed)? != MAGIC {
        return Err(Refusal::Malformed);
    }
    let version = reader.byte().ok_or_else(malformed)?;
    if version != VERSION {
        return Err(Refusal::Version(version));
    }
    if reader.array().ok_or_else(malformed)? != [kind, 0, 0] {
        return Err(Refusal::Malformed);
    }
    let sequence = reader.u64().ok_or_else(malformed)?;
    hmac::verify(key, sealed, seal).map_err(|_| Refusal::Unauthentic)?;
    Ok((sequence, body))
}

fn read_hello(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader::new(body);
    let (nonce, seen) = (reader.array()?, reader.array()?);
    let done = reader.byte()? != 0;
    let mut name = || {
        let len = reader.u16()?;
        String::from_utf8(reader.bytes(usize::from(len))?.to_vec()).ok()
    };
    let (from, to) = (name()?, name()?);
    reader.is_empty().then_some(Hello { from, to, nonce, seen, done })
}

#[cfg(test)]
mod tests;
