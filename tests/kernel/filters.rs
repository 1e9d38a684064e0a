//! Each loaded program has filters of its own: none that is on an interface ever lacks an address, whoever
//! loads another one beside it, and whatever becomes of the daemon.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, ScopedJoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use ballast::dataplane::{AttachMode, Dataplane, Op, Tracer};
use lb_common::{hash::VIP, limits::VIP_BYTES, service::Balance};
use lb_ebpf::{
    fake::{
        Frame, Net, Setup,
        setup::{backend, vip_bit},
    },
    family::protocol,
};

use crate::{
    attach::{FAR, Far, NEAR, ifindex, ops, with_cables},
    pins::Pins,
};

/// Of the client, one after the other.
const PORTS: std::ops::Range<u16> = 20_000..20_500;

/// A client on one cable and a backend on the other, with sockets of their own.
struct Ends {
    client: Far,
    server: Far,
    ports: std::iter::Cycle<std::ops::Range<u16>>,
}

impl Ends {
    fn new() -> Result<Self> {
        let (client, server) = (Far::new(FAR[0])?, Far::new(FAR[1])?);
        Ok(Self { client, server, ports: PORTS.cycle() })
    }

    /// Asks at an address, and waits until the backend has got it.
    fn ask(&mut self, net: &Net) -> Result<()> {
        let port = self.ports.next().context("find a port")?;
        let client = SocketAddr::new(net.client.ip(), port);
        let question = Frame::udp(client, net.vip, b"question");
        self.client.send(&question.build())?;
        self.server.expect(&net.at_backend(&question, 1, port))
    }
}

/// Puts the program on all ends: a veth takes frames from XDP only if its peer has one.
fn attach(dataplane: &mut Dataplane) -> Result<()> {
    NEAR.into_iter().chain(FAR).try_for_each(|name| {
        ensure!(dataplane.attach(name, ifindex(name)?)? == AttachMode::Driver);
        Ok(())
    })
}

/// The filter of these addresses.
fn filter(nets: &[Net]) -> Op {
    let mut bytes = vec![0; VIP_BYTES];
    for net in nets {
        bytes[vip_bit(net.vip.ip()) as usize] = VIP;
    }
    Op::SetVips { bytes }
}

/// A client that asks at one address after the other.
struct Asker {
    /// Those that are served.
    served: Mutex<Vec<Net>>,
    /// How often all have been asked.
    rounds: AtomicU64,
    over: AtomicBool,
}

impl Asker {
    /// Asks until it is over; fails with the first question that does not arrive.
    fn run(&self) -> Result<()> {
        let mut ends = Ends::new()?;
        while !self.over.load(Ordering::Relaxed) {
            for net in self.served().clone() {
                ends.ask(&net)?;
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn served(&self) -> MutexGuard<'_, Vec<Net>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all have been asked from now on. If one has not been answered, the result of
    /// [`Asker::run`] says so.
    fn wait(&self, asking: &ScopedJoinHandle<'_, Result<()>>, what: &str) -> Result<()> {
        // The round under way does not count.
        let end = self.rounds.load(Ordering::Relaxed) + 2;
        while self.rounds.load(Ordering::Relaxed) < end {
            ensure!(!asking.is_finished(), "it was {what}");
            thread::yield_now();
        }
        Ok(())
    }
}

#[test]
fn no_program_on_an_interface_ever_lacks_an_address() -> Result<()> {
    let pins = Pins::new("filters");
    with_cables(|| {
        let at = |last| Net { vip: SocketAddr::from(([192, 0, 2, last], 80)), ..Net::v4() };
        let nets = [at(100), at(101), at(102)];
        let mut fit = backend(nets[0].backends[0]);
        fit.ifindex = ifindex(NEAR[1])?;
        let setup = nets.iter().fold(Setup::default().backend(1, fit), |setup, net| {
            setup.service(net.vip, protocol::UDP, Balance::Maglev, &[1])
        });
        let mut dataplane = pins.open()?;
        attach(&mut dataplane)?;
        dataplane.apply(&ops(&setup))?;
        dataplane.apply(&[filter(&nets[..1])])?;

        let asker = Asker {
            served: Mutex::new(nets[..1].to_vec()),
            rounds: AtomicU64::new(0),
            over: AtomicBool::new(false),
        };
        thread::scope(|scope| {
            let asking = scope.spawn(|| asker.run());
            let done = generations(&pins, dataplane, &nets, |served, what| {
                *asker.served() = served.to_vec();
                asker.wait(&asking, what)
            });
            asker.over.store(true, Ordering::Relaxed);
            let asked = asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            asked.with_context(|| format!("{done:?}"))?;
            done
        })
    })
}

/// Daemons and traces come and go. Nothing here writes what is not new: each program has to have been given
/// the rest. `ask` waits until these addresses have been asked at; it goes on with them meanwhile.
fn generations(
    pins: &Pins,
    first: Dataplane,
    nets: &[Net; 3],
    ask: impl Fn(&[Net], &str) -> Result<()>,
) -> Result<()> {
    ask(&nets[..1], "the first program")?;

    // The daemon is gone, and there is another.
    drop(first);
    let mut second = pins.open().context("open again")?;
    ask(&nets[..1], "the second program")?;

    drop(Tracer::load(second.options())?);
    ask(&nets[..1], "the second, after the variant for traces was loaded")?;
    let tracer = Tracer::load(second.options())?;
    // Written after the variant is loaded, and before it is in force.
    second.apply(&[filter(&nets[..2])])?;
    ask(&nets[..2], "the second, beside the variant")?;
    second.begin_tracing(tracer)?;
    ask(&nets[..2], "the variant")?;

    // Written while it is in force.
    second.apply(&[filter(nets)])?;
    ask(nets, "the variant, at an address that is newer than it")?;
    second.end_tracing()?;
    ask(nets, "the second program, in force again")?;

    // A daemon that dies while there is a trace, and one that dies while it starts.
    let tracer = Tracer::load(second.options())?;
    second.begin_tracing(tracer)?;
    let options = second.options().clone();
    drop(second);
    drop(Tracer::load(&options)?);
    ask(nets, "the variant, left alone")?;
    let mut third = pins.open().context("open for the third time")?;
    ask(nets, "the third program")?;

    // What is pinned is what it reads.
    ask(&nets[..2], "the third program, at two of them")?;
    third.apply(&[filter(&nets[..2])])?;
    third.apply(&[filter(nets)])?;
    drop(third);
    let _last = pins.open().context("open for the last time")?;
    ask(nets, "the last program")
}
