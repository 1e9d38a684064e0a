//! The command line, as far as it works without a daemon: exit codes, output, help.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// A directory of one test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ballast-cli-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("create a directory");
        Self(path)
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.0.join("ballast.toml");
        fs::write(&path, text).expect("write a file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const GOOD: &str = r#"
[cluster]
name = "edge"
[[node]]
name = "lb-01"
address = "192.0.2.11"
interface = "eth0"
priority = 100
[[floating]]
vrid = 51
addresses = ["192.0.2.100/24"]
[[service]]
name = "web"
listen = "192.0.2.100:80"
protocol = "tcp"
[[service.backend]]
name = "app-01"
address = "192.0.2.21:8080"
[[service.backend]]
name = "app-02"
address = "192.0.2.22:8080"
"#;

fn ballast(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ballast"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("run ballast")
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).expect("UTF-8")
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).expect("UTF-8")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_good_file_is_ok() {
    let scratch = Scratch::new();
    let path = scratch.file(GOOD);
    let output = ballast(&["check", "-c", text(&path)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("ok: 1 service, 2 backends"), "{}", stdout(&output));
    let output = ballast(&["check", "-c", text(&path), "--json"]);
    let json: serde_json::Value = serde_json::from_str(stdout(&output)).expect("JSON");
    assert_eq!((&json["valid"], &json["backends"]), (&true.into(), &2.into()));
}

#[test]
fn a_wrong_file_is_told_with_every_mistake() {
    let scratch = Scratch::new();
    let wrong = GOOD
        .replace("protocol = \"tcp\"", "protocol = \"sctp\"")
        .replace("\"192.0.2.22:8080\"", "\"192.0.2.22\"");
    let path = scratch.file(&wrong);
    let output = ballast(&["check", "-c", text(&path)]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    for told in ["sctp", "192.0.2.22", "ballast.toml:15", "2 errors"] {
        assert!(stderr(&output).contains(told), "{told} is not in {}", stderr(&output));
    }
    let output = ballast(&["check", "-c", text(&path), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_str(stdout(&output)).expect("JSON");
    assert_eq!(json["valid"], false);
    assert_eq!(json["diagnostics"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_missing_file_is_told_with_its_name() {
    for command in ["check", "run", "detach"] {
        let output = ballast(&[command, "-c", "/nonexistent/ballast.toml"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("/nonexistent/ballast.toml"), "{}", stderr(&output));
    }
}

#[test]
fn run_names_the_nodes_there_are() {
    let scratch = Scratch::new();
    let path = scratch.file(GOOD);
    let output = ballast(&["run", "-c", text(&path), "--node", "lb-07"]);
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(told.contains("no [[node]] is called lb-07") && told.contains("lb-01"), "{told}");
}

#[test]
fn without_a_daemon_the_commands_say_where_they_looked() {
    let socket = "/nonexistent/ballast.sock";
    let commands: [&[&str]; 12] = [
        &["status"],
        &["status", "--json"],
        &["reload"],
        &["drain", "app-01"],
        &["enable", "app-01", "--service", "web"],
        &["disable", "app-01"],
        &["weight", "app-01", "5"],
        &["flows"],
        &["events", "--follow"],
        &["release"],
        &["trace", "--host", "192.0.2.9"],
        &["top", "--once"],
    ];
    for command in commands {
        let output = ballast(&[command, &["--socket", socket]].concat());
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert_eq!(stdout(&output), "");
        let told = stderr(&output);
        assert!(told.contains(&format!("no daemon answers at {socket}")), "{told}");
        assert!(told.contains("is `ballast run` active?"), "{told}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let wrong: [&[&str]; 8] = [
        &[],
        &["dance"],
        &["drain"],
        &["flows", "--limit", "0"],
        &["run", "--log-format", "xml"],
        &["completions", "tcsh"],
        &["trace", "--count", "0"],
        &["trace", "--json", "--pcapng", "file"],
    ];
    for args in wrong {
        let output = ballast(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("--help"), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn help_shows_commands_and_examples() {
    let output = ballast(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = stdout(&output);
    for told in ["Examples:", "Exit codes:", "check", "status", "drain", "detach", "completions"] {
        assert!(help.contains(told), "{told} is not in {help}");
    }
    for command in
        ["check", "run", "status", "drain", "weight", "flows", "events", "trace", "top", "detach"]
    {
        let output = ballast(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).lines().count() > 8, "{}", stdout(&output));
    }
    let output = ballast(&["--version"]);
    assert_eq!(stdout(&output), format!("ballast {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = ballast(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("drain"), "{shell}");
    }
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let output = ballast(&["man"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains(".TH ballast 1"), "{}", stdout(&output));
    let scratch = Scratch::new();
    let output = ballast(&["man", "--dir", text(&scratch.0)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for page in ["ballast.1", "ballast-run.1", "ballast-drain.1", "ballast-status.1"] {
        assert!(scratch.0.join(page).exists(), "{page} is missing");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ballast"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run ballast");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("wait for ballast");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}
