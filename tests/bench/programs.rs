//! The loaded programs and their maps.

use std::{
    fs, io, mem,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData, PerCpuArray, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use ballast::dataplane::load::{FLOORS_PATH, OBJECT};
use lb_common::{
    limits::DEFAULT_FLOWS,
    names,
    reason::Reason,
    stats::{BackendStats, ServiceStats},
};
use lb_ebpf::family::{V4, V6};

use crate::{
    cases::{Counter, Scope, Under},
    configure, fill,
    net::Version,
    plan::{PACKET_LEN, Plan},
};

// SAFETY: repr(C), integers and a byte array without padding between them.
unsafe impl Pod for Plan {}
const _: () = assert!(size_of::<Plan>() == 32 + PACKET_LEN);

/// Room beyond the flows themselves: the table hands out free entries to CPUs in lots, and begins to
/// evict when the last lot is out.
const SLACK: u32 = 16_384;

/// The data path, the floors and the trampoline.
pub(crate) struct Programs {
    ballast: Ebpf,
    floors: Ebpf,
    program: ProgramFd,
    under_test: ProgramArray<MapData>,
    plan: Array<MapData, Plan>,
}

/// What some runs cost, and how the last of them ended.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) ns: f64,
    pub(crate) action: u32,
    pub(crate) output: Vec<u8>,
}

impl Programs {
    /// Loads all, with flow tables of the size that the scope needs.
    pub(crate) fn load(scope: Scope) -> anyhow::Result<Self> {
        let max_flows = DEFAULT_FLOWS.max(2 * scope.connections + SLACK);
        let mut ballast = EbpfLoader::new()
            .map_max_entries(names::FLOWS, max_flows)
            .map_max_entries(names::FLOWS6, max_flows)
            .load(OBJECT)
            .context("load the data path")?;
        let program = load_program(&mut ballast, names::PROGRAM)?;

        let object = fs::read(FLOORS_PATH).with_context(|| format!("read {FLOORS_PATH}"))?;
        let pins = Pins::create()?;
        let mut loader = EbpfLoader::new();
        for name in [names::FLOWS, names::FLOWS6, names::SERVICES, names::BACKENDS, names::MAGLEV] {
            let path = pins.0.join(name);
            map(&ballast, name)?.pin(&path).context("pin a map")?;
            loader.map_pin_path(name, path);
        }
        let mut floors = loader.load(&object).context("load the floors")?;
        drop(pins);
        for name in ["trampoline4", "trampoline6"]
            .into_iter()
            .chain(Under::FLOORS.iter().map(|under| under.name()))
        {
            load_program(&mut floors, name)?;
        }
        let under_test =
            ProgramArray::try_from(take(&mut floors, "UNDER_TEST")?).context("open UNDER_TEST")?;
        let plan = Array::try_from(take(&mut floors, "PLAN")?).context("open PLAN")?;
        Ok(Self { ballast, floors, program, under_test, plan })
    }

    /// Writes the configuration and the flows.
    pub(crate) fn fill(&mut self, scope: Scope) -> anyhow::Result<()> {
        configure::write(&mut self.ballast)?;
        for (name, version) in [(names::FLOWS, Version::V4), (names::FLOWS6, Version::V6)] {
            let Map::LruHashMap(table) = map(&self.ballast, name)? else {
                return Err(anyhow!("{name} is of another type"));
            };
            let table = table.fd().as_fd();
            for carried in scope.carried() {
                let protocol = carried.protocol();
                match version {
                    Version::V4 => fill::flows::<V4>(table, version, protocol, scope.connections)?,
                    Version::V6 => fill::flows::<V6>(table, version, protocol, scope.connections)?,
                }
            }
        }
        Ok(())
    }

    /// Puts a program under test, with a plan.
    pub(crate) fn prepare(&mut self, under: Under, plan: Plan) -> anyhow::Result<()> {
        self.plan.set(0, plan, 0).context("write the plan")?;
        let floor;
        let program = if under == Under::Ballast {
            &self.program
        } else {
            let program: &Xdp = self
                .floors
                .program(under.name())
                .ok_or_else(|| anyhow!("no program {}", under.name()))?
                .try_into()?;
            floor = program.fd()?.try_clone()?;
            &floor
        };
        self.under_test.set(0, program, 0).context("put the program into its slot")
    }

