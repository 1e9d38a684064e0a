//! The figures as a table.

use std::fmt;

use super::{CONNECTIONS, Case, Report};
use crate::{machine::Machine, measure::median};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, kernel, .. } = &self.machine;
        writeln!(
            f,
            "{cpu} · Linux {kernel} · one thread on one CPU each · {CONNECTIONS} clients · median of \
             {} rounds",
            self.load.rounds
        )?;
        for case in Case::ALL {
            let figures = || self.figures.iter().filter(|figure| figure.case == case);
            if figures().next().is_none() {
                continue;
            }
            writeln!(f)?;
            write!(f, "{:<40}", case.name())?;
            for heading in
                ["requests/CPU-s", "× nginx", "requests/s", "p50 ms", "p99 ms", "× nginx"]
            {
                write!(f, "{heading:>15}")?;
            }
            writeln!(f)?;
            for figure in figures() {
                writeln!(
                    f,
                    "  {:<38}{:>15.0}{:>15.2}{:>15.0}{:>15.2}{:>15.2}{:>15.2}",
                    figure.front.name(),
                    figure.requests_per_cpu_second,
                    figure.times_nginx,
                    figure.requests_per_second,
                    figure.p50_us / 1e3,
                    figure.p99_us / 1e3,
                    median(&figure.p99_times_nginx),
                )?;
            }
        }
        for (at, calm) in self.calm.iter().enumerate() {
            if at == 0 || self.calm[at - 1].case != calm.case {
                writeln!(f)?;
                let line = format!("{}, {:.0}/s", calm.case.name(), calm.requests_per_second);
                writeln!(f, "{line:<85}{:>15}{:>15}{:>15}", "p50 ms", "p99 ms", "× nginx")?;
            }
            writeln!(
                f,
                "  {:<83}{:>15.2}{:>15.2}{:>15.2}",
                calm.front.name(),
                calm.p50_us / 1e3,
                calm.p99_us / 1e3,
                median(&calm.p99_times_nginx),
            )?;
        }
        writeln!(f)?;
        if !self.idle.is_empty() {
            writeln!(f, "{:<40}{:>15}", "open and unused connections", "KiB each")?;
        }
        for idle in &self.idle {
            writeln!(f, "  {:<38}{:>15.1}", idle.front.name(), idle.bytes_per_connection / 1024.0)?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{CONNECTIONS} clients ask again at once, or when the next request is due, at a quarter of nginx's \
             rate at its\nlimit; a request that is due while the one before it is under way has waited since \
             then.\n\
             CPU-s: CPU time of the proxy's process and its children, by /proc. nginx with\n\
             `proxy_http_version 1.1`, an empty `Connection`, `keepalive` and no temporary files.\n\
             All of them behind an XDP program: ballast's own, and one for the others that passes every\n\
             packet. Without that one nginx does up to a tenth more."
        )
    }
}
