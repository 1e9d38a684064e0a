//! Bytes from one connection to another, both ways.
//!
//! Most tunnels are silent for most of their time, so one that is has no buffers: bytes are read into
//! one that all tunnels of a worker share, and only those that cannot be written at once are kept.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read at once.
const CHUNK: usize = 32 << 10;

thread_local! {
    /// Holds nothing between two polls.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Hands bytes through until both sides have ended, or one fails.
pub(super) async fn through<A, B>(mut one: A, mut other: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Direction::default(), Direction::default());
    poll_fn(|cx| {
        let there = there.poll(&mut one, &mut other, cx)?;
        let back = back.poll(&mut other, &mut one, cx)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// One way.
#[derive(Debug, Default)]
struct Direction {
    /// What could not be written, and how much of it has been since.
    left: Vec<u8>,
    written: usize,
    /// Something written may not have left yet.
    unflushed: bool,
    place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Open,
    /// Nothing more comes; the other side is to be told.
    Ended,
    /// It has been told.
    Over,
}

impl Direction {
    fn poll<R, W>(&mut self, from: &mut R, to: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.place == Place::Over {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_left(to, cx))?;
            if self.place == Place::Ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.place = Place::Over;
                continue;
            }
            let read = BUFFER.with_borrow_mut(|buffer| self.poll_chunk(from, to, buffer, cx));
            if read?.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
    }

    /// Writes what is left.
    fn poll_left<W>(&mut self, to: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while self.written < self.left.len() {
            let rest = &self.left[self.written..];
            let written = ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        (self.left, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Reads a chunk, if there is one, and writes what it can of it.
    fn poll_chunk<R, W>(
        &mut self,
        from: &mut R,
        to: &mut W,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buffer = ReadBuf::new(buffer);
        if Pin::new(from).poll_read(cx, &mut buffer)?.is_pending() {
            return Ok(Poll::Pending);
        }
        let mut rest = buffer.filled();
        if rest.is_empty() {
            self.place = Place::Ended;
            return Ok(Poll::Ready(()));
        }
        self.unflushed = true;
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => rest = &rest[written..],
                Poll::Pending => {
                    self.left = rest.to_vec();
                    break;
                }
            }
        }
        Ok(Poll::Ready(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn all_bytes_come_through_however_narrow_it_is() {
        for width in [1, 7, 100_000] {
            let (mut client, inner) = duplex(width);
            let (outer, mut backend) = duplex(13);
            let tunnel = tokio::spawn(through(inner, outer));
            let sent: Vec<u8> = (0..50_000_u32).map(|at| at as u8).collect();
            let bytes = sent.clone();
            let writer = tokio::spawn(async move {
                client.write_all(&bytes).await.unwrap();
                client.shutdown().await.unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                answer
            });
            let mut got = Vec::new();
            backend.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, sent, "{width} bytes wide");
            // One way has ended; the other goes on until it does.
            backend.write_all(b"and back").await.unwrap();
            drop(backend);
            assert_eq!(writer.await.unwrap(), b"and back");
            tunnel.await.unwrap().unwrap();
        }
    }
}
