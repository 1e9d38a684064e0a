//! `ballast run` and `ballast detach`: what works on the kernel itself.

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use super::{LogFormat, RunArgs, check, colour, output::print};
use crate::{
    config::{self, report::render},
    control::daemon,
};

/// Runs the daemon.
pub(super) fn run(args: RunArgs, socket: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    log_to_stderr(args.log_format)?;
    let loaded = match config::load(&args.config.path) {
        Ok(loaded) => loaded,
        Err(rejected) => {
            check::refuse(&args.config.path, &rejected);
            return Ok(ExitCode::FAILURE);
        }
    };
    eprint!("{}", render(&loaded.warnings, &loaded.source, colour()));
    let options = daemon::Options {
        // A reload must find the file even if it was named from another directory.
        config_path: std::path::absolute(&args.config.path).context("find the configuration")?,
        node: args.node,
        socket,
        state_dir: args.state_dir,
        pins: args.pin_dir,
        discard_pins: args.discard_pins,
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().build().context("start the runtime")?;
    runtime.block_on(daemon::run(options, loaded))?;
    Ok(ExitCode::SUCCESS)
}

/// Takes away what a stopped daemon left.
pub(super) fn detach(
    path: &Path,
    node: Option<&str>,
    pins: Option<PathBuf>,
    socket: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let config = match config::load(path) {
        Ok(loaded) => loaded.config,
        Err(rejected) => {
            check::refuse(path, &rejected);
            return Ok(ExitCode::FAILURE);
        }
    };
    let node = daemon::find_node(&config, node)?;
    let pins = pins.unwrap_or_else(|| config.paths.pins.clone());
    let socket = socket.unwrap_or_else(|| config.paths.socket.clone());
    let mut lines = String::new();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(daemon::detach(&node.interface, &pins, &socket, |line| {
        lines.push_str(&line);
        lines.push('\n');
    }));
    if lines.is_empty() && result.is_ok() {
        lines.push_str("nothing was left\n");
    }
    print(&lines)?;
    result.map(|()| ExitCode::SUCCESS)
}

fn log_to_stderr(format: LogFormat) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => {
            EnvFilter::try_new(filter).context("understand RUST_LOG")?
        }
        _ => EnvFilter::new("info"),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => {
            builder.with_target(false).with_ansi(colour() && io::stderr().is_terminal()).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
