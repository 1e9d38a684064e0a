//! One small file for each kind of mistake.
//!
//! In the texts, `▶` stands before the place that the diagnostic must name; it is no part of the
//! file.

use proptest::prelude::*;
use toml::de::{DeTable, DeValue};

use super::{
    parse, raw,
    read::Section,
    report::{Diagnostic, Severity},
};

mod alert;
mod anycast;
mod forward;
mod guard;
mod later;
mod network;
mod proxy;
mod service;
mod value;
mod vrrp;

const EXAMPLE: &str = include_str!("../../../ballast.example.toml");

/// Nothing wrong, nothing to warn of.
const GOOD: &str = r#"
[[node]]
name = "lb-01"
address = "192.0.2.11"
interface = "eth0"

[[floating]]
vrid = 51
addresses = ["192.0.2.100/24", "2001:db8::100/64"]

[[service]]
name = "web"
listen = "192.0.2.100:80"
[[service.backend]]
name = "app-01"
address = "192.0.2.21:8080"
"#;

const SECOND_BACKEND: &str = r#"
[[service.backend]]
name = "app-02"
address = "192.0.2.22:8080"
"#;

fn good_and(more: &str) -> String {
    format!("{GOOD}{more}")
}

/// [`GOOD`] with one line changed.
fn changed(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from} stands once");
    GOOD.replace(from, to)
}

/// The text without the mark, and the mark's line and column.
fn unmark(marked: &str) -> (String, Option<(usize, usize)>) {
    let place = marked.split_once('▶').map(|(before, _)| {
        let line = before.matches('\n').count() + 1;
        (line, before.chars().rev().take_while(|c| *c != '\n').count() + 1)
    });
    (marked.replace('▶', ""), place)
}

fn only(diagnostics: &[Diagnostic]) -> &Diagnostic {
    assert_eq!(diagnostics.len(), 1, "one finding, not {diagnostics:#?}");
    &diagnostics[0]
}

/// The text has this mistake, at the mark, and no other.
#[track_caller]
fn mistake(marked: &str, message: &str, help: &str) -> Diagnostic {
    let (text, place) = unmark(marked);
    let rejected = parse("test.toml", &text).expect_err("the file has a mistake");
    let found = only(&rejected.diagnostics);
    assert_eq!(found.severity, Severity::Error);
    compare(found, place, message, help);
    found.clone()
}

/// The text is good, but gives this warning at the mark, and no other.
#[track_caller]
fn warning(marked: &str, message: &str, help: &str) -> Diagnostic {
    let (text, place) = unmark(marked);
    let loaded = parse("test.toml", &text).expect("the file has no mistake");
    let found = only(&loaded.warnings);
    assert_eq!(found.severity, Severity::Warning);
    compare(found, place, message, help);
    found.clone()
}

#[track_caller]
fn compare(found: &Diagnostic, place: Option<(usize, usize)>, message: &str, help: &str) {
    assert_eq!(found.message, message);
    let said = found.help.as_deref().expect("every finding says what to do");
    assert!(said.contains(help), "help is: {said}");
    assert_eq!(found.file, "test.toml");
    assert_eq!(found.place.as_ref().map(|place| (place.line, place.column)), place, "{message}");
}

#[test]
fn good_is_good() {
    let loaded = parse("test.toml", GOOD).expect("no mistake");
    assert_eq!(loaded.warnings, []);
}

#[test]
fn unknown_keys() {
    mistake(
        &good_and("[service.health]\n▶intervall = \"1s\"\n"),
        "unknown key `intervall` in `[service.health]`",
        "did you mean `interval`?",
    );
    mistake(
        &good_and("[service.health]\n▶on-down = \"keep\"\n"),
        "unknown key `on-down` in `[service.health]`",
        "known here: `probe`, `path`",
    );
    mistake(
        &good_and("[service.health]\n▶drain_timeout = \"1s\"\n"),
        "unknown key `drain_timeout` in `[service.health]`",
        "`drain_timeout` belongs in `[[service]]`: move it there",
    );
    mistake(
        &good_and("[▶data-plane]\n"),
        "unknown key `data-plane`",
        "did you mean `[dataplane]`?",
    );
    mistake(
        &good_and("[▶health]\nrise = 1\n"),
        "unknown key `health`",
        "write its header as `[service.health]`",
    );
    // What a misspelt key stands for is not missing, too.
    mistake(
        &changed("address = \"192.0.2.11\"", "▶adress = \"192.0.2.11\""),
        "unknown key `adress` in `[[node]]`",
        "did you mean `address`?",
    );
    mistake(&good_and("[[▶nodes]]\n"), "unknown key `nodes`", "did you mean `[[node]]`?");
}

