//! The rules about single files.

use std::path::Path;

use super::{
    Finding, Severity,
    source::{Source, has_word},
};

/// Lines from which a file is said to be long.
const LONG: usize = 600;

/// Lines that no file may pass.
const TOO_LONG: usize = 800;

/// A word that may stand in some places only.
struct Only {
    /// What is looked for; whole names, in code.
    words: &'static [&'static str],
    /// Where the rule holds: the beginning of a path.
    scope: &'static str,
    /// Where the words may stand nevertheless: a file, or a folder with a slash at its end.
    places: &'static [&'static str],
    /// Whether unit tests may use them.
    tests_may: bool,
    /// Why not, and what to do.
    cure: &'static str,
}

/// The directions of imports, and who may ask the system for what.
const ONLY: [Only; 9] = [
    Only {
        words: &["aya", "aya_log", "aya_obj"],
        scope: "lb-userspace/src/",
        places: &["lb-userspace/src/dataplane.rs", "lb-userspace/src/dataplane/"],
        tests_may: false,
        cure: "only `dataplane` touches the kernel's maps; go through its functions",
    },
    Only {
        words: &["aya"],
        scope: "lb-common/",
        places: &["lb-common/src/map_type.rs"],
        tests_may: false,
        cure: "the contract depends on nothing; `map_type!` alone names aya, behind `user`",
    },
    Only {
        words: &["aya", "aya_ebpf", "aya_log_ebpf"],
        scope: "lb-ebpf/src/",
        places: &[
            "lb-ebpf/src/main.rs",
            "lb-ebpf/src/program/",
            "lb-ebpf/src/program.rs",
            // The benchmark's own BPF binary.
            "lb-ebpf/src/decap_program.rs",
            "lb-ebpf/src/resets_program.rs",
            "lb-ebpf/src/floors.rs",
            "lb-ebpf/src/floors/",
        ],
        tests_may: false,
        cure: "the data path is pure and runs on the host; it sees the kernel through `Tables`",
    },
    Only {
        words: &["lb_ebpf"],
        scope: "lb-userspace/src/",
        places: &[],
        tests_may: false,
        cure: "user space embeds the object's bytes; what both sides know is in `lb-common`",
    },
    Only {
        words: &["tokio_postgres"],
        scope: "lb-userspace/src/",
        places: &[
            "lb-userspace/src/postgres.rs",
            "lb-userspace/src/postgres/",
            "lb-userspace/src/health/postgres.rs",
        ],
        tests_may: false,
        cure: "SQL is spoken only by `postgres` and its probe",
    },
    Only {
        words: &["clap", "clap_complete", "clap_mangen"],
        scope: "lb-userspace/src/",
        places: &["lb-userspace/src/cli.rs", "lb-userspace/src/cli/"],
        tests_may: false,
        cure: "the command line ends in `cli`; pass plain values on",
    },
    Only {
        words: &[
            "SOCK_RAW",
            "AF_PACKET",
            "Type::RAW",
            "Domain::PACKET",
            "SockType::Raw",
            "AddressFamily::Packet",
        ],
        scope: "lb-userspace/src/",
        places: &[
            "lb-userspace/src/net.rs",
            "lb-userspace/src/net/",
            "lb-userspace/src/vrrp/socket.rs",
        ],
        tests_may: true,
        cure: "raw sockets are opened by `vrrp::socket` and `net` only; `net::inject` sends whole frames",
    },
    Only {
        words: &[
            "Instant::now",
            "SystemTime::now",
            "Timestamp::now",
            "Zoned::now",
            "clock_gettime",
        ],
        scope: "lb-userspace/src/",
        places: &["lb-userspace/src/clock.rs"],
        tests_may: true,
        cure: "only `clock` asks the time; take it as an argument, or ask `clock`",
    },
    Only {
        words: &["std::time", "core::time"],
        scope: "lb-ebpf/src/",
        places: &[],
        tests_may: true,
        cure: "the kernel program knows no durations, only nanoseconds from its tables",
    },
];

/// A crate that another must not depend on, or only by a feature.
struct Dependency {
    /// The one.
    manifest: &'static str,
    /// Keys of its `[dependencies]` that are fine; all are, if empty.
    may: &'static [&'static str],
    /// Keys that are not.
    must_not: &'static [&'static str],
    /// Keys that must be optional.
    optional: &'static [&'static str],
    /// Why.
    cure: &'static str,
}

