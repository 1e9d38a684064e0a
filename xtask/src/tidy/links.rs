//! Links between the project's pages.

use std::path::{Component, Path, PathBuf};

use super::{Finding, Severity};

/// Finds links of a page to files that are not there; `exists` is asked about paths from the
/// workspace's folder.
pub(super) fn check(file: &Path, text: &str, exists: impl Fn(&Path) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for target in targets(line) {
            let path = target.split(['#', '?']).next().unwrap_or_default();
            if path.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let Some(path) = resolve(file, path) else {
                findings.push(finding(file, number, &format!("link `{target}` leads out of here")));
                continue;
            };
            if !exists(&path) {
                findings.push(finding(
                    file,
                    number,
                    &format!("link `{target}` leads nowhere: there is no {}", path.display()),
                ));
            }
        }
    }
    findings
}

fn finding(file: &Path, number: usize, message: &str) -> Finding {
    Finding {
        file: file.into(),
        line: number + 1,
        message: format!("{message}; mend the path, or remove the link"),
        severity: Severity::Error,
    }
}

/// What stands in the parentheses of `[…](…)`, and after `[…]:` at the line's start.
fn targets(line: &str) -> Vec<&str> {
    // What stands in backquotes is code.
    let code: Vec<bool> = line
        .chars()
        .scan(false, |code, c| {
            *code ^= c == '`';
            Some(*code)
        })
        .collect();
    let in_code = |at: usize| code[line[..at].chars().count()];
    let mut found: Vec<&str> = line
        .match_indices("](")
        .filter(|(at, _)| !in_code(*at))
        .filter_map(|(at, _)| line[at + 2..].split([')', ' ']).next())
        .collect();
    if line.starts_with('[')
        && let Some((_, target)) = line.split_once("]: ")
    {
        found.extend(target.split_whitespace().next());
    }
    found
}

/// The target as a path from the workspace's folder; `None` above it.
fn resolve(file: &Path, target: &str) -> Option<PathBuf> {
    let mut path = match target.strip_prefix('/') {
        Some(_) => PathBuf::new(),
        None => file.parent()?.to_owned(),
    };
    for component in Path::new(target.trim_start_matches('/')).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir if !path.pop() => return None,
            _ => {}
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(file: &str, text: &str) -> Vec<(usize, String)> {
        let exists = |path: &Path| ["README.md", "docs/rfc.md"].contains(&path.to_str().unwrap());
        let findings = check(Path::new(file), text, exists);
        findings.into_iter().map(|finding| (finding.line, finding.message)).collect()
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let text = "[a](docs/rfc.md#x) [b](https://x.org) [c](#d)\n[e]: docs/rfc.md\n";
        assert_eq!(broken("README.md", text), []);
        assert_eq!(broken("docs/rfc.md", "[up](../README.md) [root](/docs/rfc.md)"), []);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let found = broken("docs/rfc.md", "\nsee [a](README.md) and [b](../../x)\n");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|(line, _)| *line == 2), "{found:?}");
        assert!(found[0].1.contains("no docs/README.md"), "{found:?}");
        assert!(found[1].1.contains("leads out"), "{found:?}");
    }

    #[test]
    fn code_is_no_link() {
        assert_eq!(broken("README.md", "`a[0](b)` c\n```\n[x](y)\n```\n"), []);
    }
}
