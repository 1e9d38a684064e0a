//! `ballast pg rejoin`.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Db, agreed, block_on, print};
use crate::{
    admin::{client::Call, postgres::Rejoin},
    clock,
    postgres::{rejoin::Remote, sample::Role, status::Database},
};

pub(super) const HELP: &str = "\
Examples:
  ballast pg rejoin pg-01            prints the commands; asks and runs them, if `command` is configured
  ballast pg rejoin pg-01 --yes
  ballast pg rejoin pg-01 --clone    does not try to rewind it

Writes of the server that the primary does not have are lost: save them first if they matter.";

/// How long the server may take, once it is started, until it streams from the primary.
const STREAM: Duration = Duration::from_mins(2);

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(in crate::cli) struct RejoinArgs {
    /// Name of the server
    server: String,
    #[command(flatten)]
    db: Db,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Clone it anew, and do not try to rewind it
    #[arg(long)]
    clone: bool,
    /// Print what would be done, and end
    #[arg(long, conflicts_with = "yes")]
    print: bool,
}

pub(super) fn rejoin(socket: &Path, args: &RejoinArgs) -> anyhow::Result<ExitCode> {
    let call = Call::get(&["postgres", "rejoin", &args.server])
        .with("db", args.db.name.as_deref())
        .with("clone", args.clone.then_some("true"));
    let Rejoin { message, remote } = block_on(call.json(socket))?;
    let Some(remote) = remote else {
        print(&format!("{}\n", message.trim_end()))?;
        return Ok(ExitCode::SUCCESS);
    };
    let Remote { command, script } = &remote;
    print(&format!("# {} sh -s <<'EOF'\n{}\n# EOF\n", command.join(" "), script.trim_end()))?;
    if args.print {
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !agreed(&format!("Run this on the host of {}?", args.server))? {
        return Ok(ExitCode::FAILURE);
    }
    run(&remote)?;
    wait(socket, args)?;
    print(&format!("{} is a standby, and streams\n", args.server))?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the shell, and gives it the script.
fn run(Remote { command, script }: &Remote) -> anyhow::Result<()> {
    let [program, words @ ..] = &command[..] else { bail!("`command` is empty") };
    let mut child = Command::new(program)
        .args(words)
        .args(["sh", "-s"])
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let stdin = child.stdin.take();
    stdin.context("reach the shell")?.write_all(script.as_bytes()).context("give it the script")?;
    let status = child.wait().context("wait for the shell")?;
    if !status.success() {
        bail!("it ended with {status}: what it has done so far may be repeated");
    }
    Ok(())
}

/// Waits until the server streams.
fn wait(socket: &Path, args: &RejoinArgs) -> anyhow::Result<()> {
    let until = clock::monotonic() + STREAM;
    loop {
        let all: Vec<Database> = block_on(Call::get(&["postgres"]).json(socket))?;
        let of = |it: &&Database| args.db.name.as_ref().is_none_or(|name| it.name == *name);
        let mut servers = all.iter().filter(of).flat_map(|it| &it.servers);
        let server = servers.find(|it| it.name == args.server).context("find the server")?;
        let standby = server.answers && server.role == Some(Role::Standby);
        if standby && server.streams_from.is_some() && server.read_only.state == "serves" {
            return Ok(());
        }
        if clock::monotonic() >= until {
            let why = server.failure.clone().unwrap_or_else(|| server.read_only.why.clone());
            bail!("{} was started and does not stream: {why}", args.server);
        }
        thread::sleep(LOOK);
    }
}