/// The directions between the crates.
const DEPENDENCIES: [Dependency; 4] = [
    Dependency {
        manifest: "lb-common/Cargo.toml",
        may: &["aya"],
        must_not: &[],
        optional: &["aya"],
        cure: "the contract between kernel and user space depends on nothing (aya behind `user`)",
    },
    Dependency {
        manifest: "lb-ebpf/Cargo.toml",
        may: &[],
        must_not: &["aya", "lb-userspace"],
        optional: &["aya-ebpf", "aya-log-ebpf"],
        cure: "the data path builds for the host; the kernel's side is behind `program`",
    },
    Dependency {
        manifest: "lb-userspace/Cargo.toml",
        may: &[],
        must_not: &["lb-ebpf", "xtask"],
        optional: &[],
        cure: "user space embeds the object's bytes; what both sides know is in `lb-common`",
    },
    Dependency {
        manifest: "xtask/Cargo.toml",
        may: &[],
        must_not: &["aya", "lb-common", "lb-ebpf", "lb-userspace"],
        optional: &[],
        cure: "xtask must build where the BPF toolchain is not there yet; put it into `tests`",
    },
];

/// Machines that are given inputs and the time, and give actions.
const PURE: [&str; 40] = [
    "lb-userspace/src/control/lift.rs",
    "lb-userspace/src/control/plan.rs",
    "lb-userspace/src/control/state.rs",
    "lb-userspace/src/control/table.rs",
    "lb-userspace/src/control/verdict.rs",
    "lb-userspace/src/health/passive.rs",
    "lb-userspace/src/health/passive/drift.rs",
    "lb-userspace/src/health/passive/evidence.rs",
    "lb-userspace/src/health/passive/handshakes.rs",
    "lb-userspace/src/health/passive/track.rs",
    "lb-userspace/src/health/passive/trial.rs",
    "lb-userspace/src/health/passive/window.rs",
    "lb-userspace/src/health/threshold.rs",
    "lb-userspace/src/peer/hub.rs",
    "lb-userspace/src/peer/session.rs",
    "lb-userspace/src/peer/stream.rs",
    "lb-userspace/src/peer/window.rs",
    "lb-userspace/src/postgres/choose.rs",
    "lb-userspace/src/postgres/failover.rs",
    "lb-userspace/src/postgres/failover/command.rs",
    "lb-userspace/src/postgres/failover/follow.rs",
    "lb-userspace/src/postgres/failover/gate.rs",
    "lb-userspace/src/postgres/failover/known.rs",
    "lb-userspace/src/postgres/failover/run.rs",
    "lb-userspace/src/postgres/failover/store.rs",
    "lb-userspace/src/postgres/failover/watch.rs",
    "lb-userspace/src/postgres/lsn.rs",
    "lb-userspace/src/postgres/record.rs",
    "lb-userspace/src/postgres/route.rs",
    "lb-userspace/src/postgres/sample.rs",
    "lb-userspace/src/postgres/sync.rs",
    "lb-userspace/src/proxy/decide.rs",
    "lb-userspace/src/proxy/select.rs",
    "lb-userspace/src/proxy/strict.rs",
    "lb-userspace/src/proxy/strict/chunks.rs",
    "lb-userspace/src/proxy/strict/head.rs",
    "lb-userspace/src/vrrp/machine.rs",
    "lb-userspace/src/vrrp/machine/state.rs",
    "lb-userspace/src/vrrp/packet.rs",
    "lb-userspace/src/vrrp/priority.rs",
];

/// What a pure machine must not name.
const IMPURE: [&str; 7] =
    ["tokio", "aya", "clock", "tracing", "std::fs", "std::thread", "thread::sleep"];

/// What must stand nowhere in code, with spaces removed.
const NOWHERE: [(&str, &str); 6] = [
    ("todo!(", "finish it"),
    ("unimplemented!(", "finish it"),
    ("dbg!(", "use `tracing`, or remove it"),
    ("#[ignore", "a test that does not run proves nothing: make it run, or remove it"),
    ("#[allow(", "use `#[expect(…, reason = \"…\")]`"),
    ("#![allow(", "use `#![expect(…, reason = \"…\")]`"),
];

/// What must not stand in comments.
const MARKERS: [&str; 3] = ["TODO", "FIXME", "XXX"];

/// Checks one file.
pub(super) fn check(file: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Findings { file, found: Vec::new() };
    findings.layout(text);
    let path = file.to_string_lossy();
    if path.ends_with(".rs") {
        findings.length(text);
        findings.rust(&path, &Source::new(text));
    }
    for rule in DEPENDENCIES.iter().filter(|rule| rule.manifest == path) {
        findings.dependencies(text, rule);
    }
    findings.found
}

struct Findings<'a> {
    file: &'a Path,
    found: Vec<Finding>,
}

