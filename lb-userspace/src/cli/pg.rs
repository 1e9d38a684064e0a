//! `ballast pg`: the databases.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::{
    ConfigFile,
    ask::block_on,
    output::{bytes, columns, print},
};
use crate::{
    admin::{Done, client::Call},
    config::{self, units},
    postgres::{
        failover::Plan,
        record::Phase,
        sample::Role,
        setup,
        status::{Asks, Database, Server},
    },
};

mod rejoin;

#[derive(Debug, Subcommand)]
pub(super) enum PgCommand {
    /// Show the databases: who is the primary, who follows, who gets what
    Status {
        #[command(flatten)]
        db: Db,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the SQL that makes the role that ballast asks the servers as
    #[command(after_help = "Example:\n  ballast pg setup | psql -h 192.0.2.31 -U postgres")]
    Setup {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        db: Db,
    },
    /// Make a standby the primary, because the primary is down
    ///
    /// Every balancer first stops to let writes through; then all standbys are taken off the old primary,
    /// the most advanced is promoted, shows that it takes writes, and gets the connections. The old primary
    /// gets no packet from then on. What is lost is said first. A daemon that is killed on the way goes on
    /// where it was.
    #[command(after_help = PROMOTE_HELP)]
    Promote(PromoteArgs),
    /// Hand over from a primary that lives to a standby, and lose nothing
    ///
    /// Transactions that are older than a second come to their end first, while everything goes on. Then
    /// open connections are reset, and new ones wait, for 10 s at most: their clients see a slow connect.
    #[command(
        after_help = "Examples:\n  ballast pg switchover --dry-run\n  ballast pg switchover pg-02 --yes"
    )]
    Switchover(SwitchoverArgs),
    /// Agree to a promotion that is announced: it is done at once
    Approve(TokenArgs),
    /// Forbid a promotion that is announced
    Veto(TokenArgs),
    /// Let commits go on without the synchronous standbys that they wait for, until `restore`
    ///
    /// All balancers, or etcd, keep first that a promotion proves nothing from now on; then
    /// `synchronous_standby_names` of the primary is emptied, and the commits that hang return. Should the
    /// primary be lost before `restore`, what was acknowledged since may be lost with it.
    #[command(
        after_help = "Example:\n  ballast pg degrade     the only standby is down, and writes hang"
    )]
    Degrade(DegradeArgs),
    /// Let commits wait for the synchronous standbys again
    ///
    /// `synchronous_standby_names` is as it was, and the standbys have all that was committed meanwhile, before
    /// a promotion counts on it again.
    Restore {
        #[command(flatten)]
        db: Db,
    },
    /// Let no packet through to a server, until `unfence`
    Fence(ServerArgs),
    /// Take a fence back, or give up a change of the primary that is stuck
    Unfence {
        #[command(flatten)]
        server: ServerArgs,
        /// Although another server may have been promoted: its writes are then lost
        #[arg(long)]
        force: bool,
    },
    /// Make a server, such as the old primary, a standby of the primary
    ///
    /// Without `command` in the configuration it prints what is to be done on the server's host. With it,
    /// a shell is started there, as the user who calls this, and does it: stops the server, rewinds it to
    /// where the primary went on, or else clones it anew, gives it its own settings and a slot, and starts it.
    #[command(after_help = rejoin::HELP)]
    Rejoin(rejoin::RejoinArgs),
}

const PROMOTE_HELP: &str = "\
Examples:
  ballast pg promote                         shows what would be lost, and asks
  ballast pg promote pg-02 --yes
  ballast pg promote --peer-is-down lb-02    the other balancer is switched off";

#[derive(Debug, Args)]
pub(super) struct Db {
    /// Name of the database, if there are several
    #[arg(long = "db", value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// Name of the server
    server: String,
    #[command(flatten)]
    db: Db,
}

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// The token of the announcement, which `ballast pg status` shows too
    token: String,
    #[command(flatten)]
    db: Db,
}

