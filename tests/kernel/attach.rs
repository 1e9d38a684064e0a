//! The daemon's side of the kernel on real interfaces: attached, left alone, replaced in its link; and
//! packets that go out by the interface that they came in by, or by another.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ballast::dataplane::{AttachMode, Dataplane, Op};
use lb_common::{reason::Reason, service::Balance};
use lb_ebpf::{
    fake::{Frame, Net, Setup, setup::backend},
    family::protocol,
};
use nix::sys::{
    socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind,
        setsockopt, socket, sockopt,
    },
    time::TimeVal,
};

use crate::pins::Pins;

/// Long enough for a busy machine: nothing waits for it unless a test fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// Frames that are sent in one go; a veth's queue holds 256.
const FRAMES: u64 = 100;

/// Of no protocol (IEEE 802, local experimental): nobody else sends such frames.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// Two cables: the balancer's ends, and those of the others.
pub(crate) const NEAR: [&str; 2] = ["near-0", "near-1"];
pub(crate) const FAR: [&str; 2] = ["far-0", "far-1"];

fn ip(words: &str) -> Result<String> {
    let output = Command::new("ip").args(words.split_whitespace()).output();
    let output = output.context("run ip, of the package iproute2")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) fn ifindex(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("find {name}"))
}

/// The program that is on an interface, as the kernel says it.
fn has_program(name: &str, id: u32) -> Result<bool> {
    Ok(ip(&format!("-details link show dev {name}"))?.contains(&format!("prog/xdp id {id} ")))
}

/// Runs the body in a network namespace with the two cables; all is gone when the thread ends.
pub(crate) fn with_cables(body: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let inside = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("make a namespace")?;
        for (near, far) in NEAR.iter().zip(FAR) {
            ip(&format!("link add {near} type veth peer name {far}"))?;
            ip(&format!("link set {near} up"))?;
            ip(&format!("link set {far} up"))?;
        }
        body()
    };
    thread::scope(|scope| {
        scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The other end of a cable.
pub(crate) struct Far(OwnedFd);

impl Far {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let every = SockProtocol::EthAll;
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, every)
            .context("open a packet socket")?;
        // SAFETY: all zeros are an address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = ifindex(name)? as i32;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is whole and of this length.
        let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
        bind(socket.as_raw_fd(), &address.context("make an address")?).context("bind")?;
        let limit = TimeVal::new(PATIENCE.as_secs() as i64, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).context("limit the wait")?;
        Ok(Self(socket))
    }

    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = nix::unistd::write(&self.0, frame).context("send")?;
        ensure!(sent == frame.len(), "{sent} of {} bytes sent", frame.len());
        Ok(())
    }

    fn send_many(&self) -> Result<()> {
        let mut frame = [0_u8; 60];
        frame[..6].fill(0xff);
        frame[6] = 2;
        frame[12..14].copy_from_slice(&ETHERTYPE);
        (0..FRAMES).try_for_each(|_| self.send(&frame))
    }

    /// Waits for a frame; others, the kernel's own and those that were sent here, are passed over.
    pub(crate) fn expect(&self, frame: &Frame) -> Result<()> {
        let wanted = frame.build();
        let end = Instant::now() + PATIENCE;
        // The first ones tell what went wrong.
        let mut others: Vec<Vec<u8>> = Vec::new();
        while Instant::now() < end {
            let mut bytes = vec![0; 4096];
            let length = match nix::unistd::read(&self.0, &mut bytes) {
                Ok(length) => length,
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(error) => return Err(error).context("receive"),
            };
            bytes.truncate(length);
            if bytes == wanted {
                return Ok(());
            }
            if others.len() < 8 {
                others.push(bytes);
            }
        }
        anyhow::bail!("no frame {wanted:02x?} within {PATIENCE:?}, but {others:02x?}");
    }
}