#[test]
fn several_unknown_keys_are_all_named() {
    let text = good_and(
        "[cluster]\nnam = \"x\"\nsecret = \"y\"\n[service.health]\nfoo = 1\n[paths]\npin = 2\n",
    );
    let rejected = parse("test.toml", &text).unwrap_err();
    let messages: Vec<_> = rejected.diagnostics.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "unknown key `nam` in `[cluster]`",
            "unknown key `secret` in `[cluster]`",
            "unknown key `foo` in `[service.health]`",
            "unknown key `pin` in `[paths]`",
        ]
    );
}

#[test]
fn missing_keys() {
    mistake(
        &changed("[[node]]\nname = \"lb-01\"", "▶[[node]]"),
        "`[[node]]` needs `name`",
        "add `name = \"lb-01\"`",
    );
    mistake(
        &changed("interface = \"eth0\"", "").replace("[[node]]", "▶[[node]]"),
        "`[[node]]` needs `interface`",
        "add `interface = \"eth0\"`",
    );
    mistake(
        &changed("vrid = 51", "").replace("[[floating]]", "▶[[floating]]"),
        "`[[floating]]` needs `vrid`",
        "add `vrid = 51`",
    );
    mistake(
        &GOOD.split("[[service.backend]]").next().unwrap().replace("[[service]]", "▶[[service]]"),
        "`[[service]]` needs `[[service.backend]]`",
        "with `name` and `address`",
    );
}

/// The errors of a text that also gives warnings.
fn errors(text: &str) -> Vec<(usize, String)> {
    let diagnostics = parse("test.toml", text).expect_err("mistakes").diagnostics;
    diagnostics
        .into_iter()
        .filter(|found| found.severity == Severity::Error)
        .map(|found| (found.place.expect("a place").line, found.message))
        .collect()
}

#[test]
fn syntax_errors_name_their_place() {
    mistake(
        &good_and("[cluster▶\nname = \"x\"\n"),
        "unclosed table, expected `]`",
        "correct this place first",
    );
    mistake(&good_and("[cluster]\nname = \"x\"\n▶name = \"y\"\n"), "duplicate key", "stands once");
    // A bare value hides nothing else.
    let rejected = parse(
        "test.toml",
        &good_and("[service.health]\ninterval = 100ms\ntimeout = 5\nrise = 0\n"),
    )
    .unwrap_err();
    let found: Vec<_> = rejected
        .diagnostics
        .iter()
        .map(|found| (found.place.as_ref().unwrap().column, found.message.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (12, "string values must be quoted, expected literal string"),
            (11, "`timeout` has no unit"),
            (8, "`rise` is 0, which is out of range"),
        ]
    );
}

#[test]
fn many_mistakes_are_all_named() {
    let text = r#"
[cluster]
nam = "edge"
[[node]]
name = "lb-01"
address = "lb-01"
interface = "eth0/1"
priority = 255
[[floating]]
vrid = 300
addresses = ["192.0.2.100/24", "192.0.2.100/24", "192.0.2.101"]
[[service]]
name = "web"
listen = "192.0.2.102:80"
protocol = "http"
balance = 3
drain_timeout = 30
forward = "direct"
[[service.backend]]
name = "app"
address = "192.0.2.21:8080"
weight = 0
[[service.backend]]
name = "app"
address = "192.0.2.101:8080"
[service.health]
probe = "http"
command = ["/bin/true"]
expect = "2xx"
timeout = "3s"
[dataplane]
max_flows = 1
[paths]
state = "lib"
"#;
    let found = errors(text);
    let expected = [
        (3, "unknown key `nam` in `[cluster]`"),
        (6, "`address` has the name `lb-01`, but names are not looked up"),
        (7, "`interface` is not the name of an interface"),
        (8, "`priority` is 255, which is out of range"),
        (10, "`vrid` is 300, which is out of range"),
        (11, "the floating address 192.0.2.100 stands twice"),
        (11, "`addresses` has 192.0.2.101 without its prefix length"),
        (14, "no `[[floating]]` holds 192.0.2.102"),
        (15, "`protocol` cannot be \"http\""),
        (16, "`balance` must be a word, but is a whole number"),
        (17, "`drain_timeout` has no unit"),
        (21, "the backend's port is 8080, but with `forward = \"direct\"` packets keep port 80"),
        (22, "`weight` is 0, which is out of range"),
        (24, "two backends of this service have the name `app`"),
        (25, "the backend's port is 8080, but with `forward = \"direct\"` packets keep port 80"),
        (25, "the backend's address 192.0.2.101 is a floating address"),
        (28, "`command` needs `probe = \"command\"`"),
        (29, "`expect` has `2xx`, which is no status code"),
        (30, "`timeout` is 3s, not less than `interval`, 1s by default"),
        (32, "`max_flows` is 1, which is out of range"),
        (34, "`state` is not an absolute path"),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(line, text)| (*line, (*text).to_owned())).collect();
    assert_eq!(found, expected);
}

