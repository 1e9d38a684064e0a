//! Loading the program, and attaching it.

use std::{fs, os::fd::AsFd as _, path::Path};

use anyhow::{Context, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        Program, ProgramError, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        xdp::XdpLink,
    },
};
use lb_common::{names, trace::TRACES_BYTES};

use super::{AttachMode, Attachment, Options, cookies::Settings, grow, kernel, pins, ticks::Ticks};

/// The object that the build put into this binary. Aligned, because the ELF reader reads words.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ballast-xdp"));

/// Where the build left the programs that the benchmark measures ours against. A path, so that the
/// daemon does not carry them.
pub const FLOORS_PATH: &str = concat!(env!("OUT_DIR"), "/ballast-floors");

/// The two programs of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// The one that is in force nearly always.
    Plain,
    /// The one that shows each packet.
    Trace,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => names::PROGRAM,
            Self::Trace => names::TRACE_PROGRAM,
        }
    }
}

/// Loads one program of the object: its maps are those that are pinned, or are created and pinned. Those
/// that have been outgrown are created beside the old ones, and the filters are always new.
pub(super) fn load(
    options: &Options,
    variant: Variant,
    outgrown: &[&'static str],
) -> anyhow::Result<Ebpf> {
    let own_scale = Settings::read().own_scale();
    let mut loader = EbpfLoader::new();
    loader.override_global(names::OWN_SCALE, &own_scale, true);
    // The filters are data: each program has its own (`filters`).
    for layout in pins::layouts(options).into_iter().filter(|it| !names::is_data(it.name)) {
        let path = if outgrown.contains(&layout.name) {
            grow::path(&options.pins, layout.name)
        } else {
            options.pins.join(layout.name)
        };
        loader.map_pin_path(layout.name, path);
        if layout.is_sized() {
            loader.map_max_entries(layout.name, layout.max_entries);
        }
    }
    if variant == Variant::Trace {
        loader.override_global(names::TRACE, &1_u32, true);
        loader.map_max_entries(names::TRACES, TRACES_BYTES);
    }
    // Of what is pinned, so much goes on; without anything pinned, all is new.
    let pinned = pins::sizes(&options.pins).map_or(0, |sizes| sizes.services);
    loader.map_max_entries(names::SPENT, options.sizes.services.max(pinned));
    let mut ebpf = loader.load(OBJECT).map_err(explain).context("create the BPF maps")?;
    verified(&mut ebpf, variant.name())?;
    Ok(ebpf)
}

/// Learns the clock that flows are stamped with.
pub(super) fn ticks(ebpf: &mut Ebpf) -> anyhow::Result<Ticks> {
    let program = verified(ebpf, names::CLOCK_PROGRAM)?;
    Ticks::learn(program.fd().context("find the program that reads the clocks")?.as_fd())
}

/// The XDP program of this name in a loaded object, once the verifier has accepted it.
pub(super) fn verified<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = find(ebpf, name)?;
    program.load().map_err(|error| {
        let error = anyhow!(error);
        match error.downcast_ref::<ProgramError>() {
            Some(ProgramError::LoadError { io_error, verifier_log }) => anyhow!(
                "load the XDP program into Linux {}: {io_error}{}\n{}",
                kernel::release(),
                denied(io_error.raw_os_error()),
                tail(&verifier_log.to_string()),
            ),
            _ => error.context("load the XDP program"),
        }
    })?;
    Ok(program)
}

pub(super) fn explain(error: aya::EbpfError) -> anyhow::Error {
    let denied = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)));
    let hint = if denied { denied_hint() } else { "" };
    anyhow!(error).context(format!("bpf(2) refused{hint}"))
}

fn denied(errno: Option<i32>) -> &'static str {
    if matches!(errno, Some(libc::EPERM)) { denied_hint() } else { "" }
}

const fn denied_hint() -> &'static str {
    " (run as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW)"
}

/// The last lines of the verifier's log, where it says what it refused.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// An XDP program of a loaded object.
pub(super) fn program(ebpf: &mut Ebpf, variant: Variant) -> anyhow::Result<&mut Xdp> {
    find(ebpf, variant.name())
}

