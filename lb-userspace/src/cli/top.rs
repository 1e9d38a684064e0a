//! `ballast top`: the terminal around [`crate::top`].

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::sync::mpsc;

use super::output::print;
use crate::{
    admin::client::{Call, Error},
    clock,
    events::Event,
    top::{Key, Model, Observation, view},
};

/// Flows asked for at each look: enough to find the busiest of a small site, and no load for a big one.
const FLOWS: &str = "5000";

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Columns of a screen that is printed where there is no terminal.
const PRINTED_WIDTH: u16 = 120;

/// Examples of the command.
pub(super) const HELP: &str = "\
Keys: q end, Tab another panel, arrows move through it, s sort, p stop the picture, h help. NO_COLOR
in the environment switches colours off.

Examples:
  ballast top
  ballast top --once > now.txt";

/// How to look.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Print one screen, with the rates of a second, and end; needs no terminal
    #[arg(long)]
    once: bool,
}

/// What the loop waits for.
enum News {
    Input(Input),
    Observed(Result<Box<Observation>, Error>),
    Event(Box<Event>),
}

/// `ballast top`.
pub(super) fn top(socket: &Path, args: &TopArgs) -> anyhow::Result<()> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("start the runtime")?;
    if args.once {
        let screen = runtime.block_on(once(socket))?;
        return Ok(print(&screen)?);
    }
    anyhow::ensure!(
        io::stdout().is_terminal() && io::stdin().is_terminal(),
        "this is no terminal: `ballast top --once` prints one screen, `ballast status --json` the figures"
    );
    let colour = std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    // A daemon that is not there is told in plain text, not on a screen that goes away.
    let first = runtime.block_on(observe(socket))?;
    let mut model = Model::new(colour);
    model.observe(first);
    let mut terminal = ratatui::try_init().context("take the terminal")?;
    let shown = runtime.block_on(show(socket.to_owned(), &mut terminal, model));
    ratatui::restore();
    shown
}

async fn observe(socket: &Path) -> Result<Observation, Error> {
    let status = Call::get(&["status"]).json(socket).await?;
    let flows = Call::get(&["flows"]).with("limit", Some(FLOWS)).json(socket).await?;
    Ok(Observation { at: clock::monotonic(), status, flows })
}

/// One screen as text, with the rates between two looks.
async fn once(socket: &Path) -> anyhow::Result<String> {
    let mut model = Model::new(false);
    model.observe(observe(socket).await?);
    tokio::time::sleep(LOOK).await;
    model.observe(observe(socket).await?);
    let mut wrong = None;
    let events = Call::get(&["events"]).lines(socket, |line| match serde_json::from_str(line) {
        Ok(event) => {
            model.event(event);
            true
        }
        Err(error) => {
            wrong = Some(error);
            false
        }
    });
    events.await?;
    if let Some(wrong) = wrong {
        return Err(wrong).context("understand the daemon's answer");
    }
    printed(&model, PRINTED_WIDTH, model.height())
}

/// A screen of a size as lines of text.
fn printed(model: &Model, width: u16, height: u16) -> anyhow::Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height))?;
    terminal.draw(|frame| view::draw(frame, model))?;
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(width).max(1)).map(|cells| {
        let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        format!("{}\n", line.trim_end())
    });
    Ok(lines.collect())
}

async fn show(
    socket: PathBuf,
    terminal: &mut ratatui::DefaultTerminal,
    mut model: Model,
) -> anyhow::Result<()> {
    let (sender, mut news) = mpsc::unbounded_channel();
    let input = sender.clone();
    // It ends with the process; nothing else can interrupt a read from the terminal.
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if input.send(News::Input(event)).is_err() {
                return;
            }
        }
    });
    tokio::spawn(look(socket.clone(), sender.clone()));
    tokio::spawn(follow(socket, sender));
    loop {
        terminal.draw(|frame| view::draw(frame, &model)).context("draw")?;
        let Some(mut next) = news.recv().await else { return Ok(()) };
        loop {
            match next {
                News::Input(Input::Key(pressed)) => {
                    if let Some(key) = meant(pressed)
                        && !model.key(key)
                    {
                        return Ok(());
                    }
                }
                // A new size: what is drawn next has it.
                News::Input(_) => {}
                News::Observed(Ok(now)) => model.observe(*now),
                News::Observed(Err(error)) => model.lost(error.to_string()),
                News::Event(event) => model.event(*event),
            }
            // All that is there makes one picture.
            match news.try_recv() {
                Ok(more) => next = more,
                Err(_) => break,
            }
        }
    }
}

/// Looks again and again.
async fn look(socket: PathBuf, news: mpsc::UnboundedSender<News>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let observed = observe(&socket).await;
        if news.send(News::Observed(observed.map(Box::new))).is_err() {
            return;
        }
    }
}

/// Hands over the timeline; begins anew when the daemon does.
async fn follow(socket: PathBuf, news: mpsc::UnboundedSender<News>) {
    while !news.is_closed() {
        let call = Call::get(&["events"]).with("follow", Some("true"));
        let sender = news.clone();
        // The looks tell if there is no daemon.
        let _ = call
            .lines(&socket, move |line| {
                let Ok(event) = serde_json::from_str(line) else { return true };
                sender.send(News::Event(Box::new(event))).is_ok()
            })
            .await;
        tokio::time::sleep(LOOK).await;
    }
}

/// What a key stands for.
fn meant(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    Some(match pressed.code {
        KeyCode::Char('c') if control => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        KeyCode::Left | KeyCode::BackTab => Key::Before,
        KeyCode::Right | KeyCode::Tab => Key::Next,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char('p' | ' ') => Key::Pause,
        KeyCode::Char('h' | '?') => Key::Help,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_meaning() {
        let press = |code| meant(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(press(KeyCode::Char('q')), Some(Key::Quit));
        assert_eq!(press(KeyCode::Tab), Some(Key::Next));
        assert_eq!(press(KeyCode::Char('c')), None);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(meant(control_c), Some(Key::Quit));
    }

    #[test]
    fn a_screen_without_a_daemon_is_no_failure_of_drawing() {
        let text = printed(&Model::new(false), 80, 24).unwrap();
        assert_eq!(text.lines().count(), 24);
        assert!(text.starts_with("ballast  asking the daemon\n"), "{text}");
    }
}
