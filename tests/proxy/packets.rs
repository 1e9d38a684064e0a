//! How many packets a connection costs, as the client's kernel has counted them.

use std::{
    io::{Read as _, Write as _},
    mem::MaybeUninit,
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::wait;

use crate::{
    backends::Manner,
    client::PATIENCE,
    fronts::{self, Service},
};

/// Until the kernel acknowledges by itself what nobody answers, it waits for 40 ms or more (Linux:
/// `TCP_DELACK_MIN`).
const AT_ONCE: Duration = Duration::from_millis(30);

fn info(stream: &TcpStream) -> Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `stream` lives, and the kernel writes no more than
    // `length` bytes, which `info` has.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ensure!(got == 0, "ask for what TCP knows");
    // SAFETY: it is made of numbers, so zeros are a value too; the kernel has overwritten some.
    Ok(unsafe { info.assume_init() })
}

fn open(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(target).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

#[test]
fn a_connection_for_one_request_is_answered_in_two_packets() -> Result<()> {
    let services = [Service::before(Manner::Good, None)?];
    let (_proxy, ours) = fronts::ballast(&services)?;
    for request in
        ["GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"]
    {
        // A slow machine may have some more.
        wait::until(PATIENCE, "a connection with two packets from the proxy", || {
            let mut stream = open(ours[0])?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).context("read the answer")?;
            ensure!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"));
            ensure!(answer.contains("\r\n\r\n") && !answer.ends_with("\r\n\r\n"), "{answer}");
            let packets = info(&stream)?.tcpi_segs_in;
            ensure!(packets >= 2, "the handshake's and the answer's are two: {packets}");
            Ok((packets == 2).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn pieces_of_a_request_are_acknowledged_at_once() -> Result<()> {
    let services = [Service::before(Manner::Good, None)?];
    let (_proxy, ours) = fronts::ballast(&services)?;
    for piece in ["POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", "GET / HTTP/1.1\r\nHo"]
    {
        wait::until(PATIENCE, "a piece of a request to be acknowledged at once", || {
            let mut stream = open(ours[0])?;
            let sent = Instant::now();
            stream.write_all(piece.as_bytes())?;
            while info(&stream)?.tcpi_unacked > 0 {
                ensure!(sent.elapsed() < PATIENCE, "it is never acknowledged");
                thread::yield_now();
            }
            Ok((sent.elapsed() < AT_ONCE).then_some(()))
        })?;
    }
    Ok(())
}
