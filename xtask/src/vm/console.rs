//! What comes out of the virtual machine: the tests' lines, and the kernel's own.

use super::guest::MARK;

/// What the tests said until now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The kernel that runs, once the guest's script is there.
    pub(super) release: Option<String>,
    /// The test program that runs.
    pub(super) running: Option<String>,
    /// Those that ended, with their exit codes.
    pub(super) ended: Vec<(String, i32)>,
}

impl Progress {
    /// Takes a line; false if it is the script's own and not a test's.
    pub(super) fn take(&mut self, line: &str) -> bool {
        // A test that was killed may leave half a line in front.
        let Some((_, report)) = line.split_once(MARK) else { return true };
        let words: Vec<&str> = report.split_whitespace().collect();
        match words[..] {
            ["runs", release] => self.release = Some(release.to_owned()),
            ["begins", name] => self.running = Some(name.to_owned()),
            ["ended", name, code] => {
                self.running = None;
                self.ended.push((name.to_owned(), code.parse().unwrap_or(-1)));
            }
            _ => return true,
        }
        false
    }

    /// What is wrong, if these should have run and ended well.
    pub(super) fn complaint(&self, tests: &[&str]) -> Option<Complaint> {
        if self.release.is_none() {
            return Some(Complaint::Ended("the machine did not come to run the tests".into()));
        }
        if let Some(name) = &self.running {
            return Some(Complaint::Ended(format!("the machine ended while `{name}` ran")));
        }
        tests.iter().find_map(|test| match self.ended.iter().find(|(name, _)| name == test) {
            None => Some(Complaint::Ended(format!("the machine ended before `{test}` ran"))),
            Some((_, 0)) => None,
            Some((_, code)) => {
                Some(Complaint::Failed(format!("`{test}` ended with exit code {code}")))
            }
        })
    }
}

/// What is wrong, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// The machine ended too soon.
    Ended(String),
    /// A test did not hold; what it printed says why.
    Failed(String),
}

/// Lines of the kernel's log that no test should cause.
pub(super) fn suspicious(log: &str) -> Vec<&str> {
    const SIGNS: [&str; 12] = [
        "BUG:",
        "WARNING:",
        "Oops",
        "Kernel panic",
        "Call Trace:",
        "general protection fault",
        "refcount_t:",
        "UBSAN:",
        "verifier",
        "bpf_jit",
        "Out of memory",
        "oom-kill",
    ];
    log.lines().filter(|line| SIGNS.iter().any(|sign| line.contains(sign))).collect()
}

/// The last lines of a text.
pub(super) fn end_of(text: &str) -> String {
    /// Enough for a panic with its trace.
    const LINES: usize = 60;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str]) -> Progress {
        let mut progress = Progress::default();
        for line in lines {
            progress.take(line);
        }
        progress
    }

    #[test]
    fn all_must_have_run_and_ended_well() {
        let good = ["ballast-vm: runs 6.1.0", "ballast-vm: begins a", "ballast-vm: ended a 0"];
        assert_eq!(after(&good).complaint(&["a"]), None);
        for (lines, tests, words) in [
            (&good[..0], &["a"][..], "Ended(\"the machine did not come"),
            (&good[..2], &["a"], "Ended(\"the machine ended while `a`"),
            (&good, &["a", "b"], "Ended(\"the machine ended before `b`"),
            (
                &[good[0], "x: ballast-vm: ended a 101"],
                &["a"],
                "Failed(\"`a` ended with exit code 101",
            ),
            (&[good[0], "ballast-vm: ended a ?"], &["a"], "exit code -1"),
        ] {
            let complaint = format!("{:?}", after(lines).complaint(tests));
            assert!(complaint.contains(words), "{lines:?}: {complaint}");
        }
    }

    #[test]
    fn the_tests_own_lines_are_shown() {
        let mut progress = Progress::default();
        assert!(progress.take("test cases::every_case ... ok"));
        assert!(!progress.take("ballast-vm: begins kernel"));
        assert_eq!(progress.running.as_deref(), Some("kernel"));
    }

    #[test]
    fn a_kernels_complaint_is_found() {
        let log = "[ 1.0] Freeing unused memory\n\
                   [ 2.0] WARNING: CPU: 0 PID: 1 at kernel/bpf/verifier.c:2\n\
                   [ 3.0] veth0: link up\n";
        assert_eq!(suspicious(log).len(), 1);
    }

    #[test]
    fn the_end_of_a_long_text_is_short() {
        let text = format!("{}last", "line\n".repeat(1000));
        let end = end_of(&text);
        assert!(end.ends_with("\nlast") && end.lines().count() < 100);
        assert_eq!(end_of("one"), "one");
    }
}
