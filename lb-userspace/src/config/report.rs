//! What is wrong with a configuration, and where: collected, ordered, drawn with carets.

use std::{fmt::Write as _, ops::Range};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, but does not do what it seems to say.
    Warning,
}

/// A stretch of the file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Line of the first character.
    pub line: usize,
    /// Column of the first character.
    pub column: usize,
    /// Line of the end.
    pub end_line: usize,
    /// Column after the last character.
    pub end_column: usize,
    /// Byte offset of the first character.
    pub start: usize,
    /// Byte offset after the last character.
    pub end: usize,
}

/// Another place that explains a [`Diagnostic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What is there, such as "first used here".
    pub text: String,
}

/// One mistake, or one thing that the operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The file.
    pub file: String,
    /// Where in the file; none if it is about the file as a whole.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Other places in the same file that belong to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
}

/// Draws `diagnostics` as a compiler does: message, file, line with carets, help. `source` is the
/// file's text; the values of passwords in it are shown as asterisks.
///
/// Plain text, or with ANSI colours if `colour`. Ends with a newline, unless there is nothing to
/// draw.
#[must_use]
pub fn render(diagnostics: &[Diagnostic], source: &str, colour: bool) -> String {
    if diagnostics.is_empty() {
        return String::new();
    }
    let source = mask_secrets(source);
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for diagnostic in diagnostics.iter().take(MOST_DRAWN) {
        if !out.is_empty() {
            out.push('\n');
        }
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(diagnostic.message.as_str());
        let mut group = match &diagnostic.place {
            None => title.element(Origin::path(diagnostic.file.as_str())),
            Some(place) => {
                let (part, first_line) = part(&source, diagnostic, place);
                let within = |place: &Place| {
                    let span = within(&source, place);
                    span.start - part.start..span.end - part.start
                };
                let primary = AnnotationKind::Primary.span(within(place));
                let context = diagnostic.labels.iter().map(|label| {
                    AnnotationKind::Context.span(within(&label.place)).label(label.text.as_str())
                });
                title.element(
                    Snippet::source(&source[part.clone()])
                        .line_start(first_line)
                        .path(diagnostic.file.as_str())
                        .annotation(primary)
                        .annotations(context),
                )
            }
        };
        if let Some(help) = &diagnostic.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        out.push_str(&renderer.render(&[group] as &[Group<'_>]));
        out.push('\n');
    }
    if diagnostics.len() > MOST_DRAWN {
        // Writing to a `String` cannot fail.
        let _ = writeln!(out, "\n… and {} more", diagnostics.len() - MOST_DRAWN);
    }
    out
}

/// More than this nobody reads on a terminal; JSON has them all.
const MOST_DRAWN: usize = 1000;

/// The lines of `source` that a diagnostic is about, and the number of the first: the drawing takes
/// time by the length of what it is given.
fn part(source: &str, diagnostic: &Diagnostic, place: &Place) -> (Range<usize>, usize) {
    let places = diagnostic.labels.iter().map(|label| &label.place).chain([place]);
    let first = places.clone().min_by_key(|place| place.start).unwrap_or(place);
    let end = places.map(|place| within(source, place).end).max().unwrap_or(source.len());
    let start = within(source, first).start;
    let start = source[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let end = source[end..].find('\n').map_or(source.len(), |newline| end + newline + 1);
    (start..end, first.line)
}

/// `2 errors, 1 warning`.
#[must_use]
pub fn summary(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    let warnings = diagnostics.len() - errors;
    let mut out = String::new();
    for (count, noun) in [(errors, "error"), (warnings, "warning")] {
        if count > 0 {
            let separator = if out.is_empty() { "" } else { ", " };
            let plural = if count == 1 { "" } else { "s" };
            // Writing to a `String` cannot fail.
            let _ = write!(out, "{separator}{count} {noun}{plural}");
        }
    }
    if out.is_empty() { "no mistakes".to_owned() } else { out }
}

/// The bytes of `place`, cut to what `source` has: the file may have changed since.
fn within(source: &str, place: &Place) -> Range<usize> {
    let start = source.floor_char_boundary(place.start);
    start..source.floor_char_boundary(place.end).max(start)
}

/// One finding before it has a line and a column.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    severity: Severity,
    message: String,
    help: Option<String>,
    span: Option<Range<usize>>,
    labels: Vec<(Range<usize>, String)>,
}

impl Finding {
    /// What to do about it.
    pub(super) fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    /// Another place that belongs to it.
    pub(super) fn label(&mut self, span: Range<usize>, text: impl Into<String>) -> &mut Self {
        self.labels.push((span, text.into()));
        self
    }
}

/// Collects findings while a configuration is read and checked.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    /// Notes a mistake.
    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>) -> &mut Finding {
        self.push(Severity::Error, Some(span), message.into())
    }

    /// Notes a mistake that has no place in the text.
    pub(super) fn error_of_file(&mut self, message: impl Into<String>) -> &mut Finding {
        self.push(Severity::Error, None, message.into())
    }

    /// Notes something to know.
    pub(super) fn warning(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> &mut Finding {
        self.push(Severity::Warning, Some(span), message.into())
    }

    /// Notes something to know about the file as a whole.
    pub(super) fn warning_of_file(&mut self, message: impl Into<String>) -> &mut Finding {
        self.push(Severity::Warning, None, message.into())
    }

    fn push(
        &mut self,
        severity: Severity,
        span: Option<Range<usize>>,
        message: String,
    ) -> &mut Finding {
        self.0.push(Finding { severity, message, help: None, span, labels: Vec::new() });
        self.0.last_mut().expect("a finding was just pushed")
    }

    /// Whether the configuration cannot be used.
    pub(super) fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// Drops what is said of lines that a finding of `first` stands on already, then takes up
    /// `first`: a value that is no TOML would be named twice otherwise.
    pub(super) fn put_before(&mut self, first: Self, text: &str) {
        let lines = Lines::new(text);
        let line = |finding: &Finding| finding.span.as_ref().map(|span| lines.line(span.start));
        let taken: Vec<_> = first.0.iter().filter_map(line).collect();
        self.0.retain(|finding| line(finding).is_none_or(|line| !taken.contains(&line)));
        self.0.extend(first.0);
    }

    /// Gives every finding its line and column, and sorts by place.
    pub(super) fn locate(mut self, file: &str, text: &str) -> Vec<Diagnostic> {
        let lines = Lines::new(text);
        // What is about the file as a whole comes last.
        self.0.sort_by_key(|finding| {
            finding.span.as_ref().map_or((usize::MAX, 0), |span| (span.start, span.end))
        });
        self.0
            .into_iter()
            .map(|finding| Diagnostic {
                severity: finding.severity,
                message: finding.message,
                help: finding.help,
                file: file.to_owned(),
                place: finding.span.map(|span| lines.place(span)),
                labels: finding
                    .labels
                    .into_iter()
                    .map(|(span, text)| Label { place: lines.place(span), text })
                    .collect(),
            })
            .collect()
    }
}

/// Where the lines of a text begin.
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Line of a byte, from 0.
    pub(super) fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at) - 1
    }

    /// Line and column of a byte, both from 1.
    fn line_and_column(&self, at: usize) -> (usize, usize) {
        let line = self.line(at);
        let before = &self.text[self.starts[line]..at];
        // A byte order mark is no column that an editor would count.
        (line + 1, before.trim_start_matches('\u{feff}').chars().count() + 1)
    }

    fn place(&self, span: Range<usize>) -> Place {
        let start = self.text.floor_char_boundary(span.start);
        let end = self.text.floor_char_boundary(span.end).max(start);
        let (line, column) = self.line_and_column(start);
        let (end_line, end_column) = self.line_and_column(end);
        Place { line, column, end_line, end_column, start, end }
    }
}

