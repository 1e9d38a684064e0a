//! The variant that makes traces does what the plain one does, and shows it truly.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use ballast::dataplane::load::OBJECT;
use lb_common::{
    backend::Backend,
    names,
    reason::Reason,
    service::{Balance, Slot, mapped},
    trace::{
        FROM_BACKEND, NONE, NOT_FORWARDED, TO_BACKEND, TRACED_BYTES, TRACES_BYTES, TraceFilter,
        TraceRecord, filter,
    },
};
use lb_ebpf::{
    fake::{Counter, Frame, Net, Outcome, Setup, Xdp},
    packet::tcp_flags::SYN,
};
use lb_tests::{
    kernel::{Counters, Kernel},
    packets::{DataPath, Host, moved, table::cases},
};
use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

const ALL: TraceFilter = TraceFilter { flags: filter::ACTIVE, ..TraceFilter::ZERO };

/// The variant, with the library beside it that says which step decided.
struct Traced {
    kernel: Kernel,
    host: Host,
}

impl Traced {
    fn check(
        &self,
        packet: &[u8],
        outcome: &Outcome,
        record: &TraceRecord,
        counter: Counter,
    ) -> Result<()> {
        let start = |frame: &[u8]| {
            let mut bytes = [0; TRACED_BYTES];
            let len = frame.len().min(TRACED_BYTES);
            bytes[..len].copy_from_slice(&frame[..len]);
            bytes
        };
        ensure!(record.before == start(packet), "not as it came: {:x?}", record.before);
        ensure!(record.before_len as usize == packet.len(), "{} bytes came", record.before_len);
        ensure!(record.after == start(&outcome.frame), "not as it leaves: {:x?}", record.after);
        ensure!(
            record.after_len as usize == outcome.frame.len(),
            "{} bytes left",
            record.after_len
        );
        let action = match outcome.xdp {
            Xdp::Drop => 1,
            Xdp::Pass => 2,
            Xdp::Transmit => 3,
            Xdp::Redirect => 4,
        };
        ensure!(record.action == action, "action {} instead of {action}", record.action);
        let expected = match counter {
            Counter::Forward(id) => (NONE, TO_BACKEND, id),
            Counter::Return(id) => (NONE, FROM_BACKEND, id),
            // Which backend was in question is the data path's own affair.
            Counter::Reason(reason) => (reason as u32, NOT_FORWARDED, record.backend),
        };
        let shown = (record.reason, record.direction, record.backend);
        ensure!(shown == expected, "verdict {shown:?} instead of {expected:?}");
        let stage = self.host.tables.last_stage();
        ensure!(record.stage == stage as u32, "stage {} instead of {stage:?}", record.stage);
        Ok(())
    }
}

impl DataPath for Traced {
    fn reset(&mut self, setup: &Setup) -> Result<()> {
        self.kernel.reset(setup)?;
        self.host.reset(setup)
    }

    fn set_backend(&mut self, id: u32, backend: Backend) -> Result<()> {
        self.kernel.set_backend(id, backend)?;
        self.host.set_backend(id, backend)
    }

    fn set_slot(&mut self, index: u32, slot: Slot) -> Result<()> {
        self.kernel.set_slot(index, slot)?;
        self.host.set_slot(index, slot)
    }

    fn run(&mut self, packet: &[u8]) -> Result<Outcome> {
        let before = self.kernel.counters()?;
        let outcome = self.kernel.run(packet)?;
        let after = self.kernel.counters()?;
        self.host.run(packet)?;
        let records = self.kernel.take_traces()?;
        ensure!(records.len() == 1, "{} records of one packet", records.len());
        let moved = moved(&before, &after);
        ensure!(moved.len() == 1, "{moved:?}");
        self.check(packet, &outcome, &records[0], moved[0].0)?;
        Ok(outcome)
    }

    fn counters(&self) -> Result<Counters> {
        self.kernel.counters()
    }

    fn take_reports(&mut self) -> Result<Vec<u32>> {
        self.host.take_reports()?;
        DataPath::take_reports(&mut self.kernel)
    }
}

