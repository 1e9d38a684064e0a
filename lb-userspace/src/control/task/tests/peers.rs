//! Channels on loopback: what the rest of the daemon has of the other nodes.

use std::net::{Ipv4Addr, UdpSocket};

use lb_common::news::{Node, TELL};

use super::*;
use crate::{
    dataplane::Timeouts,
    peer::{About, Board, Channel, Ends, Fence, Others, Setup as Talk},
};

/// How long anything may take that ought to happen at all.
const LIMIT: Duration = Duration::from_mins(1);

/// A port that is free on two loopback addresses.
fn port() -> u16 {
    let one = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    one.local_addr().unwrap().port()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.expect("it is so in time")
}

struct Talking {
    channel: Channel,
    others: Others,
    kernel: Arc<FakeKernel>,
}

impl Talking {
    async fn start(number: u8, port: u16) -> anyhow::Result<Self> {
        let at = |number: u8| SocketAddr::from(([127, 0, 0, number], port));
        let kernel = Arc::new(FakeKernel::default());
        let (ends, others) = Ends::new();
        let second = 1_000_000_000;
        let setup = Talk {
            about: crate::peer::About::default(),
            own: format!("lb-{number}"),
            listen: at(number),
            interface: "lo".into(),
            others: vec![(format!("lb-{}", 3 - number), at(3 - number))],
            secret: b"a key of both nodes".to_vec(),
            node: Node::share(u16::from(number) - 1, 2),
            timeouts: Timeouts {
                tcp_idle_ns: 7440 * second,
                tcp_closing_ns: 240 * second,
                udp_idle_ns: 120 * second,
            },
            kernel: kernel.clone(),
            timeline: Arc::new(Timeline::new(None)),
        };
        Ok(Self { channel: Channel::start(setup, &ends).await?, others, kernel })
    }

    async fn until(&self, so: impl FnMut(&Board) -> bool) -> Board {
        let mut board = self.others.board();
        soon(board.wait_for(so)).await.expect("the channel lives").clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_channels_find_each_other_and_carry_wishes() {
    let port = port();
    let first = Talking::start(1, port).await.unwrap();
    let second = Talking::start(2, port).await.unwrap();
    first.channel.tell(About { generation: [1; 16], ..About::default() });
    second.channel.tell(About { generation: [1; 16], holds: true, ..About::default() });
    for node in [&first, &second] {
        let board =
            node.until(|board| board.in_sync && board.peers[0].same_config == Some(true)).await;
        assert!(board.peers[0].up);
        let told = node.kernel.maps().node.expect("the kernel program is told");
        assert_eq!((told.flags, told.port_mask), (TELL, 1));
    }
    assert_eq!(first.until(|board| board.peers[0].holds == Some(true)).await.peers.len(), 1);

    // What one wants cut off, the other cuts off.
    let fence = Fence { name: "appdb/pg-01".into(), generation: 4 };
    let mut wishes = second.others.wishes().expect("nobody has taken it");
    assert!(second.others.wishes().is_none(), "it is taken");
    let mut answers = first.others.fence(fence.clone()).await;
    let wish = soon(wishes.recv()).await.expect("a wish");
    assert_eq!((wish.from.as_str(), &wish.fence), ("lb-1", &fence));
    wish.done().await;
    assert_eq!(soon(answers.recv()).await.as_deref(), Some("lb-2"));

    // A channel that is closed gives its port back, and says nothing more.
    let Talking { channel, others, kernel } = second;
    channel.close().await;
    assert_eq!(*others.board().borrow(), Board::default());
    assert!(soon(others.fence(fence).await.recv()).await.is_none(), "nobody is asked");
    assert_eq!(kernel.maps().node.expect("the kernel program is told").flags, 0);
    let again = Talking::start(2, port).await.unwrap();
    again.until(|board| board.in_sync).await;
    first.until(|board| board.peers[0].up && board.peers[0].holds == Some(false)).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Talking::start(1, port).await.err().expect("the port is taken");
    assert!(format!("{error:#}").contains(&format!("listen for other nodes on 127.0.0.1:{port}")));
}
