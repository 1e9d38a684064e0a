//! The command probe: a program of the operator's, whose exit code is the verdict.
//!
//! It runs in a process group of its own. When the time is over, or the probe is no longer wanted,
//! the whole group is killed, so that a shell's children do not live on. A process that the command
//! leaves behind after it has exited is its own business.

use std::{
    os::unix::process::ExitStatusExt,
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures_util::future::{FusedFuture, FutureExt};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

use super::{Deadline, Observation, Target, io_reason};

/// Bytes of the command's first line that are shown.
const MAX_LINE_BYTES: usize = 200;

/// How long output is still read after the command has exited. What it wrote is in the pipe by then;
/// only a process that it left behind can keep the pipe open.
const DRAIN: Duration = Duration::from_millis(20);

/// Runs `command` for `target`.
pub async fn probe(command: &[String], target: &Target, deadline: &Deadline) -> Observation {
    let Some((program, arguments)) = command.split_first() else {
        return Observation::Fail("no command to run".into());
    };
    let child = Command::new(program)
        .args(arguments)
        .env("BALLAST_SERVICE", &target.service)
        .env("BALLAST_BACKEND", &target.backend)
        .env("BALLAST_ADDRESS", target.address.ip().to_string())
        .env("BALLAST_PORT", target.address.port().to_string())
        // The daemon's line to systemd is not the command's.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_PID")
        .env_remove("WATCHDOG_USEC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut group = match child {
        Ok(child) => Group(child),
        Err(error) => {
            return Observation::Fail(format!("cannot start {program}: {}", io_reason(&error)));
        }
    };
    let (mut stdout, mut stderr) = (Line::default(), Line::default());
    let exit = {
        let pipes = (group.0.stdout.take(), group.0.stderr.take());
        let output = async {
            if let (Some(out), Some(err)) = pipes {
                tokio::join!(stdout.read(out), stderr.read(err));
            }
        };
        let mut output = pin!(output.fuse());
        let exit = async {
            tokio::select! {
                status = group.0.wait() => status,
                () = &mut output => group.0.wait().await,
            }
        };
        let exit = deadline.within(exit).await;
        if exit.is_some() && !output.is_terminated() {
            let _ = tokio::time::timeout(DRAIN, output).await;
        }
        exit
    };
    match exit {
        Some(Ok(status)) => {
            let line = if stderr.text().is_empty() { stdout.text() } else { stderr.text() };
            observation(status, &line)
        }
        Some(Err(error)) => Observation::Fail(format!("cannot wait for it: {}", io_reason(&error))),
        None => {
            group.kill();
            // A killed process cannot refuse to be collected.
            let _ = group.0.wait().await;
            Observation::Fail(deadline.missed("no exit"))
        }
    }
}

/// The line is shown with a failure only: a passing command may print another figure each time.
fn observation(status: ExitStatus, line: &str) -> Observation {
    let what = match (status.code(), status.signal()) {
        (Some(0), _) => return Observation::Pass("exit code 0".into()),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    };
    Observation::Fail(if line.is_empty() { what } else { format!("{what}: {line}") })
}

/// A child that takes its process group with it.
struct Group(Child);

impl Group {
    fn kill(&self) {
        // Once the child has been waited for, its number may be another's.
        if let Some(id) = self.0.id() {
            // Fails only when the group has gone by itself.
            let _ = killpg(Pid::from_raw(id as i32), Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The first line with text of an output, up to [`MAX_LINE_BYTES`]; the rest is read and forgotten,
/// so that the command never waits for a full pipe.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    ended: bool,
}

impl Line {
    async fn read(&mut self, mut pipe: impl AsyncRead + Unpin) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
            self.push(&buffer[..length]);
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.ended || self.bytes.len() == MAX_LINE_BYTES {
                return;
            }
            match byte {
                b'\n' => self.ended = !self.bytes.is_empty(),
                byte if self.bytes.is_empty() && byte.is_ascii_whitespace() => {}
                byte => self.bytes.push(byte),
            }
        }
    }

    /// The line without what a terminal would obey.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        // A character that was cut in two.
        clean.trim().trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(chunks: &[&[u8]]) -> String {
        let mut line = Line::default();
        for chunk in chunks {
            line.push(chunk);
        }
        line.text()
    }

    #[test]
    fn first_line_with_text() {
        assert_eq!(line(&[b"\n \n  disk", b" full\r\nand more\n"]), "disk full");
        assert_eq!(line(&[b""]), "");
        assert_eq!(line(&[b"no end"]), "no end");
    }

    #[test]
    fn a_line_is_bounded_and_harmless() {
        assert_eq!(line(&["ä".repeat(500).as_bytes()]), "ä".repeat(100));
        assert_eq!(
            line(&[format!("x{}", "ä".repeat(500)).as_bytes()]),
            format!("x{}", "ä".repeat(99))
        );
        assert_eq!(line(&[b"\x1b[31mred\x07"]), "[31mred");
    }

    #[test]
    fn exit_says_why() {
        let fail = |raw, line| match observation(ExitStatus::from_raw(raw), line) {
            Observation::Fail(reason) => reason,
            Observation::Pass(reason) => panic!("passed: {reason}"),
        };
        assert_eq!(fail(2 << 8, "disk full"), "exit code 2: disk full");
        assert_eq!(fail(1 << 8, ""), "exit code 1");
        assert_eq!(fail(9, ""), "killed by SIGKILL");
        assert_eq!(
            observation(ExitStatus::from_raw(0), "took 3 ms"),
            Observation::Pass("exit code 0".into())
        );
    }
}
