//! `ballast check`.

use std::{path::Path, process::ExitCode};

use serde_json::json;

use super::{colour, output::print};
use crate::config::{
    self, Loaded, Rejected,
    report::{render, summary},
};

/// Checks a file: exit code 0 or 1.
pub(super) fn check(path: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let result = config::load(path);
    let code = if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if as_json {
        let value = match &result {
            Ok(Loaded { config, warnings, .. }) => {
                let (services, backends) = count(config);
                json!({
                    "valid": true,
                    "services": services,
                    "backends": backends,
                    "diagnostics": warnings,
                    "advice": config::advice(config),
                })
            }
            Err(Rejected { diagnostics, .. }) => {
                json!({ "valid": false, "diagnostics": diagnostics })
            }
        };
        print(&format!("{value:#}\n"))?;
        return Ok(code);
    }
    match result {
        Ok(Loaded { config, warnings, source }) => {
            eprint!("{}", render(&warnings, &source, colour()));
            let (services, backends) = count(&config);
            let mut line =
                format!("ok: {}, {}", plural(services, "service"), plural(backends, "backend"));
            if !warnings.is_empty() {
                line = format!("{line}, {}", summary(&warnings));
            }
            print(&format!("{line}\n{}", config::advice(&config)))?;
        }
        Err(rejected) => refuse(path, &rejected),
    }
    Ok(code)
}

/// Prints what is wrong with a file.
pub(super) fn refuse(path: &Path, rejected: &Rejected) {
    eprint!("{}", render(&rejected.diagnostics, &rejected.source, colour()));
    eprintln!("{}: {}", path.display(), summary(&rejected.diagnostics));
}

fn count(config: &config::Config) -> (usize, usize) {
    let backends = config.services.iter().map(|service| service.backends.len()).sum();
    (config.services.len(), backends)
}

pub(super) fn plural(count: usize, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}