/// Keys of `section` that work in this version and do not stand in `table`.
fn missing_in(section: &Section, tables: &[&DeTable<'_>]) -> Vec<String> {
    let mut missing = Vec::new();
    for key in section.keys.iter().filter(|key| key.later.is_none()) {
        let values: Vec<_> = tables.iter().filter_map(|table| table.get(key.name)).collect();
        if values.is_empty() {
            missing.push(format!("{} {}", section.name, key.name));
        }
        if let Some(within) = key.section {
            let tables: Vec<_> = values
                .iter()
                .flat_map(|value| match value.get_ref() {
                    DeValue::Array(items) => items.iter().collect(),
                    _ => vec![*value],
                })
                .filter_map(|value| value.get_ref().as_table())
                .collect();
            missing.extend(missing_in(within, &tables));
        }
    }
    missing
}

#[test]
fn the_example_has_every_key_that_works() {
    let document = DeTable::parse(EXAMPLE).expect("the example is TOML");
    assert_eq!(missing_in(&raw::File::KEYS, &[document.get_ref()]), Vec::<String>::new());
    let loaded = parse("ballast.example.toml", EXAMPLE).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(loaded.warnings, []);
}

/// One change to a text.
#[derive(Clone, Debug)]
enum Edit {
    Delete(prop::sample::Index, usize),
    Insert(prop::sample::Index, String),
    Copy(prop::sample::Index, prop::sample::Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let fragment = prop::sample::select(vec![
        "\"",
        "=",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "#",
        "\n",
        "\r\n",
        "\t",
        "\0",
        "é",
        "漢",
        "\u{feff}",
        "'''",
        "\"\"\"",
        "-1",
        "0",
        "1e9",
        "99999999999999999999",
        "true",
        "inf",
        "1979-05-27",
        "a.b",
        "password = \"x\"",
        "[[service]]",
        "::",
        "/",
        "%",
        "\\u0000",
        "\u{202e}",
    ]);
    prop_oneof![
        (any::<prop::sample::Index>(), 1_usize..40).prop_map(|(at, len)| Edit::Delete(at, len)),
        (any::<prop::sample::Index>(), fragment)
            .prop_map(|(at, text)| Edit::Insert(at, text.to_owned())),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>())
            .prop_map(|(from, to)| Edit::Copy(from, to)),
    ]
}

fn apply(text: &str, edits: &[Edit]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for edit in edits {
        if chars.is_empty() {
            break;
        }
        match edit {
            Edit::Delete(at, len) => {
                let at = at.index(chars.len());
                chars.drain(at..(at + len).min(chars.len()));
            }
            Edit::Insert(at, text) => {
                let at = at.index(chars.len());
                chars.splice(at..at, text.chars());
            }
            Edit::Copy(from, to) => {
                let from = from.index(chars.len());
                let piece = chars[from..(from + 30).min(chars.len())].to_vec();
                let to = to.index(chars.len());
                chars.splice(to..to, piece);
            }
        }
    }
    chars.into_iter().collect()
}

proptest! {
    /// Whatever the text, there is a configuration or a mistake, and it can be drawn.
    #[test]
    fn no_text_panics(edits in prop::collection::vec(edit(), 1..6)) {
        let text = apply(EXAMPLE, &edits);
        match parse("test.toml", &text) {
            Ok(loaded) => {
                prop_assert!(!loaded.config.nodes.is_empty());
            }
            Err(rejected) => {
                prop_assert!(rejected.diagnostics.iter().any(|d| d.severity == Severity::Error));
                prop_assert!(rejected.diagnostics.iter().all(|d| d.help.is_some()));
                prop_assert_eq!(rejected.source.len(), text.len());
                prop_assert!(rejected.to_string().contains("test.toml"));
            }
        }
    }
}