fn find<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program: &mut Program =
        ebpf.program_mut(name).with_context(|| format!("the object has no program `{name}`"))?;
    Ok(program.try_into()?)
}

/// Puts the program on an interface: into the link that a previous daemon pinned there, or else into
/// a new one, in the driver if it can.
pub(super) fn attach(
    program: &mut Xdp,
    pins: &Path,
    interface: &str,
    ifindex: u32,
) -> anyhow::Result<AttachMode> {
    for mode in [AttachMode::Driver, AttachMode::Generic] {
        let path = pins::link(pins, ifindex, mode);
        if path.exists() && take_over(program, &path)? {
            return Ok(mode);
        }
    }
    match attach_new(program, pins, ifindex, AttachMode::Driver) {
        Ok(()) => Ok(AttachMode::Driver),
        Err(driver_error) if is_busy(&driver_error) => bail!(
            "another XDP program is on {interface}: see it with `bpftool net show dev \
             {interface}`, remove it with `ip link set dev {interface} xdp off`"
        ),
        Err(driver_error) => {
            attach_new(program, pins, ifindex, AttachMode::Generic).with_context(|| {
                format!("attach to {interface} (and its driver refused: {driver_error:#})")
            })?;
            Ok(AttachMode::Generic)
        }
    }
}

/// Puts the program into every link that a previous daemon pinned. What cannot be taken over goes on with
/// the program that it has, and is the second part of the result, in sentences.
pub(super) fn take_over_all(
    program: &mut Xdp,
    pins: &Path,
) -> anyhow::Result<(Vec<Attachment>, Vec<String>)> {
    let (mut attachments, mut left) = (Vec::new(), Vec::new());
    for (ifindex, mode) in pins::links(pins)? {
        let interface = nix::net::if_::if_indextoname(ifindex).ok();
        let interface = interface.and_then(|name| name.into_string().ok());
        let interface = interface.filter(|name| !name.is_empty());
        match take_over(program, &pins::link(pins, ifindex, mode)) {
            Ok(true) => attachments.push(Attachment {
                interface: interface.unwrap_or_else(|| format!("number {ifindex}")),
                ifindex,
                mode,
            }),
            Ok(false) => {}
            Err(error) => left.push(format!(
                "the program of a previous daemon stays on interface {}: {error:#}",
                interface.unwrap_or_else(|| format!("number {ifindex}")),
            )),
        }
    }
    Ok((attachments, left))
}

/// Replaces the program in a pinned link, in one step. False, and the pin is gone, if the link's
/// interface is.
pub(super) fn take_over(program: &mut Xdp, path: &Path) -> anyhow::Result<bool> {
    let opened = PinnedLink::from_pin(path);
    if let Err(LinkError::SyscallError(error)) = &opened
        && error.io_error.raw_os_error() == Some(libc::ENOENT)
    {
        return Ok(false);
    }
    let link = opened.with_context(|| format!("open the pinned link {}", path.display()))?;
    let link = XdpLink::try_from(FdLink::from(link))
        .with_context(|| format!("use the pinned link {}", path.display()))?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // The pin keeps the link; this process's own handle on it is not needed.
            let link = program.take_link(id).context("hold the link")?;
            drop(FdLink::try_from(link).context("hold the link")?);
            Ok(true)
        }
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
        {
            fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
            Ok(false)
        }
        Err(error) => {
            Err(error).with_context(|| format!("replace the program of {}", path.display()))
        }
    }
}

fn attach_new(
    program: &mut Xdp,
    pins: &Path,
    ifindex: u32,
    mode: AttachMode,
) -> anyhow::Result<()> {
    let flags = match mode {
        AttachMode::Driver => XdpMode::Driver,
        AttachMode::Generic => XdpMode::Skb,
    };
    let id = program.attach_to_if_index(ifindex, flags)?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    let path = pins::link(pins, ifindex, mode);
    link.pin(&path).with_context(|| format!("pin {}", path.display()))?;
    Ok(())
}

fn is_busy(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.raw_os_error() == Some(libc::EBUSY))
}
