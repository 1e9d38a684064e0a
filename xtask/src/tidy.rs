//! `cargo xtask tidy`: what the house's rules say about the source itself.
//!
//! Most rules are about something that must be absent, which no compiler and no test of the program
//! would notice: an import in the wrong direction, a clock where time should be an argument. Each
//! finding names the place and the cure.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::build;

mod links;
mod rules;
mod source;

/// Something to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File, from the workspace's folder.
    pub file: PathBuf,
    /// Line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong, and the cure.
    pub message: String,
    /// Whether it fails the check.
    pub severity: Severity,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Shown.
    Warning,
    /// Fails the check.
    Error,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Warning => "warning: ",
            Severity::Error => "",
        };
        let line = if self.line == 0 { String::new() } else { format!("{}:", self.line) };
        write!(f, "{}:{line} {word}{}", self.file.display(), self.message)
    }
}

/// Checks the workspace, prints what it finds, and fails on errors.
pub fn tidy() -> Result<()> {
    let findings = check(build::workspace())?;
    for finding in &findings {
        println!("{finding}");
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    if errors > 0 {
        bail!("tidy found {errors} to mend");
    }
    Ok(())
}

/// Checks every file under `root`.
pub fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut files = Vec::new();
    collect(root, Path::new(""), &mut files)?;
    files.sort();
    let mut findings = Vec::new();
    for file in files {
        let bytes =
            fs::read(root.join(&file)).with_context(|| format!("read {}", file.display()))?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        findings.extend(rules::check(&file, &text));
        if file.extension().is_some_and(|end| end == "md") {
            findings.extend(links::check(&file, &text, |target| root.join(target).exists()));
        }
    }
    Ok(findings)
}

/// All files that people write; `path` is relative to `root`.
fn collect(root: &Path, path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let folder = root.join(path);
    let entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let hidden = name.starts_with('.') && ![".ci", ".cargo", ".github"].contains(&&*name);
        if hidden || ["target", "Cargo.lock", "proptest-regressions"].contains(&&*name) {
            continue;
        }
        let kind = entry.file_type().context("look at a file")?;
        let child = path.join(&*name);
        if kind.is_dir() {
            collect(root, &child, files)?;
        } else if kind.is_file() {
            files.push(child);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_name_the_place() {
        let mut finding = Finding {
            file: "a/b.rs".into(),
            line: 7,
            message: "mend it".into(),
            severity: Severity::Error,
        };
        assert_eq!(finding.to_string(), "a/b.rs:7: mend it");
        finding.line = 0;
        finding.severity = Severity::Warning;
        assert_eq!(finding.to_string(), "a/b.rs: warning: mend it");
    }

    #[test]
    fn the_workspace_is_tidy() {
        let findings = check(build::workspace()).unwrap();
        let errors: Vec<String> = findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .map(Finding::to_string)
            .collect();
        assert!(errors.is_empty(), "\n{}", errors.join("\n"));
    }
}
