//! A second try for tests of whole systems.
//!
//! They run real servers against deadlines, on machines whose cores may be lent to somebody else for seconds.
//! A few that fail are run once more, each alone. What fails twice has failed; what does not is named at the
//! end, so that it is looked at before it becomes a habit.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{interrupt, shell};

/// More than so many that fail are no accident.
const FEW: usize = 3;

/// Runs tests, and those that fail a second time, each by `alone` of its name. Gives the names of those that
/// needed it.
pub(super) fn run(all: &mut Command, alone: impl Fn(&str) -> Command) -> Result<Vec<String>> {
    let (good, text) = printed(all)?;
    if good {
        return Ok(Vec::new());
    }
    let failed = failures(&text);
    if failed.is_empty() || failed.len() > FEW {
        bail!("`{}` failed", shell::display(all));
    }
    for name in &failed {
        interrupt::check()?;
        println!("==> once more, alone: {name}");
        let mut command = alone(name);
        let (good, text) = printed(&mut command)?;
        if !good || !text.contains("test result: ok. 1 passed") {
            bail!("{name} failed twice");
        }
    }
    Ok(failed)
}

/// Runs a command, prints what it prints, and gives that too.
fn printed(command: &mut Command) -> Result<(bool, String)> {
    let shown = shell::display(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("start `{shown}`"))?;
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            text += &line;
            text.push('\n');
        }
    }
    let status = child.wait().with_context(|| format!("wait for `{shown}`"))?;
    Ok((status.success(), text))
}

/// The names in the list that Rust's test programs end with.
fn failures(text: &str) -> Vec<String> {
    let Some((_, list)) = text.rsplit_once("\nfailures:\n") else { return Vec::new() };
    list.lines()
        .map_while(|line| line.strip_prefix("    "))
        .filter(|name| !name.contains(' '))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const TWO: &str = "printf 'test a::b ... FAILED\\n\\nfailures:\\n\\n---- a::b stdout ----\\nx\\n\\nfailures:\\n    \
                       a::b\\n    c\\n\\ntest result: FAILED. 1 passed; 2 failed\\n'; exit 101";

    #[test]
    fn the_list_at_the_end_has_the_names() {
        let (good, text) = printed(&mut sh(TWO)).unwrap();
        assert!(!good);
        assert_eq!(failures(&text), ["a::b", "c"]);
        assert_eq!(failures("test result: ok. 3 passed"), Vec::<String>::new());
    }

    #[test]
    fn what_passes_alone_is_named_and_what_does_not_has_failed() {
        let passes = |_: &str| sh("echo 'test result: ok. 1 passed; 0 failed'");
        assert_eq!(run(&mut sh(TWO), passes).unwrap(), ["a::b", "c"]);
        let fails = |_: &str| sh("exit 101");
        assert!(run(&mut sh(TWO), fails).unwrap_err().to_string().contains("a::b failed twice"));
        // A name that finds no test passes nothing.
        let none = |_: &str| sh("echo 'test result: ok. 0 passed; 0 failed'");
        assert!(run(&mut sh(TWO), none).is_err());
        assert_eq!(run(&mut sh("exit 0"), fails).unwrap(), Vec::<String>::new());
        // Not one test, but the build.
        assert!(run(&mut sh("exit 101"), passes).is_err());
    }

    #[test]
    fn many_failures_are_no_accident() {
        let many = "printf '\\nfailures:\\n    a\\n    b\\n    c\\n    d\\n\\n'; exit 101";
        let passes = |_: &str| sh("echo 'test result: ok. 1 passed; 0 failed'");
        assert!(run(&mut sh(many), passes).is_err());
    }
}
