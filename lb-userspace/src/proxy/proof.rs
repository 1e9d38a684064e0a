//! Whether a request has provably not been delivered: then it may be repeated, whatever its method.
//!
//! Asked only of a request that may not be repeated otherwise, when the kept connection that it was sent
//! on has ended. The backend may have closed it before: then nobody has seen the request. Two things
//! prove that (`docs/decisions/0026-proof-of-non-delivery.md`):
//!
//! - No byte of it has left this host.
//! - It left in one segment, once, and no other segment has left since; nothing of it was acknowledged;
//!   and what ended the connection is a reset without an acknowledgement, which a host sends that has no
//!   such connection (RFC 9293, section 3.10.7.1). So that reset answers this segment.
//!
//! Everything else proves nothing, and the request counts as delivered.

use std::{
    fmt, io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use tokio::{net::TcpStream, time::sleep};

use super::connect::Link;

/// Notes what resets sockets get, where the kernel can.
pub trait Resets: fmt::Debug + Send + Sync {
    /// Notes those of a socket from now on.
    fn watch(&self, socket: BorrowedFd<'_>) -> io::Result<()>;
    /// What a socket that is watched has got.
    fn seen(&self, socket: BorrowedFd<'_>) -> Option<Reset>;
}

/// A kind of reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Without an acknowledgement, and no other.
    Bare,
    /// One with an acknowledgement was there.
    Acknowledging,
}

/// After the end of a connection its reset may still be on the way: the segment that it answers passed the
/// other side's last one. It is waited for for two round trips, and within these bounds.
const SHORTEST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(1);

/// What the kernel says of a connection (`struct tcp_info`), as far as it is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Info {
    closed: bool,
    unacked: u32,
    rtt: Duration,
    retransmitted: u32,
    acknowledged_bytes: u64,
    sent_bytes: u64,
    segments: u32,
    data_segments: u32,
}

/// What was known before a request was sent.
#[derive(Debug)]
pub(super) struct Before(Info);

impl Before {
    /// Looks at a kept connection, and has its resets noted from now on.
    pub(super) fn look(link: &mut Link, resets: Option<&dyn Resets>) -> Option<Self> {
        if !link.is_watched
            && let Some(resets) = resets
        {
            match resets.watch(link.tcp.as_fd()) {
                Ok(()) => link.is_watched = true,
                Err(error) => tracing::debug!(%error, "watch a socket"),
            }
        }
        info(&link.tcp).map(Self)
    }

    /// Whether the request that was sent since then, on a connection that has ended, was not delivered.
    ///
    /// `resets` is what has noted those of the connection, if anything has.
    pub(super) async fn proves_undelivered(
        &self,
        tcp: Arc<TcpStream>,
        resets: Option<&dyn Resets>,
    ) -> bool {
        let wait = (self.0.rtt * 2).clamp(SHORTEST_WAIT, LONGEST_WAIT);
        for _ in 0..=wait.as_millis() / LOOK.as_millis() {
            let Some(now) = info(&tcp) else { return false };
            if now.sent_bytes == self.0.sent_bytes {
                return true;
            }
            if now.acknowledged_bytes != self.0.acknowledged_bytes {
                return false;
            }
            if now.closed {
                let reset = resets.and_then(|resets| resets.seen(tcp.as_fd()));
                return proves(&self.0, &now, reset);
            }
            sleep(LOOK).await;
        }
        false
    }
}

/// Whether a request was not delivered that was sent between `before` and `now`, when the connection had
/// ended by this reset.
fn proves(before: &Info, now: &Info, reset: Option<Reset>) -> bool {
    reset == Some(Reset::Bare)
        && now.closed
        && before.unacked == 0
        && now.acknowledged_bytes == before.acknowledged_bytes
        && now.retransmitted == before.retransmitted
        && now.data_segments == before.data_segments.wrapping_add(1)
        && now.segments == before.segments.wrapping_add(1)
}

/// `struct tcp_info` of Linux 4.19 and later (`linux/tcp.h`); libc's has its beginning only.
#[repr(C)]
struct Raw {
    state: u8,
    bytes: [u8; 7],
    words: [u32; 24],
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    notsent_bytes: u32,
    min_rtt: u32,
    data_segs_in: u32,
    data_segs_out: u32,
    delivery_rate: u64,
    busy_time: u64,
    rwnd_limited: u64,
    sndbuf_limited: u64,
    delivered: u32,
    delivered_ce: u32,
    bytes_sent: u64,
    bytes_retrans: u64,
}

const _: () = assert!(size_of::<Raw>() == 216);

/// Places among `Raw::words`.
const UNACKED: usize = 4;
const RTT: usize = 15;
const TOTAL_RETRANS: usize = 23;

/// `TCP_CLOSE` (`net/tcp_states.h`).
const CLOSED: u8 = 7;

fn info(tcp: &TcpStream) -> Option<Info> {
    let mut raw = MaybeUninit::<Raw>::zeroed();
    let mut length = size_of::<Raw>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `tcp` lives, and the kernel writes no more than
    // `length` bytes, which `raw` has.
    let got = unsafe {
        libc::getsockopt(
            tcp.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // SAFETY: it is made of numbers, so zeros are a value too; the kernel has overwritten some.
    let raw = unsafe { raw.assume_init() };
    // An older kernel says less, and too little.
    (got == 0 && length as usize == size_of::<Raw>()).then(|| Info {
        closed: raw.state == CLOSED,
        unacked: raw.words[UNACKED],
        rtt: Duration::from_micros(raw.words[RTT].into()),
        retransmitted: raw.words[TOTAL_RETRANS],
        acknowledged_bytes: raw.bytes_acked,
        sent_bytes: raw.bytes_sent,
        segments: raw.segs_out,
        data_segments: raw.data_segs_out,
    })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn one_segment_and_a_bare_reset_prove_it_and_nothing_less() {
        let before =
            Info { segments: 7, data_segments: 3, acknowledged_bytes: 100, ..Info::default() };
        let after = Info { closed: true, segments: 8, data_segments: 4, sent_bytes: 50, ..before };
        assert!(proves(&before, &after, Some(Reset::Bare)));
        for reset in [None, Some(Reset::Acknowledging)] {
            assert!(!proves(&before, &after, reset), "{reset:?}");
        }
        for wrong in [
            Info { closed: false, ..after },
            Info { acknowledged_bytes: 101, ..after },
            Info { retransmitted: 1, ..after },
            Info { segments: 9, ..after },
            Info { data_segments: 5, segments: 9, ..after },
        ] {
            assert!(!proves(&before, &wrong, Some(Reset::Bare)), "{wrong:?}");
        }
        let pending = Info { unacked: 1, ..before };
        assert!(!proves(&pending, &after, Some(Reset::Bare)));
    }

    /// The kernel's numbers stand where they are looked for.
    #[tokio::test]
    async fn the_kernel_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let before = info(&client).unwrap();
        assert!(!before.closed && before.rtt > Duration::ZERO, "{before:?}");
        client.write_all(b"hello").await.unwrap();
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).await.unwrap();
        server.write_all(b"and back").await.unwrap();
        client.read_exact(&mut bytes).await.unwrap();
        let after = info(&client).unwrap();
        assert_eq!(after.sent_bytes, before.sent_bytes + 5);
        assert_eq!(after.acknowledged_bytes, before.acknowledged_bytes + 5);
        assert_eq!(after.data_segments, before.data_segments + 1);
        assert!(after.segments > before.segments && after.unacked == 0, "{after:?}");
    }
}