/// Overwrites the values of keys that look like passwords, with as many asterisks as they have
/// bytes, so that places stay true. Files of secrets (`…_file`) are no secrets.
#[must_use]
pub(super) fn mask_secrets(text: &str) -> String {
    let mut spans = Vec::new();
    let (document, errors) = DeTable::parse_recoverable(text);
    collect_secrets(document.get_ref(), &mut spans);
    if !errors.is_empty() {
        // The tree of a broken text misses values, so each line is looked at by itself, too.
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            if let Some((key, value)) = line.split_once('=')
                && is_secret(key.trim().trim_matches(['"', '\'']))
            {
                let at = start + line.len() - value.trim_start().len();
                spans.push(at..at + value.trim().len());
            }
            start += line.len();
        }
    }
    let mut bytes = text.as_bytes().to_vec();
    for span in spans {
        for byte in &mut bytes[span] {
            if *byte != b'\n' {
                *byte = b'*';
            }
        }
    }
    // Whole values were overwritten, so no character was cut in two.
    String::from_utf8_lossy(&bytes).into_owned()
}

fn collect_secrets(table: &DeTable<'_>, spans: &mut Vec<Range<usize>>) {
    for (key, value) in table {
        if is_secret(key.get_ref()) {
            spans.push(value.span());
        }
        collect_secrets_in(value.get_ref(), spans);
    }
}

fn collect_secrets_in(value: &DeValue<'_>, spans: &mut Vec<Range<usize>>) {
    match value {
        DeValue::Table(table) => collect_secrets(table, spans),
        DeValue::Array(items) => {
            for item in items {
                collect_secrets_in(item.get_ref(), spans);
            }
        }
        _ => {}
    }
}

fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    !key.ends_with("_file")
        && (["secret", "token", "passw", "pwd"].iter().any(|word| key.contains(word))
            || strsim::osa_distance(&key, "password") <= 3)
}