/// Waits until the program has counted so many frames since it began.
fn counted(dataplane: &Dataplane, wanted: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let count = dataplane.counters(&[], &[])?.reasons[Reason::NotIp as usize];
        if count == wanted {
            return Ok(());
        }
        ensure!(count < wanted, "{count} frames counted, not {wanted}");
        ensure!(Instant::now() < end, "{count} frames of {wanted} counted within {PATIENCE:?}");
        thread::yield_now();
    }
}

/// What the daemon would write for a configuration.
pub(crate) fn ops(setup: &Setup) -> Vec<Op> {
    let (bytes, _) = setup.filters();
    let backends = setup.backends.iter().map(|&(id, backend)| Op::SetBackend { id, backend });
    let table = Op::SetTable { start: 0, slots: setup.slots.clone() };
    let services = setup.services.iter().map(|&(key, service)| Op::SetService { key, service });
    backends.chain([table]).chain(services).chain([Op::SetVips { bytes }]).collect()
}

#[test]
fn a_new_program_takes_the_place_of_the_old_in_its_link() -> Result<()> {
    let pins = Pins::new("replace");
    with_cables(|| {
        let near = ifindex(NEAR[0])?;
        let far = Far::new(FAR[0])?;
        let mut first = pins.open()?;
        ensure!(first.attach(NEAR[0], near)? == AttachMode::Driver);
        let first_id = first.info()?.program_id;
        ensure!(has_program(NEAR[0], first_id)?);
        far.send_many()?;
        counted(&first, FRAMES)?;

        // Nobody is there now, and the program goes on.
        drop(first);
        far.send_many()?;

        let mut second = pins.open().context("open again")?;
        ensure!(second.attach(NEAR[0], near)? == AttachMode::Driver);
        let second_id = second.info()?.program_id;
        ensure!(first_id != second_id);
        ensure!(has_program(NEAR[0], second_id)?);
        far.send_many()?;
        counted(&second, 3 * FRAMES)?;

        second.detach(near)?;
        ensure!(!has_program(NEAR[0], second_id)?);
        Ok(())
    })
}

/// The client and the first backend are on the first cable, the second backend is on the other.
#[test]
fn packets_leave_by_the_interface_of_their_next_hop() -> Result<()> {
    for net in Net::both() {
        for id in [1, 2] {
            forward_and_return(net, id)
                .with_context(|| format!("backend {id} of {:?}", net.backends))?;
        }
    }
    Ok(())
}

fn forward_and_return(net: Net, id: u32) -> Result<()> {
    let cable = id as usize - 1;
    let pins = Pins::new("forward");
    with_cables(|| {
        let mut dataplane = pins.open()?;
        // The others' ends have the program too: a veth takes frames from XDP only if its peer has one.
        for name in NEAR.into_iter().chain(FAR) {
            ensure!(dataplane.attach(name, ifindex(name)?)? == AttachMode::Driver);
        }
        let mut fit = backend(net.backends[cable]);
        fit.ifindex = ifindex(NEAR[cable])?;
        let setup = Setup::default().vip(net.vip.ip()).backend(id, fit).service(
            net.vip,
            protocol::UDP,
            Balance::Maglev,
            &[id],
        );
        dataplane.apply(&ops(&setup))?;
        let (client, server) = (Far::new(FAR[0])?, Far::new(FAR[cable])?);

        let question = Frame::udp(net.client, net.vip, b"question");
        client.send(&question.build())?;
        let port = net.client.port();
        server.expect(&net.at_backend(&question, id, port)).context("at the backend")?;

        let answer = Frame::udp(net.backends[cable], net.nat(port), b"answer");
        let answer = net.sent_by_backend(answer, id);
        server.send(&answer.build())?;
        client.expect(&net.at_client(&answer, net.client)).context("at the client")?;

        let counters = dataplane.counters(&[0], &[id])?;
        let (_, stats, _) = counters.backends[0];
        ensure!((stats.forward_packets, stats.return_packets) == (1, 1), "{stats:?}");
        Ok(())
    })
}
