//! The record on the disk: `postgres-NAME.json` in the state directory.
//!
//! The file is replaced in one step and synced, so that it is always either the old one or the new one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::record::Record;

/// What the file says of itself; another number is a file of another ballast.
const VERSION: u32 = 1;

/// Where Linux says which start of the machine this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    version: u32,
    /// The start of the machine in which the record was last known to be the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confirmed: Option<String>,
    /// The record.
    pub record: Record,
}

impl Kept {
    /// A record to keep; `confirmed`: it is known to be the latest.
    pub fn new(record: Record, confirmed: bool) -> Self {
        Self { version: VERSION, confirmed: confirmed.then(boot_id).flatten(), record }
    }

    /// Whether the record was known to be the latest since the machine was started.
    pub fn is_warm(&self) -> bool {
        self.confirmed.is_some() && self.confirmed == boot_id()
    }
}

fn boot_id() -> Option<String> {
    Some(fs::read_to_string(BOOT_ID).ok()?.trim().to_owned())
}

fn path(directory: &Path, database: &str) -> PathBuf {
    directory.join(format!("postgres-{}.json", escaped(database)))
}

/// A database's name as part of a file's, since it may hold any character.
pub(super) fn escaped(database: &str) -> String {
    let bytes = database.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02x}"),
    });
    bytes.collect()
}

/// Reads the record of a database. One that makes no sense is an error: to go on without it might
/// bring an old primary back.
pub fn load(directory: &Path, database: &str) -> Result<Option<Kept>, String> {
    let path = path(directory, database);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("read {}: {error}", path.display())),
    };
    let kept: Kept = serde_json::from_slice(&text)
        .map_err(|error| format!("{} makes no sense: {error}", path.display()))?;
    if kept.version != VERSION {
        return Err(format!("{} is of another ballast (version {})", path.display(), kept.version));
    }
    Ok(Some(kept))
}

/// Writes the record of a database. After an error the old one stands.
pub fn save(directory: &Path, database: &str, kept: &Kept) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(kept)?;
    text.push(b'\n');
    replace(&path(directory, database), &text)
}

/// Replaces a file in one step, and syncs it. After an error the old one stands.
pub(super) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        // The new name is safe only when the directory is.
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        postgres::{lsn::Lsn, record::Branch},
        scratch,
    };

    #[test]
    fn what_is_kept_is_read() {
        let directory = scratch::Directory::new("postgres");
        assert_eq!(load(directory.path(), "a/b"), Ok(None));
        let branch = Branch { system_id: u64::MAX, timeline: 3, switch: Lsn(0x16_0000_0028) };
        let record = Record::first("pg-01", branch, None);
        for confirmed in [true, false] {
            let kept = Kept::new(record.clone(), confirmed);
            assert_eq!(kept.is_warm(), confirmed);
            save(directory.path(), "a/b", &kept).unwrap();
            assert_eq!(load(directory.path(), "a/b"), Ok(Some(kept)));
        }
        assert_eq!(load(directory.path(), "other"), Ok(None));
        // Another start of the machine.
        let kept = Kept { confirmed: Some("other".into()), ..Kept::new(record, true) };
        assert!(!kept.is_warm());
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let directory = scratch::Directory::new("postgres-damaged");
        for text in ["", "{}", "{\"version\": 2}", "\0"] {
            fs::write(path(directory.path(), "db"), text).unwrap();
            assert!(load(directory.path(), "db").is_err(), "{text}");
        }
        fs::remove_file(path(directory.path(), "db")).unwrap();
        fs::create_dir(directory.path().join("postgres-db.json.new")).unwrap();
        let branch = Branch { system_id: 1, timeline: 1, switch: Lsn(0) };
        let kept = Kept::new(Record::first("pg-01", branch, None), true);
        assert!(save(directory.path(), "db", &kept).is_err());
    }
}
