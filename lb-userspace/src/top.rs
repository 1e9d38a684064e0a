//! `ballast top`: what happens now, on one screen. All of it is pure: [`Model`] is what is known and what
//! the operator looks at, [`view::draw`] makes a screen of it.
//!
//! Rates are the differences between two observations, made here: whoever looks more often sees finer
//! ones.

use std::{collections::VecDeque, time::Duration};

use crate::{
    control::status::{NamedFlow, Status},
    events::Event,
};

pub mod rates;
pub mod view;

use rates::Picture;

/// Events kept for the screen.
const EVENTS: usize = 200;

/// What the daemon said at one time.
#[derive(Clone, Debug)]
pub struct Observation {
    /// When, on the monotonic clock.
    pub at: Duration,
    /// `status`.
    pub status: Status,
    /// `flows`, as many as were asked for.
    pub flows: Vec<NamedFlow>,
}

/// A part of the screen that can be moved through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Panel {
    /// Services.
    #[default]
    Services,
    /// Backends.
    Backends,
    /// The busiest flows.
    Flows,
    /// Packets that are not forwarded.
    Reasons,
    /// The timeline.
    Events,
}

impl Panel {
    /// In the order in which they stand.
    pub const ALL: [Self; 5] =
        [Self::Services, Self::Backends, Self::Flows, Self::Reasons, Self::Events];
}

/// What services and backends are sorted by. Flows and reasons always have the busiest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// As in the configuration.
    #[default]
    Config,
    /// Most packets a second first.
    Packets,
    /// Most new connections a second first.
    Connections,
    /// Most open connections first.
    Open,
}

impl Sort {
    const fn next(self) -> Self {
        match self {
            Self::Config => Self::Packets,
            Self::Packets => Self::Connections,
            Self::Connections => Self::Open,
            Self::Open => Self::Config,
        }
    }

    /// How it is called on the screen.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Config => "as configured",
            Self::Packets => "packets/s",
            Self::Connections => "connections/s",
            Self::Open => "open connections",
        }
    }
}

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// End.
    Quit,
    /// A line up.
    Up,
    /// A line down.
    Down,
    /// The panel before.
    Before,
    /// The next panel.
    Next,
    /// Another order.
    Sort,
    /// Stop the picture, or let it go on.
    Pause,
    /// Explain the keys, or cease to.
    Help,
}

/// All that the screen shows.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The last observation; the one before it is in the rates.
    last: Option<Observation>,
    picture: Picture,
    events: VecDeque<Event>,
    /// Why there is no newer picture.
    problem: Option<String>,
    panel: Panel,
    /// First line that is shown of each panel.
    offsets: [usize; Panel::ALL.len()],
    sort: Sort,
    paused: bool,
    help: bool,
    /// Whether colours may be used.
    colour: bool,
}

impl Model {
    /// With nothing known yet.
    pub fn new(colour: bool) -> Self {
        Self { colour, ..Self::default() }
    }

    /// Takes what the daemon says now. While the picture is stopped, that is thrown away.
    pub fn observe(&mut self, now: Observation) {
        self.problem = None;
        if self.paused {
            return;
        }
        self.picture = Picture::of(self.last.as_ref(), &now);
        self.picture.sort(self.sort);
        self.last = Some(now);
    }

    /// The daemon does not answer.
    pub fn lost(&mut self, problem: String) {
        self.problem = Some(problem);
    }

    /// Takes an event of the timeline.
    pub fn event(&mut self, event: Event) {
        // After the daemon was lost, the timeline comes again from its beginning.
        if self.events.iter().any(|known| known.number == event.number && known.time == event.time)
        {
            return;
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Does what the operator wants. False: end.
    pub fn key(&mut self, key: Key) -> bool {
        let panels = Panel::ALL.len();
        let place = self.panel as usize;
        match key {
            Key::Quit if self.help => self.help = false,
            Key::Quit => return false,
            Key::Up => self.offsets[place] = self.offsets[place].saturating_sub(1),
            Key::Down => {
                let last = self.rows(self.panel).saturating_sub(1);
                self.offsets[place] = (self.offsets[place] + 1).min(last);
            }
            Key::Before => self.panel = Panel::ALL[(place + panels - 1) % panels],
            Key::Next => self.panel = Panel::ALL[(place + 1) % panels],
            Key::Sort => {
                self.sort = self.sort.next();
                self.picture.sort(self.sort);
            }
            Key::Pause => self.paused = !self.paused,
            Key::Help => self.help = !self.help,
        }
        true
    }

    /// Lines that a panel has to show.
    fn rows(&self, panel: Panel) -> usize {
        match panel {
            Panel::Services => self.picture.services.len(),
            Panel::Backends => self.picture.backends.len(),
            Panel::Flows => self.picture.flows.len(),
            Panel::Reasons => self.picture.reasons.len(),
            Panel::Events => self.events.len(),
        }
    }

    /// Lines of a screen that shows all services and backends.
    pub fn height(&self) -> u16 {
        let rows = self.rows(Panel::Services) + self.rows(Panel::Backends);
        u16::try_from(rows + 24).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests;