#[derive(Debug, Args)]
pub(super) struct DegradeArgs {
    #[command(flatten)]
    db: Db,
    /// Although the standbys are there
    #[arg(long)]
    force: bool,
    /// This balancer is switched off, and has promoted no standby that this one does not reach
    #[arg(long = "peer-is-down", value_name = "NODE")]
    absent: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    /// The standby to promote [default: the most advanced]
    server: Option<String>,
    #[command(flatten)]
    db: Db,
    /// Do not ask: what is shown may be lost
    #[arg(long)]
    yes: bool,
    /// Also if it cannot be said what is lost
    #[arg(long)]
    accept_data_loss: bool,
    /// This balancer is switched off, or has no floating address: it does not answer, and need not
    #[arg(long = "peer-is-down", value_name = "NODE")]
    absent: Vec<String>,
    /// Although the primary lives, or another candidate may have been promoted
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct SwitchoverArgs {
    /// The standby to hand over to [default: the most advanced]
    server: Option<String>,
    #[command(flatten)]
    db: Db,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Ask the servers all that the change will, show what it would find, and end
    #[arg(long)]
    dry_run: bool,
    /// Transactions that are older than a second may go on for so long, while nothing changes yet
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    wait: Duration,
    /// Then end those that are open still; if not, nothing is changed
    #[arg(long)]
    cut: bool,
    /// This balancer is switched off, or has no floating address
    #[arg(long = "peer-is-down", value_name = "NODE")]
    absent: Vec<String>,
}

/// Runs the command.
pub(super) fn run(socket: &Path, command: PgCommand) -> anyhow::Result<ExitCode> {
    match command {
        PgCommand::Status { db, json } => status(socket, db.name.as_deref(), json)?,
        PgCommand::Setup { config, db } => print(&setup_sql(&config, db.name.as_deref())?)?,
        PgCommand::Promote(args) => return promote(socket, &args),
        PgCommand::Switchover(args) => return switchover(socket, &args),
        PgCommand::Approve(args) => {
            obey(socket, Call::post(&["postgres", "approve", &args.token]), &args.db)?;
        }
        PgCommand::Veto(args) => {
            obey(socket, Call::post(&["postgres", "veto", &args.token]), &args.db)?;
        }
        PgCommand::Degrade(args) => {
            let call = Call::post(&["postgres", "degrade"])
                .with("absent", joined(&args.absent).as_deref())
                .with("force", args.force.then_some("true"));
            obey(socket, call, &args.db)?;
        }
        PgCommand::Restore { db } => obey(socket, Call::post(&["postgres", "restore"]), &db)?,
        PgCommand::Fence(args) => {
            obey(socket, Call::post(&["postgres", "fence", &args.server]), &args.db)?;
        }
        PgCommand::Unfence { server: args, force } => {
            let call = Call::post(&["postgres", "unfence", &args.server]);
            obey(socket, call.with("force", force.then_some("true")), &args.db)?;
        }
        PgCommand::Rejoin(args) => {
            return rejoin::rejoin(socket, &args);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn obey(socket: &Path, call: Call, db: &Db) -> anyhow::Result<()> {
    let Done { message } = block_on(call.with("db", db.name.as_deref()).json(socket))?;
    Ok(print(&format!("{}\n", message.trim_end()))?)
}

fn setup_sql(file: &ConfigFile, name: Option<&str>) -> anyhow::Result<String> {
    let config = config::load(&file.path)?.config;
    let known: Vec<_> = config.databases.iter().map(|it| it.name.as_str()).collect();
    let database = match (name, &config.databases[..]) {
        (None, [one]) => one,
        (None, []) => bail!("the configuration has no [[postgres]]"),
        (None, _) => bail!("name one database with --db: {}", known.join(", ")),
        (Some(name), all) => all.iter().find(|it| it.name == name).with_context(|| {
            format!("no database is called {name}; there are: {}", known.join(", "))
        })?,
    };
    Ok(setup::sql(database))
}

fn status(socket: &Path, db: Option<&str>, json: bool) -> anyhow::Result<()> {
    let text = block_on(Call::get(&["postgres"]).text(socket))?;
    let all: Vec<Database> =
        serde_json::from_str(&text).context("understand the daemon's answer")?;
    if all.is_empty() {
        bail!("the configuration has no [[postgres]]");
    }
    if let Some(name) = db
        && !all.iter().any(|it| it.name == name)
    {
        let known: Vec<_> = all.iter().map(|it| it.name.as_str()).collect();
        bail!("no database is called {name}; there are: {}", known.join(", "));
    }
    if json {
        return Ok(print(&format!("{text}\n"))?);
    }
    let shown = all.iter().filter(|it| db.is_none_or(|name| it.name == name));
    Ok(print(&shown.map(render).collect::<Vec<_>>().join("\n"))?)
}

/// One database, for people.
pub(super) fn render(database: &Database) -> String {
    let listen = [("writes", database.read_write), ("reads", database.read_only)];
    let listen = listen.iter().filter_map(|(word, at)| Some(format!("  {word} {}", (*at)?)));
    let mut out = format!("DATABASE {}{}", database.name, listen.collect::<String>());
    // Writing to a `String` cannot fail.
    let _ = write!(out, "  epoch {}  promotion {}", database.epoch, database.promotion);
    match (&database.writes_to, &database.problem) {
        (Some(server), _) => {
            let _ = writeln!(out, "  writes go to {server}");
        }
        (None, problem) => {
            let why = problem.as_deref().unwrap_or("no primary is known yet");
            let _ = writeln!(out, "  NO WRITES: {why}");
        }
    }
    for warning in &database.warnings {
        let _ = writeln!(out, "  warning: {warning}");
    }
    if let Some(degraded) = &database.degraded {
        let _ = writeln!(out, "  DEGRADED: {}", degraded.describe());
    }
    if let Some(change) = &database.change {
        let word = match database.phase {
            Some(Phase::Frozen) => "stuck",
            _ => "under way",
        };
        let to = change.candidate.as_deref().map(|it| format!(" to {it}")).unwrap_or_default();
        let why = change.stuck.as_deref().map(|it| format!(": {it}")).unwrap_or_default();
        let _ = writeln!(out, "  change{to} {word}, by {}{why}", change.by);
    }
    if let Some(Asks { candidate, approve, veto, answer }) = &database.asks {
        let _ = match answer {
            None => writeln!(
                out,
                "  the primary has failed: {candidate} will be promoted. `ballast pg approve {approve}` \
                 does it now, `ballast pg veto {veto}` forbids it"
            ),
            Some(true) => writeln!(out, "  the promotion of {candidate} is agreed to"),
            Some(false) => writeln!(out, "  the promotion of {candidate} is forbidden"),
        };
    }
    if let Some(refused) = &database.refused {
        let _ = writeln!(out, "  the last change came to nothing: {refused}");
    }
    if let Some(report) = &database.losses {
        let file = report.file.display();
        let _ =
            writeln!(out, "  epoch {}: {}; all of them in {file}", report.epoch, report.describe());
    }
    let head = ["SERVER", "ADDRESS", "ROLE", "TIMELINE", "LOG", "BEHIND", "WRITES", "READS", "WHY"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(database.servers.iter().map(row));
    out.push_str(&columns(&rows, 2));
    out
}

fn row(server: &Server) -> Vec<String> {
    let role = match server.role {
        None => "unknown",
        Some(_) if !server.answers => "no answer",
        Some(Role::Primary) => "primary",
        Some(Role::Standby) if server.streams_from.is_some() => "standby",
        Some(Role::Standby) => "standby, alone",
    };
    let lag = match (server.lag_bytes, server.lag_ms) {
        (Some(lag), Some(millis)) if lag > 0 => {
            format!("{}, {:.1} s", bytes(lag), millis as f64 / 1e3)
        }
        (Some(_), _) => "0".into(),
        (None, _) => "-".into(),
    };
    let why = server.failure.clone().unwrap_or_else(|| {
        let route =
            if server.role == Some(Role::Primary) { &server.read_write } else { &server.read_only };
        route.why.clone()
    });
    vec![
        server.name.clone(),
        server.address.to_string(),
        role.into(),
        server.timeline.map_or_else(|| "-".into(), |it| it.to_string()),
        server.received.clone().unwrap_or_else(|| "-".into()),
        lag,
        server.read_write.state.clone(),
        server.read_only.state.clone(),
        why,
    ]
}

fn plan(socket: &Path, db: &Db, server: Option<&str>) -> anyhow::Result<Plan> {
    let call = Call::get(&["postgres", "plan"]).with("db", db.name.as_deref());
    block_on(call.with("server", server).json(socket))
}

/// What a plan says, for people.
fn describe(plan: &Plan, absent: &[String]) -> String {
    let mut out = String::new();
    // Writing to a `String` cannot fail.
    let from = plan.from.as_deref().unwrap_or("nobody");
    let to = plan.to.as_deref().unwrap_or("nobody");
    let _ = writeln!(out, "primary now:   {from}");
    for evidence in &plan.evidence {
        let _ = writeln!(out, "               {evidence}");
    }
    let _ = writeln!(out, "primary then:  {to}");
    let lost = match plan.loss {
        None => "not known: nothing is known of where the old primary was".to_owned(),
        Some(loss) if loss.proven => "nothing, as synchronous replication proves".to_owned(),
        Some(loss) if loss.at_most == 0 => "nothing that is known".to_owned(),
        Some(loss) => format!(
            "{} bytes of acknowledged writes are known to be missing, at most {}",
            loss.known, loss.at_most
        ),
    };
    let _ = writeln!(out, "lost:          {lost}");
    let asked: Vec<_> =
        plan.balancers.iter().filter(|it| !absent.contains(it)).map(String::as_str).collect();
    if !asked.is_empty() {
        let _ = writeln!(out, "must agree:    {}", asked.join(", "));
    }
    out
}

/// Asks on the terminal.
fn agreed(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("nobody can be asked here: --yes agrees");
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn joined(absent: &[String]) -> Option<String> {
    let all: BTreeSet<&str> = absent.iter().map(String::as_str).collect();
    (!all.is_empty()).then(|| all.into_iter().collect::<Vec<_>>().join(","))
}

fn promote(socket: &Path, args: &PromoteArgs) -> anyhow::Result<ExitCode> {
    let plan = plan(socket, &args.db, args.server.as_deref())?;
    // Without a primary there is nothing to plan: the server that is named is taken as it is.
    let planned = plan.from.is_some();
    if planned {
        print(&describe(&plan, &args.absent))?;
        if let Some(why) = &plan.refused {
            bail!("{why}");
        }
        if plan.alive && !args.force {
            bail!(
                "the primary lives: `ballast pg switchover` loses nothing, if it lets us in; --force promotes all the \
                 same"
            );
        }
        if plan.loss.is_none() && !args.accept_data_loss {
            bail!("it cannot be said what is lost: --accept-data-loss goes on all the same");
        }
        let to = plan.to.as_deref().unwrap_or_default();
        if !args.yes && !agreed(&format!("Promote {to}?"))? {
            return Ok(ExitCode::FAILURE);
        }
    }
    let limit = plan.loss.map(|loss| loss.at_most.to_string()).filter(|_| !args.accept_data_loss);
    let call = Call::post(&["postgres", "promote"])
        .with("server", args.server.as_deref())
        .with("may_lose", limit.as_deref())
        .with("absent", joined(&args.absent).as_deref())
        .with("force", args.force.then_some("true"));
    obey(socket, call, &args.db)?;
    Ok(ExitCode::SUCCESS)
}

fn switchover(socket: &Path, args: &SwitchoverArgs) -> anyhow::Result<ExitCode> {
    let plan = plan(socket, &args.db, args.server.as_deref())?;
    print(&describe(&plan, &args.absent))?;
    if let Some(why) = &plan.refused {
        bail!("{why}");
    }
    if !plan.alive {
        bail!("the primary does not answer: `ballast pg promote`");
    }
    let call = Call::post(&["postgres", "switchover"])
        .with("server", args.server.as_deref())
        .with("absent", joined(&args.absent).as_deref())
        .with("wait_ms", Some(&args.wait.as_millis().to_string()))
        .with("cut", args.cut.then_some("true"))
        .with("dry_run", args.dry_run.then_some("true"));
    if args.dry_run {
        obey(socket, call, &args.db)?;
        return Ok(ExitCode::SUCCESS);
    }
    let to = plan.to.as_deref().unwrap_or_default();
    if !args.yes && !agreed(&format!("Hand over to {to}?"))? {
        return Ok(ExitCode::FAILURE);
    }
    obey(socket, call, &args.db)?;
    Ok(ExitCode::SUCCESS)
}
