//! `synchronous_standby_names`: which standbys a commit waits for, and what that proves after a crash.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What a commit waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRule {
    /// Standbys that must have the commit, at least 1.
    pub need: usize,
    /// Names of those that count. `*` stands for any.
    pub names: Vec<String>,
}

impl SyncRule {
    /// Reads the setting; none if no commit waits, or if it makes no sense.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let words = text.to_ascii_uppercase();
        let rest = ["FIRST", "ANY"].iter().find_map(|word| {
            let rest = words.strip_prefix(word)?;
            rest.starts_with([' ', '\t']).then(|| text[word.len()..].trim_start())
        });
        let numbered = rest.unwrap_or(text);
        let (need, list) = match numbered.split_once('(') {
            Some((number, list)) => {
                (number.trim().parse().ok()?, list.trim_end().strip_suffix(')')?)
            }
            None if rest.is_some() => return None,
            None => (1, numbered),
        };
        let names = names(list)?;
        (need >= 1 && !names.is_empty()).then_some(Self { need, names })
    }

    /// Whether a server of these names, as a primary, would wait for itself: without it too few can be there.
    #[must_use]
    pub fn needs_itself(&self, own: &[String]) -> bool {
        let is_own = |name: &&String| own.iter().any(|it| it.eq_ignore_ascii_case(name));
        let all = self.names.iter().any(|name| name == "*");
        !all && self.names.iter().filter(|name| !is_own(name)).count() < self.need
    }

    /// Whether a standby of this name counts.
    #[must_use]
    pub fn counts(&self, name: &str) -> bool {
        self.names.iter().any(|it| it == "*" || it.eq_ignore_ascii_case(name))
    }

    /// Whether no acknowledged commit can be missing from all of `seen`: each commit has reached `need`
    /// of the names, so so many that all but `need - 1` are seen include one that has it.
    ///
    /// `servers` says which server a name is; names that are not there have not been seen.
    #[must_use]
    pub fn proves(&self, servers: &BTreeMap<String, String>, seen: &BTreeSet<&str>) -> bool {
        if self.names.is_empty() || self.names.iter().any(|name| name == "*") {
            return false;
        }
        let server = |name: &String| servers.get(name).is_some_and(|it| seen.contains(it.as_str()));
        let count = self.names.iter().filter(|name| server(name)).count();
        count + self.need > self.names.len()
    }
}

/// The setting `text` of a server that [needs itself](SyncRule::needs_itself), with `other` in its own place.
#[must_use]
pub fn replaced(text: &str, own: &[String], other: &str) -> String {
    let Some(rule) = SyncRule::parse(text) else { return String::new() };
    let mut names: Vec<&str> = rule.names.iter().map(String::as_str).collect();
    names.retain(|name| !own.iter().any(|it| it.eq_ignore_ascii_case(name)));
    if !names.iter().any(|name| name.eq_ignore_ascii_case(other)) {
        names.push(other);
    }
    let quoted = |name: &&str| format!("\"{}\"", name.replace('"', "\"\""));
    let list = names.iter().map(quoted).collect::<Vec<_>>().join(", ");
    let any = text.trim_start().get(..3).is_some_and(|it| it.eq_ignore_ascii_case("any"));
    match (names.len(), rule.need, any) {
        (1, 1, _) => list,
        (_, need, true) => format!("ANY {need} ({list})"),
        (_, need, false) => format!("FIRST {need} ({list})"),
    }
}

/// The names of a list, without quotes.
fn names(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = list.trim();
    if rest.is_empty() {
        return None;
    }
    loop {
        let name;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut text = String::new();
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                let (at, char) = chars.next()?;
                if char != '"' {
                    text.push(char);
                } else if chars.next_if(|(_, next)| *next == '"').is_some() {
                    text.push('"');
                } else {
                    break at + 1;
                }
            };
            name = text;
            rest = quoted[end..].trim_start();
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            // The server folds names that are not quoted.
            name = rest[..end].trim().to_ascii_lowercase();
            rest = &rest[end..];
        }
        if name.is_empty() {
            return None;
        }
        names.push(name);
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None => return rest.is_empty().then_some(names),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_read_as_the_server_does() {
        let rule = |need: usize, names: &[&str]| {
            Some(SyncRule { need, names: names.iter().map(|&name| name.to_owned()).collect() })
        };
        for (text, expected) in [
            ("", None),
            ("  ", None),
            ("*", rule(1, &["*"])),
            ("pg2", rule(1, &["pg2"])),
            ("PG2, \"Pg-3\"", rule(1, &["pg2", "Pg-3"])),
            ("2 (a, b, c)", rule(2, &["a", "b", "c"])),
            ("FIRST 1 (a,b)", rule(1, &["a", "b"])),
            ("any 2 ( a , \"b\"\"c\" , d )", rule(2, &["a", "b\"c", "d"])),
            ("FIRST", rule(1, &["first"])),
            ("anyone", rule(1, &["anyone"])),
            ("0 (a)", None),
            ("ANY (a)", None),
            ("ANY 1 a", None),
            ("1 (a", None),
            ("a,,b", None),
            ("\"a", None),
            ("a,", None),
        ] {
            assert_eq!(SyncRule::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_server_that_would_wait_for_itself_is_replaced() {
        let own = ["pg-02".to_owned(), "copy".to_owned()];
        let needs = |text: &str| SyncRule::parse(text).unwrap().needs_itself(&own);
        for text in ["\"pg-02\"", "PG-02, Copy", "ANY 2 (a, \"pg-02\")", "FIRST 1 (copy)"] {
            assert!(needs(text), "{text}");
        }
        // The same list may stand on every server.
        for text in ["a", "*", "ANY 1 (a, \"pg-02\")", "2 (a, b, copy)"] {
            assert!(!needs(text), "{text}");
        }
        let new = |text| replaced(text, &own, "pg\"1");
        assert_eq!(new("\"pg-02\""), "\"pg\"\"1\"");
        assert_eq!(new("any 2 (a, \"pg-02\")"), "ANY 2 (\"a\", \"pg\"\"1\")");
        assert_eq!(new("2 (a, copy)"), "FIRST 2 (\"a\", \"pg\"\"1\")");
        assert_eq!(replaced("2 (a, copy)", &own, "A"), "FIRST 2 (\"a\")", "as few as before");
    }

    #[test]
    fn enough_standbys_prove_that_nothing_is_lost() {
        let servers: BTreeMap<_, _> =
            ["a", "b", "c"].iter().map(|name| ((*name).into(), format!("pg-{name}"))).collect();
        let proves = |text: &str, seen: &[&str]| {
            let seen = seen.iter().copied().collect();
            SyncRule::parse(text).unwrap().proves(&servers, &seen)
        };
        assert!(proves("a", &["pg-a"]));
        assert!(!proves("a", &["pg-b"]));
        assert!(!proves("FIRST 1 (a, b)", &["pg-a"]), "the server may have gone on to b");
        assert!(proves("FIRST 1 (a, b)", &["pg-a", "pg-b"]));
        assert!(proves("ANY 2 (a, b, c)", &["pg-a", "pg-c"]));
        assert!(!proves("ANY 2 (a, b, c)", &["pg-a"]));
        assert!(!proves("*", &["pg-a", "pg-b", "pg-c"]), "anybody may have it");
        assert!(!proves("ANY 1 (a, unknown)", &["pg-a"]));
        assert!(proves("ANY 2 (a, unknown)", &["pg-a"]));
    }
}