impl Findings<'_> {
    fn error(&mut self, line: usize, message: String) {
        let severity = Severity::Error;
        self.found.push(Finding { file: self.file.into(), line, message, severity });
    }

    fn layout(&mut self, text: &str) {
        for (number, line) in text.lines().enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                self.error(number + 1, "the line ends with a space; remove it".into());
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            self.error(text.lines().count(), "the file does not end with a line; add one".into());
        }
    }

    fn length(&mut self, text: &str) {
        let lines = text.lines().count();
        let message = format!("{lines} lines; split it, so that each file has one subject");
        if lines > TOO_LONG {
            self.error(0, message);
        } else if lines > LONG {
            let severity = Severity::Warning;
            self.found.push(Finding { file: self.file.into(), line: 0, message, severity });
        }
    }

    fn rust(&mut self, path: &str, source: &Source) {
        let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
        for rule in ONLY.iter().filter(|rule| rule.holds_in(path) && !(rule.tests_may && is_test)) {
            let code = if rule.tests_may { source.code_without_tests() } else { &source.code };
            self.words(code, rule.words, |word| format!("`{word}` here: {}", rule.cure));
        }
        if PURE.contains(&path) {
            self.words(source.code_without_tests(), &IMPURE, |word| {
                format!(
                    "`{word}` in a pure machine: take inputs and `now` as arguments, give actions"
                )
            });
        }
        for (number, line) in source.code.lines().enumerate() {
            let dense: String = line.chars().filter(|c| !c.is_whitespace()).collect();
            for (sign, cure) in NOWHERE {
                if contains_start(&dense, sign) {
                    self.error(number + 1, format!("`{sign}…`: {cure}"));
                }
            }
        }
        for (number, line) in source.comments.lines().enumerate() {
            for marker in MARKERS.iter().filter(|marker| has_word(line, marker)) {
                self.error(number + 1, format!("`{marker}`: do it, or open an issue"));
            }
        }
    }

    fn dependencies(&mut self, text: &str, rule: &Dependency) {
        let mut inside = false;
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                inside = line.trim_end() == "[dependencies]";
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| inside) else { continue };
            // `name.workspace = true` too.
            let name = key.split('.').next().unwrap_or_default().trim();
            let allowed = rule.may.is_empty() || rule.may.contains(&name);
            if !allowed || rule.must_not.contains(&name) {
                self.error(number + 1, format!("dependency `{name}`: {}", rule.cure));
            } else if rule.optional.contains(&name) && !value.contains("optional = true") {
                self.error(number + 1, format!("`{name}` must be optional: {}", rule.cure));
            }
        }
    }

    fn words(&mut self, code: &str, words: &[&str], message: impl Fn(&str) -> String) {
        for (number, line) in code.lines().enumerate() {
            for word in words.iter().filter(|word| has_word(line, word)) {
                self.error(number + 1, message(word));
            }
        }
    }
}

impl Only {
    fn holds_in(&self, path: &str) -> bool {
        let excepted =
            |place: &&str| path == *place || (place.ends_with('/') && path.starts_with(*place));
        path.starts_with(self.scope) && !self.places.iter().any(excepted)
    }
}

