//! Running other programs.

use std::{
    ffi::OsStr,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The command as a person would type it.
pub fn display(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The word as a shell reads it.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/.,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs the command to its end and gives what it printed; its standard error becomes the error.
pub fn output(command: &mut Command) -> Result<String> {
    output_of(command, "")
}

/// The same, with standard input.
///
/// The command runs in its own process group: an interrupt at the terminal reaches this program,
/// which then clears up in order, and not the step that is under way.
pub fn output_of(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("start `{}`", display(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why on its standard error, which is the better message.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("run `{}`", display(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", display(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs the command on this terminal, and fails when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start `{}`", display(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", display(command));
    }
    Ok(())
}

/// `CARGO_HOME`, or where it is when that is not set.
pub fn cargo_home() -> Option<PathBuf> {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")))
}

/// Where an executable is: in `PATH`; or where `cargo install` puts programs, which `PATH` need not
/// lead to; or in the folders for administrators, which it lacks for ordinary users on Debian.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(cargo_home().map(|home| home.join("bin")))
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

/// Whether this is a file that somebody may execute.
pub fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// `PATH` with these folders in front, for a child's environment.
pub fn path_with(folders: &[PathBuf]) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let old: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let new = folders.iter().filter(|folder| !old.contains(folder)).cloned();
    std::env::join_paths(new.chain(old.iter().cloned()))
        .unwrap_or_else(|_| OsStr::new(&path).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("curl");
        command.args(["-s", "http://[2001:db8::1]/", "it's", ""]);
        assert_eq!(display(&command), r"curl -s 'http://[2001:db8::1]/' 'it'\''s' ''");
    }

    #[test]
    fn a_failing_command_says_what_it_printed() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("broken") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(output_of(&mut Command::new("cat"), "hello").unwrap(), "hello");
    }

    #[test]
    fn folders_come_first_in_the_path_once() {
        let path = path_with(&["/one".into(), "/one/two".into()]);
        let folders: Vec<_> = std::env::split_paths(&path).collect();
        assert_eq!(folders[..2], [PathBuf::from("/one"), PathBuf::from("/one/two")]);
    }
}
