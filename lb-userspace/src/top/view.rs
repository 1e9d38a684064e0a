//! The screen: a pure function of the model and the size.

use jiff::tz::TimeZone;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table},
};

use super::{Model, Panel};

/// Below this width some columns are left out.
const WIDE: u16 = 100;

/// The least that anything useful fits into.
const LEAST: (u16, u16) = (40, 12);

const HELP: [&str; 10] = [
    "Tab, Left, Right   another panel",
    "Up, Down           move through it",
    "s                  sort services and backends",
    "p, Space           stop the picture, or let it go on",
    "h, ?               this help",
    "q, Esc, Ctrl-C     end",
    "",
    "Rates are those since the last look. BIT/S and PKT/S are both",
    "ways. A flow with ~ is known by samples: replies of steered",
    "services do not pass here.",
];

/// Draws the whole screen.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        frame.render_widget(Paragraph::new("the terminal is too small"), area);
        return;
    }
    let services = model.rows(Panel::Services) as u16 + 1;
    let backends = model.rows(Panel::Backends) as u16 + 1;
    // Title and last line; what is left is shared, the lower half first.
    let room = area.height - 2;
    let lower = (room * 2 / 5).clamp(4, 18);
    let upper = room - lower;
    let services = (services + 1).min((upper / 2).max(3));
    let events = (lower / 2).max(2);
    let [title, top, middle, traffic, bottom, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(services),
        Constraint::Length((upper - services).min(backends + 1)),
        Constraint::Min(0),
        Constraint::Length(events),
        Constraint::Length(1),
    ])
    .areas(area);
    let [flows, reasons] =
        Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).spacing(2).areas(traffic);
    let screen = Screen { model };
    frame.render_widget(screen.title(), title);
    screen.services(frame, top);
    screen.backends(frame, middle);
    screen.flows(frame, flows);
    screen.reasons(frame, reasons);
    screen.events(frame, bottom);
    frame.render_widget(screen.keys(), keys);
    if model.help {
        help(frame, area);
    }
}

struct Screen<'a> {
    model: &'a Model,
}

