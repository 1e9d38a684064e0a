//! Takes the lab down when the process that brought it up is gone, however it went.
//!
//! A child, `xtask lab-guard`, holds the reading end of a pipe. It ends quietly when it reads
//! [`DISMISSED`]; when the pipe closes without, its parent has died, and it clears up.

use std::{
    io::{Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

const DISMISSED: u8 = b'd';

/// The watching child.
pub(super) struct Guard(Child);

impl Guard {
    /// Starts to watch over the lab `name`.
    pub(super) fn new(tool: &std::path::Path, name: &str) -> Result<Self> {
        let child = Command::new(tool)
            .args(["lab-guard", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Its own group: Ctrl-C at the terminal is for the parent.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {} lab-guard", tool.display()))?;
        Ok(Self(child))
    }

    /// Ends the watch without taking the lab down.
    pub(super) fn dismiss(mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            // If it is gone already, there is nobody left to tell.
            let _ = stdin.write_all(&[DISMISSED]);
        }
        let _ = self.0.wait();
    }
}

/// The child's side.
pub fn watch(name: &str) -> Result<()> {
    let mut word = [0];
    match std::io::stdin().read(&mut word) {
        Ok(1) if word[0] == DISMISSED => Ok(()),
        _ => super::down(name),
    }
}