    /// Runs what [`Self::prepare`] prepared.
    pub(crate) fn run(
        &mut self,
        version: Version,
        plan: &Plan,
        repeats: u32,
    ) -> anyhow::Result<Run> {
        let name = match version {
            Version::V4 => "trampoline4",
            Version::V6 => "trampoline6",
        };
        let program: &Xdp =
            self.floors.program(name).ok_or_else(|| anyhow!("no program {name}"))?.try_into()?;
        let mut output = vec![0; 2 * PACKET_LEN];
        let before = cpu_time()?;
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&plan.packet),
                data_out: Some(&mut output),
                repeat: repeats,
                ..TestRunOptions::default()
            })
            .context("run the program")?;
        // The kernel gives its own figure in whole nanoseconds, which is too coarse.
        let spent = cpu_time()?.saturating_sub(before);
        output.truncate(result.data_size_out as usize);
        Ok(Run {
            ns: spent.as_nanos() as f64 / f64::from(repeats),
            action: result.return_value,
            output,
        })
    }

    /// Reads a counter, summed over CPUs and entries.
    pub(crate) fn count(&self, counter: Counter) -> anyhow::Result<u64> {
        match counter {
            Counter::None => Ok(0),
            Counter::Forward => self.backends(|stats| stats.forward_packets),
            Counter::Return => self.backends(|stats| stats.return_packets),
            Counter::Connections => {
                let stats: PerCpuArray<_, ServiceStats> =
                    PerCpuArray::try_from(map(&self.ballast, names::SERVICE_STATS)?)?;
                sum(&stats, 0..configure::SERVICES, |stats| stats.connections)
            }
            Counter::Reason(reason) => self.reason(reason),
            Counter::Floor => {
                let count: PerCpuArray<_, u64> =
                    PerCpuArray::try_from(map(&self.floors, "COUNT")?)?;
                sum(&count, 0..1, |count| count)
            }
        }
    }

    fn backends(&self, field: fn(BackendStats) -> u64) -> anyhow::Result<u64> {
        let stats: PerCpuArray<_, BackendStats> =
            PerCpuArray::try_from(map(&self.ballast, names::BACKEND_STATS)?)?;
        sum(&stats, 0..configure::BACKENDS, field)
    }

    fn reason(&self, reason: Reason) -> anyhow::Result<u64> {
        let reasons: PerCpuArray<_, u64> =
            PerCpuArray::try_from(map(&self.ballast, names::REASONS)?)?;
        sum(&reasons, reason as u32..reason as u32 + 1, |count| count)
    }
}

fn sum<V: Pod>(
    array: &PerCpuArray<&MapData, V>,
    indices: std::ops::Range<u32>,
    field: impl Fn(V) -> u64,
) -> anyhow::Result<u64> {
    let mut sum = 0;
    for index in indices {
        sum += array.get(&index, 0)?.iter().map(|value| field(*value)).sum::<u64>();
    }
    Ok(sum)
}

fn load_program(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<ProgramFd> {
    let program: &mut Xdp =
        ebpf.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?.try_into()?;
    program.load().with_context(|| format!("load {name}"))?;
    Ok(program.fd()?.try_clone()?)
}

fn map<'a>(ebpf: &'a Ebpf, name: &str) -> anyhow::Result<&'a Map> {
    ebpf.map(name).ok_or_else(|| anyhow!("no map {name}"))
}

fn take(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<Map> {
    ebpf.take_map(name).ok_or_else(|| anyhow!("no map {name}"))
}

/// CPU time of this thread: what others do meanwhile is not in it.
fn cpu_time() -> anyhow::Result<Duration> {
    // SAFETY: plain memory, for which zeros are valid.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: the time outlives the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error()).context("read the CPU time");
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// A directory of pins, by which the floors get the data path's tables. Removed with this value.
struct Pins(PathBuf);

impl Pins {
    fn create() -> anyhow::Result<Self> {
        let path = Path::new("/sys/fs/bpf").join(format!("ballast-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| {
            format!("create {} (is a BPF file system mounted there?)", path.display())
        })?;
        Ok(Self(path))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}