impl Screen<'_> {
    fn colour(&self, colour: Color) -> Style {
        if self.model.colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// What needs attention, also without colours.
    fn alarm(&self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    fn title(&self) -> Line<'_> {
        let mut spans = vec![Span::styled("ballast", Style::new().add_modifier(Modifier::BOLD))];
        if let Some(last) = &self.model.last {
            let status = &last.status;
            spans.push(Span::raw(format!(
                "  {} of {}  {} connections",
                status.node, status.cluster, status.flows
            )));
            if !status.warnings.is_empty() {
                let text = match status.warnings.len() {
                    1 => format!("  {}", status.warnings[0]),
                    more => format!("  {more} warnings: {}", status.warnings[0]),
                };
                spans.push(Span::styled(text, self.colour(Color::Yellow)));
            }
        } else if self.model.problem.is_none() {
            spans.push(Span::raw("  asking the daemon"));
        }
        if self.model.paused {
            spans.insert(1, Span::styled("  STOPPED", self.alarm()));
        }
        if let Some(problem) = &self.model.problem {
            spans.insert(1, Span::styled(format!("  {problem}"), self.alarm()));
        }
        Line::from(spans)
    }

    fn keys(&self) -> Line<'_> {
        let text = format!(
            "q end  Tab panel  arrows move  s sort: {}  p stop  h help",
            self.model.sort.label()
        );
        Line::styled(text, Style::new().add_modifier(Modifier::DIM))
    }

    /// Draws a table under its title; the panel that has the keys is marked.
    fn table<'r>(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        (panel, name): (Panel, &'static str),
        columns: &[(&'static str, Constraint)],
        rows: impl Iterator<Item = Row<'r>>,
    ) {
        let total = self.model.rows(panel);
        let heading = usize::from(!columns.iter().all(|(name, _)| name.is_empty()));
        let seen = usize::from(area.height).saturating_sub(1 + heading);
        // Never further than the last line at the bottom.
        let offset = self.model.offsets[panel as usize].min(total.saturating_sub(seen));
        let marked = self.model.panel == panel;
        let title = if seen < total {
            format!("{name} {}-{} of {total}", offset + 1, (offset + seen).min(total))
        } else {
            name.to_owned()
        };
        let title = if marked { format!("[{title}]") } else { format!(" {title} ") };
        let style = if marked { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
        let block = Block::new().borders(Borders::TOP).title(Span::styled(title, style));
        let mut table =
            Table::new(rows.skip(offset).take(seen), columns.iter().map(|(_, width)| *width))
                .column_spacing(1)
                .block(block);
        if heading > 0 {
            let head = columns.iter().map(|(name, width)| match width {
                // Numbers stand to the right, and so do their names.
                Constraint::Length(width) if *name != "STATE" && *name != "SERVICE" => {
                    format!("{name:>0$}", usize::from(*width))
                }
                _ => (*name).to_owned(),
            });
            table = table.header(
                Row::new(head.map(Cell::from)).style(Style::new().add_modifier(Modifier::DIM)),
            );
        }
        frame.render_widget(table, area);
    }

    fn services(&self, frame: &mut Frame<'_>, area: Rect) {
        let wide = area.width >= WIDE;
        let mut columns = vec![("NAME", Constraint::Fill(1))];
        if wide {
            columns.push(("LISTEN", Constraint::Fill(2)));
        }
        columns.extend([
            ("NEW/S", Constraint::Length(7)),
            ("PKT/S", Constraint::Length(7)),
            ("BIT/S", Constraint::Length(7)),
            ("OPEN", Constraint::Length(7)),
            ("REFUSED/S", Constraint::Length(9)),
            ("REPLAYED/S", Constraint::Length(10)),
        ]);
        let rows = self.model.picture.services.iter().map(|row| {
            let mut cells = vec![row.name.clone()];
            if wide {
                cells.push(row.listen.clone());
            }
            cells.extend([
                right(&scaled(row.connections), 7),
                right(&scaled(row.packets), 7),
                right(&scaled(row.bits), 7),
                right(&row.open.to_string(), 7),
                right(&scaled(row.refused), 9),
                right(&scaled(row.replayed), 10),
            ]);
            let style = if row.alarm { self.alarm() } else { Style::new() };
            Row::new(cells).style(style)
        });
        self.table(frame, area, (Panel::Services, "SERVICES"), &columns, rows);
    }

    fn backends(&self, frame: &mut Frame<'_>, area: Rect) {
        let columns = [
            ("NAME", Constraint::Fill(2)),
            ("SERVICE", Constraint::Length(12)),
            ("STATE", Constraint::Length(8)),
            ("NEW/S", Constraint::Length(6)),
            ("PKT/S", Constraint::Length(6)),
            ("BIT/S", Constraint::Length(6)),
            ("OPEN", Constraint::Length(6)),
            ("WHY", Constraint::Fill(3)),
        ];
        let rows = self.model.picture.backends.iter().map(|row| {
            let style = if row.serving { self.colour(Color::Green) } else { self.alarm() };
            Row::new(vec![
                Cell::from(row.name.as_str()),
                Cell::from(row.service.as_str()),
                Cell::from(Span::styled(row.state, style)),
                Cell::from(right(&scaled(row.connections), 6)),
                Cell::from(right(&scaled(row.packets), 6)),
                Cell::from(right(&scaled(row.bits), 6)),
                Cell::from(right(&row.open.to_string(), 6)),
                Cell::from(row.why.as_str()),
            ])
        });
        self.table(frame, area, (Panel::Backends, "BACKENDS"), &columns, rows);
    }

    fn flows(&self, frame: &mut Frame<'_>, area: Rect) {
        let columns = [
            ("CLIENT", Constraint::Fill(3)),
            ("BACKEND", Constraint::Fill(2)),
            ("PKT/S", Constraint::Length(7)),
            ("BIT/S", Constraint::Length(6)),
        ];
        let rows = self.model.picture.flows.iter().map(|row| {
            let mark = if row.sampled { "~" } else { "" };
            Row::new([
                row.client.to_string(),
                format!("{} ({})", row.backend, row.service),
                right(&format!("{mark}{}", scaled(row.packets)), 7),
                right(&scaled(row.bits), 6),
            ])
        });
        self.table(frame, area, (Panel::Flows, "BUSIEST FLOWS"), &columns, rows);
    }

    fn reasons(&self, frame: &mut Frame<'_>, area: Rect) {
        let columns = [
            ("REASON", Constraint::Fill(1)),
            ("PKT/S", Constraint::Length(6)),
            ("TOTAL", Constraint::Length(8)),
        ];
        let rows = self.model.picture.reasons.iter().map(|row| {
            Row::new([
                row.label.clone(),
                right(&scaled(row.rate), 6),
                right(&scaled(row.total as f64), 8),
            ])
        });
        self.table(frame, area, (Panel::Reasons, "NOT FORWARDED"), &columns, rows);
    }

    /// The last events, the newest first.
    fn events(&self, frame: &mut Frame<'_>, area: Rect) {
        let columns = [("", Constraint::Length(8)), ("", Constraint::Fill(1))];
        let rows = self.model.events.iter().rev().map(|event| {
            let time = event.time.to_zoned(TimeZone::UTC).strftime("%H:%M:%S").to_string();
            let about = match (&event.service, &event.backend) {
                (Some(service), Some(backend)) => format!("[{service}/{backend}] "),
                (Some(name), None) | (None, Some(name)) => format!("[{name}] "),
                (None, None) => String::new(),
            };
            let cause = event.cause.as_ref().map(|it| format!(" ({it})")).unwrap_or_default();
            let style = if event.kind.is_grave() { self.alarm() } else { Style::new() };
            Row::new([time, format!("{about}{}{cause}", event.message)]).style(style)
        });
        self.table(frame, area, (Panel::Events, "EVENTS (UTC)"), &columns, rows);
    }
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let width = 64.min(area.width);
    let height = (HELP.len() as u16 + 2).min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let lines: Vec<Line<'_>> = HELP.iter().map(|line| Line::raw(*line)).collect();
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" KEYS ")), place);
}

fn right(text: &str, width: usize) -> String {
    format!("{text:>width$}")
}

/// A figure in five characters: `0`, `0.4`, `12`, `1.2k`, `345M`.
pub fn scaled(value: f64) -> String {
    let units = ["", "k", "M", "G", "T", "P", "E"];
    let mut value = value;
    let mut unit = 0;
    // The next unit from where this one would be rounded to 1000.
    while value >= 999.5 && unit < units.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(value < 9.95 && (unit > 0 || value.fract() > 0.0));
    format!("{value:.digits$}{}", units[unit])
}