#[test]
fn every_case_holds_and_is_shown_as_it_is() -> Result<()> {
    let mut kernel = Kernel::load_traced(4096)?;
    kernel.set_trace(0, &ALL)?;
    let mut traced = Traced { kernel, host: Host::new() };
    let failures: Vec<String> = cases()
        .iter()
        .filter_map(|case| {
            case.run(&mut traced).err().map(|error| format!("{}: {error:#}", case.name))
        })
        .collect();
    ensure!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// A prefix of 24 bits.
fn under24(address: [u8; 4]) -> ([u8; 16], [u8; 16]) {
    let mut mask = [0xff; 16];
    mask[15] = 0;
    (mapped(address), mask)
}

#[test]
fn a_trace_gets_what_it_wants_and_nothing_else() -> Result<()> {
    let mut kernel = Kernel::load_traced(4096)?;
    let net = Net::v4();
    kernel.reset(&net.setup(Balance::Maglev))?;
    let other = net.other_client(5, 40_000);
    let (other_prefix, mask) = under24([198, 18, 0, 0]);
    let (backends, _) = under24([192, 0, 2, 0]);
    let listen = TraceFilter {
        flags: filter::ACTIVE | filter::SERVICE,
        service: 77,
        listen: mapped([192, 0, 2, 100]),
        listen_port: 80_u16.to_be_bytes(),
        listen_protocol: 6,
        ..ALL
    };
    let wanted = [
        ("all", ALL, true),
        ("nothing", TraceFilter::ZERO, false),
        ("its source", TraceFilter { from: other_prefix, from_mask: mask, ..ALL }, true),
        ("another source", TraceFilter { from: backends, from_mask: mask, ..ALL }, false),
        ("its destination", TraceFilter { to: backends, to_mask: mask, ..ALL }, true),
        ("another destination", TraceFilter { to: other_prefix, to_mask: mask, ..ALL }, false),
        ("a host", TraceFilter { host: other_prefix, host_mask: mask, ..ALL }, true),
        (
            "the floating address alone",
            TraceFilter { host: mapped([192, 0, 2, 100]), host_mask: [0xff; 16], ..ALL },
            true,
        ),
        (
            "another host",
            TraceFilter { host: mapped([203, 0, 113, 1]), host_mask: [0xff; 16], ..ALL },
            false,
        ),
        ("the address of its service", listen, true),
        ("another port", TraceFilter { listen_port: [0, 81], ..listen }, false),
        ("its service", TraceFilter { flags: filter::ACTIVE | filter::SERVICE, ..ALL }, true),
        (
            "a reason",
            TraceFilter {
                flags: filter::ACTIVE | filter::REASON,
                reason: Reason::NoFlow as u32,
                ..ALL
            },
            false,
        ),
        ("what is refused", TraceFilter { flags: filter::ACTIVE | filter::REFUSED, ..ALL }, false),
    ];
    for (port, (name, wants, is_wanted)) in (40_000..).zip(wanted) {
        kernel.set_trace(1, &wants)?;
        let client = std::net::SocketAddr::new(other.ip(), port);
        let outcome = kernel.run(&Frame::tcp(client, net.vip, SYN).build())?;
        ensure!(outcome.xdp == Xdp::Transmit, "{name}: {:?}", outcome.xdp);
        let records = kernel.take_traces()?;
        ensure!(records.len() == usize::from(is_wanted), "{name}: {} records", records.len());
        ensure!(records.iter().all(|record| record.wanted == 2), "{name}: another trace's");
        // Only to or from its backend.
        if let Some(record) = records.first() {
            let backend =
                |id| TraceFilter { flags: filter::ACTIVE | filter::BACKEND, backend: id, ..ALL };
            kernel.set_trace(1, &backend(record.backend))?;
            kernel.run(&Frame::tcp(client, net.vip, SYN).build())?;
            ensure!(kernel.take_traces()?.len() == 1, "{name}: its own backend");
            kernel.set_trace(1, &backend(record.backend + 100))?;
            kernel.run(&Frame::tcp(client, net.vip, SYN).build())?;
            ensure!(kernel.take_traces()?.is_empty(), "{name}: another backend");
        }
    }
    // Refused: to a port without a service nothing is forwarded.
    let lonely = std::net::SocketAddr::new(net.vip.ip(), 9);
    kernel.set_trace(1, &TraceFilter { flags: filter::ACTIVE | filter::REFUSED, ..ALL })?;
    kernel.run(&Frame::tcp(net.client, lonely, SYN).build())?;
    let records = kernel.take_traces()?;
    ensure!(records.len() == 1 && records[0].reason == Reason::NoService as u32);
    Ok(())
}

#[test]
fn one_in_so_many_is_taken() -> Result<()> {
    let mut kernel = Kernel::load_traced(4096)?;
    let net = Net::v4();
    kernel.reset(&net.setup(Balance::Maglev))?;
    kernel.set_trace(0, &TraceFilter { one_in: 5, ..ALL })?;
    kernel.set_trace(3, &TraceFilter { flags: filter::ACTIVE | filter::REFUSED, ..ALL })?;
    let packet = Frame::tcp(net.client, net.vip, SYN).build();
    for _ in 0..100 {
        kernel.run(&packet)?;
    }
    // Each CPU counts by itself, and the test may move between them.
    let taken = kernel.take_traces()?.len();
    let most = 20 + aya::util::nr_cpus().map_err(|(_, error)| error)?;
    ensure!((20..=most).contains(&taken), "{taken} of 100");
    Ok(())
}

#[test]
fn what_finds_no_room_is_counted() -> Result<()> {
    let mut kernel = Kernel::load_traced(4096)?;
    let net = Net::v4();
    kernel.reset(&net.setup(Balance::Maglev))?;
    kernel.set_trace(2, &ALL)?;
    let packet = Frame::tcp(net.client, net.vip, SYN).build();
    let fit = TRACES_BYTES as usize / (size_of::<TraceRecord>() + 8);
    for _ in 0..fit + 100 {
        kernel.run(&packet)?;
    }
    let lost = kernel.lost_traces(2)?;
    let taken = kernel.take_traces()?.len();
    ensure!((100..110).contains(&lost), "{lost} lost");
    ensure!(taken + lost as usize == fit + 100, "{taken} taken, {lost} lost");
    Ok(())
}

/// The plain program pays nothing: it is smaller by all that traces add, and its entry, where the hot
/// path is, does not even ask.
#[test]
fn the_plain_program_has_nothing_of_it() -> Result<()> {
    let plain = Kernel::load(64)?.program()?;
    let traced = Kernel::load_traced(64)?.program()?;
    let (plain, traced) = (plain.size_translated(), traced.size_translated());
    ensure!(plain < traced, "{plain:?} bytes without traces, {traced:?} with");

    let of_traces = |name: &String| name.to_lowercase().starts_with("trace");
    let plain = named_by(names::PROGRAM)?;
    ensure!(plain.iter().any(|name| name == names::FLOWS), "{plain:?} is no hot path");
    ensure!(!plain.iter().any(of_traces), "the hot path asks for {plain:?}");
    let traced = named_by("trace_known")?;
    ensure!(traced.iter().any(of_traces), "the hot path of the variant asks only for {traced:?}");
    Ok(())
}

/// The maps, globals and functions that a function of the object names. Calls within one section have
/// no name.
fn named_by(function: &str) -> Result<BTreeSet<String>> {
    let file = File::parse(OBJECT).context("read the object")?;
    let symbol = file.symbol_by_name(function).context("find the function")?;
    let code = symbol.address()..symbol.address() + symbol.size();
    let index = symbol.section_index().context("find its section")?;
    let mut found = BTreeSet::new();
    for (at, relocation) in file.section_by_index(index)?.relocations() {
        if let RelocationTarget::Symbol(index) = relocation.target()
            && code.contains(&at)
        {
            found.insert(file.symbol_by_index(index)?.name()?.to_owned());
        }
    }
    Ok(found)
}
