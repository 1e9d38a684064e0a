//! On a terminal: the daemon's own status and the client's counts, drawn anew until Ctrl-C, while
//! servers are killed and come back.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{NODE, client::Load};
use crate::{
    interrupt,
    lab::{Lab, topology},
    shell,
};

/// Time between two pictures.
const PERIOD: Duration = Duration::from_millis(500);

/// What happens to the servers, over and over: so long after the one before.
const STORY: [(Duration, Event); 6] = [
    (Duration::from_secs(8), Event::Kill("app-01")),
    (Duration::from_secs(8), Event::Start("app-01")),
    (Duration::from_secs(8), Event::Cut("app-02")),
    (Duration::from_secs(8), Event::Heal("app-02")),
    (Duration::from_secs(8), Event::Kill("app-03")),
    (Duration::from_secs(8), Event::Start("app-03")),
];

#[derive(Clone, Copy, Debug)]
enum Event {
    Kill(&'static str),
    Start(&'static str),
    Cut(&'static str),
    Heal(&'static str),
}

impl Event {
    fn play(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Kill(host) => lab.kill(host),
            Self::Start(host) => lab.start(host),
            Self::Cut(host) => lab.cut(host),
            Self::Heal(host) => lab.heal(host),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Kill(host) => format!("{host} killed"),
            Self::Start(host) => format!("{host} started again"),
            Self::Cut(host) => format!("{host}'s cable pulled"),
            Self::Heal(host) => format!("{host}'s cable plugged in"),
        }
    }
}

/// Draws until the user has seen enough.
pub(super) fn show(lab: &Lab, threads: usize) -> Result<()> {
    let target = SocketAddr::new(topology::FLOATING_V4.into(), 80);
    let load = Load::start(lab.host("client"), target, threads);
    let screen = Screen::open();
    let result = draw_until_interrupted(lab, &load, target);
    drop(screen);
    let total = load.total();
    println!("{} requests answered, {} failed", total.answered(), total.failed());
    result
}

fn draw_until_interrupted(lab: &Lab, load: &Load, target: SocketAddr) -> Result<()> {
    let begin = Instant::now();
    let mut story = STORY.into_iter().cycle();
    let mut due = begin;
    let mut next = None;
    let mut last = "all servers started".to_owned();
    let mut answered_before = 0;
    let mut drawn_before = begin;
    while !interrupt::pending() {
        let (wait, event) = *next.get_or_insert_with(|| story.next().unwrap_or(STORY[0]));
        if Instant::now() >= due + wait {
            event.play(lab)?;
            last = format!("{} s: {}", begin.elapsed().as_secs(), event.text());
            due = Instant::now();
            next = None;
        }
        let total = load.total();
        let elapsed = drawn_before.elapsed().as_secs_f64().max(0.001);
        let rate = (total.answered() - answered_before) as f64 / elapsed;
        (answered_before, drawn_before) = (total.answered(), Instant::now());
        // While the daemon does not answer, that is what there is to see.
        let status = shell::output(&mut lab.ballast_command(NODE, "status"))
            .unwrap_or_else(|error| format!("{error:#}\n"));
        let mut text = format!(
            "http://{target}/  {rate:>6.0} requests/s  {} answered  {} failed\n",
            total.answered(),
            total.failed()
        );
        for (name, count) in &total.answers {
            let _ = write!(text, "  {name} {count}");
        }
        let _ = write!(text, "\n\nlast event: {last}\n\n{status}\nCtrl-C ends it\n");
        draw(&text)?;
        thread::sleep(PERIOD);
    }
    Ok(())
}

fn draw(text: &str) -> Result<()> {
    // From the top; each line is cleared to its end, and everything below the last.
    let picture = text.replace('\n', "\x1b[K\r\n");
    let mut out = std::io::stdout().lock();
    write!(out, "\x1b[H{picture}\x1b[J").and_then(|()| out.flush()).context("draw")
}

/// The terminal's other screen, so that what stood there before comes back.
struct Screen;

impl Screen {
    fn open() -> Self {
        print!("\x1b[?1049h\x1b[?25l\x1b[2J");
        Self
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print!("\x1b[?25h\x1b[?1049l");
        let _ = std::io::stdout().flush();
    }
}
