//! Mistakes that leave no TOML to read.

use super::report::{Findings, Lines};

/// What is no TOML at all.
pub(super) struct Syntax {
    /// One for each mistake.
    pub(super) findings: Findings,
    /// Whether only single values are wrong, so that everything else stands in the tree where it
    /// stands in the text. Otherwise checks of the tree would name mistakes that are none.
    pub(super) tree_is_whole: bool,
}

/// Takes up toml's own errors.
pub(super) fn syntax(text: &str, errors: &[toml::de::Error]) -> Syntax {
    let mut findings = Findings::default();
    let mut tree_is_whole = true;
    let mut last_line = None;
    let lines = Lines::new(text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        // A bare word is often followed by errors about the rest of its line.
        let line = lines.line(span.start);
        if last_line.replace(line) == Some(line) {
            continue;
        }
        let unquoted =
            error.message().starts_with("string values must be quoted") && !span.is_empty();
        let duplicate = error.message() == "duplicate key";
        tree_is_whole &= unquoted || duplicate;
        findings.error(span, error.message()).help(if unquoted {
            "write text, addresses, durations and sizes in double quotes"
        } else if duplicate {
            "each key and each `[section]` stands once; several of a kind are `[[section]]`"
        } else {
            "correct this place first: what follows cannot be checked before"
        });
    }
    Syntax { findings, tree_is_whole }
}