/// Whether `sign` stands in `text`, not as the end of a longer name (`my_todo!(` is another macro).
fn contains_start(text: &str, sign: &str) -> bool {
    text.match_indices(sign).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines with a finding, and the first message.
    fn found(file: &str, text: &str) -> (Vec<usize>, String) {
        let findings = check(Path::new(file), text);
        let lines = findings.iter().map(|finding| finding.line).collect();
        (lines, findings.first().map(|finding| finding.message.clone()).unwrap_or_default())
    }

    fn fine() -> (Vec<usize>, String) {
        (Vec::new(), String::new())
    }

    #[test]
    fn imports_in_the_wrong_direction_are_found() {
        for (file, text) in [
            ("lb-userspace/src/control/task.rs", "use aya::maps::HashMap;\n"),
            ("lb-userspace/src/health.rs", "use lb_ebpf::parse;\n"),
            ("lb-userspace/src/admin.rs", "use clap::Parser;\n"),
            ("lb-userspace/src/vrrp/machine.rs", "use crate::clock;\n"),
            ("lb-userspace/src/control.rs", "use tokio_postgres::Client;\n"),
            ("lb-userspace/src/control.rs", "let now = std::time::Instant::now();\n"),
            ("lb-userspace/src/admin.rs", "let x = libc::SOCK_RAW;\n"),
            ("lb-userspace/src/control/plan.rs", "use tokio::sync::mpsc;\n"),
            ("lb-ebpf/src/parse.rs", "use aya_ebpf::bindings;\n"),
            ("lb-common/src/flow.rs", "use aya::Pod;\n"),
        ] {
            assert_eq!(found(file, text).0, [1], "{file}: {text}");
        }
    }

    #[test]
    fn the_places_that_may_are_left_alone() {
        for (file, text) in [
            ("lb-userspace/src/dataplane/load.rs", "use aya::Ebpf;\n"),
            ("lb-userspace/src/dataplane.rs", "use aya::Ebpf;\n"),
            ("lb-userspace/build.rs", "use aya_build::Package;\n"),
            ("lb-userspace/src/cli.rs", "use clap::Parser;\n"),
            ("lb-userspace/src/clock.rs", "Timestamp::now();\n"),
            ("lb-userspace/src/control/task.rs", "use tokio::sync::mpsc;\n"),
            ("lb-ebpf/src/program/maps.rs", "use aya_ebpf::btf_maps;\n"),
            ("lb-common/src/map_type.rs", "unsafe impl aya::Pod for X {}\n"),
            ("tests/kernel/main.rs", "use aya::Ebpf;\n"),
            ("lb-userspace/src/health.rs", "// aya is elsewhere\nlet x = \"aya\";\n"),
        ] {
            assert_eq!(found(file, text), fine(), "{file}: {text}");
        }
    }

    #[test]
    fn crates_depend_on_each_other_in_one_direction() {
        let text = |line: &str| format!("[package]\nlb-ebpf = 1\n\n[dependencies]\n{line}\n");
        for (file, line) in [
            ("xtask/Cargo.toml", "lb-userspace = { workspace = true }"),
            ("lb-userspace/Cargo.toml", "lb-ebpf.workspace = true"),
            ("lb-common/Cargo.toml", "serde = { workspace = true }"),
            ("lb-common/Cargo.toml", "aya = { workspace = true }"),
            ("lb-ebpf/Cargo.toml", "aya-ebpf = { workspace = true }"),
        ] {
            assert_eq!(found(file, &text(line)).0, [5], "{file}: {line}");
        }
        for (file, line) in [
            ("xtask/Cargo.toml", "clap = { workspace = true }"),
            ("tests/Cargo.toml", "lb-userspace = { workspace = true }"),
            ("lb-common/Cargo.toml", "aya = { workspace = true, optional = true }"),
            ("lb-ebpf/Cargo.toml", "[dev-dependencies]\naya = \"1\""),
        ] {
            assert_eq!(found(file, &text(line)), fine(), "{file}: {line}");
        }
    }

    #[test]
    fn tests_may_ask_the_time() {
        let text = "a();\n#[cfg(test)]\nmod tests {\n    fn x() { Instant::now(); }\n}\n";
        assert_eq!(found("lb-userspace/src/net.rs", text), fine());
        assert_eq!(found("lb-userspace/src/net.rs", "fn x() { Instant::now(); }\n").0, [1]);
    }

    #[test]
    fn unfinished_work_is_found() {
        for text in [
            "fn f() { todo!() }\n",
            "fn f() { unimplemented! ( \"x\" ) }\n",
            "#[ignore = \"slow\"]\nfn f() {}\n",
            "#[ allow(dead_code) ]\nfn f() {}\n",
            "#![allow(unused)]\n",
            "// FIXME: later\n",
            "/* x */ fn f() {} // TODO\n",
        ] {
            assert_eq!(found("lb-ebpf/src/lib.rs", text).0, [1], "{text}");
        }
        for text in [
            "// allow( is a word\n#[expect(dead_code, reason = \"x\")]\nfn f() {}\n",
            "let text = \"todo!()\";\n",
            "let my_todo = 1; // XXXL\n",
        ] {
            assert_eq!(found("lb-ebpf/src/lib.rs", text), fine(), "{text}");
        }
    }

    #[test]
    fn spaces_at_the_end_and_missing_last_lines_are_found() {
        assert_eq!(found("README.md", "a \nb\t\n").0, [1, 2]);
        assert_eq!(found("README.md", "a\nb").0, [2]);
        assert_eq!(found("README.md", ""), fine());
    }

    #[test]
    fn long_files_warn_and_longer_ones_fail() {
        let lines = |count: usize| "//\n".repeat(count);
        assert_eq!(check(Path::new("a.rs"), &lines(LONG)), []);
        let severity = |count| check(Path::new("a.rs"), &lines(count))[0].severity;
        assert_eq!(severity(LONG + 1), Severity::Warning);
        assert_eq!(severity(TOO_LONG), Severity::Warning);
        assert_eq!(severity(TOO_LONG + 1), Severity::Error);
        assert_eq!(check(Path::new("a.md"), &lines(TOO_LONG + 1)), []);
    }
}
