//! The program on an interface of the real kernel: attached, left running, replaced in its link. Needs
//! root and a BPF file system.

use std::{
    io,
    os::fd::AsRawFd as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ballast::dataplane::{AttachMode, Dataplane, Options, remove_pins};
use lb_common::reason::Reason;
use socket2::{Domain, Socket, Type};

/// Long enough for a busy machine: nothing waits for it unless the test fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// Of no protocol (IEEE 802, local experimental): nobody else sends such frames.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// The interface that the program is on.
const NEAR: &str = "near";

/// Its peer, which sends.
const FAR: &str = "far";

/// Frames that are sent in one go; a veth's queue holds 256.
const FRAMES: u64 = 100;

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output();
    let output = output.expect("run ip, of the package iproute2");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// What the kernel says of the interface, with `prog/xdp id …` if a program is on it.
fn link() -> String {
    ip(&format!("-details link show dev {NEAR}"))
}

fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("the interface")
}

/// Runs the body in a namespace with a pair of interfaces; both are gone when the thread ends.
fn with_pair(body: impl FnOnce() + Send) {
    let inside = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("be root");
        ip(&format!("link add {NEAR} type veth peer name {FAR}"));
        ip(&format!("link set {NEAR} up"));
        ip(&format!("link set {FAR} up"));
        body();
    };
    thread::scope(|scope| {
        scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Pins of this test, removed at its end.
struct Pins(Options);

impl Pins {
    fn new() -> Self {
        let pins = format!("/sys/fs/bpf/ballast-test-attach-{}", std::process::id()).into();
        Self(Options { pins, max_flows: 4096, max_half_open: 1024, discard_pins: false })
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        remove_pins(&self.0.pins).expect("remove the pins");
    }
}

/// Sends frames out of the peer, and waits until the program has counted so many since it began.
fn send_until(dataplane: &Dataplane, counted: u64) {
    send();
    let end = Instant::now() + PATIENCE;
    loop {
        let count = not_ip(dataplane);
        if count == counted {
            return;
        }
        assert!(count < counted, "{count} counted of {counted}");
        assert!(Instant::now() < end, "{count} counted of {counted} within {PATIENCE:?}");
        thread::yield_now();
    }
}

fn not_ip(dataplane: &Dataplane) -> u64 {
    dataplane.counters(&[], &[]).expect("counters").reasons[Reason::NotIp as usize]
}

fn send() {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).expect("open a packet socket");
    // SAFETY: all zeros are an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = ifindex(FAR) as i32;
    let mut frame = [0_u8; 60];
    frame[..6].fill(0xff);
    frame[6] = 2;
    frame[12..14].copy_from_slice(&ETHERTYPE);
    for _ in 0..FRAMES {
        // SAFETY: the frame and the address are as long as is said, and outlive the call.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }
}

#[test]
fn a_new_program_takes_the_place_of_the_old_in_its_link() {
    let pins = Pins::new();
    with_pair(|| {
        let near = ifindex(NEAR);
        let mut first = Dataplane::open(&pins.0).expect("open");
        assert_eq!(first.attach(NEAR, near).expect("attach"), AttachMode::Driver);
        let first_id = first.info().expect("info").program_id;
        assert!(link().contains(&format!("prog/xdp id {first_id} ")), "{}", link());
        send_until(&first, FRAMES);

        // Nobody is there now, and the program goes on.
        drop(first);
        send();

        let mut second = Dataplane::open(&pins.0).expect("open again");
        assert_eq!(second.attach(NEAR, near).expect("attach again"), AttachMode::Driver);
        let second_id = second.info().expect("info").program_id;
        assert_ne!(first_id, second_id);
        assert!(link().contains(&format!("prog/xdp id {second_id} ")), "{}", link());
        send_until(&second, 3 * FRAMES);

        second.detach(near).expect("detach");
        assert!(!link().contains("prog/xdp"), "{}", link());
    });
}
