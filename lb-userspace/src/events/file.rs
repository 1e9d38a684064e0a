//! `events.jsonl`: one JSON object a line, turned over at a few megabytes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::Event;

/// The file is renamed to `events.jsonl.1` when it would grow past this.
const MAX_BYTES: u64 = 8 << 20;

/// The file of events. It never fails: what is wrong stands in [`EventFile::trouble`] until a write
/// succeeds again.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    open: Option<(File, u64)>,
    max_bytes: u64,
    lost: u64,
    trouble: Option<String>,
}

impl EventFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, open: None, max_bytes: MAX_BYTES, lost: 0, trouble: None }
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) fn append(&mut self, event: &Event) {
        match self.try_append(event) {
            Ok(()) => {
                self.trouble = None;
                self.lost = 0;
            }
            Err(error) => {
                // Opened again for the next event: it may have been deleted, or its disk mounted.
                self.open = None;
                self.lost += 1;
                self.trouble = Some(format!(
                    "{}: {error}; {} events are in memory only",
                    self.path.display(),
                    self.lost
                ));
            }
        }
    }

    fn try_append(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let (mut file, size) = match self.open.take() {
            Some(open) => open,
            None => open(&self.path)?,
        };
        if size > 0 && size + line.len() as u64 > self.max_bytes {
            drop(file);
            fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            (file, _) = open(&self.path)?;
        }
        // The length is asked for rather than counted: another process may have cut the file. A
        // line that a full disk cut short is taken back, so that the file stays one object a line.
        let before = file.metadata()?.len();
        if let Err(error) = file.write_all(&line) {
            let _ = file.set_len(before);
            return Err(error);
        }
        self.open = Some((file, before + line.len() as u64));
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Kind;

    fn event(number: u64) -> Event {
        Event {
            number,
            time: jiff::Timestamp::UNIX_EPOCH,
            monotonic_ms: 1,
            kind: Kind::Health,
            service: Some("web".into()),
            backend: None,
            message: "something".into(),
            cause: None,
        }
    }

    fn lines(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().number).collect()
    }

    #[test]
    fn it_turns_over_and_keeps_one_old_file() {
        let directory = crate::scratch::Directory::new("events");
        let path = directory.path().join("events.jsonl");
        let mut file = EventFile::new(path.clone());
        file.max_bytes = 3 * (serde_json::to_vec(&event(1)).unwrap().len() as u64 + 1);
        for number in 1..=7 {
            file.append(&event(number));
            assert_eq!(file.trouble(), None);
        }
        assert_eq!(lines(&path), [7]);
        assert_eq!(lines(&directory.path().join("events.jsonl.1")), [4, 5, 6]);
    }

    #[test]
    fn a_failure_is_told_and_forgotten_when_it_is_over() {
        let directory = crate::scratch::Directory::new("events-failure");
        let path = directory.path().join("missing").join("events.jsonl");
        let mut file = EventFile::new(path.clone());
        file.append(&event(1));
        file.append(&event(2));
        assert!(file.trouble().unwrap().contains("2 events are in memory only"));
        fs::create_dir(path.parent().unwrap()).unwrap();
        file.append(&event(3));
        assert_eq!(file.trouble(), None);
        assert_eq!(lines(&path), [3]);
    }

    #[test]
    fn a_full_disk_is_told() {
        let Ok(full) = OpenOptions::new().append(true).open("/dev/full") else {
            panic!("/dev/full is missing");
        };
        let mut file = EventFile::new("/dev/full".into());
        file.open = Some((full, 0));
        file.append(&event(1));
        assert!(file.trouble().unwrap().contains("No space left"), "{:?}", file.trouble());
    }
}
